"""German traffic signs as one mosaic a part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastxai._check import require
from fastxai.data._common import Read, class_names, tiles

__all__ = ["read_gtsrb"]

SIDE = 32


def read_gtsrb(folder: Path, part: str) -> Read:
    """Read ``gtsrb_<part>.webp`` (or .png), whose rows are the classes, tiles of 32x32, and their ``classes.txt``.

    Args:
        folder: where the files are.
        part: "train" or "test".

    Returns:
        Images uint8 [M, 32, 32, 3], class by class, labels int64 [M], classes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the mosaic is no image, does not consist of tiles, or has another number of rows than classes.
    """
    files = [folder / f"gtsrb_{part}.{kind}" for kind in ("webp", "png")]
    mosaic = next((file for file in files if file.is_file()), None)
    if mosaic is None or not (folder / "classes.txt").is_file():
        raise FileNotFoundError(f"{folder} must hold {files[0].name} or {files[1].name}, and classes.txt, but does not")
    classes = class_names(folder / "classes.txt")
    rows = tiles(mosaic, SIDE)
    count, columns = rows.shape[:2]
    require(count == len(classes), str(mosaic), f"have {len(classes)} rows, as classes.txt has lines", count)
    return rows.reshape(-1, SIDE, SIDE, 3), np.repeat(np.arange(count), columns), classes
