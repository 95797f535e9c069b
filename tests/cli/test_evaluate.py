"""The evaluate command: its numbers by hand, rows that survive an interruption, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.runs import data, interrupted, rows
from evaluation.small import SPACE, small_net
from torch import Tensor, nn

import fastxai
from fastxai import evaluation, studies
from fastxai.cli import _evaluate, main
from fastxai.data import Labelled, noisy, save_npz
from fastxai.explainers import PatternAttribution, Patterns, PatternTrainer
from fastxai.results import ResultStore

MODEL = "--size 8 --mean .4 .5 .6 --std .2 .25 .3"
QUICK = f"--model evaluated:build {MODEL} --data npz:data.npz --images 5 --batch 3"
TWO = "--methods gradient lrp --levels 0.01 0.3"


def softened() -> nn.Module:
    """The small net with softplus, and weights that noise reaches."""
    layers = [nn.Softplus(4.0) if isinstance(layer, nn.ReLU) else layer for layer in small_net()]  # type: ignore[attr-defined]
    return nn.Sequential(*layers).eval()


def inputs(count: int) -> Tensor:
    low, high = (torch.tensor(bound).view(3, 1, 1) for bound in (SPACE.low, SPACE.high))
    return SPACE.enter(data().images[:count].float() / 255).clamp(low, high)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with models and data."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "evaluated.py").write_text(
        "from evaluation.small import small_net as build\nfrom cli.test_evaluate import softened\n"
    )
    save_npz(folder / "data.npz", data(), data())
    save_npz(folder / "grey.npz", data(4, 1), data(4, 1))
    many = Labelled(data().images, torch.arange(9), tuple("abcdefghi"))
    save_npz(folder / "many.npz", many, many)
    return folder


def call(words: str) -> int:
    return main(["evaluate", *words.split()])


def printed(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert call(f"{words} --json") == 0
    return json.loads(capsys.readouterr().out)


def texts(folder: str) -> dict[str, str]:
    """The values of every row as the text in its file."""
    return {file.name: json.dumps(json.loads(file.read_text())["values"]) for file in Path(folder, "rows").iterdir()}


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "salt_and_pepper"])
def test_what_is_printed_is_what_the_functions_say(here: Path, noise: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(f"{QUICK} {TWO} --noise {noise} --seed 3 --out {noise}", capsys)
    x, labels, net = inputs(5), data().labels[:5], fastxai.compile(small_net())
    assert said["accuracy"] == evaluation.accuracy(net, x, labels) == 0.8
    norms = evaluation.weight_norms(small_net())
    assert said["weight_norm"]["layers"] == norms
    assert said["weight_norm"]["mean"] == pytest.approx(sum(norms.values()) / 3)
    assert said["hessian_norm"] == {"probes": 1, "normalised": None, "image": None}
    options = {k: v for k, v in studies.load("geometry").methods["lrp"].items() if k != "title"}
    for method in ("gradient", "lrp"):
        one = evaluation.explainer(method, net, SPACE, options if method == "lrp" else {})
        noises = [
            partial(noisy, level=level, kind=noise, low=SPACE.low, high=SPACE.high, seed=3) for level in (0.01, 0.3)
        ]
        for level, found in zip((0.01, 0.3), evaluation.stability(one, x, noises), strict=True):
            [line] = [row for row in said["stability"] if (row["method"], row["level"]) == (method, level)]
            assert line["noise"] == noise
            for name in ("pcc", "ssim", "mse"):
                values = getattr(found.similarity, name).double()
                assert line[name]["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
                assert line[name]["std"] == pytest.approx(values.std(correction=0).item(), rel=1e-3, abs=1e-7)
            [at] = [one for one in said["noise"] if one["level"] == level]
            assert at["class_changed"] == pytest.approx(found.changed.float().mean().item())
            assert at["accuracy"] == pytest.approx((found.perturbed_classes == labels).float().mean().item())
    assert len(said["stability"]) == 4 and len(said["noise"]) == 2
    assert said["space"]["name"] == "normalised" and said["images"] == 5


def test_hessian_norms_in_both_spaces(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = f"{QUICK} --methods gradient --levels 0.1 --probes 3 --seed 2 --out soft"
    said = printed(start.replace("evaluated:build", "evaluated:softened"), capsys)["hessian_norm"]
    images = data().images[:5].float() / 255
    nets = {
        "normalised": (fastxai.compile(softened()), inputs(5)),
        "image": (fastxai.compile(softened(), SPACE.mean, SPACE.std), images),
    }
    for name, (net, x) in nets.items():
        expected = net.hessian_norm(x, None, 3, seed=2, index=torch.arange(5))
        assert said[name]["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
        assert said[name]["std"] == pytest.approx(expected.std(correction=0).item(), rel=1e-3)
    assert said["image"]["mean"] > 9 * said["normalised"]["mean"]


def test_a_model_of_images_has_one_space(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model evaluated:softened --size 8 --data npz:data.npz --methods gradient --levels 0.1 --out plain"
    said = printed(words, capsys)
    assert said["images"] == 9 and said["space"]["name"] == "image"
    assert said["hessian_norm"].keys() == {"probes", "image"}


def test_the_table_for_people(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} {TWO} --out people") == 0
    text = capsys.readouterr().out
    assert "accuracy           80.00% of 5 images" in text
    assert "mean Hessian norm  none: the network is piecewise linear" in text
    assert "gaussian noise  accuracy  class changed" in text
    lines = [line.split() for line in text.splitlines() if line.startswith(("gradient", "lrp"))]
    assert [line[:2] for line in lines] == [[m, level] for m in ("gradient", "lrp") for level in ("0.01", "0.3")]
    assert all("+/-" in line for line in lines)
    start = f"{QUICK} {TWO} --out people".replace("evaluated:build", "evaluated:softened").replace("people", "smooth")
    assert call(start) == 0
    text = capsys.readouterr().out
    assert "on the normalised input; " in text and "on the [0, 1] image" in text


def test_rows_say_where_they_come_from(here: Path) -> None:
    assert call(f"{QUICK} {TWO} --out rows") == 0
    found = rows("rows")
    experiments = {row.experiment for row in found}
    assert experiments == {"weights", "accuracy", "hessian", "stability"} and len(found) == 1 + 2 + 2 + 2 * 2 * 2
    for row in found:
        assert row.study == "evaluate" and row.seconds >= 0 and "torch" in row.machine
        assert row.version.keys() == {"fastxai", "torch", "python"} and row.key["model"] == "evaluated:build"
        assert row.config["run"]["seed"] == 0 and row.config["run"]["data"] == data().identity
    assert sorted(row.key["images"] for row in rows("rows", experiment="accuracy")) == [[0, 3], [3, 5]]
    [one] = [row for row in rows("rows", method="lrp", level=0.3) if row.key["images"] == [3, 5]]
    assert one.config["settings"]["explainer"] == {"composite": "zplus_zb"}
    assert {len(one.values[name]) for name in ("pcc", "ssim", "mse", "changed", "correct")} == {2}


def test_an_interrupted_run_goes_on_to_the_same_values(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} {TWO} --out whole") == 0
    with interrupted(_evaluate, 6):
        assert call(f"{QUICK} {TWO} --out again") == 130
    assert "7 of 13 missing rows are now in again/rows; the same command goes on" in capsys.readouterr().err
    first = {file: file.stat().st_mtime_ns for file in Path("again/rows").iterdir()}
    assert len(first) == 7
    assert call(f"{QUICK} {TWO} --out again") == 0
    assert texts("again") == texts("whole")
    assert all(file.stat().st_mtime_ns == time for file, time in first.items()), "finished rows are not made again"


def test_a_finished_run_makes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = printed(f"{QUICK} {TWO} --out done", capsys)

    def run(*arguments: Any) -> int:
        raise AssertionError(arguments)

    monkeypatch.setattr(_evaluate, "run", run)
    assert printed(f"{QUICK} {TWO} --out done", capsys) == before
    few = printed(f"{QUICK} --methods lrp --levels 0.3 --images 4 --out done", capsys)
    assert [row["method"] for row in few["stability"]] == ["lrp"] and few["images"] == 4


def test_more_of_anything_adds_to_the_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} {TWO} --out more") == 0
    few = texts("more")
    more = f"{QUICK} --methods gradient lrp guided_backprop --levels 0.01 0.3 0.5 --images 8 --batch 2"
    grown = printed(f"{more} --out more", capsys)
    assert {name: text for name, text in texts("more").items() if name in few} == few
    fresh = printed(f"{more} --out fresh", capsys)
    for a, b in zip(grown["stability"], fresh["stability"], strict=True):
        assert (a["method"], a["level"]) == (b["method"], b["level"])
        assert a["pcc"]["mean"] == pytest.approx(b["pcc"]["mean"], rel=1e-4)
    assert (grown["noise"], grown["accuracy"]) == (fresh["noise"], fresh["accuracy"])
    assert call(f"{QUICK} {TWO} --noise laplace --probes 2 --out more") == 0
    assert {row.key["noise"] for row in rows("more", experiment="stability")} == {"gaussian", "laplace"}


def test_levels_of_a_method_share_the_maps_of_the_images(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = _evaluate.run, []

    def run(store: ResultStore, made: _evaluate.Bench, job: _evaluate.Job) -> int:
        seen.append([part.which.get("level") for part in job.parts])
        return original(store, made, job)

    monkeypatch.setattr(_evaluate, "run", run)
    assert call(f"{QUICK} {TWO} --out shared") == 0
    assert seen == [[None]] * 5 + [[0.01, 0.3]] * 4


def test_rows_of_other_patterns_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("few", 3), ("all", 9)):
        PatternTrainer(fastxai.compile(small_net())).fit([inputs(count)]).save(f"{name}.safetensors")
    start = f"{QUICK} --methods pattern_attribution --levels 0.1 --out patterns --patterns"
    said = printed(f"{start} few.safetensors", capsys)
    one = PatternAttribution(fastxai.compile(small_net()), Patterns.load("few.safetensors"))
    noise = partial(noisy, level=0.1, low=SPACE.low, high=SPACE.high)
    [found] = evaluation.stability(one, inputs(5), [noise])
    assert said["stability"][0]["pcc"]["mean"] == pytest.approx(found.similarity.pcc.mean().item(), rel=1e-4)
    assert call(f"{start} few.safetensors") == 0
    assert call(f"{start} all.safetensors") == 2
    assert "was made with explainer {'patterns': " in capsys.readouterr().err


def test_repeated_words_count_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(f"{QUICK} --methods gradient gradient --levels 0.1 0.10 --out once", capsys)
    assert len(said["stability"]) == 1


def test_grey_images_become_rgb(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--model evaluated:build {MODEL} --data npz:grey.npz --methods gradient --levels 0.1 --out grey"
    said = printed(words, capsys)
    x = SPACE.enter((data(4, 1).images.float() / 255).expand(-1, 3, -1, -1))
    assert said["accuracy"] == evaluation.accuracy(fastxai.compile(small_net()), x, data(4).labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--seed 1", "made with seed 0, this run has 1"),
        ("--mean .5 .5 .5", "made with space"),
        ("--model evaluated:softened", "made with model evaluated:build, this run has evaluated:softened"),
        ("--data npz:many.npz --model wide:build", "made with"),
    ],
)
def test_a_folder_holds_one_run(here: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "wide.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 9, 8), torch.nn.ReLU(), torch.nn.Flatten())\n"
    )
    assert call(f"{QUICK} --methods gradient --levels 0.1 --out one") == 0
    assert call(f"{QUICK} --methods gradient --levels 0.1 --out one {change}") == 2
    error = capsys.readouterr().err
    assert said in error and "choose another folder" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data npz:none.npz --out x", "--data: "),
        ("--data nothing --out x", "--data: place must be one of cifar10:..."),
        ("--images 0 --out x", "--images must be at least 1, got 0"),
        ("--images 10 --out x", "--images must be at most 9, got 10"),
        ("--batch 0 --out x", "--batch must be at least 1, got 0"),
        ("--size 6 --out x", "--size must be at least 7, got 6"),
        ("--probes 0 --out x", "--probes must be at least 1, got 0"),
        ("--levels 0.1 -0.5 --out x", "--levels must be finite and lie in 0 .. inf for gaussian, got -0.5"),
        ("--levels inf --out x", "--levels must be finite"),
        ("--noise salt_and_pepper --levels 3 --out x", "--levels must be finite and lie in 0 .. 2 for salt_and_pepper"),
        ("--data npz:many.npz --out x", "--data has the label 8, --model evaluated:build only 3 classes"),
        ("--methods pattern_attribution --out x", "--methods pattern_attribution needs --patterns FILE"),
        ("--methods lrp --patterns none --out x", "--patterns: "),
        ("--out data.npz", "--out data.npz"),
    ],
)
def test_errors_name_the_option(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} {words}") == 2
    assert said in capsys.readouterr().err


def test_words_that_argparse_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (f"{QUICK} --methods none --out x", "invalid choice: 'none'"),
        (f"{QUICK} --noise pink --out x", "invalid choice: 'pink'"),
        ("--model evaluated:build", "the following arguments are required: --data, --out"),
    ):
        with pytest.raises(SystemExit):
            call(words)
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("unfit_lrp")
def test_a_method_that_does_not_fit_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} --methods lrp --out unfit") == 2
    assert "--methods lrp does not fit the model: no rule for this operation\n" in capsys.readouterr().err


def test_a_corrupt_row_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"{QUICK} --methods gradient --levels 0.1 --out broken") == 0
    file = next(Path("broken/rows").glob("stability*.json"))
    file.write_text("{")
    assert call(f"{QUICK} --methods gradient --levels 0.1 --out broken") == 2
    assert f"{file.name} must be a row" in capsys.readouterr().err


def test_what_a_measurement_refuses_is_named_and_rows_stay(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ValueError("a must be finite, got nan")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "stability", refuse)
        assert call(f"{QUICK} --methods lrp --out stays") == 2
    said = "stability lrp: a must be finite, got nan; finished rows stay in stays/rows"
    assert capsys.readouterr().err.splitlines()[-1] == f"fastxai evaluate: error: {said}"
    assert {row.experiment for row in rows("stays")} == {"weights", "accuracy", "hessian"}
