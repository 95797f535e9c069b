"""What the study command does with a folder that holds rows: of another run, without images, spoilt."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli.runs import interrupted, made_whole, rows
from cli.test_study import QUICK, Page, call, values
from evaluation.small import SPACE, coloured, small_net
from safetensors.torch import load_file, save_file

import fastxai
from fastxai.cli import _study
from fastxai.data import save_png
from fastxai.explainers import PatternTrainer
from fastxai.results import ResultStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with two models and photos."""
    folder = tmp_path_factory.mktemp("study_folder")
    for i, image in enumerate(coloured(4)):
        save_png(image, folder / "photos" / f"{i}.png")
    for name in ("studied", "elsewhere"):
        (folder / f"{name}.py").write_text("from evaluation.small import small_net as build\n")
    return folder


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--steps 4 --seed 1", "made with seed 0, this run has 1"),
        ("--model elsewhere:build", "made with model studied:build, this run has elsewhere:build"),
        ("--size 9", "made with size 8, this run has 9"),
    ],
)
def test_rows_of_other_maps_and_experiments_hold_the_folder_to_their_run(
    here: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"study geometry {QUICK} --out mix --methods"
    assert call(f"{start} gradient --only softplus") == 0
    before = rows("mix")
    assert call(f"{start} lrp --only manipulation {change}") == 2
    error = capsys.readouterr().err
    assert said in error and "choose another folder" in error and rows("mix") == before
    assert call(f"{start} lrp --only softplus --pairs 3") == 0 and len(rows("mix")) > len(before)
    shutil.rmtree("mix")


@pytest.mark.usefixtures("unreported")
def test_what_an_experiment_builds_on_has_its_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("few", 3), ("all", 4)):
        PatternTrainer(fastxai.compile(small_net())).fit([SPACE.enter(coloured(count))]).save(f"{name}.safetensors")
    words = f"study geometry {QUICK} --methods pattern_attribution --out based"
    assert call(f"{words} --only manipulation --patterns few.safetensors") == 0
    assert call(f"{words} --only beta_sweep --patterns all.safetensors") == 2
    assert "was made with patterns " in capsys.readouterr().err and {r.experiment for r in rows("based")} == {
        "manipulation"
    }


@pytest.mark.usefixtures("unreported")
def test_images_that_are_not_kept_are_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = f"study geometry {QUICK} --methods gradient --out clone"
    assert call(f"{start} --only manipulation --pairs 4 --batch 3") == 0
    first, last = sorted(rows("clone"), key=lambda row: row.key["pairs"])
    assert (first.key["pairs"], last.key["pairs"]) == ([0, 1, 2], [3])
    store = ResultStore("clone/rows")
    tensors, before = store.tensors(first), values("clone")
    for file in store.folder.glob("*.safetensors"):
        file.unlink()
    assert call(f"{start} --only manipulation --pairs 4") == 0 and not list(store.folder.glob("*.safetensors"))
    for only, said in (("beta_sweep", "0 of 3 rows"), ("manipulation --only beta_sweep", "1 of 4 rows")):
        with interrupted(_study, 0):
            assert call(f"{start} --only {only}") == 130
        assert said in capsys.readouterr().err
    with interrupted(_study, 2):
        assert call(f"{start} --only beta_sweep --only sigma_sweep") == 130
    assert "2 of 5 rows" in capsys.readouterr().err, "rows that two sweeps need are made again once"
    assert call(f"{start} --only beta_sweep") == 0
    assert {name: text for name, text in values("clone").items() if name in before} == before
    assert all(torch.equal(tensors[name], value) for name, value in store.tensors(first).items()) and tensors
    assert store.tensors(last) == {}, "what is not needed is not made"
    assert sorted(row.key["pairs"] for row in rows("clone", experiment="beta_sweep")) == [[0], [1]]


def test_a_corrupt_file_of_tensors_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = f"study geometry {QUICK} --methods gradient --pairs 1 --out spoilt"
    assert call(f"{start} --only manipulation") == 0
    [file] = (here / "spoilt" / "rows").glob("*.safetensors")
    whole = load_file(file)
    file.write_bytes(b"not tensors")
    for words in (f"{start} --only beta_sweep", "study geometry --report-only --out spoilt"):
        assert call(words) == 2
        assert f"{file.name} must be a safetensors file, got" in capsys.readouterr().err
    save_file({name: value[:0].clone() for name, value in whole.items()}, file)
    assert call(f"{start} --only beta_sweep") == 2
    assert f"{file.name} must hold manipulated of 1 pairs, got [0, 3, 8, 8]; delete it" in capsys.readouterr().err
    file.unlink()
    assert call(f"{start} --only beta_sweep") == 0


@pytest.fixture(scope="module")
def some(folder: Path) -> Path:
    """Rows of three experiments, made once."""
    words = f"study geometry {QUICK} --methods gradient --only manipulation --only growth --only flipping"
    return made_whole(folder, words)


@pytest.mark.parametrize(
    ("experiment", "where", "name"),
    [
        ("manipulation", "values", "image.mse"),
        ("growth", "values", "steps"),
        ("flipping", "settings", "defences"),
        ("manipulation", "config", "run"),
    ],
)
def test_a_row_that_lacks_something_is_named(
    here: Path, some: Path, experiment: str, where: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(some, here / "lacking")
    for file in (here / "lacking" / "rows").glob("*.json"):
        row = json.loads(file.read_text())
        if row["experiment"] == experiment or name == "run":
            del {**row, **row["config"]}[where][name]
            file.write_text(json.dumps(row))
    assert call("study geometry --report-only --out lacking") == 2
    assert re.search(rf"{experiment if name != 'run' else ''}\S*\.json must hold {name}, got ", capsys.readouterr().err)
    shutil.rmtree("lacking")


def test_a_row_with_too_many_values_is_named(here: Path, some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(some, here / "longer")
    file = min((here / "longer" / "rows").glob("manipulation-*.json"))
    row = json.loads(file.read_text())
    row["values"]["image.mse"] *= 2
    file.write_text(json.dumps(row))
    assert call("study geometry --report-only --out longer") == 2
    assert f"{file.name} must hold a list of 1 values as image.mse, got [" in capsys.readouterr().err


def test_a_page_without_pictures_says_which_command_brings_them(here: Path) -> None:
    start = f"study geometry {QUICK} --methods gradient --only manipulation --out bare"
    assert call(start) == 0
    for file in (here / "bare" / "rows").glob("*.safetensors"):
        file.unlink()
    assert call("study geometry --report-only --out bare") == 0
    text = (here / "bare" / "report.html").read_text()
    assert "No rows yet of manipulation" not in text and "fastxai study geometry --only manipulation" in text
    [first] = re.findall(r"Delete (rows/\S+\.json) and run", text)
    (here / "bare" / first).unlink()
    assert call(start) == 0
    text = (here / "bare" / "report.html").read_text()
    assert "Images and maps are missing" not in text and Page(text).tags["img"] == 1
