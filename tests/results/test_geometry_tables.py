"""The tables of results/geometry/README.md are those of the rows beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "results" / "geometry"


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("geometry_tables", FOLDER / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_rows_say(tables: ModuleType) -> None:
    text = (FOLDER / "README.md").read_text()
    assert text.count("<!-- tables.py ") == 7 and tables.written(text) == text


def test_tables_need_a_place_and_rows(tables: ModuleType) -> None:
    for text, message in (("no table", "has no line"), ("<!-- tables.py maps gone -->\n", "has no rows")):
        with pytest.raises(SystemExit, match=message):
            tables.written(text)


@pytest.mark.parametrize(
    ("value", "places", "said"),
    [
        (0.5, 2, ".50"),
        (-0.05, 2, "-.05"),
        (-0.001, 2, ".00"),
        (-0.0012, 3, "-.001"),
        (0.0039, 1, "3.9e-3"),
        (0.16, 1, ".16"),
        (1.0, 3, "1.000"),
    ],
)
def test_short_numbers(tables: ModuleType, value: float, places: int, said: str) -> None:
    assert tables.short(value, places) == said
