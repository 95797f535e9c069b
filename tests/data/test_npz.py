"""One .npz: there and back, from every other format, and every way in which it can be wrong."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastxai.data import Labelled, labelled, save_npz

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=9)


def sample(count=5, shape=(3, 6, 4), classes=("cat", "dog", "motor cycle"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), generator=generator).byte()
    return Labelled(images, torch.randint(len(classes), (count,), generator=generator), classes)


def arrays(**changed):
    whole = {
        "images_train": np.zeros((3, 1, 4, 4), np.uint8),
        "labels_train": np.array([0, 1, 1]),
        "images_test": np.ones((2, 1, 4, 4), np.uint8),
        "labels_test": np.array([2, 0], np.uint8),
    }
    return {name: array for name, array in {**whole, **changed}.items() if array is not None}


def same(a, b):
    return a.images.equal(b.images) and a.labels.equal(b.labels) and a.classes == b.classes and a.identity == b.identity


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_there_and_back(data):
    classes = tuple(data.draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    parts = []
    for _ in range(2):
        count = data.draw(st.integers(1, 6))
        size = count * math.prod(shape)
        pixels = data.draw(st.binary(min_size=size, max_size=size))
        images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(count, *shape)
        labels = data.draw(st.lists(st.integers(0, len(classes) - 1), min_size=count, max_size=count))
        parts.append(Labelled(images.contiguous(memory_format=layout), torch.tensor(labels), classes))
    with tempfile.TemporaryDirectory() as name:
        file = save_npz(Path(name) / "new" / "folder" / "any name", *parts)
        train, test = (labelled(f"npz:{file}", part) for part in ("train", "test"))
        assert [path.name for path in file.parent.iterdir()] == ["any name"]
    assert same(train, parts[0]) and same(test, parts[1])
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    train.images.zero_()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64, ">i2"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_others_write(tmp_path, dtype, save):
    """Arrays in Fortran's order, labels of any integers, compressed or not, without names of the classes."""
    images = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (3, 2, 5, 4), np.uint8))
    save(tmp_path / "x.npz", **arrays(images_train=images, labels_train=np.array([0, 1, 1], dtype), more=np.zeros(1)))
    train, test = (labelled(f"npz:{tmp_path / 'x.npz'}", part) for part in ("train", "test"))
    assert np.array_equal(train.images.numpy(), images) and train.labels.tolist() == [0, 1, 1]
    assert train.classes == test.classes == ("0", "1", "2")
    assert test.images.shape == (2, 1, 4, 4) and test.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images_train": None}, "hold the arrays images_train, labels_train, labels_test, got no images_train"),
        ({"labels_train": None, "labels_test": None}, "got no labels_train, labels_test"),
        ({"images_train": np.zeros((3, 4, 4), np.uint8)}, r"\[M, C, H, W\], got uint8 of shape \[3, 4, 4\]"),
        ({"images_train": np.zeros((3, 1, 4, 4), np.float32)}, "uint8 of shape .*, got float32"),
        ({"images_train": np.zeros((3, 1, 4, 4), np.uint16)}, "be uint8.*, got uint16"),
        ({"images_train": np.zeros((4, 1, 4, 4), np.uint8)}, "hold 4 labels, one an image, got 3"),
        ({"labels_train": np.zeros((3, 1), np.int64)}, r"integers of shape \[M\], got int64 of shape \[3, 1\]"),
        ({"labels_train": np.array([0.0, 1.0, 1.0])}, r"integers of shape \[M\], got float64"),
        ({"labels_train": np.array([0, -1, 1])}, "hold labels of 0 to 2, got -1"),
        ({"labels_train": np.array([0, 2**40, 1])}, "labels below 65536 where no classes are named, got 1099511627776"),
        ({"labels_train": np.array([0, 2**64 - 1, 1], np.uint64), "classes": np.array(["a"])}, "of 0 to 0, got 1844"),
        ({"classes": np.array(["a"])}, "labels_train of .* must hold labels of 0 to 0, got 1"),
        ({"classes": np.array([1, 2, 3])}, r"classes of .* must be texts of shape \[K\], got int64"),
        ({"classes": np.array([["a", "b"]])}, r"texts of shape \[K\], got <U1 of shape \[1, 2\]"),
        ({"labels_train": np.array([0, 1, "x"], object)}, "whole .npz of plain arrays"),
    ],
)
def test_wrong_arrays(tmp_path, changed, message):
    file = tmp_path / "x.npz"
    np.savez(file, **arrays(**changed))
    with pytest.raises(ValueError, match=message) as caught:
        labelled(f"npz:{file}", "train")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [False, True])
def test_masks_there_and_back(tmp_path, dtype, channels):
    """One part has masks, the other has none; what is read is what was written, its digits too."""
    plain = sample()
    shape = plain.images.shape if channels else plain.images[:, 0].shape
    masks = torch.randint(-3 * (dtype == torch.float32), 2, shape).to(dtype)
    train = dataclasses.replace(plain, masks=masks.transpose(-1, -2).contiguous().transpose(-1, -2))
    file = save_npz(tmp_path / "x.npz", train, plain)
    with np.load(file) as stored:
        assert "masks_train" in stored.files and "masks_test" not in stored.files
    read, other = (labelled(f"npz:{file}", part) for part in ("train", "test"))
    assert same(read, train) and read.masks is not None
    assert read.masks.dtype == dtype and read.masks.equal(masks)
    assert same(other, plain) and other.masks is None and read.identity != plain.identity


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 4), np.uint8), r"masks_train of .* must be bool, uint8 or float32 of shape \[M, H, W\] or"),
        (np.zeros((3, 4, 4), np.int64), "be bool, uint8 or float32 of shape .*, got int64"),
        (np.zeros((3, 4, 4), np.float64), "be bool, uint8 or float32, got float64"),
        (np.zeros((3, 4, 4), np.uint16), "be bool, uint8 or float32, got uint16"),
        (np.zeros((2, 4, 4), np.uint8), r"masks must have shape \[3, 4, 4\] or \[3, 1, 4, 4\], got \[2, 4, 4\]"),
        (np.full((3, 4, 4), np.nan, np.float32), "masks must be finite, got inf or nan"),
    ],
)
def test_wrong_masks(tmp_path, masks, message):
    np.savez(tmp_path / "x.npz", **arrays(masks_train=masks))
    with pytest.raises(ValueError, match=message):
        labelled(f"npz:{tmp_path / 'x.npz'}", "train")
    assert labelled(f"npz:{tmp_path / 'x.npz'}", "test").masks is None


def test_images_that_are_none(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(images_test=np.zeros((0, 1, 4, 4), np.uint8), labels_test=np.zeros(0, int)))
    with pytest.raises(ValueError, match=r"images must have shape \[M, C, H, W\] without zeros, got \[0, 1, 4, 4\]"):
        labelled(f"npz:{tmp_path / 'x.npz'}", "test")


def test_wrong_files(tmp_path):
    file = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"x\.npz"):
        labelled(f"npz:{file}", "train")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for raw in (b"", b"no zip", (tmp_path / "one.npy").read_bytes()):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=r"x\.npz must be a whole \.npz of plain arrays"):
            labelled(f"npz:{file}", "train")


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_damaged_file_is_noticed(place, change, cut):
    """A changed byte, or the rest of the file gone: an error of ours, or images and labels were not touched."""
    whole = sample()
    with tempfile.TemporaryDirectory() as name:
        file = save_npz(Path(name) / "x.npz", whole, whole)
        raw = bytearray(file.read_bytes())
        place %= len(raw)
        file.write_bytes(raw[:place] if cut else raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :])
        try:
            read = labelled(f"npz:{file}", "train")
        except ValueError as error:
            assert str(file) in str(error)
        else:
            # Whoever damages the name of the array "classes" takes the names from the classes.
            assert read.classes in (whole.classes, tuple(map(str, range(len(read.classes)))))
            assert not cut and read.images.equal(whole.images) and read.labels.equal(whole.labels)


def test_an_encrypted_member(tmp_path):
    """As its flag in the directory of the file says."""
    file = save_npz(tmp_path / "x.npz", sample(), sample())
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.npz must be a whole \.npz of plain arrays, got .*encrypted"):
        labelled(f"npz:{file}", "train")


def test_parts_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"test must have the classes of train, \('cat',.*got \('cat', 'dog'\)"):
        save_npz(tmp_path / "x.npz", sample(), sample(classes=("cat", "dog")))
    with pytest.raises(ValueError, match=r"test must have images of shape \[3, 6, 4\].*got \[3, 4, 6\]"):
        save_npz(tmp_path / "x.npz", sample(), sample(shape=(3, 4, 6)))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = save_npz(tmp_path / "x.npz", sample(), sample())
    before = file.read_bytes()

    def broken(stream, **arrays):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        save_npz(file, sample(seed=1), sample())
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_the_real_signs_there_and_back(tmp_path, shared):
    folder = shared / "data" / "gtsrb"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    parts = [labelled(f"gtsrb:{folder}", part) for part in ("train", "test")]
    file = save_npz(tmp_path / "signs.npz", *parts)
    assert all(same(labelled(f"npz:{file}", p), whole) for p, whole in zip(("train", "test"), parts, strict=True))
