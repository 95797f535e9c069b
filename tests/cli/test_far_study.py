"""The study of [F]: networks that start from others, two data sets, attacks in rows, a page beside the paper's."""

from __future__ import annotations

import fnmatch
import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli.runs import data, drawn, findings, grey_net, interrupted, made_whole, rows
from safetensors.torch import load_file

import fastxai
from fastxai import evaluation, report, studies
from fastxai.cli import _networks, main, train
from fastxai.data import save_npz
from fastxai.report import Picture, Table, Text
from fastxai.report.sections import _attributional
from fastxai.report.sections import _networks as networks
from fastxai.results import ResultStore

SETS = "mnist=npz:mnist.npz fashion_mnist=npz:fashion.npz"
QUICK = (
    f"study far --data {SETS} --model greys:grey_net --epochs 1 --set data.epoch=8 --set fit.batch=4 --samples 5 "
    "--batch 3"
)
NAMES = ("mnist_natural", "mnist_aat", "mnist_align_s", "fashion_mnist_adv_aat")
SOME = f"{QUICK} --networks {' '.join(NAMES)}"
ONE = f"{QUICK} --networks mnist_aat --only robustness"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far")
    (folder / "greys.py").write_text("from cli.runs import grey_net\n")
    save_npz(folder / "mnist.npz", data(12, 1), data(7, 1))
    save_npz(folder / "fashion.npz", data(9, 1), data(8, 1))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Some networks and what they start from, everything measured, made once."""
    return made_whole(folder, SOME)


def test_what_others_start_from_is_trained_first_and_measured_only_if_asked_for(whole: Path) -> None:
    trained = {row.key["model"]: row for row in rows(whole, experiment="train")}
    assert trained.keys() == {*NAMES, "mnist_natural_s", "fashion_mnist_natural"}
    measured = {row.key["model"] for row in rows(whole) if row.experiment != "train"}
    assert measured == set(NAMES)
    settings = {name: row.config["settings"] for name, row in trained.items()}
    assert settings["mnist_aat"]["model.start"] == "mnist_natural" and settings["mnist_aat"]["data.name"] == "mnist"
    assert "model.start" not in settings["mnist_natural"] and "data.place" not in settings["mnist_natural"]
    own = studies.load("far").terms["aat"]
    assert settings["mnist_aat"]["terms.aat"] == {**own, "eps": 0.3, "lambda": 0.5}
    assert settings["mnist_align_s"]["data.mean"] == [0.5]
    assert all(row.values["steps"] == 2 and row.values["seed"] == 42 for row in trained.values())
    told = {name: row.config["run"] for name, row in trained.items()}
    assert (
        told["mnist_aat"]["training_data"] == data(12, 1).identity and told["mnist_aat"]["data"] == data(7, 1).identity
    )
    assert told["fashion_mnist_adv_aat"]["training_data"] == data(9, 1).identity
    assert told["mnist_align_s"]["space"] == {"name": "normalised", "low": [-1.0], "high": [1.0]}


@pytest.mark.usefixtures("unreported")
def test_training_begins_with_the_starts_weights(here: Path, whole: Path) -> None:
    """With a step size of 0 both files hold the same, though the initialisation is another."""
    still = f"{QUICK} --networks mnist_gn_aat --only train --set fit.lr=0.0 --out still"
    assert main(still.split()) == 0
    start, found = (
        load_file(here / "still" / "models" / f"{name}.safetensors") for name in ("mnist_gn_natural", "mnist_gn_aat")
    )
    assert all(torch.equal(start[name], found[name]) for name in start)
    torch.manual_seed(42)
    drawn = fastxai.models.initialise(grey_net(), "glorot_normal")
    for name, weight in drawn.state_dict().items():
        assert torch.equal(found[name], weight.half())
    settings = rows("still", experiment="train", model="mnist_gn_aat")[0].config["settings"]
    assert settings["model.initialisation"] == "glorot_normal" and "model.weights" not in settings


@pytest.mark.parametrize("name", ["mnist_aat", "mnist_align_s", "fashion_mnist_adv_aat"])
def test_figures_are_those_of_the_function(here: Path, whole: Path, name: str) -> None:
    """[F]'s radii count in the [0, 1] image, wherever the network takes its inputs from."""
    model = grey_net()
    model.load_state_dict(load_file(whole / "models" / f"{name}.safetensors"))
    scale = [0.5] if name.endswith("_s") else None
    part = data(8 if name.startswith("fashion") else 7, 1)
    preset = "fashion_mnist" if name.startswith("fashion") else "mnist"
    explainer = fastxai.IntegratedGradients(fastxai.compile(model, mean=scale, std=scale), n_steps=10)
    attack = fastxai.IFIA.preset(explainer, preset, seed=42)
    found = evaluation.robustness(attack, part.images[:5].float() / 255, part.labels[:5]).summary()
    one = networks.Network(name, rows(whole, experiment="train", model=name)[0], rows(whole, model=name))
    figures = _attributional.figures(one, "robustness", preset=preset)
    assert figures is not None and figures.images == 5
    assert figures.natural == pytest.approx(100 * found["natural_accuracy"])
    assert figures.adversarial == pytest.approx(100 * found["adversarial_accuracy"])
    for mine, theirs in ((figures.top_k, "top_k"), (figures.tau, "kendall_tau"), (figures.moved, "attack_success")):
        assert mine == pytest.approx(found[theirs], abs=1e-5, nan_ok=True)


def test_sweeps_have_a_row_for_each_value(whole: Path) -> None:
    experiments = studies.load("far").experiments
    betas = {row.key["beta"] for row in rows(whole, experiment="surrogate", model="mnist_natural")}
    assert betas == set(experiments["surrogate"].settings["betas"])
    points = {row.key["n_steps"] for row in rows(whole, experiment="points", model="mnist_aat")}
    assert points == set(experiments["points"].settings["points"])
    for row in rows(whole, experiment="surrogate") + rows(whole, experiment="points"):
        settings = row.config["settings"]
        assert settings["attack"]["beta"] == row.key.get("beta", 1.0)
        assert (
            settings["attack"]["eps"] == 0.3
            and settings["attack"]["restarts"] == 3
            and settings["attack"]["steps"] == 7
        )
    three = rows(whole, experiment="points", model="mnist_aat", n_steps=3, images=[0, 3])[0]
    model = grey_net()
    model.load_state_dict(load_file(whole / "models" / "mnist_aat.safetensors"))
    attack = fastxai.IFIA.preset(fastxai.IntegratedGradients(model, n_steps=3), "mnist", seed=42)
    part = data(7, 1)
    found = evaluation.robustness(attack, part.images[:3].float() / 255, part.labels[:3])
    torch.testing.assert_close(torch.tensor(three.values["top_k"]), found.top_k, equal_nan=True)


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_run_goes_on(here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted(_networks, 2):
        assert main(f"{ONE} --out again".split()) == 130
    # The start is there; nobody asks for its rows.
    assert {row.key["model"] for row in rows("again")} == {"mnist_natural", "mnist_aat"}
    monkeypatch.setattr(train, "trained", lambda *_, **__: pytest.fail("trained again"))
    assert main(f"{ONE} --out again".split()) == 0
    wanted = {row.name: {**row.values, "seconds": 0} for row in rows(whole, experiment="robustness", model="mnist_aat")}
    found = {row.name: {**row.values, "seconds": 0} for row in rows("again", experiment="robustness")}
    assert json.dumps(found) == json.dumps(wanted) and len(found) == 2


@pytest.mark.usefixtures("unreported")
def test_a_network_brought_along_needs_no_start(here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "brought" / "models").mkdir(parents=True)
    name = "models/mnist_aat.safetensors"
    (here / "brought" / name).write_bytes((whole / name).read_bytes())
    monkeypatch.setattr(train, "trained", lambda *_, **__: pytest.fail("trained again"))
    assert main(f"{ONE} --out brought".split()) == 0
    assert {row.key["model"] for row in rows("brought")} == {"mnist_aat"}


@pytest.mark.usefixtures("unreported")
def test_one_data_set_is_enough(here: Path) -> None:
    words = f"{QUICK} --networks *_natural --only train --out half".replace(SETS, SETS.split()[1])
    assert main(words.split()) == 0
    assert {row.key["model"] for row in rows("half")} == {"fashion_mnist_natural"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (QUICK.replace(SETS, "npz:mnist.npz"), "--data must be NAME=KIND:FOLDER, NAME one of mnist fashion_mnist, got"),
        (QUICK.replace(SETS, "cifar=npz:mnist.npz"), "NAME one of mnist fashion_mnist, got cifar=npz:mnist.npz"),
        (SOME.replace(SETS, SETS.split()[0]), "--data fashion_mnist=KIND:FOLDER is needed for fashion_mnist_adv_aat"),
        (f"{QUICK} --networks none", "--networks must match names such as mnist_natural"),
        (f"{QUICK} --methods lrp", "--methods must be all or some of integrated_gradients gradient, got lrp"),
        (f"{QUICK} --set model.speed=3", "[model] speed must be one of"),
        (ONE.replace("--model greys:grey_net ", ""), "--data holds images [1, 8, 8], which the network does not take"),
        (f"{ONE} --set fit.lr=0.5 --out whole", "this run has 0.5; choose another folder"),
        ("study robustness --data npz:mnist.npz npz:fashion.npz", "--data must be one place for robustness, got"),
    ],
)
def test_errors_name_the_option(
    here: Path, whole: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), *([] if "--out" in words else ["--out", "x"])]) == 2
    assert said in capsys.readouterr().err


def sections_of(folder: Path) -> dict[str, report.Section]:
    return report.build_sections(findings(folder, "far"), studies.load("far").sections)


def test_the_page_tells_the_deviations(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    for section in studies.load("far").sections:
        assert f'<section id="{section}">' in text
    said = " ".join(
        block.text for block in sections_of(whole / "rows")["attributional_table"].blocks if isinstance(block, Text)
    )
    for deviation in (
        "all: epochs 1 (50), batch 4 (50), images an epoch 8 (60000)",
        "mnist_align_s: learning rate 0.001 (1e-4), attack steps 5 of 0.240 eps (7 of 0.171 eps), restarts 1 (3)",
        "mnist_aat, fashion_mnist_adv_aat: learning rate 0.001 (1e-4), attack steps 5 of 0.240 eps (7 of 0.171 eps), ",
        "The surrogate of the outer step is curvature.",
        "the first 5 test images (10000)",
        "seed 42 (means over 3 seeds and splits)",
        "All others started from the weights of fashion_mnist_natural, mnist_natural, mnist_natural_s.",
    ):
        assert deviation in said, deviation
    assert "lambda" not in said, "those are the paper's"
    assert "(12.10)" in text and "(0.76)" in text and "(86.70)" in text and "[F] table 1" in text


def _terms_of(network: studies.Network) -> dict[str, Any]:
    common = studies.load("far").terms
    return {
        name: {**common[name], **value} if isinstance(value, dict) else value
        for name, value in network.settings["terms"].items()
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnist_gn_aat", "learning rate 0.001 (1e-4)"),
        ("fashion_mnist_aat_lambda0.5", "learning rate 0.001 (1e-4)"),
        ("mnist_aat_points2", "learning rate 0.001 (1e-4)"),
        ("mnist_hu_natural", "epochs 2 (50)"),
    ],
)
def test_every_network_of_the_study_is_compared_with_the_paper(name: str, said: str) -> None:
    study, file = studies.load("far"), Path(report.__file__).parent / "paper" / "far.toml"
    paper = tomllib.loads(file.read_text())["training"]
    [network] = [one for one in study.networks if one.name == name]
    tables = {**studies.merged(study.train, network.settings), "terms": _terms_of(network)}
    flat = {f"{table}.{key}": value for table, entries in tables.items() for key, value in entries.items()}
    row = SimpleNamespace(config={"settings": flat})
    one = SimpleNamespace(name=name, trained=row)
    deviations = _attributional._deviations(one, paper)
    assert said in deviations and not any("lambda" in each for each in deviations)


def test_every_section_has_something_to_show(whole: Path, tmp_path: Path) -> None:
    """Rows as of all networks."""
    store, made = ResultStore(tmp_path), rows(whole)
    found = studies.load("far")
    for network in found.networks:
        source = "mnist_natural" if not network.start else "mnist_aat"
        for row in made:
            chosen = [e for e in found.experiments.values() if e.name == row.experiment]
            if row.key["model"] != source or not studies.chosen([network], chosen[0].networks):
                continue
            terms = {f"terms.{name}": value for name, value in _terms_of(network).items()}
            settings = {**row.config["settings"], **terms}
            key = {**row.key, "model": network.name, **({"preset": network.data} if "preset" in row.key else {})}
            config = {**row.config, "settings": settings if row.experiment == "train" else row.config["settings"]}
            store.write(replace(row, key=key, config=config))
    sections = sections_of(tmp_path)
    assert drawn(sections) == {
        "attributional_table": [],
        "lambda_curves": [2],
        "initialisation_table": [2],
        "surrogate_curves": [1],
        "points_curves": [2],
        "attacked_maps": [],
    }
    tables = {name: [b for b in section.blocks if isinstance(b, Table)] for name, section in sections.items()}
    assert len(tables["attributional_table"][0].rows) == 16 and len(tables["initialisation_table"][0].rows) == 21
    assert [row[0] for row in tables["points_curves"][0].rows] == ["2", "4", "8", "16"]
    weights = sections["lambda_curves"].blocks[1].figures[0].axes[0].lines[0].get_xdata()  # type: ignore[union-attr]
    np.testing.assert_array_equal(weights, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5])
    first = {row[0]: row[1:5] for row in tables["attributional_table"][0].rows}
    assert "(" not in "".join(first["MNIST, AAT, longer"])
    assert first["MNIST, IG-SN*"][1].endswith("(88.20)") and first["Fashion-MNIST, AdvAAT"][3].endswith("(0.82)")


def test_pictures_that_are_missing_are_named(whole: Path, tmp_path: Path) -> None:
    for file in (whole / "rows").glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    section = sections_of(tmp_path)["attacked_maps"]
    names = [row.name for row in rows(whole, experiment="pictures")]
    assert not section.blocks and all(f"{name}.json" in section.missing for name in names) and names
    assert "--only pictures" in section.missing


def test_pictures_are_those_of_the_attack(whole: Path) -> None:
    """Two images, whatever is measured else; the label's map of both, as it is compared."""
    [row] = rows(whole, experiment="pictures", model="mnist_natural")
    assert row.key["images"] == [0, 2] and row.config["settings"]["attack"]["restarts"] == 3
    tensors = ResultStore(whole / "rows").tensors(row)
    model = grey_net()
    model.load_state_dict(load_file(whole / "models" / "mnist_natural.safetensors"))
    part, explainer = data(7, 1), fastxai.Gradient(model)
    x = part.images[:2].float() / 255
    found = fastxai.IFIA.preset(explainer, "mnist", seed=42).perturb(x, part.labels[:2])
    torch.testing.assert_close(tensors["images"], torch.stack([x, found.images], 1))
    for side, images in enumerate((x, found.images)):
        h = fastxai.explainers.reduce_map(explainer.attribute(images, part.labels[:2]).detach())
        torch.testing.assert_close(tensors["maps"][:, side], h)
    before, after = tensors["maps"].unbind(1)
    alike = fastxai.metrics.top_k_intersection(before, after, 50)
    torch.testing.assert_close(torch.tensor(row.values["top_k"]), alike)
    shown = sections_of(whole / "rows")["attacked_maps"].blocks
    assert len(shown) == 2 and all(isinstance(block, Picture) for block in shown)


def test_no_rows_no_sections(tmp_path: Path) -> None:
    assert not any(section.blocks for section in sections_of(tmp_path).values())


# [F] tables 1 and 4: NA, AA, IN, CO.
PAPER = {
    "accuracy_and_maps": {
        "mnist_natural": [99.4, 12.1, 0.43, 0.10],
        "mnist_align_s": [95.2, 12.3, 0.58, 0.43],
        "mnist_adv_aat": [98.7, 77.1, 0.77, 0.73],
        "fashion_mnist_align": [90.2, 30.5, 0.48, 0.60],
        "fashion_mnist_aat": [89.8, 0.01, 0.80, 0.82],
    },
    "initialisations": {
        "mnist_natural": [99.1, 0.0, 0.23, 0.20],
        "mnist_gu_adv": [99.0, 93.6, 0.21, 0.45],
        "mnist_gn_aat": [98.7, 9.1, 0.39, 0.28],
    },
}


def test_the_papers_numbers(tmp_path: Path) -> None:
    paper = report.Findings(ResultStore(tmp_path), "far", {}).paper
    known = {network.name for network in studies.load("far").networks}
    for table, some in PAPER.items():
        found = paper[table]["rows"]
        assert found.keys() <= known and len(found) == {"accuracy_and_maps": 14, "initialisations": 21}[table]
        for name, row in some.items():
            assert found[name] == row
        for natural, adversarial, top_k, tau in found.values():
            assert 80 < natural < 100 and 0 <= adversarial < natural and 0 < tau < 1 and 0 < top_k < 1
            assert not math.isnan(natural)
    assert all(fnmatch.filter(known, pattern) for pattern in paper["training"]["networks"])
