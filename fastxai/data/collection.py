"""Images by number, from a folder of photos or from CIFAR-10, read when they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastxai._check import require
from fastxai.data._common import SUFFIXES, digits
from fastxai.data.cifar10 import CLASSES, cifar10
from fastxai.data.images import fit, load_images

__all__ = ["Collection", "open_collection"]

_CIFAR = "cifar10:"


@dataclass(frozen=True)
class Collection:
    """Images that are addressed by number.

    Attributes:
        names: of the images, one each.
        identity: digits that stand for the whole collection, wherever it lies: names and contents of a folder's files,
            labels of CIFAR-10.
        load: numbers -> float32 [n, 3, size, size] in [0, 1].
    """

    names: Sequence[str]
    identity: str
    load: Callable[[Sequence[int]], Tensor]

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.names)


def open_collection(place: str, size: int, shorter: int | None = None) -> Collection:
    """Return the images of a place.

    Args:
        place: a folder, whose image files are taken by name, those of folders inside too; or "cifar10:FOLDER", whose
            test images are taken, see ``cifar10``.
        size: side of the squares.
        shorter: see ``fit``; not used for CIFAR-10.

    Raises:
        FileNotFoundError: there is no such folder, or CIFAR-10 is not in it.
        ValueError: the folder holds no image file.
    """
    if place.startswith(_CIFAR):
        return _cifar10(Path(place[len(_CIFAR) :]), size)
    folder = Path(place)
    if not folder.is_dir():
        raise FileNotFoundError(f"images must be a folder or {_CIFAR}FOLDER, got {place}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    require(len(files) > 0, "images", f"hold files that end in {' '.join(SUFFIXES)}", place)
    names = [file.relative_to(folder).as_posix() for file in files]
    told = "\n".join(f"{name} {_digest(file)}" for name, file in zip(names, files, strict=True))
    return Collection(names, digits(told), lambda numbers: load_images([files[n] for n in numbers], size, shorter))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _cifar10(folder: Path, size: int) -> Collection:
    images, labels = cifar10(folder)

    def load(numbers: Sequence[int]) -> Tensor:
        return fit(images[torch.as_tensor(numbers, dtype=torch.long)].float() / 255, size)

    names = [f"{number} {CLASSES[label]}" for number, label in enumerate(labels.tolist())]
    return Collection(names, digits("cifar10 test " + " ".join(map(str, labels.tolist()))), load)
