"""What the study command does where model, options or images do not fit: one line, before any row where it can tell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.runs import rows
from cli.test_study import QUICK, call
from evaluation.small import coloured, small_net
from torch import nn

from fastxai import evaluation, studies
from fastxai.data import save_png
from fastxai.evaluation import Outcome, Task

STUDY = studies.load("geometry")
ABOUT_SOFTPLUS = {"beta_sweep", "beta_smoothing", "growth", "softplus", "chain"}


def curved() -> nn.Module:
    """The small net with GELU, which softplus stands for nowhere."""
    layers = [nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in small_net()]  # type: ignore[attr-defined]
    return nn.Sequential(*layers).eval()


def broken() -> nn.Module:
    """The small net with a weight that is no number."""
    model = small_net()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = torch.nan
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with models and photos."""
    folder = tmp_path_factory.mktemp("study_fit")
    for i, image in enumerate(coloured(4)):
        save_png(image, folder / "photos" / f"{i}.png")
    (folder / "studied.py").write_text("from evaluation.small import small_net as build\n")
    (folder / "fitted.py").write_text("from cli.test_study_fit import broken, curved\n")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--seed -1", "--seed must lie in 0 .. 2147483647, got -1"),
        ("--seed 99999999999999", "--seed must lie in 0 .. 2147483647, got 99999999999999"),
        ("--size 6", "--size must be at least 7, got 6"),
        ("--model fitted:broken", "--model must have finite scores, got inf or nan for "),
    ],
)
def test_what_no_experiment_can_work_with_is_refused_at_once(
    here: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"study geometry {QUICK} {change} --out refused") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastxai study: error: {said}") and error.count("\n") == 1
    assert rows("refused") == []


def test_a_study_of_networks_refuses_a_seed_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("study robustness --data cifar10:gone --seed -1 --out networks") == 2
    assert "--seed must lie in 0 .. 2147483647, got -1" in capsys.readouterr().err


@pytest.mark.usefixtures("unreported")
def test_what_an_experiment_refuses_is_named_and_rows_stay(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, words = evaluation.experiment, f"study geometry {QUICK} --methods gradient --out stays"

    def refusing(name: str) -> Any:
        def refuse(task: Task) -> Outcome:
            raise ValueError("x must be finite, got nan\nand more")

        return refuse if name == "curves.softplus_map" else found(name)

    only = "--only manipulation --only softplus"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "experiment", refusing)
        assert call(f"{words} {only}") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    said = "softplus gradient: x must be finite, got nan; finished rows stay in stays/rows"
    assert last == f"fastxai study: error: {said}"
    assert [row.experiment for row in rows("stays")] == ["manipulation"] * 2
    assert call(f"{words} {only}") == 0 and len(rows("stays")) == 4


@pytest.mark.usefixtures("unreported")
def test_experiments_about_softplus_are_left_out_where_it_changes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"study geometry {QUICK} --model fitted:curved --methods gradient --pairs 1 --out gelu"
    assert call(words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1 and lines[0].endswith("the model has no ReLU-like units, so softplus changes nothing")
    named = lines[0].removeprefix("fastxai: ").split(" are left out")[0].split(", ")
    made = {row.experiment for row in rows("gelu")}
    assert set(named) >= {*ABOUT_SOFTPLUS, "beta_smoothing of run_time", "beta_smoothing of flipping"}
    assert made == set(STUDY.experiments) - set(named) and not made & ABOUT_SOFTPLUS
    assert {"manipulation", "sigma_sweep", "smooth_grad", "flipping", "run_time"} <= made
    for row in (row for name in ("flipping", "run_time") for row in rows("gelu", experiment=name)):
        defences = row.config["settings"]["defences"]
        assert {"none"} < defences.keys() and "beta_smoothing" not in defences
        assert not any(value.startswith("beta_smoothing") for value in row.values)
    [attacked] = rows("gelu", experiment="manipulation")
    assert attacked.config["settings"]["attack"]["beta"] is None
    assert call(words) == 0 and len(rows("gelu")) == len(made)


@pytest.mark.parametrize("experiment", sorted(ABOUT_SOFTPLUS))
def test_experiments_about_softplus_are_refused_by_name(
    here: Path, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"study geometry {QUICK} --model fitted:curved --only manipulation --only {experiment} --out named"
    assert call(words) == 2
    said = f"--only {experiment} does not fit the model: the model has no ReLU-like units, so softplus changes nothing"
    assert said in capsys.readouterr().err and rows("named") == []


@pytest.mark.usefixtures("unreported")
def test_what_is_left_out_is_said_only_where_it_was_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"study geometry {QUICK} --model fitted:curved --methods gradient --out asked"
    assert call(f"{words} --only manipulation") == 0
    assert "left out" not in capsys.readouterr().err
    assert call(f"{words} --only flipping") == 0
    assert "fastxai: beta_smoothing of flipping is left out: " in capsys.readouterr().err


def test_a_page_without_experiments_about_softplus(here: Path) -> None:
    words = f"study geometry {QUICK} --model fitted:curved --methods gradient --pairs 1 --out page"
    assert call(f"{words} --only flipping --only run_time") == 0
    text = (here / "page" / "report.html").read_text()
    assert "No rows yet of softplus." in text and "Pixel flipping" in text


@pytest.mark.usefixtures("unreported")
def test_other_images_of_the_same_names_and_sizes_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("photos", "changing")
    words = f"study geometry {QUICK} --images changing --methods gradient --only softplus --out changed"
    assert call(words) == 0
    before, file = rows("changed"), Path("changing/0.png")
    pixels = bytearray(file.read_bytes())
    # The picture's checksum is not read.
    file.write_bytes(bytes([*pixels[:-1], pixels[-1] ^ 1]))
    assert call(f"{words} --pairs 3") == 2
    error = capsys.readouterr().err
    assert "was made with images " in error and "choose another folder" in error and rows("changed") == before
    file.write_bytes(pixels)
    assert call(f"{words} --pairs 3") == 0 and len(rows("changed")) == 3
