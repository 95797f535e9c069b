"""Attributional robustness by the evaluate command: its figures by hand, grey models, rows that survive, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.runs import data, grey_net, interrupted, rows
from cli.test_evaluate import MODEL, QUICK, call, printed, texts
from evaluation.small import SPACE, small_net

import fastxai
from fastxai import evaluation, studies
from fastxai.cli import _evaluate
from fastxai.cli._attributional import PRESETS
from fastxai.data import Labelled, save_npz

RUN = QUICK.replace("evaluated:", "painted:")
ROBUST = f"{RUN} --robustness mnist --methods gradient"
GREY = "--model paint_grey:grey_net --size 8 --data npz:grey.npz --robustness fashion_mnist"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with models and data, of three channels and of one."""
    folder = tmp_path_factory.mktemp("attributional")
    (folder / "painted.py").write_text("from evaluation.small import small_net as build\n")
    (folder / "paint_grey.py").write_text("from cli.runs import grey_net\n")
    save_npz(folder / "data.npz", data(), data())
    images = data(6, 1).images
    labels = fastxai.compile(grey_net())(images.float() / 255).argmax(1)
    labels[1] = (labels[1] + 1) % 3
    save_npz(folder / "grey.npz", *2 * [Labelled(images, labels, ("a", "b", "c"))])
    return folder


def expected(explainer: fastxai.explainers.Explainer, preset: str, part: Labelled, seed: int = 0) -> dict[str, Any]:
    attack = fastxai.IFIA.preset(explainer, preset, seed=seed)
    return evaluation.robustness(attack, part.images.float() / 255, part.labels).summary()


def test_what_is_printed_is_what_the_function_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(f"{ROBUST} lrp --seed 3 --out said", capsys)
    net = fastxai.compile(small_net(), mean=SPACE.mean, std=SPACE.std)
    part = Labelled(data().images[:5], data().labels[:5], data().classes)
    assert [line["method"] for line in said["robustness"]] == ["gradient", "lrp"]
    for line in said["robustness"]:
        options = {k: v for k, v in studies.load("geometry").methods[line["method"]].items() if k != "title"}
        image = evaluation.Space((0.0,) * 3, (1.0,) * 3)
        one = evaluation.explainer(line["method"], net, image, options)
        assert line["explainer"] == options
        for name, value in expected(one, "mnist", part, seed=3).items():
            assert line[name] == pytest.approx(value, abs=1e-5)
    assert said["robustness"][0]["natural_accuracy"] == 0.8
    attack = said["settings"]["attack"]
    assert (attack["eps"], attack["k"], attack["steps"], attack["restarts"]) == (0.3, 50, 7, 3)
    assert said["settings"]["adversary"]["steps"] == 40 and said["settings"]["preset"] == "mnist"
    assert not {"stability", "noise", "hessian_norm", "weight_norm"} & said.keys()


def test_options_change_the_attack(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--eps 0.2 --k 7 --steps 3 --restarts 2 --beta 4.5 --points 4"
    said = printed(f"{ROBUST} integrated_gradients {words} --seed 3 --out changed", capsys)
    net = fastxai.compile(small_net(), mean=SPACE.mean, std=SPACE.std)
    part = Labelled(data().images[:5], data().labels[:5], data().classes)
    changes = {"eps": 0.2, "k": 7, "steps": 3, "restarts": 2, "beta": 4.5}
    for line in said["robustness"]:
        one = fastxai.Gradient(net)
        if line["method"] == "integrated_gradients":
            assert line["explainer"] == {"n_steps": 4, "method": "gausslegendre"}
            one = fastxai.IntegratedGradients(net, n_steps=4, method="gausslegendre")
        attack = fastxai.IFIA.preset(one, "mnist", seed=3, **changes)
        wanted = evaluation.robustness(attack, part.images.float() / 255, part.labels).summary()
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, abs=1e-5)
    assert changes.items() <= said["settings"]["attack"].items() and said["settings"]["adversary"]["eps"] == 0.2
    assert call(f"{ROBUST} integrated_gradients {words.replace('--k 7', '--k 8')} --seed 3 --out changed") == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_model_of_grey_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{GREY} --out grey") == 0
    assert "fallback" not in capsys.readouterr().err, "the trial of three channels leaves no trace"
    [line] = printed(f"{GREY} --out grey", capsys)["robustness"]
    assert line["method"] == "integrated_gradients" and line["natural_accuracy"] == pytest.approx(5 / 6)
    one = fastxai.IntegratedGradients(grey_net(), **line["explainer"])
    part = grey()
    for name, value in expected(one, "fashion_mnist", part).items():
        assert line[name] == pytest.approx(value, abs=1e-5)
    # Every other number of the command has one channel too.
    noise = GREY.replace("--robustness fashion_mnist", "--methods gradient --levels 0.1 --mean .2 --std .5")
    said = printed(f"{noise} --out noise", capsys)
    assert said["space"] == {"name": "normalised", "low": [pytest.approx(-0.4)], "high": [pytest.approx(1.6)]}


def grey() -> Labelled:
    return fastxai.data.labelled("npz:grey.npz", "test")


def test_the_table_for_people(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{ROBUST} --out people") == 0
    text = capsys.readouterr().out
    assert "5 images, eps 0.3 (mnist)" in text and "40 steps of 0.009" in text
    assert "top-50 intersection" in text and "7 steps of 0.0514, 3 restarts, beta 1" in text
    [head] = [line.split() for line in text.splitlines() if line.startswith("map")]
    [line] = [line.split() for line in text.splitlines() if line.startswith("gradient")]
    assert head == ["map", "NA", "AA", "IN", "CO", "moved", "skipped"] and line[1] == "80.00%" and line[6] == "20.00%"


def test_no_image_is_right(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = (data().labels + 1) % 3
    wrong[1] = 0
    save_npz("wrong.npz", *2 * [Labelled(data().images, wrong, data().classes)])
    words = f"{ROBUST} --out wrong --images 2".replace("npz:data", "npz:wrong")
    [line] = printed(words, capsys)["robustness"]
    assert line["skipped"] == 1 and line["top_k"] is None and line["kendall_tau"] is None
    assert call(words) == 0
    [row] = [row.split() for row in capsys.readouterr().out.splitlines() if row.startswith("gradient")]
    assert row[3:5] == ["-", "-"]


def test_rows_go_on_and_live_beside_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{RUN} --methods gradient --levels 0.1 --out rows") == 0
    with interrupted(_evaluate, 1):
        assert call(f"{ROBUST} --out rows") == 130
    assert "1 of 2 missing rows are now in rows/rows" in capsys.readouterr().err
    stopped = texts("rows")
    whole = printed(f"{ROBUST} --out whole", capsys)
    went_on = printed(f"{ROBUST} --out rows", capsys)
    assert went_on["robustness"] == whole["robustness"]
    assert {name: text for name, text in texts("rows").items() if name in stopped} == stopped
    found = rows("rows", experiment="robustness")
    assert sorted(row.key["images"] for row in found) == [[0, 3], [3, 5]]
    assert all(row.key["preset"] == "mnist" and row.config["settings"]["attack"]["beta"] == 1 for row in found)
    assert {"correct", "withstood", "moved", "top_k", "tau"} == found[0].values.keys()
    assert json.loads(next(Path("rows/rows").glob("robustness*.json")).read_text())["study"] == "evaluate"


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_changes_nothing(here: Path, batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    one = printed(f"{ROBUST} --out batches{batch} --batch {batch}", capsys)["robustness"][0]
    other = printed(f"{ROBUST} --out batches5 --batch 5", capsys)["robustness"][0]
    assert {k: v for k, v in one.items() if k != "kendall_tau"} == {
        k: v for k, v in other.items() if k != "kendall_tau"
    }
    assert one["kendall_tau"] == pytest.approx(other["kendall_tau"], abs=1e-4)


def test_the_presets_are_those_of_the_attack() -> None:
    explainer = fastxai.Gradient(grey_net())
    assert all(fastxai.IFIA.preset(explainer, name).restarts == 3 for name in PRESETS)
    with pytest.raises(ValueError, match=", ".join(map(repr, PRESETS))):
        fastxai.IFIA.preset(explainer, "none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{ROBUST.replace('mnist', 'cifar10')} --out x", "--methods gradient does not fit the model: k must be"),
        (
            f"{GREY.replace('grey.npz', 'data.npz')} --out x",
            "--data has images of 3 channels, --model paint_grey:grey_net",
        ),
        (f"{GREY} --mean .5 .5 --out x", "--mean must have one value a channel, got 0.5 0.5"),
        (f"{GREY} --mean .5 .5 .5 --out x", "does not take images [1, 3, 8, 8] (--size)"),
        (f"{GREY.replace('--size 8', '--size 5')} --out x", "take images [1, 3, 5, 5] or [1, 1, 5, 5] (--size)"),
        (f"{ROBUST} --noise gaussian --out x", "--noise does not go with --robustness"),
        (f"{ROBUST} --levels 0.005 0.01 0.025 --out x", "--levels does not go with --robustness"),
        (f"{ROBUST} --probes 1 --out x", "--probes does not go with --robustness"),
        (f"{ROBUST} --eps -1 --out x", "--eps must be finite and positive, got -1"),
        (f"{ROBUST} --k 0 --out x", "--k must be a positive int, got 0"),
        (f"{ROBUST} --restarts 0 --out x", "--restarts must be an int, 1 or more, got 0"),
        (f"{ROBUST} --points 0 --out x", "--points must be at least 1, got 0"),
        (f"{RUN} --k 9 --out x", "--k goes with --robustness"),
        (f"{ROBUST} --points 5 --out x", "--points goes with --methods integrated_gradients, got gradient"),
        (f"--model painted:build {MODEL} --data npz:data.npz --robustness mnist --std 1 --out x", "--std must have"),
    ],
)
def test_errors_name_the_option(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(words) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_preset(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(f"{RUN} --robustness svhn --out x")
    assert "invalid choice: 'svhn'" in capsys.readouterr().err
