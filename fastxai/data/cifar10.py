"""CIFAR-10 from a folder: the standard binary version, or lossless mosaics of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastxai._check import one_of, require
from fastxai.data._common import PARTS, tiles

__all__ = ["CLASSES", "cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE


def cifar10(folder: str | Path, part: str = "test") -> tuple[Tensor, Tensor]:
    """All images and labels of one part of CIFAR-10, in the original order.

    Two layouts are read, the first that is found: lossless mosaics, ``<part>_<digits>.<webp or png>`` whose tiles of
    32x32 run row by row, beside ``<part>_labels.txt`` with one digit an image; and the binary version,
    ``data_batch_<1-5>.bin`` and ``test_batch.bin``.

    Args:
        folder: where the files are.
        part: "train" or "test".

    Returns:
        Images, uint8 [N, 3, 32, 32] (RGB, channels last in memory), and labels, int64 [N], indices of ``CLASSES``.

    Raises:
        FileNotFoundError: neither layout is in the folder.
        ValueError: the part is unknown, or a file is damaged or does not have the size that its layout demands.
    """
    one_of(part, "part", PARTS)
    folder = Path(folder)
    mosaics = sorted(path for kind in ("webp", "png") for path in folder.glob(f"{part}_[0-9]*.{kind}"))
    records = sorted(folder.glob("data_batch_[1-5].bin" if part == "train" else "test_batch.bin"))
    if mosaics:
        images, labels = _mosaics(mosaics, folder / f"{part}_labels.txt")
    elif records:
        images, labels = _records(records)
    else:
        raise FileNotFoundError(f"folder must hold CIFAR-10 as mosaics or as binary batches, got {folder}")
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def _mosaics(files: list[Path], label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of every mosaic as [N, 32, 32, 3], and their labels [N]."""
    if not label_file.is_file():
        raise FileNotFoundError(f"{label_file} must hold the labels of {files[0].name}, but there is no such file")
    images = np.concatenate([tiles(file, SIDE).reshape(-1, SIDE, SIDE, 3) for file in files])
    labels = np.frombuffer(label_file.read_bytes().strip(), np.uint8) - ord("0")
    require(len(labels) == len(images), label_file.name, f"hold {len(images)} digits", len(labels))
    require(bool((labels < 10).all()), label_file.name, "hold digits only", "something else")
    return images, labels


def _records(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 32, 32, 3] and labels [N] of files of (label, red, green, blue) records."""
    for file in files:
        size = file.stat().st_size
        require(size % RECORD == 0, file.name, f"be a whole number of {RECORD}-byte records", f"{size} bytes")
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, RECORD) for file in files])
    require(bool((rows[:, 0] < 10).all()), files[0].parent.name, "hold labels below 10", rows[:, 0].max())
    images = rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0]
