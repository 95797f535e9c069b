"""The study command: rows that survive an interruption, a rerun that makes the missing ones, a page of all of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli.runs import interrupted, made_whole, rows
from evaluation.small import SPACE, coloured, small_net
from PIL import Image

import fastxai
from fastxai import studies
from fastxai.cli import _study, main
from fastxai.data import save_png
from fastxai.explainers import PatternTrainer
from fastxai.results import ResultStore, Row, digest

STUDY = studies.load("geometry")
QUICK = "--model studied:build --images photos --size 8 --mean .4 .5 .6 --std .2 .25 .3 --pairs 2 --batch 1 --steps 3"
TWO = "--methods gradient lrp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model and photos."""
    folder = tmp_path_factory.mktemp("study")
    for i, image in enumerate(coloured(4)):
        save_png(image, folder / "photos" / f"{i}.png")
    (folder / "studied.py").write_text("from evaluation.small import small_net as build\n")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A whole run with two methods, made once."""
    return made_whole(folder, f"study geometry {QUICK} {TWO}")


def call(words: str) -> int:
    return main(words.split())


def values(folder: str | Path) -> dict[str, str]:
    """The values of every row as the text in its file, but for those that are times."""
    files = (Path(folder) / "rows").glob("*.json")
    texts = {file.name: json.loads(file.read_text()) for file in files}
    return {name: json.dumps(row["values"]) for name, row in texts.items() if row["experiment"] != "run_time"}


def test_rows_say_where_they_come_from(whole: Path) -> None:
    found = rows(whole)
    methods = {name: [m for m in e.methods if m in ("gradient", "lrp")] for name, e in STUDY.experiments.items()}
    assert len(found) == 2 * sum(map(len, methods.values()))
    assert {(row.experiment, row.key["method"]) for row in found} == {(n, m) for n in methods for m in methods[n]}
    for row in found:
        assert row.study == "geometry" and row.seconds > 0 and "torch" in row.machine
        assert row.version.keys() == {"fastxai", "torch", "python"}
        assert row.key["model"] == "studied:build" and row.config["run"]["steps"] == 3
        space = row.config["run"]["space"]
        assert space["name"] == "normalised" and space["low"] == pytest.approx([-2.0, -2.0, -2.0])
        assert all(a != b and a.endswith(".png") for a, b in row.config["images"])
    attacks = [row for row in found if row.experiment == "manipulation"]
    assert all(row.config["settings"]["attack"]["steps"] == 3 for row in attacks)
    assert {row.config["settings"]["attack"]["lr"] for row in attacks} == {1e-3, 2e-4}


def test_every_method_gets_the_same_pairs(whole: Path) -> None:
    pairs = {(row.key["pairs"][0], *row.config["images"][0]) for row in rows(whole)}
    assert len(pairs) == 2


@pytest.mark.usefixtures("unreported")
def test_an_interrupted_run_goes_on_to_the_same_values(
    here: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted(_study, 5):
        assert call(f"study geometry {QUICK} {TWO} --out again") == 130
    total = len(rows(whole))
    assert f"5 of {total} rows are in again/rows; the same command goes on" in capsys.readouterr().err
    first = {file: file.stat().st_mtime_ns for file in (here / "again" / "rows").glob("*.json")}
    assert len(first) == 5
    assert call(f"study geometry {QUICK} {TWO} --out again") == 0
    assert values("again") == values(whole)
    assert all(file.stat().st_mtime_ns == time for file, time in first.items()), "finished rows are not made again"


@pytest.mark.usefixtures("unreported")
def test_a_finished_run_makes_nothing(here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any) -> Row:
        raise AssertionError(arguments)

    monkeypatch.setattr(_study, "run", run)
    assert call(f"study geometry {QUICK} {TWO} --out whole") == 0


@pytest.mark.usefixtures("unreported")
def test_more_pairs_and_another_batch_add_to_the_rows(here: Path) -> None:
    start = f"study geometry {QUICK} --methods gradient --only manipulation --only flipping --out more"
    assert call(start) == 0
    few = values("more")
    assert call(f"{start} --pairs 4 --batch 3") == 0
    assert {name: text for name, text in values("more").items() if name in few} == few
    assert sorted(row.key["pairs"] for row in rows("more") if row.experiment == "flipping") == [[0], [1], [2, 3]]


@pytest.mark.usefixtures("unreported")
def test_what_an_experiment_builds_on_comes_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = f"study geometry {QUICK} --methods gradient --out needs"
    assert call(f"{start} --only beta_sweep") == 2
    assert "beta_sweep builds on manipulation, which has no rows of gradient for the pairs 0" in capsys.readouterr().err
    assert call(f"{start} --only manipulation") == 0
    assert call(f"{start} --only beta_sweep") == 0
    assert {row.experiment for row in rows("needs")} == {"manipulation", "beta_sweep"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--steps 4", "made with steps 3, this run has 4"),
        ("--seed 1", "made with seed 0, this run has 1"),
        ("--preset cifar10", "made with preset imagenet, this run has cifar10"),
        ("--mean .5 .5 .5", "made with space"),
    ],
)
def test_a_folder_holds_one_run(
    here: Path, whole: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"study geometry {QUICK} {TWO} --out whole {change}") == 2
    error = capsys.readouterr().err
    assert said in error and "choose another folder" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--out x", "--images DIR is needed"),
        ("--images none --out x", "--images: images must be a folder or cifar10:FOLDER, got none"),
        ("--images . --pairs 2 --out x", "--images: images must hold files that end in"),
        ("--images photos --pairs 500 --size 32 --out x", "--images, --pairs: images must hold 500 pairs"),
        ("--images photos --pairs 0 --out x", "--pairs must be at least 1, got 0"),
        ("--images photos --only none --out x", "--only must be one of manipulation beta_sweep"),
        ("--report-only --out nothing-there", "there are no rows of geometry"),
        (f"{QUICK} --methods none --out x", "--methods must be all or some of gradient"),
        ("--report-only --methods none --out whole", "--methods must be all or some of gradient"),
        (
            f"{QUICK} --methods lrp --only softplus --only chain --out x",
            "--methods must be all or some of gradient for --only chain, got lrp",
        ),
        (f"{QUICK} --methods pattern_attribution --out x", "--methods pattern_attribution needs --patterns FILE"),
        (f"{QUICK} --preset other --out x", "manipulation, gradient: data must be one of"),
        (f"{QUICK} --out photos/0.png", "--out photos/0.png"),
    ],
)
def test_errors_name_the_option(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words.startswith("--images ."):
        (here / "empty").mkdir(exist_ok=True)
        words = words.replace("--images .", "--images empty")
    assert call(f"study geometry {words}") == 2
    assert said in capsys.readouterr().err


def test_a_corrupt_row_is_named(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, here / "broken", dirs_exist_ok=True)
    file = next((here / "broken" / "rows").glob("growth*.json"))
    file.write_text("{")
    for words in (f"{QUICK} {TWO}", "--report-only"):
        assert call(f"study geometry {words} --out broken") == 2
        assert f"{file.name} must be a row" in capsys.readouterr().err


@pytest.mark.usefixtures("unreported")
def test_rows_of_other_patterns_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("few", 3), ("all", 4)):
        PatternTrainer(fastxai.compile(small_net())).fit([SPACE.enter(coloured(count))]).save(f"{name}.safetensors")
    words = f"study geometry {QUICK} --methods gradient pattern_attribution --only manipulation"
    start = f"{words} --out patterned --patterns"
    assert call(f"{start} few.safetensors") == 0
    made = rows("patterned")
    [told] = {row.config["settings"]["patterns"] for row in made if row.key["method"] == "pattern_attribution"}
    assert {(row.key["method"], row.config["settings"].get("patterns")) for row in made} == {
        ("gradient", None),
        ("pattern_attribution", told),
    }
    assert call(f"{start} all.safetensors") == 2
    assert f"was made with patterns {told}, this run has " in capsys.readouterr().err


@pytest.mark.usefixtures("unreported")
def test_rows_that_do_not_tell_their_patterns_stay_valid(here: Path) -> None:
    PatternTrainer(fastxai.compile(small_net())).fit([SPACE.enter(coloured(4))]).save("all.safetensors")
    words = f"{QUICK} --methods pattern_attribution --only manipulation --patterns all.safetensors"
    assert call(f"study geometry {words} --out telling") == 0
    older = ResultStore("silent/rows")
    for row in rows("telling"):
        settings = {k: v for k, v in row.config["settings"].items() if k != "patterns"}
        config = {**row.config, "settings": settings}
        key = {**row.key, "settings": digest({"run": config["run"], "settings": settings})}
        older.write(replace(row, key=key, config=config))
    before = rows("silent")
    assert call(f"study geometry {words} --out silent") == 0 and rows("silent") == before
    # Made again for the sweep, they stay themselves.
    assert call(f"study geometry {words} --only beta_sweep --out silent") == 0
    assert {row.name for row in rows("silent", experiment="manipulation")} == {row.name for row in before}


@pytest.mark.usefixtures("unreported", "unfit_lrp")
def test_all_leaves_out_what_does_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(f"study geometry {QUICK} --only softplus --out left") == 0
    error = capsys.readouterr().err
    assert "lrp is left out: no rule for this operation" in error
    assert "pattern_attribution is left out: it needs --patterns FILE" in error
    assert call(f"study geometry {QUICK} --only softplus --methods lrp --out named") == 2
    assert "--methods lrp does not fit the model: no rule for this operation" in capsys.readouterr().err


def test_the_same_rows_give_the_same_page(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "report.html").read_text()
    assert call("study geometry --report-only --json --out whole") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"]["manipulation"] == 4 and said["written"] == ["whole/report.html"]
    assert [line["method"] for line in said["summary"][0]] == ["Gradient", "LRP"]
    mse = {name for name in said["summary"][0][0] if "MSE" in name}
    assert mse == {"map: MSE", "image: MSE"} and len(said["summary"][0][0]) == 11
    assert (whole / "report.html").read_text() == before


class Page(HTMLParser):
    """What a browser would see: headings, ids, anything fetched, and whether tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []  # type: ignore[list-item]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "img", "link", "br"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_holds_every_section_and_fetches_nothing(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert set(STUDY.sections) <= set(page.ids) and len(page.headings) == len(STUDY.sections)
    assert len(page.ids) == len(set(page.ids)), "diagrams must not share the names of their parts"
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "<script" not in text and "@import" not in text and "No rows yet" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "#012345" not in text and "currentColor" in text
    assert page.tags["svg"] > 40 and page.tags["img"] >= 2 and page.tags["table"] >= 6


def test_a_page_of_some_experiments_says_what_is_missing(here: Path) -> None:
    assert call(f"study geometry {QUICK} --methods gradient --only softplus --out some") == 0
    text = (here / "some" / "report.html").read_text()
    assert "No rows yet of manipulation." in text and "No rows yet of growth." in text
    assert set(STUDY.sections) <= set(Page(text).ids)


def test_photos_keep_their_size_in_the_examples(whole: Path) -> None:
    store = ResultStore(whole / "rows")
    row = store.rows(experiment="manipulation", method="gradient")[0]
    shown = store.tensors(row)
    assert shown["manipulated"].shape == shown["example.image"].shape == (1, 3, 8, 8)
    name = row.config["images"][0][0]
    with Image.open(whole.parent / "photos" / name) as image:
        assert image.size == (8, 8)
    assert small_net()(shown["manipulated"]).argmax(1).tolist() == row.values["class_after"]
