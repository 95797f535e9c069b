"""What a report reads from rows, and what its diagrams and tables are made of."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from fastxai import report
from fastxai.report import Findings, Panels, Section, Table, Text, draw, findings
from fastxai.results import ResultStore, Row

TITLES = {"gradient": "Gradient", "lrp": "LRP"}


def row(method: str, pairs: list[int], experiment: str = "e", **values: object) -> Row:
    config = {"settings": {"method": method}, "run": {"seed": 0}}
    return Row("s", experiment, {"method": method, "pairs": pairs}, config, values, seconds=2.0 * len(pairs))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path)
    # Written out of order, with a pair that is in two rows.
    store.write(row("lrp", [2, 3], v=[0.2, 0.3], curve=[[2, 20], [3, 30]], x=[1, 2]))
    store.write(row("lrp", [0, 1, 2], v=[0.0, math.nan, 0.25], curve=[[0, 0], [1, 10], [2, 25]], x=[1, 2]))
    store.write(
        row("gradient", [0], v=[7.0], curve=[[1, 2]], x=[1, 2]),
        {"example.maps": torch.ones(1, 2), "big": torch.ones(1)},
    )
    store.write(Row("another", "e", {"method": "lrp", "pairs": [9]}, values={"v": [9.0]}))
    return store


def test_findings_put_chunks_together(store: ResultStore) -> None:
    found = Findings(store, "s", TITLES)
    assert found.methods("e") == ["gradient", "lrp"] and found.methods("none") == []
    assert found.pairs("e", "lrp") == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.over_pairs("e", "lrp", "v"), [0.0, math.nan, 0.25, 0.3])
    np.testing.assert_array_equal(found.over_pairs("e", "lrp", "curve"), [[0, 0], [1, 10], [2, 25], [3, 30]])
    np.testing.assert_array_equal(found.every("e", "lrp", "x"), [1, 2, 1, 2])
    assert found.common("e", "lrp", "x") == [1, 2] and found.settings("e", "lrp") == {"method": "lrp"}
    assert found.seconds("e", "lrp") == 2.0 and found.run == {"seed": 0}
    assert len(found.rows_of("e")) == 3 and found.paper == {}
    assert found.counted("e") == "Gradient 1 pair, LRP 4 pairs"
    assert len(set(found.colours.values())) == 2


def test_what_a_row_lacks_is_named_with_its_file(store: ResultStore) -> None:
    found = Findings(store, "s", TITLES)
    for wanted in (
        lambda: found.over_pairs("e", "gradient", "w"),
        lambda: found.common("e", "gradient", "w"),
        lambda: found.every("e", "gradient", "w"),
        lambda: found.settings("e", "gradient")["w"],
    ):
        with pytest.raises(ValueError, match=r"e-gradient-\w+\.json must hold w, got "):
            wanted()
    store.write(row("gradient", [4, 5], v=[7.0]))
    with pytest.raises(ValueError, match=r"\.json must hold a list of 2 values as v, got \[7\.0\]"):
        Findings(store, "s", TITLES).over_pairs("e", "gradient", "v")


def test_pictures_are_those_kept(store: ResultStore) -> None:
    found = Findings(store, "s", TITLES)
    pictures = found.pictures("e", "gradient")
    assert pictures.keys() == {0} and pictures[0].keys() == {"maps"}
    assert torch.equal(pictures[0]["maps"], torch.ones(2)) and found.pictures("e", "lrp") == {}


def test_the_papers_numbers_have_a_source() -> None:
    files = {file.stem: file for file in (Path(findings.__file__).parent / "paper").glob("*.toml")}
    assert files.keys() == {"far", "geometry", "robustness"}
    for name, source in (("robustness", "[R]"), ("far", "[F]")):
        assert all(table["source"].startswith(source) for table in tomllib.loads(files[name].read_text()).values())
    for claim in tomllib.loads(files["geometry"].read_text()).values():
        assert claim.keys() == {"value", "text", "claim", "source"} and claim["source"].startswith("[M]")


def test_boxes_are_the_percentiles() -> None:
    _, axes = draw.panel("t")
    draw.boxes(axes, {"a": np.arange(101.0), "none": np.array([math.nan])}, {"a": "#0082c8", "none": "#0082c8"})
    whisker, median = (np.asarray(line.get_xdata()).tolist() for line in axes.lines)
    assert (whisker, median) == ([10, 90], [50, 50])
    box = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (box[:, 0].min(), box[:, 0].max()) == (25, 75)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]


def test_bands_are_the_percentiles() -> None:
    _, axes = draw.panel("t")
    values = np.stack([np.arange(11.0), 10 * np.arange(11.0)], 1)
    draw.bands(axes, [1, 2], values, "a", "#0082c8")
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [5, 50]
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 90)


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 2.0], "linear"), ([1e-3, 1.0], "log"), ([0.0, 1.0], "linear"), ([math.nan], "linear")]
)
def test_decades(values: list[float], scale: str) -> None:
    _, axes = draw.panel("t")
    draw.decades(axes, "x", np.array(values))
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, "linear")


def test_an_empty_scatter_is_no_error() -> None:
    _, axes = draw.panel("t")
    nothing = np.array([math.nan])
    draw.scatter(axes, {"a": (nothing, nothing)}, {"a": "#0082c8"}, logarithmic=True)
    assert axes.lines[:] == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "0.50"),
        (1e-5, "1.0e-05"),
        (-1e-5, "-1.0e-05"),
        (0.0, "0.00"),
        (1e6, "1.0e+06"),
        (math.nan, "\N{EN DASH}"),
        (0.011, "0.011"),
        (-0.0016, "-0.0016"),
        (0.0009, "9.0e-04"),
        (0.0999, "0.100"),
        (12.345, "12.35"),
    ],
)
def test_number(value: float, said: str) -> None:
    assert draw.number(value) == said


def test_summary_and_ratio() -> None:
    assert draw.summary(np.array([1.0, 2.0, 3.0, math.nan])) == "2.00 (1.50 .. 2.50)"
    assert draw.summary(np.array([math.nan])) == "\N{EN DASH}"
    np.testing.assert_array_equal(draw.ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0])), [0.5, math.nan])


def test_page_escapes_and_says_what_is_missing() -> None:
    figure = draw.panel("<b> & more")[0]
    sections = {
        "one": Section("A < B", [], [Text("x < y & z"), Table(["<h>"], [["<c>"]], '"quoted"'), Panels([figure])]),
        "two": Section("Empty", ["manipulation"]),
    }
    text = report.page("<title>", "[M]", sections)
    assert "&lt;title&gt;" in text and "x &lt; y &amp; z" in text and "<td>&lt;c&gt;</td>" in text
    assert "<b>" not in text and "No rows yet of manipulation." in text
    other = {"one": Section("Empty", ["manipulation"], missing="no <pictures>")}
    text_of_other = report.page("t", "[M]", other)
    assert "no &lt;pictures&gt;" in text_of_other and "No rows yet" not in text_of_other
    assert text.index('id="one"') < text.index('id="two"')


def test_columns_of_a_table_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="head must name every column differently"):
        Table(["map", "MSE", "MSE"], [])


def test_pictures_that_are_not_kept_are_no_missing_rows(store: ResultStore) -> None:
    file = store.write(Row("robustness", "pictures", {"model": "a"}))
    built = report.build_sections(Findings(store, "robustness", TITLES), ["noisy_maps"])
    said = report.page("t", "[R]", built)
    assert f"Delete rows/{file.name} and run fastxai study robustness --only pictures" in said.replace(
        store.folder.name, "rows"
    )
    assert "No rows yet" not in said


def test_unknown_sections_are_refused(store: ResultStore) -> None:
    found = Findings(store, "s", TITLES)
    for name in ("none", "../page", "_sweep.os"):
        with pytest.raises(ValueError, match="names must name modules"):
            report.build_sections(found, [name])


def test_a_panel_takes_the_pages_ink() -> None:
    figure, _ = draw.panel("t")
    assert isinstance(figure, Figure)
    text = report.page("t", "[M]", {"one": Section("s", [], [Panels([figure])])})
    assert draw.INK not in text and "currentColor" in text


def test_write_is_whole(tmp_path: Path) -> None:
    file = report.write(tmp_path / "deep" / "page.html", "\N{GREEK SMALL LETTER BETA}")
    assert file.read_text(encoding="utf-8") == "\N{GREEK SMALL LETTER BETA}"
    assert [one.name for one in file.parent.iterdir()] == ["page.html"]
