"""Images with labels, for training and evaluation, from whatever format they lie in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastxai._check import one_of, require, tensor
from fastxai.data._common import PARTS, Read, check_labels, digits
from fastxai.data.cifar10 import CLASSES, cifar10
from fastxai.data.folder import read_folder
from fastxai.data.gtsrb import read_gtsrb
from fastxai.data.idx import read_idx
from fastxai.data.npz import read_masks, read_npz
from fastxai.data.torchvision import read_torchvision

__all__ = ["Labelled", "labelled"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images and what they show.

    Attributes:
        images: uint8 [M, C, H, W], M at least 1.
        labels: int64 [M], indices of ``classes``.
        classes: their names.
        masks: what an explanation of each image should show, [M, H, W] or [M, C, H, W] of dtype bool, uint8 or float32;
            None where nobody has said.
        identity: 16 digits that stand for all of this, wherever and in whatever format it lies. Made by itself.

    Raises:
        TypeError: images, labels or masks are no tensors of these dtypes.
        ValueError: their shapes do not fit, a label is out of range, or two classes have one name.

    >>> from fastxai.data import Labelled
    >>> pets = Labelled(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]), ("cat", "dog"))
    >>> len(pets), pets.identity
    (3, '245123aacb3fb9d1')
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    masks: Tensor | None = field(default=None, repr=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        """Check the parts against one another and digest them."""
        for name, value, dtype in (("images", self.images, torch.uint8), ("labels", self.labels, torch.int64)):
            tensor(value, name, floating=False)
            require(value.dtype == dtype, name, f"have dtype {dtype}", value.dtype, TypeError)
        shape = list(self.images.shape)
        require(len(shape) == 4 and min(shape) > 0, "images", "have shape [M, C, H, W] without zeros", shape)
        require(list(self.labels.shape) == shape[:1], "labels", f"have shape {shape[:1]}", list(self.labels.shape))
        texts = isinstance(self.classes, tuple) and all(isinstance(name, str) for name in self.classes)
        require(texts, "classes", "be a tuple of texts", self.classes, TypeError)
        # numpy drops zeros at the end of a text.
        sound = len(set(self.classes)) == len(self.classes) and not any("\0" in name for name in self.classes)
        require(sound, "classes", "be different names without zero characters", self.classes)
        labels = self.labels.cpu().numpy().astype("<i8")
        check_labels(labels, "labels", len(self.classes))
        # Channels last, which is how most readers leave the pixels in memory: they are digested where they lie.
        pixels = self.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        told = json.dumps(["labelled", pixels.shape, self.classes])
        object.__setattr__(self, "identity", digits(told, labels.data, pixels.reshape(-1).data, *self._told_masks()))

    def _told_masks(self) -> tuple[str | memoryview, ...]:
        """Check the masks; return what the digits say of them, nothing where there are none."""
        if self.masks is None:
            return ()
        tensor(self.masks, "masks", floating=False)
        kinds = (torch.bool, torch.uint8, torch.float32)
        require(self.masks.dtype in kinds, "masks", "have dtype bool, uint8 or float32", self.masks.dtype, TypeError)
        (count, *pixels), shape = self.images.shape, list(self.masks.shape)
        bare, full = [count, *pixels[1:]], [count, *pixels]
        require(shape in (bare, full), "masks", f"have shape {bare} or {full}", shape)
        require(bool(self.masks.isfinite().all()), "masks", "be finite", "inf or nan")
        values = self.masks.cpu().contiguous().numpy()
        return json.dumps(["masks", values.shape, values.dtype.str]), values.reshape(-1).view(np.uint8).data

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.labels)


def labelled(place: str, part: str, size: int | None = None) -> Labelled:
    """Read all images and labels of one part of a data set.

    ========================  ====================================================================================
    cifar10:FOLDER            lossless mosaics or the binary version, see ``cifar10``
    idx:FOLDER                the IDX files of MNIST, Fashion-MNIST and their like, plain or .gz; ``classes.txt``
                              beside them names the classes, else they are numbers
    gtsrb:FOLDER              ``gtsrb_train.webp`` and ``gtsrb_test.webp``: a row of 32x32 tiles for each line of
                              ``classes.txt``; class by class, so shuffle
    folder:FOLDER             ``train/CLASS/*.png`` and ``test/CLASS/*.png``, or other images; needs ``size``
    npz:FILE                  one file as ``save_npz`` writes it, the only format that has masks
    torchvision:NAME:FOLDER   a data set of torchvision that was downloaded before, such as torchvision:SVHN:data;
                              takes ``size``
    ========================  ====================================================================================

    Args:
        place: which data set, and where.
        part: "train" or "test".
        size: what the images are resized to where they differ in size, see ``fit``: the shorter side becomes this,
            then the central square is kept.

    Returns:
        The images, channels last in memory, with labels, classes and masks.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: place or part is unknown, a size is given where none is taken or missing where one is needed, or
            a file is damaged; the message names it.
        ImportError: torchvision is asked for and not installed.

    >>> import tempfile
    >>> from fastxai.data import Labelled, labelled, save_npz
    >>> noise = Labelled(torch.randint(256, (5, 3, 8, 8)).byte(), torch.arange(5), tuple("abcde"))
    >>> file = save_npz(tempfile.mkdtemp() + "/noise.npz", noise, noise)
    >>> labelled(f"npz:{file}", "train").images.equal(noise.images)
    True
    """
    one_of(part, "part", PARTS)
    kind, _, where = place.partition(":")
    forms = [*(f"{name}:..." for name in _READERS), "folder:FOLDER", "torchvision:NAME:FOLDER"]
    known = where != "" and kind in (*_READERS, "folder", "torchvision")
    require(known, "place", f"be one of {', '.join(forms)}", repr(place))
    require(size is None or size >= 1, "size", "be at least 1", size)
    if kind == "folder":
        if size is None:
            raise ValueError("size must be given for folder:, whose files may differ in size, got None")
        images, labels, classes = read_folder(Path(where), part, size)
    elif kind == "torchvision":
        name, _, folder = where.partition(":")
        require(folder != "", "place", "be torchvision:NAME:FOLDER", repr(place))
        images, labels, classes = read_torchvision(name, Path(folder), part, size)
    else:
        require(size is None, "size", f"be None for {kind}:, whose images are of one size", size)
        images, labels, classes = _READERS[kind](Path(where), part)
    # Some readers look into the bytes of a file, which cannot be written to.
    pixels = torch.from_numpy(np.require(images, requirements=("C", "W"))).permute(0, 3, 1, 2)
    masks = read_masks(Path(where), part) if kind == "npz" else None
    return Labelled(
        pixels,
        torch.from_numpy(labels.astype(np.int64)),
        classes,
        None if masks is None else torch.from_numpy(masks),
    )


def _read_cifar10(folder: Path, part: str) -> Read:
    images, labels = cifar10(folder, part)
    return images.permute(0, 2, 3, 1).numpy(), labels.numpy(), CLASSES


_READERS: dict[str, Callable[[Path, str], Read]] = {
    "cifar10": _read_cifar10,
    "idx": read_idx,
    "gtsrb": read_gtsrb,
    "npz": read_npz,
}
