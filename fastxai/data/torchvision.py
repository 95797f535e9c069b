"""The data sets that torchvision reads, where it is installed; nothing is downloaded."""

from __future__ import annotations

import inspect
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastxai._check import require
from fastxai.data._common import Read, check_labels, numbered
from fastxai.data.images import fit_bytes

__all__ = ["read_torchvision"]


def read_torchvision(name: str, folder: Path, part: str, size: int | None) -> Read:
    """Read a data set of torchvision that lies in a folder.

    Any class of ``torchvision.datasets`` that takes ``train=`` or ``split="train" | "test"`` and gives an image and
    one label will do. torchvision reads some formats, CIFAR-10 and CIFAR-100 among them, in ways that run code found
    in the files: give it only files that you trust.

    Args:
        name: of the class, such as "SVHN".
        folder: its ``root``.
        part: "train" or "test".
        size: side of the squares, see ``fit``; None leaves the images as they are.

    Returns:
        Images uint8 [M, H, W, C], grey ones with C = 1, labels int64 [M], classes: those that the data set names,
        else numbers up to the largest label of this part.

    Raises:
        ImportError: torchvision is not installed.
        FileNotFoundError: the data set is not in the folder, or not whole.
        ValueError: no such data set, or it has no such parts, several labels an image, or images of several sizes
            where ``size`` is None.
    """
    data = _open(name, folder, part)
    images, labels = [], []
    # The one interface that all of them share gives one image at a time.
    for number in range(len(data)):
        image, label = data[number]
        try:
            labels.append(operator.index(label))
        except TypeError as error:
            raise ValueError(f"torchvision's {name} must give one integer a label, got {label!r:.80}") from error
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if size is not None:
            floats = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 255
            pixels = fit_bytes(floats, size).permute(1, 2, 0).numpy()
        images.append(pixels)
    require(len(images) > 0, f"torchvision's {name}", f"hold images of {part} in {folder}", "none")
    channels = max(image.shape[2] for image in images)
    sides = sorted({image.shape[:2] for image in images})
    contract = "be given for images of several sizes"
    require(len(sides) == 1, "size", contract, f"None for {name}, with sides from {sides[0]} to {sides[-1]}")
    named = getattr(data, "classes", None)
    integers = np.array(labels, np.int64)
    classes = tuple(map(str, named)) if named else numbered(integers, f"torchvision's {name}")
    check_labels(integers, f"torchvision's {name}", len(classes))
    return np.stack([np.broadcast_to(image, (*sides[0], channels)) for image in images]), integers, classes


def _open(name: str, folder: Path, part: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(f"torchvision:{name} needs torchvision, which is not installed here") from error
    kind: Any = getattr(datasets, name, None)
    known = isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)
    require(known, "place", "name a data set of torchvision.datasets", repr(name))
    takes = inspect.signature(kind).parameters
    ways: tuple[dict[str, Any], ...] = ({"train": part == "train"}, {"split": part})
    fitting = [way for way in ways if way.keys() <= takes.keys()]
    require(len(fitting) > 0, "place", "name a data set of torchvision with the parts train and test", repr(name))
    still: dict[str, Any] = {"download": False} if "download" in takes else {}
    try:
        return kind(folder, **fitting[0], **still)
    # torchvision tells missing and damaged files by RuntimeError.
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder} must hold torchvision's {name}, got {error}") from error
