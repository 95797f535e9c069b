"""What the readers of data sets share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from fastxai._check import require

__all__ = ["PARTS", "SUFFIXES", "Read", "check_labels", "class_names", "digits", "numbered", "tiles"]

PARTS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# Images uint8 [M, H, W, C], labels of any integer dtype [M], names of the classes.
Read = tuple[np.ndarray, np.ndarray, tuple[str, ...]]


def digits(*told: str | bytes | memoryview) -> str:
    """Return 16 hexadecimal digits that stand for these pieces, read one after the other."""
    whole = hashlib.sha256()
    for piece in told:
        whole.update(piece.encode() if isinstance(piece, str) else piece)
    return whole.hexdigest()[:16]


def tiles(file: Path, side: int) -> np.ndarray:
    """Cut a mosaic of squares: uint8 [rows, columns, side, side, 3]."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a mosaic of images, but there is no such file")
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    # Pillow tells broken PNG chunks by SyntaxError.
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} must be an image that Pillow can read, got {error}") from error
    height, width = pixels.shape[:2]
    require(height % side == 0 == width % side, str(file), f"have sides divisible by {side}", (height, width))
    return pixels.reshape(height // side, side, width // side, side, 3).transpose(0, 2, 1, 3, 4)


def class_names(file: Path) -> tuple[str, ...]:
    """Read one name a line; empty lines count for nothing."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must hold one class a line in UTF-8, got {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    require(len(names) > 0, str(file), "hold one class a line", "an empty file")
    return names


def numbered(labels: np.ndarray, name: str) -> tuple[str, ...]:
    """Name the classes by their numbers, up to the largest label."""
    most = int(labels.max()) if len(labels) else -1
    # A damaged file shall not make a tuple of billions of names.
    require(most < 1 << 16, name, f"hold labels below {1 << 16} where no classes are named", most)
    return tuple(map(str, range(most + 1)))


def check_labels(labels: np.ndarray, name: str, count: int) -> None:
    """Demand that every label is one of ``count`` classes."""
    wrong = labels[(labels < 0) | (labels >= count)]
    require(len(wrong) == 0, name, f"hold labels of 0 to {count - 1}", wrong[0] if len(wrong) else None)
