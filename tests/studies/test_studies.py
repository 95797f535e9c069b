"""The studies' files say nothing that the package does not know, and the paper's numbers."""

from __future__ import annotations

import importlib

import pytest
from evaluation.small import small_net, task

import fastxai
from fastxai import evaluation, studies
from fastxai.models import INITIALISATIONS

RUNS = ("train", "accuracy", "weights", "hessian", "stability", "pictures", "robustness", "attacked")


@pytest.mark.parametrize("name", studies.names())
def test_every_name_in_a_study_is_known(name: str) -> None:
    study = studies.load(name)
    assert study.methods.keys() <= evaluation.METHODS.keys()
    assert all(table["title"] for table in study.methods.values())
    before: set[str] = set()
    for experiment in study.experiments.values():
        if study.kind == "pairs":
            assert callable(evaluation.experiment(experiment.run))
        else:
            assert experiment.run in RUNS
            assert all(studies.chosen(study.networks, [pattern]) for pattern in experiment.networks)
        assert set(experiment.methods) <= study.methods.keys()
        assert experiment.per_method.keys() <= set(experiment.methods)
        assert experiment.needs == "" or experiment.needs in before, "what others build on comes first"
        before.add(experiment.name)
    for section in study.sections:
        assert callable(importlib.import_module(f"fastxai.report.sections.{section}").build)
    kinds = {"pairs": {"pairs", "batch", "seed", "examples"}, "networks": {"samples", "batch", "seed"}}
    assert study.defaults.keys() == kinds[study.kind]


def test_noise_is_redrawn_or_fixed_and_nothing_else_differs() -> None:
    redrawn, fixed = (studies.load("geometry").experiments[name] for name in ("smooth_grad", "smooth_grad_fixed"))
    assert redrawn.settings == {**fixed.settings, "redraw": True}


def test_the_networks_are_those_of_the_paper() -> None:
    """[R] section 4: 25 without the Hessian penalty, and six penalties on each of the 20 with softplus."""
    networks = studies.load("robustness").networks
    assert len({network.name for network in networks}) == len(networks) == 25 + 120
    found = {
        (
            network.settings["fit"]["weight_decay"],
            network.settings["model"]["activation"],
            network.settings["model"].get("beta"),
            network.settings["terms"]["hessian_norm"],
        )
        for network in networks
    }
    decays, betas, penalties = (
        (0.0, 5e-5, 5e-4, 5e-3, 1e-2),
        (10.0, 5.0, 1.0, 0.5),
        (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
    )
    soft = {(decay, "softplus", beta, p) for decay in decays for beta in betas for p in (0.0, *penalties)}
    assert found == soft | {(decay, "relu", None, 0.0) for decay in decays}
    robust = next(network for network in networks if network.name == "wd5e-4_beta0.5_hess1e-6")
    assert robust.settings["fit"] == {"weight_decay": 5e-4} and robust.settings["model"]["beta"] == 0.5


def test_the_networks_of_far() -> None:
    """[F] tables 1 and 4, fig. 3; what others start from comes first, on the same data."""
    study = studies.load("far")
    networks = {network.name: network for network in study.networks}
    assert len(networks) == len(study.networks)
    seen: set[str] = set()
    for network in study.networks:
        assert network.data in ("mnist", "fashion_mnist") and network.name.startswith(f"{network.data}_")
        natural = network.settings["terms"].keys() == {"cross_entropy"}
        assert (network.start == "") == natural and network.start in {"", *seen}
        if network.start:
            start = networks[network.start]
            assert start.data == network.data and start.start == ""
            for table in ("mean", "std"):
                assert start.settings.get("data", {}).get(table) == network.settings.get("data", {}).get(table)
        seen.add(network.name)
    methods = ("natural", "adv", "ig_sum_norm", "align", "align_s", "aat", "adv_aat")
    initialisations = ("cust", "uni", "hu", "hn", "gu", "gn")
    for data, eps in (("mnist", 0.3), ("fashion_mnist", 0.1)):
        for method in methods[1:]:
            [(term, settings)] = networks[f"{data}_{method}"].settings["terms"].items()
            # Images in [-1, 1] are twice as far apart.
            assert settings["eps"] == pytest.approx(2 * eps if method == "align_s" else eps)
            assert term == {"adv": "pgd_adversarial", "align_s": "align"}.get(method, method)
    assert {
        networks[f"mnist_{name}_{method}"].settings["model"]["initialisation"]
        for name in initialisations
        for method in ("natural", "adv", "aat")
    } | {study.train["model"]["initialisation"]} == set(INITIALISATIONS)
    for method in ("aat", "adv_aat"):
        short, long = (networks[f"mnist_{method}{end}"] for end in ("", "_long"))
        assert long.settings == {**short.settings, "fit": {"epochs": 4 * study.train["fit"]["epochs"]}}
        assert long.start == short.start
    for method, own in (("aat", 1.0), ("adv_aat", 0.5)):
        course = studies.chosen(study.networks, [f"fashion_mnist_{method}", f"fashion_mnist_{method}_lambda*"])
        weights = [network.settings["terms"][method]["lambda"] for network in course]
        assert weights[0] == own and sorted(weights) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_far_is_measured_as_in_the_paper() -> None:
    """[F] table 2."""
    study = studies.load("far")
    for experiment in study.experiments.values():
        if experiment.run == "robustness":
            attack = experiment.settings["attack"]
            assert (attack["steps"], attack["restarts"], attack.get("beta", 1.0)) == (7, 3, 1.0)
            assert attack["rel_stepsize"] == pytest.approx(1.2 / 7)
    first = study.experiments["robustness"]
    assert {network.name for network in studies.chosen(study.networks, first.networks)} >= {
        f"{data}_{method}"
        for data in ("mnist", "fashion_mnist")
        for method in ("natural", "adv", "ig_sum_norm", "align", "align_s", "aat", "adv_aat")
    }
    assert len(studies.chosen(study.networks, study.experiments["saliency"].networks)) == 21


def test_grids_are_put_together() -> None:
    axes = [{"a": {"data_set": "x", "start": "a_b", "fit": {"lr": 1}}}, {"b": {"start": ""}, "c": {"fit": {"lr": 2}}}]
    assert studies.grid(axes) == (
        studies.Network("a_b", {"fit": {"lr": 1}}, "x", ""),
        studies.Network("a_c", {"fit": {"lr": 2}}, "x", "a_b"),
    )


def test_a_study_takes_the_maps_of_another() -> None:
    assert studies.load("robustness").methods == studies.load("geometry").methods


def test_merged() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert studies.merged(base, {"a": {"c": {"f": 4}}, "e": {"g": 5}}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 4}},
        "e": {"g": 5},
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_unknown_study() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*geometry"):
        studies.load("none")


# [M1] tables 1, 4 and 5: iterations and step size.
PAPER = {
    "manipulation": {
        "gradient": (1500, 1e-3),
        "input_x_gradient": (1500, 1e-3),
        "integrated_gradients": (500, 5e-3),
        "lrp": (1500, 2e-4),
        "guided_backprop": (1500, 1e-3),
        "pattern_attribution": (1500, 2e-3),
    },
    "smooth_grad": {"gradient": (1500, 3e-3), "lrp": (1500, 3e-4)},
    "beta_smoothing": {
        "gradient": (500, 2.5e-4),
        "input_x_gradient": (500, 2.5e-4),
        "integrated_gradients": (200, 2.5e-3),
        "lrp": (1500, 2e-4),
        "guided_backprop": (500, 5e-4),
        "pattern_attribution": (500, 5e-4),
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_the_geometry_study_has_the_papers_settings(name: str) -> None:
    study = studies.load("geometry")
    assert study.defaults["pairs"] == 100
    experiment = study.experiments[name]
    assert set(experiment.methods) == PAPER[name].keys()
    net = fastxai.compile(small_net())
    patterns = fastxai.PatternTrainer(net).fit([task().x])
    for method, (steps, lr) in PAPER[name].items():
        options = {k: v for k, v in study.methods[method].items() if k != "title"}
        explainer = evaluation.explainer(method, net, task().space, options, patterns)
        settings = {**experiment.settings_of(method), "preset": "imagenet"}
        said = evaluation.resolved(experiment.run, task(explainer, settings=settings))
        assert (said["attack"]["steps"], said["attack"]["lr"]) == (steps, lr)
        assert said["attack"]["beta"] == (None if method == "lrp" or name == "beta_smoothing" else [10.0, 100.0])
        if name == "beta_smoothing":
            assert said["beta"] == 0.8
        if name == "smooth_grad":
            assert said["n_samples"] == 10
