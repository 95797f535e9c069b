"""Image files sorted into one folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastxai._check import require
from fastxai.data._common import PARTS, SUFFIXES, Read
from fastxai.data.images import fit_bytes, load_image

__all__ = ["read_folder"]


def read_folder(folder: Path, part: str, size: int) -> Read:
    """Read ``<part>/<class>/<image files>``; the folders of "train" name the classes for both parts.

    Args:
        folder: holds the folders "train" and "test"; without "train" the folders of "test" name the classes.
        part: "train" or "test".
        size: side of the squares, see ``fit``.

    Returns:
        Images uint8 [M, size, size, 3], by class and file name, labels int64 [M], classes in the order of their names.

    Raises:
        FileNotFoundError: there is no folder of this part.
        ValueError: a class is not among those of "train", there is no image file, or one cannot be read.
    """
    if not (folder / part).is_dir():
        raise FileNotFoundError(f"{folder} must hold a folder {part}, but does not")
    named = next(folder / one for one in PARTS if (folder / one).is_dir())
    classes = _folders(named)
    unknown = [name for name in _folders(folder / part) if name not in classes]
    require(not unknown, str(folder / part), f"hold classes of {named} only", unknown)
    files = [
        (file, label)
        for label, name in enumerate(classes)
        if (folder / part / name).is_dir()
        for file in sorted((folder / part / name).iterdir())
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    contract = f"hold folders of files that end in {' '.join(SUFFIXES)}"
    require(len(files) > 0, str(folder / part), contract, "no such file")
    images = np.empty((len(files), size, size, 3), np.uint8)
    for image, (file, _) in zip(images, files, strict=True):
        image[:] = fit_bytes(load_image(file), size).permute(1, 2, 0).numpy()
    return images, np.array([label for _, label in files]), classes


def _folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in one, but for hidden ones."""
    return tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")))
