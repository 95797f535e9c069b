"""Both layouts of CIFAR-10, on small files written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastxai.data import CLASSES, cifar10


def sample(count):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 32, 32, 3), np.uint8), generator.integers(0, 10, count, np.uint8)


def write_mosaics(folder, part, images, labels, columns=3, rows=2, kind="webp"):
    for start in range(0, len(images), rows * columns):
        tiles = images[start : start + rows * columns].reshape(rows, columns, 32, 32, 3)
        mosaic = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(rows * 32, columns * 32, 3))
        mosaic.save(folder / f"{part}_{start // (rows * columns):02d}.{kind}", lossless=True)
    (folder / f"{part}_labels.txt").write_text("".join(map(str, labels)) + "\n")


def write_records(file, images, labels):
    np.concatenate((labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(images), -1)), 1).tofile(file)


def check(folder, part, images, labels):
    x, y = cifar10(folder, part)
    assert x.shape == (len(images), 3, 32, 32) and x.dtype == torch.uint8
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), images)
    assert y.dtype == torch.int64 and np.array_equal(y.numpy(), labels)


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_mosaics(tmp_path, kind):
    images, labels = sample(18)
    write_mosaics(tmp_path, "train", images, labels, kind=kind)
    write_mosaics(tmp_path, "test", images[6:12], labels[6:12], kind=kind)
    check(tmp_path, "train", images, labels)
    check(str(tmp_path), "test", images[6:12], labels[6:12])


def test_binary_version(tmp_path):
    images, labels = sample(11)
    for batch in range(5):
        write_records(tmp_path / f"data_batch_{batch + 1}.bin", images[2 * batch :][:2], labels[2 * batch :][:2])
    write_records(tmp_path / "test_batch.bin", images[10:], labels[10:])
    check(tmp_path, "train", images[:10], labels[:10])
    check(tmp_path, "test", images[10:], labels[10:])


def test_classes_are_alphabetical():
    assert len(CLASSES) == 10 and list(CLASSES) == sorted(CLASSES)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold CIFAR-10"):
        cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold CIFAR-10"):
        cifar10(tmp_path / "nowhere")
    images, labels = sample(6)
    write_mosaics(tmp_path, "test", images, labels)
    with pytest.raises(FileNotFoundError, match="must hold CIFAR-10"):
        cifar10(tmp_path, "train")
    (tmp_path / "test_labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_labels\.txt"):
        cifar10(tmp_path)


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="part must be one of 'train', 'test'"):
        cifar10(tmp_path, "validation")
    (tmp_path / "test_batch.bin").write_bytes(b"\0" * 3074)
    with pytest.raises(ValueError, match="3073-byte records, got 3074 bytes"):
        cifar10(tmp_path)
    images, labels = sample(6)
    write_mosaics(tmp_path, "test", images, labels)
    (tmp_path / "test_labels.txt").write_text("12345")
    with pytest.raises(ValueError, match=r"test_labels\.txt must hold 6 digits, got 5"):
        cifar10(tmp_path)
    (tmp_path / "test_labels.txt").write_text("12345x")
    with pytest.raises(ValueError, match="digits only"):
        cifar10(tmp_path)
    Image.new("RGB", (64, 40)).save(tmp_path / "test_01.webp", lossless=True)
    with pytest.raises(ValueError, match="sides divisible by 32"):
        cifar10(tmp_path)


def test_wrong_binary_label(tmp_path):
    images, _ = sample(1)
    write_records(tmp_path / "test_batch.bin", images, np.array([10], np.uint8))
    with pytest.raises(ValueError, match="labels below 10"):
        cifar10(tmp_path)
