"""Files are written whole: a crash leaves the old one, and nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fastxai import _files
from fastxai._files import write_tensors, written_aside


@pytest.mark.parametrize("crash", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_crash_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, crash: type[BaseException], old: str | None
) -> None:
    file = tmp_path / "row.json"
    if old is not None:
        file.write_text(old)
    with pytest.raises(crash), written_aside(file) as aside:
        aside.write_text("half of the n")
        assert [one.read_text() for one in tmp_path.glob("*.json")] == [old] * (old is not None)
        raise crash
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == ({} if old is None else {"row.json": old})


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), written_aside(tmp_path / "taken") as aside:
        aside.write_text("new")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_the_folder_is_made_and_the_old_file_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "c.txt"
    for text in ("one", "two"):
        with written_aside(str(file)) as aside:
            aside.write_text(text)
        assert {one.name: one.read_text() for one in file.parent.iterdir()} == {"c.txt": text}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    with written_aside(file) as one, written_aside(file) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_tensors_of_any_kind(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 4, 5)
    tensors = {
        "tied": x,
        "again": x,
        "view": x[1:],
        "last": x.contiguous(memory_format=torch.channels_last),
        "strided": x.transpose(0, 3)[::2],
        "graph": (x.clone().requires_grad_() * 2),
        "none": torch.zeros(0, 3),
        "void": torch.zeros(3, 0),
        "half": x.half(),
        "number": torch.tensor(3),
    }
    write_tensors(tmp_path / "x.safetensors", tensors, {"kind": "test"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor.detach()) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as stored:
        assert stored.metadata() == {"kind": "test"}


@contextmanager
def masked(mask: int) -> Iterator[None]:
    """New files lack the permissions of the mask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_all_files_have_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    with masked(mask):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)})
        with written_aside(tmp_path / "x.json") as aside:
            aside.write_text("{}")
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {mode}


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"x": torch.ones(2)})

    def full(tensors: object, aside: Path, metadata: object) -> None:
        aside.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: no space left on device")

    monkeypatch.setattr(_files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        write_tensors(file, {"x": torch.zeros(2)})
    assert torch.equal(load_file(file)["x"], torch.ones(2)) and [one.name for one in tmp_path.iterdir()] == [file.name]
