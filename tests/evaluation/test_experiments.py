"""Each experiment against the same thing computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.small import SPACE, small_net, task
from torch import Tensor

import fastxai
from fastxai import evaluation, studies
from fastxai.attacks import Similarity
from fastxai.evaluation import Outcome, Space, Task, manipulation
from fastxai.evaluation.methods import smoothed
from fastxai.evaluation.watched import Watched
from fastxai.explainers import Explainer, Patterns, PatternTrainer, reduce_map
from fastxai.metrics import mse, pcc, pixel_flipping, ssim

PRESET = {"preset": "cifar10", "attack": {"steps": 4}}


def run(name: str, **changes: Any) -> Outcome:
    return evaluation.experiment(name)(task(**changes))


def heat(explainer: Explainer, x: Tensor, target: Tensor | None = None) -> Tensor:
    return reduce_map(explainer.attribute(x, target)).detach()


def test_space() -> None:
    images = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    x = SPACE.enter(images)
    torch.testing.assert_close(SPACE.leave(x), images)
    ends = SPACE.enter(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]).double())
    torch.testing.assert_close(ends[:, :, 0, 0], torch.tensor([SPACE.low, SPACE.high], dtype=torch.float64))
    assert SPACE.span == pytest.approx(max(SPACE.high) - min(SPACE.low))
    assert (Space().name, Space().low, Space().high) == ("image", (0.0,) * 3, (1.0,) * 3)
    assert json.loads(json.dumps(SPACE.described()))["name"] == "normalised"
    with pytest.raises(ValueError, match="std must be positive"):
        Space((0.0,), (0.0,))


@pytest.mark.parametrize("method", evaluation.METHODS)
def test_methods_are_those_of_the_study(method: str) -> None:
    net = fastxai.compile(small_net())
    x = task().x
    patterns = PatternTrainer(net).fit([x])
    expected = {
        "gradient": lambda: fastxai.Gradient(net),
        "input_x_gradient": lambda: fastxai.InputXGradient(net),
        "integrated_gradients": lambda: fastxai.IntegratedGradients(net, None, 30, "riemann_right", "probability"),
        "lrp": lambda: fastxai.LRP(net, "zplus_zb", low=SPACE.low, high=SPACE.high),
        "guided_backprop": lambda: fastxai.GuidedBackprop(net),
        "pattern_attribution": lambda: fastxai.PatternAttribution(net, patterns),
    }
    options = {k: v for k, v in studies.load("geometry").methods[method].items() if k != "title"}
    made = evaluation.explainer(method, net, SPACE, options, patterns)
    assert torch.equal(made.attribute(x), expected[method]().attribute(x))


def test_unknown_methods_and_options_and_missing_patterns_are_refused() -> None:
    net = fastxai.compile(small_net())
    with pytest.raises(ValueError, match="method must be one of"):
        evaluation.explainer("other", net, SPACE)
    with pytest.raises(ValueError, match="patterns must be given"):
        evaluation.explainer("pattern_attribution", net, SPACE)
    for method in evaluation.METHODS:
        with pytest.raises(TypeError, match="no_such_option"):
            evaluation.explainer(method, net, SPACE, {"no_such_option": 3}, Patterns({}))
    with pytest.raises(ValueError, match="defence must be one of"):
        smoothed(fastxai.Gradient(net), SPACE, {"defence": "none at all"}, 0)
    with pytest.raises(ValueError, match="experiment must name a module"):
        evaluation.experiment("nothing.at_all")
    with pytest.raises(ValueError, match="and its function"):
        evaluation.experiment("curves.Similarity")


@pytest.mark.parametrize(
    ("defence", "explainer"),
    [
        ({}, lambda base: base),
        ({"defence": "beta_smoothing", "beta": 0.8}, lambda base: fastxai.BetaSmoothing(base, 0.8)),
        (
            {"defence": "smooth_grad", "n_samples": 3, "noise": 0.1},
            lambda base: fastxai.SmoothGrad(base, 3, seed=5, stdev=0.1 * SPACE.span),
        ),
    ],
    ids=["plain", "beta_smoothing", "smooth_grad"],
)
def test_manipulate(defence: dict[str, Any], explainer: Any) -> None:
    given = task(settings={**PRESET, **defence}, seed=5, keep=1)
    found = manipulation.manipulate(given)
    method = explainer(given.explainer)
    attack = fastxai.Manipulation.preset(method, "cifar10", mean=SPACE.mean, std=SPACE.std, steps=4)
    result = attack.perturb(given.x, heat(method, given.target_x))
    values = found.values
    assert torch.equal(found.tensors["manipulated"], result.images)
    maps, target = heat(method, result.images), heat(method, given.target_x)
    assert values["map_to_target.pcc"] == pytest.approx(pcc(maps, target).tolist(), rel=1e-5)
    before = ssim(heat(method, given.x), target).tolist()
    assert values["map_to_target_before.ssim"] == pytest.approx(before, rel=1e-5)
    assert values["image.mse"] == pytest.approx(
        mse(SPACE.leave(result.images), SPACE.leave(given.x)).tolist(), rel=1e-4
    )
    assert (values["last_class_kept"], values["last_pcc"]) == (
        result.last_class_kept.tolist(),
        result.last_pcc.tolist(),
    )
    assert ("fresh_to_target.pcc" in values) == (defence.get("defence") == "smooth_grad")
    assert values["softmax_change"] == result.output_change.softmax.tolist()
    assert all(len(value) == 2 for value in values.values())
    assert json.loads(json.dumps(values)) == values
    shown = {name: value for name, value in found.tensors.items() if name.startswith("example.")}
    assert {name: len(value) for name, value in shown.items()} == dict.fromkeys(shown, 1) and len(shown) == 6
    torch.testing.assert_close(shown["example.manipulated"], SPACE.leave(result.images)[:1])


@pytest.mark.parametrize("redraw", [False, True])
def test_smooth_grad_is_judged_by_other_noise_too(redraw: bool) -> None:
    defence = {"defence": "smooth_grad", "n_samples": 3, "noise": 0.3, "redraw": redraw}
    given = task(settings={**PRESET, **defence}, seed=5)
    values = manipulation.manipulate(given).values
    own, other = (fastxai.SmoothGrad(given.explainer, 3, seed=seed, stdev=0.3 * SPACE.span) for seed in (5, 6))
    attack = fastxai.Manipulation.preset(own, "cifar10", mean=SPACE.mean, std=SPACE.std, steps=4, redraw=redraw)
    result = attack.perturb(given.x, heat(own, given.target_x))
    classes = given.explainer.net(given.x).argmax(1)
    h, h_0 = (heat(other, x, classes) for x in (result.images, given.x))
    assert values["fresh_to_target.pcc"] == pytest.approx(pcc(h, result.target_maps).tolist(), rel=1e-5)
    assert values["fresh_to_original.mse"] == pytest.approx(mse(h, h_0).tolist(), rel=1e-5)
    assert values["map_to_target.pcc"] == result.metrics.to_target.pcc.tolist()


def test_rows_say_what_an_attack_is_given() -> None:
    given = {"preset": "cifar10", "defence": "smooth_grad", "n_samples": 2, "noise": 0.1}
    redrawn, fixed = (
        evaluation.resolved("manipulation.manipulate", task(settings=given | {"attack": {"steps": 3, "redraw": again}}))
        for again in (True, False)
    )
    assert redrawn["attack"] == {**fixed["attack"], "redraw": True} and fixed["attack"]["redraw"] is False
    assert fixed["attack"]["steps"] == 3


def test_a_smoothed_map_is_attacked_with_the_plain_maps_budget() -> None:
    settings = {"preset": "imagenet", "defence": "beta_smoothing", "beta": 0.8}
    own, plain = (
        evaluation.resolved("manipulation.manipulate", task(settings=settings | more))["attack"]
        for more in ({}, {"budget": "plain"})
    )
    assert (own["steps"], own["lr"], own["beta"]) == (500, 2.5e-4, None)
    assert (plain["steps"], plain["lr"], plain["beta"]) == (1500, 1e-3, None)
    short = settings | {"budget": "plain", "attack": {"steps": 3}}
    assert evaluation.resolved("manipulation.manipulate", task(settings=short))["attack"]["steps"] == 3
    scored = settings | {"preset": "imagenet:densenet121", "budget": "plain"}
    found = evaluation.resolved("manipulation.manipulate", task(settings=scored))["attack"]
    dense = fastxai.Manipulation.preset(fastxai.Gradient(small_net()), "imagenet", "densenet121")
    assert (found["output"], found["gamma"]) == (dense.output, dense.gamma) == ("logits", 10.0)
    with pytest.raises(ValueError, match="budget must be one of 'own', 'plain', got 'large'"):
        evaluation.resolved("manipulation.manipulate", task(settings=settings | {"budget": "large"}))


def test_resolved_settings_hold_the_preset() -> None:
    said = evaluation.resolved("manipulation.manipulate", task(settings={"preset": "imagenet"}))
    assert said["attack"]["steps"] == 1500 and said["attack"]["beta"] == [10.0, 100.0]
    assert said["attack"]["c"] == pytest.approx(1e11 / 50176**2) and said["attack"]["gamma"] == 1e6
    other = evaluation.resolved("manipulation.manipulate", task(settings={"preset": "imagenet:alexnet"}))
    assert (other["attack"]["steps"], other["attack"]["output"]) == (4000, "logits")
    lrp = fastxai.LRP(fastxai.compile(small_net()), "zplus_zb", low=SPACE.low, high=SPACE.high)
    same = evaluation.resolved("manipulation.manipulate", task(lrp, settings={"preset": "imagenet:alexnet"}))
    assert (same["attack"]["steps"], same["attack"]["beta"]) == (1500, None), "networks have rows for the Gradient map"
    assert evaluation.resolved("curves.softplus_map", task(settings={"betas": [1.0]})) == {"betas": [1.0]}


def test_an_interrupted_attack_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fastxai.Gradient.map_and_scores
    calls = 0

    def interrupting(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(fastxai.Gradient, "map_and_scores", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run("manipulation.manipulate", settings=PRESET)


def test_growth() -> None:
    courses = {"growth": [10.0, 100.0], "beta_30": 30.0}
    given = task(settings={**PRESET, "courses": courses, "points": 2})
    values = manipulation.growth(given).values
    assert values["steps"] == [0, 2]
    for name, beta in courses.items():
        images = torch.tensor(values[f"{name}.image_mse"])
        assert images.shape == (2, 2) and bool((images[:, 0] == 0).all()) and bool((images[:, 1] > 0).all())
        course = tuple(beta) if isinstance(beta, list) else beta
        attack = fastxai.Manipulation.preset(
            given.explainer, "cifar10", mean=SPACE.mean, std=SPACE.std, steps=4, beta=course
        )
        target = heat(given.explainer, given.target_x)
        result = attack.perturb(given.x, target)
        assert values[f"{name}.best_map_mse"] == result.metrics.to_target.mse.tolist()
        assert [first for first, _ in values[f"{name}.map_mse"]] == mse(heat(given.explainer, given.x), target).tolist()


def test_watched_shows_iterates_and_changes_nothing() -> None:
    given = task()
    seen: list[Tensor] = []
    target = heat(given.explainer, given.target_x)
    results = [
        fastxai.Manipulation(one, steps=5, lr=1e-2, bounds=(SPACE.low, SPACE.high)).perturb(given.x, target)
        for one in (given.explainer, Watched(given.explainer, seen.append, 2))
    ]
    assert torch.equal(results[0].images, results[1].images)
    assert len(seen) == 3 and torch.equal(seen[0], given.x) and not torch.equal(seen[1], given.x)
    assert not any(x.requires_grad for x in seen)


def test_sweeps() -> None:
    given = task(keep=1)
    net = given.explainer.net
    manipulated = given.x + 0.05 * torch.randn(given.x.shape, generator=torch.Generator().manual_seed(3))
    classes = net(manipulated).argmax(1), net(given.x).argmax(1)
    beta = run("defences.beta_sweep", settings={"betas": [1.0, 5.0]}, given={"manipulated": manipulated}, keep=1)
    assert beta.values["betas"] == [1.0, 5.0]
    for i, value in enumerate((1.0, 5.0)):
        smooth = fastxai.BetaSmoothing(given.explainer, value)
        h, original = heat(smooth, manipulated, classes[0]), heat(smooth, given.x, classes[1])
        plain = heat(given.explainer, given.x)
        for name, other in (("to_smoothed_original", original), ("to_original", plain)):
            expected = Similarity.between(h, other)
            assert [over[i] for over in beta.values[f"{name}.pcc"]] == pytest.approx(expected.pcc.tolist(), abs=1e-5)
            assert [over[i] for over in beta.values[f"{name}.ssim"]] == pytest.approx(expected.ssim.tolist(), abs=1e-5)
    assert beta.tensors["example.maps"].shape == (1, 2, 8, 8)
    noise = run(
        "defences.sigma_sweep",
        settings={"noises": [0.0, 0.1], "n_samples": 3},
        given={"manipulated": given.x},
    )
    assert [over[0] for over in noise.values["to_original.pcc"]] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert all(over[1] == pytest.approx(1.0, abs=1e-5) for over in noise.values["to_smoothed_original.pcc"])
    assert all(over[1] < 0.99 for over in noise.values["to_original.pcc"])


def test_run_time() -> None:
    defences = {"none": {}, "smooth_grad": {"defence": "smooth_grad", "noise": 0.1, "n_samples": 2}}
    values = run("defences.run_time", settings={"defences": defences, "repeats": 3}).values
    assert values["images"] == 2
    assert all(len(values[f"{name}.seconds"]) == 3 and min(values[f"{name}.seconds"]) > 0 for name in defences)


def test_softplus_map_approaches_the_plain_one() -> None:
    found = run("curves.softplus_map", settings={"betas": [1.0, 1e3]}, keep=2)
    for low, high in found.values["to_plain.pcc"]:
        assert low < high and high == pytest.approx(1.0, abs=1e-2)
    assert found.tensors["example.maps"].shape == (2, 2, 8, 8)


def test_flipping() -> None:
    settings = {"fractions": 4, "defences": {"none": {}, "smooth": {"defence": "beta_smoothing", "beta": 1.0}}}
    given = task(settings=settings, seed=2)
    values = evaluation.experiment("flipping.flipping")(given).values
    h = heat(given.explainer, given.x)
    expected = pixel_flipping(given.explainer.net, given.x, h, fractions=4, seed=(2, 0))
    assert values["none.correct"] == expected.relevant.correct.tolist()
    assert values["random.area"] == expected.random.area.tolist()
    assert values["fractions"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    later = task(settings=settings, seed=2)
    second = Task(later.explainer, SPACE, later.x[1:], later.target_x[1:], [1], settings, seed=2)
    split = evaluation.experiment("flipping.flipping")(second).values
    assert split["random.correct"] == values["random.correct"][1:], "the order belongs to the pair, not to the batch"


def test_chain() -> None:
    settings = {**PRESET, "attack": {"steps": 6, "lr": 1e-2}, "betas": [2.0, 5.0], "points": 3}
    settings |= {"nodes": 4, "samples": 4, "steps": 16, "probes": None, "tolerance": None}
    values = run("geometry_chain.chain", settings=settings).values
    assert values["betas"] == [2.0, 5.0]
    for name in ("moved", "total", "spectral", "frobenius", "length", "distance"):
        assert torch.tensor(values[name]).shape == (2, 2) and bool((torch.tensor(values[name]) > 0).all())
    moved, total, spectral, frobenius = (
        torch.tensor(values[name]) for name in ("moved", "total", "spectral", "frobenius")
    )
    slack = 1 + 1e-3
    assert bool((moved <= (total + torch.tensor(values["jumps"])) * slack).all())
    assert bool((total <= spectral * slack).all()) and bool((spectral <= frobenius * slack).all())
    assert bool((torch.tensor(values["distance"]) <= torch.tensor(values["length"]) * slack).all())
    assert bool((torch.tensor(values["closure"]) < 0.2).all())


def test_no_experiment_touches_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("manipulation.manipulate", settings=PRESET, keep=2)
    assert list(tmp_path.iterdir()) == []
