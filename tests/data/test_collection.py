"""Folders of photos as collections: which images, in which order, and what stands for them."""

from __future__ import annotations

import shutil

import pytest
import torch

from fastxai.data import load_images, save_png
from fastxai.data.collection import open_collection


@pytest.fixture
def folder(tmp_path):
    images = torch.rand(3, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    for name, image in zip(("b.png", "a.png", "inside/c.png"), images, strict=True):
        save_png(image, tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def identity(folder):
    return open_collection(str(folder), 8).identity


def test_images_come_by_name(folder):
    collection = open_collection(str(folder), 8)
    assert list(collection.names) == ["a.png", "b.png", "inside/c.png"] and len(collection) == 3
    assert collection.load([2, 0]).equal(load_images([folder / "inside" / "c.png", folder / "a.png"], 8))


def test_the_identity_is_that_of_names_and_contents(folder, tmp_path):
    first = identity(folder)
    shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert identity(tmp_path / "elsewhere") == first, "neither the place nor the time counts"
    (folder / "notes.txt").write_text("still no image")
    assert identity(folder) == first
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert identity(folder) != first, "the size is the same, the content is not"
    (folder / "a.png").write_bytes(content)
    assert identity(folder) == first
    (folder / "b.png").rename(folder / "d.png")
    assert identity(folder) != first


def test_the_identity_tells_which_file_holds_what(folder):
    first, a, b = identity(folder), folder / "a.png", folder / "b.png"
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])
    assert identity(folder) != first
