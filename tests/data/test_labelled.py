"""Labelled images by themselves, the way from a place to them, and what their digits stand for."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from data.test_cifar10 import sample, write_mosaics, write_records

from fastxai.data import CLASSES, Labelled, cifar10, labelled
from fastxai.data.collection import open_collection


def tiny(**changed):
    whole = {
        "images": torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5),
        "labels": torch.tensor([1, 0]),
        "classes": ("a", "b"),
    }
    return Labelled(**{**whole, **changed})


def test_identity_is_of_the_content_alone():
    one = tiny()
    assert len(one.identity) == 16 and int(one.identity, 16) >= 0
    assert tiny(images=one.images.contiguous(memory_format=torch.channels_last)).identity == one.identity
    assert tiny(images=one.images.repeat_interleave(2, 3)[..., ::2]).identity == one.identity
    assert tiny(labels=torch.tensor([1, 0, 0, 0])[::3][:1].repeat(2) * torch.tensor([1, 0])).identity == one.identity
    changed = one.images.clone()
    changed[1, 2, 3, 4] ^= 1
    others = [
        tiny(images=changed),
        tiny(images=one.images.flip(0)),
        tiny(images=one.images.view(2, 3, 5, 4)),
        tiny(images=one.images.view(2, 4, 3, 5)),
        tiny(labels=torch.tensor([0, 1])),
        tiny(classes=("b", "a")),
        tiny(classes=("a", "b", "c")),
        tiny(classes=("a", 'b", "c')),
        tiny(masks=torch.zeros(2, 4, 5)),
        tiny(masks=torch.zeros(2, 4, 5).bool()),
        tiny(masks=torch.zeros(2, 4, 5).byte()),
        tiny(masks=torch.zeros(2, 3, 4, 5).byte()),
        tiny(masks=torch.ones(2, 4, 5)),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == len(others) + 1


def test_length_and_frozen():
    one = tiny()
    assert len(one) == 2 and "tensor" not in repr(one) and one.identity in repr(one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.classes = ("c", "d")  # pyright: ignore
    assert dataclasses.replace(one, classes=("c", "d")).identity != one.identity


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"images": np.zeros((2, 3, 4, 5), np.uint8)}, TypeError, r"images must be a torch\.Tensor, got ndarray"),
        ({"images": torch.zeros(2, 3, 4, 5)}, TypeError, r"images must have dtype torch\.uint8, got torch\.float32"),
        ({"masks": np.zeros((2, 4, 5), np.uint8)}, TypeError, r"masks must be a torch\.Tensor, got ndarray"),
        ({"masks": torch.zeros(2, 4, 5).double()}, TypeError, "masks must have dtype bool, uint8 or float32"),
        ({"masks": torch.zeros(2, 5, 4)}, ValueError, r"masks must have shape \[2, 4, 5\] or \[2, 3, 4, 5\], got"),
        ({"labels": torch.zeros(2)}, TypeError, r"labels must have dtype torch\.int64, got torch\.float32"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, TypeError, r"labels must have dtype torch\.int64"),
        ({"images": torch.zeros(2, 4, 5).byte()}, ValueError, r"images must have shape .*, got \[2, 4, 5\]"),
        ({"images": torch.zeros(0, 3, 4, 5).byte()}, ValueError, r"images must .* without zeros, got \[0, 3, 4, 5\]"),
        ({"images": torch.zeros(2, 3, 0, 5).byte()}, ValueError, r"images must .* without zeros, got \[2, 3, 0, 5\]"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels must have shape \[2\], got \[1\]"),
        ({"labels": torch.tensor([[0, 1]])}, ValueError, r"labels must have shape \[2\], got \[1, 2\]"),
        ({"labels": torch.tensor([0, 2])}, ValueError, "labels must hold labels of 0 to 1, got 2"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels must hold labels of 0 to 1, got -1"),
        ({"classes": ()}, ValueError, "labels must hold labels of 0 to -1, got 1"),
        ({"classes": ["a", "b"]}, TypeError, "classes must be a tuple of texts"),
        ({"classes": (0, 1)}, TypeError, r"classes must be a tuple of texts, got \(0, 1\)"),
        ({"classes": ("a", "a")}, ValueError, "classes must be different names"),
        ({"classes": ("a", "a\0")}, ValueError, "without zero characters"),
    ],
)
def test_what_does_not_fit(changed, kind, message):
    with pytest.raises(kind, match=message):
        tiny(**changed)


@pytest.mark.parametrize("place", ["", "cifar10", "cifar10:", ":x", "mnist:x", "/somewhere", "NPZ:x"])
def test_unknown_places(place):
    with pytest.raises(ValueError, match=r"place must be one of cifar10:\.\.\., idx:.*torchvision:NAME:FOLDER, got"):
        labelled(place, "train")


def test_unknown_parts(tmp_path):
    for place in (f"idx:{tmp_path}", f"npz:{tmp_path}", f"folder:{tmp_path}"):
        with pytest.raises(ValueError, match="part must be one of 'train', 'test', got 'val'"):
            labelled(place, "val")


@pytest.mark.parametrize("kind", ["cifar10", "idx", "gtsrb", "npz"])
def test_sizes_that_mean_nothing(tmp_path, kind):
    with pytest.raises(ValueError, match=f"size must be None for {kind}:, whose images are of one size, got 8"):
        labelled(f"{kind}:{tmp_path}", "train", size=8)


def test_cifar10_in_both_layouts(tmp_path):
    images, labels = sample(6)
    for layout in ("mosaics", "records"):
        (tmp_path / layout).mkdir()
    write_mosaics(tmp_path / "mosaics", "test", images, labels)
    write_records(tmp_path / "records" / "test_batch.bin", images, labels)
    mosaics, records = (labelled(f"cifar10:{tmp_path / layout}", "test") for layout in ("mosaics", "records"))
    assert mosaics.identity == records.identity and mosaics.classes == CLASSES
    assert np.array_equal(mosaics.images.permute(0, 2, 3, 1).numpy(), images)
    assert mosaics.labels.tolist() == labels.tolist()
    with pytest.raises(FileNotFoundError, match="CIFAR-10"):
        labelled(f"cifar10:{tmp_path / 'mosaics'}", "train")


def test_identities_of_collections_stay(tmp_path):
    """Results that lie on disk hold them."""
    images, labels = sample(6)
    write_records(tmp_path / "test_batch.bin", images, labels)
    told = "cifar10 test " + " ".join(map(str, labels))
    collection = open_collection(f"cifar10:{tmp_path}", 32)
    assert collection.identity == hashlib.sha256(told.encode()).hexdigest()[:16]
    assert collection.load([4, 1]).equal(cifar10(tmp_path)[0][[4, 1]].float() / 255)


def test_the_real_cifar10(shared):
    folder = shared / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    test = labelled(f"cifar10:{folder}", "test")
    assert test.images.shape == (10000, 3, 32, 32) and test.labels.bincount().tolist() == [1000] * 10
