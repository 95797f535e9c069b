"""IDX files: there and back, as torchvision reads them, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastxai.data import labelled

STEMS = {"train": "train", "test": "t10k"}


def content(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, part, images, labels, pack=lambda raw: raw, suffix=""):
    (folder / f"{STEMS[part]}-images-idx3-ubyte{suffix}").write_bytes(pack(content(images)))
    (folder / f"{STEMS[part]}-labels-idx1-ubyte{suffix}").write_bytes(pack(content(labels)))


def sample(count, height=5, width=4, classes=3):
    generator = np.random.default_rng(count)
    return generator.integers(0, 256, (count, height, width), np.uint8), generator.integers(0, classes, count, np.uint8)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_there_and_back(data):
    count, height, width = (data.draw(st.integers(1, most)) for most in (7, 6, 6))
    pixels = data.draw(st.binary(min_size=count * height * width, max_size=count * height * width))
    labels = np.array(data.draw(st.lists(st.integers(0, 255), min_size=count, max_size=count)), np.uint8)
    images = np.frombuffer(pixels, np.uint8).reshape(count, height, width)
    pack, suffix = data.draw(st.sampled_from([(bytes, ""), (gzip.compress, ".gz"), (gzip.compress, "")]))
    part = data.draw(st.sampled_from(["train", "test"]))
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), part, images, labels, pack, suffix)
        read = labelled(f"idx:{name}", part)
    assert read.images.dtype == torch.uint8 and np.array_equal(read.images[:, 0].numpy(), images)
    assert read.images.shape == (count, 1, height, width)
    assert read.labels.dtype == torch.int64 and np.array_equal(read.labels.numpy(), labels)
    assert read.classes == tuple(str(k) for k in range(int(labels.max()) + 1))


def test_parts_are_told_apart_and_share_their_classes(tmp_path):
    (images, labels), (others, other_labels) = sample(6, classes=2), sample(4)
    other_labels[0] = 4
    write(tmp_path, "train", images, labels)
    assert len(labelled(f"idx:{tmp_path}", "train").classes) == labels.max() + 1
    write(tmp_path, "test", others, other_labels, gzip.compress, ".gz")
    train, test = (labelled(f"idx:{tmp_path}", part) for part in ("train", "test"))
    assert train.classes == test.classes == ("0", "1", "2", "3", "4")
    assert np.array_equal(train.images[:, 0].numpy(), images) and np.array_equal(test.images[:, 0].numpy(), others)
    (tmp_path / "classes.txt").write_text("a\nb\n\n c d \ne\nf\n")
    assert labelled(f"idx:{tmp_path}", "test").classes == ("a", "b", "c d", "e", "f")


def test_what_is_read_can_be_written_to(tmp_path):
    write(tmp_path, "test", *sample(3))
    read = labelled(f"idx:{tmp_path}", "test")
    read.images.zero_()
    read.labels.zero_()
    assert not labelled(f"idx:{tmp_path}", "test").images.equal(read.images)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz.*neither"):
        labelled(f"idx:{tmp_path}", "test")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        labelled(f"idx:{tmp_path / 'nowhere'}", "train")
    write(tmp_path, "train", *sample(3))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        labelled(f"idx:{tmp_path}", "train")


IMAGES = content(np.zeros((3, 5, 4), np.uint8))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "begin with the bytes 00 00 08 03.*got an empty file"),
        (IMAGES[:3], "begin with the bytes 00 00 08 03.*got 00 00 08"),
        (b"\0\0\x0d\x03" + IMAGES[4:], "unsigned bytes with 3 axes, got 00 00 0d 03"),
        (content(np.zeros(3, np.uint8)), "unsigned bytes with 3 axes, got 00 00 08 01"),
        (b"\0\0\x03\x08" + IMAGES[4:], "got 00 00 03 08"),
        (IMAGES[:15], "have a header of 16 bytes, got 15 bytes"),
        (IMAGES[:-1], r"have 76 bytes, as its sizes \[3, 5, 4\] say, got 75"),
        (IMAGES + b"\0", r"have 76 bytes, as its sizes \[3, 5, 4\] say, got 77"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "as its sizes .* say, got 16"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 5, 4), r"have sizes above 0, got \[0, 5, 4\]"),
        (content(np.zeros((2, 5, 4), np.uint8)), "hold 2 labels, one an image, got 3"),
        (gzip.compress(IMAGES)[:-9], "whole gzip data"),
        (gzip.compress(IMAGES)[:-8] + bytes(8), "whole gzip data.*CRC"),
        (gzip.compress(IMAGES)[:10] + b"\xff" * 20, "whole gzip data"),
        (gzip.compress(IMAGES) + b"more", "whole gzip data"),
        (gzip.compress(IMAGES[:-1]), r"have 76 bytes, .* got 75"),
    ],
    ids=[
        *("empty", "short magic", "floats", "labels", "swapped", "no sizes", "cut off", "too long", "huge", "none"),
        *("other count", "gzip cut off", "gzip sum", "gzip body", "gzip and more", "gzip of a part"),
    ],
)
def test_wrong_images(tmp_path, raw, message):
    write(tmp_path, "test", *sample(3))
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=f"t10k-.*-ubyte must .*{message}") as caught:
        labelled(f"idx:{tmp_path}", "test")
    assert str(tmp_path) in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_gzip_is_noticed(place, change):
    """But for the bytes of the gzip header that say nothing of the content, which is then read unharmed."""
    images, labels = sample(9)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), "train", images, labels, gzip.compress, ".gz")
        file = Path(name) / "train-images-idx3-ubyte.gz"
        raw = bytearray(file.read_bytes())
        raw[place % len(raw)] ^= change
        file.write_bytes(raw)
        if 4 <= place % len(raw) < 10:
            assert np.array_equal(labelled(f"idx:{name}", "train").images[:, 0].numpy(), images)
        else:
            with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz must"):
                labelled(f"idx:{name}", "train")


def test_wrong_labels_and_classes(tmp_path):
    images, _ = sample(3)
    write(tmp_path, "train", images, np.array([0, 2, 1], np.uint8))
    file = tmp_path / "classes.txt"
    file.write_text("a\nb\n")
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte must hold labels of 0 to 1, got 2"):
        labelled(f"idx:{tmp_path}", "train")
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"classes\.txt must hold one class a line, got an empty file"):
        labelled(f"idx:{tmp_path}", "train")
    file.write_bytes(b"a\n\xff\nc\n")
    with pytest.raises(ValueError, match=r"classes\.txt must hold one class a line in UTF-8"):
        labelled(f"idx:{tmp_path}", "train")
    file.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="classes must be different names"):
        labelled(f"idx:{tmp_path}", "train")


@pytest.mark.parametrize(
    ("name", "mean", "train_labels", "test_labels"),
    [
        ("mnist", 33.3184, [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        ("fashion-mnist", 72.9404, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ],
)
def test_the_real_ones(shared, name, mean, train_labels, test_labels):
    """Against the published mean of the training pixels and the first labels of each part."""
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    train, test = (labelled(f"idx:{folder}", part) for part in ("train", "test"))
    assert train.images.shape == (60000, 1, 28, 28) and test.images.shape == (10000, 1, 28, 28)
    assert train.classes == test.classes == tuple("0123456789")
    assert train.images.double().mean().item() == pytest.approx(mean, abs=1e-3)
    assert train.labels[:10].tolist() == train_labels and test.labels[:10].tolist() == test_labels
    assert train.identity != test.identity
