"""Traffic signs from mosaics, on small ones written here and on the real subset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastxai.data import labelled


def write(folder, part, images, kind="png"):
    """Mosaic of images [classes, n, 32, 32, 3]."""
    rows, columns = images.shape[:2]
    mosaic = images.transpose(0, 2, 1, 3, 4).reshape(rows * 32, columns * 32, 3)
    Image.fromarray(mosaic).save(folder / f"gtsrb_{part}.{kind}", lossless=True)


def sample(classes, count):
    return np.random.default_rng(count).integers(0, 256, (classes, count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_rows_are_classes(tmp_path, kind):
    train, test = sample(3, 4), sample(3, 1)
    write(tmp_path, "train", train, kind)
    write(tmp_path, "test", test, kind)
    (tmp_path / "classes.txt").write_text("stop\nspeed limit 20\nyield\n")
    for part, images in (("train", train), ("test", test)):
        read = labelled(f"gtsrb:{tmp_path}", part)
        assert read.images.shape == (3 * images.shape[1], 3, 32, 32) and read.images.dtype == torch.uint8
        assert read.images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(read.images.permute(0, 2, 3, 1).numpy(), images.reshape(-1, 32, 32, 3))
        assert read.labels.tolist() == [k for k in range(3) for _ in range(images.shape[1])]
        assert read.classes == ("stop", "speed limit 20", "yield")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold gtsrb_test\.webp or gtsrb_test\.png, and classes\.txt"):
        labelled(f"gtsrb:{tmp_path}", "test")
    write(tmp_path, "test", sample(2, 2))
    with pytest.raises(FileNotFoundError, match=r"classes\.txt"):
        labelled(f"gtsrb:{tmp_path}", "test")


def test_wrong_files(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write(tmp_path, "test", sample(3, 2))
    with pytest.raises(ValueError, match=r"gtsrb_test\.png must have 2 rows, as classes\.txt has lines, got 3"):
        labelled(f"gtsrb:{tmp_path}", "test")
    Image.new("RGB", (64, 40)).save(tmp_path / "gtsrb_test.png")
    with pytest.raises(ValueError, match=r"gtsrb_test\.png must have sides divisible by 32, got \(40, 64\)"):
        labelled(f"gtsrb:{tmp_path}", "test")
    write(tmp_path, "test", sample(2, 2))
    file = tmp_path / "gtsrb_test.png"
    raw = file.read_bytes()
    for broken in (b"no image", raw[: len(raw) // 2], b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"gtsrb_test\.png must be an image that Pillow can read"):
            labelled(f"gtsrb:{tmp_path}", "test")


def test_the_real_subset(shared):
    folder = shared / "data" / "gtsrb"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    train, test = (labelled(f"gtsrb:{folder}", part) for part in ("train", "test"))
    assert train.images.shape == (3225, 3, 32, 32) and test.images.shape == (1720, 3, 32, 32)
    assert train.labels.bincount().tolist() == [75] * 43 and test.labels.bincount().tolist() == [40] * 43
    assert train.classes[14] == "stop" and train.classes == test.classes and len(train.classes) == 43
    # A stop sign is red: its rows must not have been mixed with those of others.
    red, green, blue = train.images[train.labels == 14].double().mean((0, 2, 3)).tolist()
    assert red > green and red > blue
