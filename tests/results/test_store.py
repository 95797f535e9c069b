"""Rows: written whole, named by their key, read back as they were; whatever else lies there is named in an error."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastxai.results import ResultStore, Row, digest

ROW = Row(
    "geometry",
    "manipulation",
    {"method": "lrp", "pairs": [0, 1], "settings": "ab"},
    config={"steps": 3},
    values={"pcc": [0.5, -1e-30], "kept": [True, False], "curve": [[1, 2], [3, 4]]},
    seconds=1.5,
    machine="one",
    version={"torch": "2"},
)


def test_round_trip(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "deep" / "rows")
    assert store.rows() == [] and not store.has(ROW)
    file = store.write(ROW)
    assert file == store.folder / f"{ROW.name}.json" and [file] == list(store.folder.iterdir())
    assert store.rows() == [ROW] and store.has(ROW)
    assert store.has(Row("geometry", "manipulation", ROW.key)), "values do not identify a row"
    assert not store.has(Row("geometry", "other", ROW.key))
    assert store.tensors(ROW) == {}


json_values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.dictionaries(st.text(), json_values, max_size=4))
def test_any_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, key: dict[str, Any], values: dict[str, Any]
) -> None:
    store = ResultStore(tmp_path_factory.mktemp("rows"))
    row = Row("s", "e", {**key, "n": 1}, values=values)
    store.write(row)
    assert store.rows() == [row]


def test_values_that_json_lacks_come_back_as_nan(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    file = store.write(Row("s", "e", {"a": 1}, values={"v": [math.nan, math.inf, 2.0], "w": -math.inf}))
    assert json.loads(file.read_text())["values"] == {"v": [None, None, 2.0], "w": None}
    values = store.rows()[0].values
    assert math.isnan(values["w"]) and [math.isnan(v) for v in values["v"]] == [True, True, False]


def test_names_depend_on_the_key_alone() -> None:
    shuffled = {name: ROW.key[name] for name in ("settings", "pairs", "method")}
    assert digest(shuffled) == digest(dict(ROW.key))
    assert Row("geometry", "manipulation", ROW.key).name == ROW.name
    others = [
        Row("other", "manipulation", ROW.key),
        Row("geometry", "other", ROW.key),
        Row("geometry", "manipulation", {**ROW.key, "pairs": [0, 2]}),
    ]
    assert len({row.name for row in [ROW, *others]}) == 4
    script = f"from fastxai.results import Row; print(Row('geometry', 'manipulation', {dict(ROW.key)!r}).name)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ROW.name, "a name is the same in every process"
    assert Row("s", "e", {"model": "../../Ä:b c"}).name.rpartition("-")[0] == "e-b-c"


def test_rows_are_filtered(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for experiment in ("a", "b"):
        for method in ("lrp", "gradient"):
            store.write(Row("s", experiment, {"method": method}, values={"n": 1}))
    assert len(store.rows()) == 4
    assert [row.experiment for row in store.rows(method="lrp")] == ["a", "b"]
    assert [row.key["method"] for row in store.rows(experiment="b")] == ["gradient", "lrp"]
    assert store.rows(experiment="b", method="lrp", study="s")[0].key == {"method": "lrp"}
    assert store.rows(method="none") == []


def test_tensors(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    tensors = {"maps": torch.rand(2, 3, 4, dtype=torch.float64), "strided": torch.rand(4, 4).T[::2]}
    store.write(ROW, tensors)
    back = store.tensors(store.rows()[0])
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(back[name], value)
    assert store.tensors(ROW, "map").keys() == {"maps"}
    store.write(ROW, {"maps": torch.zeros(1)})
    assert torch.equal(store.tensors(ROW)["maps"], torch.zeros(1))
    (tmp_path / f"{ROW.name}.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=rf"{ROW.name}\.safetensors must be a safetensors file"):
        store.tensors(ROW)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", '{"study": "s"}', '{"hello": 1}', b"\xff\xfe\x00"],
)
def test_corrupt_and_foreign_files_are_named(tmp_path: Path, content: str | bytes) -> None:
    store = ResultStore(tmp_path)
    file = store.write(ROW)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (store.rows, lambda: store.has(ROW)):
        with pytest.raises(ValueError, match=rf"{ROW.name}\.json must be a row"):
            read()


def test_a_file_under_another_name_or_with_other_kinds_is_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    file = store.write(ROW)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "values": [1]}))
    with pytest.raises(ValueError, match="another kind of values"):
        store.rows()
    file.write_text(json.dumps({**content, "key": {"edited": 1}}))
    with pytest.raises(ValueError, match="after its key"):
        store.rows()


def test_what_is_no_json_value_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "rows")
    with pytest.raises(TypeError):
        store.write(Row("s", "e", {"a": 1}, values={"v": torch.zeros(1)}))
    assert not store.folder.exists()


def test_a_failed_write_keeps_the_old_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path)
    store.write(ROW)

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write(Row("geometry", "manipulation", ROW.key, values={"new": 1}))
    assert store.rows() == [ROW] and len(list(tmp_path.iterdir())) == 1


def test_many_writers(tmp_path: Path) -> None:
    rows = [Row("s", "e", {"n": i % 8}, values={"v": list(range(500))}) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: ResultStore(tmp_path).write(row, {"t": torch.full((9,), row.key["n"])}), rows))
    store = ResultStore(tmp_path)
    found = store.rows()
    assert sorted(row.key["n"] for row in found) == list(range(8))
    assert all(row.values["v"] == list(range(500)) for row in found)
    assert all(torch.equal(store.tensors(row)["t"], torch.full((9,), row.key["n"])) for row in found)
    assert len(list(tmp_path.iterdir())) == 16
