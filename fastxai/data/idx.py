"""The IDX files of MNIST and of the data sets made in its likeness."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fastxai._check import require
from fastxai.data._common import Read, check_labels, class_names, numbered

__all__ = ["read_idx"]

STEMS = {"train": "train", "test": "t10k"}


def read_idx(folder: Path, part: str) -> Read:
    """Read ``<train or t10k>-images-idx3-ubyte`` and ``<train or t10k>-labels-idx1-ubyte``, each plain or as .gz.

    Args:
        folder: where the files are; a ``classes.txt`` beside them names the classes, one a line. Without it they are
            called by their numbers, up to the largest label of either part.
        part: "train" or "test".

    Returns:
        Images uint8 [M, H, W, 1], labels uint8 [M], classes.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is no IDX file of bytes, is cut off or too long, or the files do not fit together.
    """
    image_file, label_file = _find(folder, f"{STEMS[part]}-images-idx3-ubyte"), _labels(folder, part)
    images, labels = _array(image_file, 3), _array(label_file, 1)
    require(len(labels) == len(images), str(label_file), f"hold {len(images)} labels, one an image", len(labels))
    if (folder / "classes.txt").is_file():
        classes = class_names(folder / "classes.txt")
        check_labels(labels, str(label_file), len(classes))
    else:
        classes = numbered(np.append(labels, _other_labels(folder, part)), str(label_file))
    return images[..., None], labels, classes


def _labels(folder: Path, part: str) -> Path:
    return _find(folder, f"{STEMS[part]}-labels-idx1-ubyte")


def _other_labels(folder: Path, part: str) -> np.ndarray:
    """Labels of the part that was not asked for, none if it is not there."""
    (other,) = set(STEMS) - {part}
    try:
        file = _labels(folder, other)
    except FileNotFoundError:
        return np.zeros(0, np.uint8)
    return _array(file, 1)


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} must hold {name} or {name}.gz, but holds neither")


def _array(file: Path, axes: int) -> np.ndarray:
    """Numbers of a file of unsigned bytes with this many axes; read-only."""
    raw, name = file.read_bytes(), str(file)
    # The bytes tell, not the name: browsers unpack a .gz and leave it its name.
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name} must be whole gzip data, got {error}") from error
    start, header = bytes((0, 0, 8, axes)), 4 + 4 * axes
    contract = f"begin with the bytes {start.hex(' ')}, IDX of unsigned bytes with {axes} axes"
    require(raw[:4] == start, name, contract, raw[:4].hex(" ") or "an empty file")
    require(len(raw) >= header, name, f"have a header of {header} bytes", f"{len(raw)} bytes")
    sizes = struct.unpack(f">{axes}I", raw[4:header])
    require(min(sizes) > 0, name, "have sizes above 0", list(sizes))
    whole = header + math.prod(sizes)
    require(len(raw) == whole, name, f"have {whole} bytes, as its sizes {list(sizes)} say", len(raw))
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)
