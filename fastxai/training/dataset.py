"""Images and labels that live on the device, cut into batches in an order that a seed fixes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fastxai import _check, _random

__all__ = ["Dataset"]


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        images: uint8 [M, C, H, W], or floating point in the model's own space.
        labels: int64 [M].
        mean, std: one number or one a channel; uint8 images x become (x / 255 - mean) / std. None: they stay in [0, 1].
        pad: random crops shift the image by up to so many pixels; beyond the rim it is 0, which is black for bytes.
        flip: mirror half of the images.
        masks: what a map of each image should be, [M, H, W] or [M, C, H, W]: S_T of [F] eq. 3. They move with the
            images; None where there are none.
        epoch: how many samples an epoch takes, drawn anew for each; None, or more than there are, takes all.

    Raises:
        TypeError, ValueError: images, labels and masks do not belong together, or a setting is out of range.
    """

    images: Tensor
    labels: Tensor
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    pad: int = 0
    flip: bool = False
    masks: Tensor | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        _check.require(self.images.dim() == 4, "images", "have shape [M, C, H, W]", list(self.images.shape))
        pixels = self.images.dtype == torch.uint8 or self.images.is_floating_point()
        _check.require(pixels, "images", "be uint8 or floating point", self.images.dtype, TypeError)
        _check.shape(self.labels, "labels", (len(self.images),))
        _check.require(self.labels.dtype == torch.long, "labels", "be int64", self.labels.dtype, TypeError)
        _check.require((self.mean is None) == (self.std is None), "std", "come with mean", self.std)
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            self._check_statistics(name, least)
        _check.require(isinstance(self.pad, int) and self.pad >= 0, "pad", "be an int >= 0", self.pad)
        _check.require(isinstance(self.flip, bool), "flip", "be a bool", self.flip, TypeError)
        if self.masks is not None:
            shape, (count, *pixels) = list(self.masks.shape), self.images.shape
            bare, full = [count, *pixels[1:]], [count, *pixels]
            _check.require(shape in (bare, full), "masks", f"have shape {bare} or {full}", shape)
        whole = self.epoch is None or (isinstance(self.epoch, int) and self.epoch >= 1)
        _check.require(whole, "epoch", "be an int of at least 1", self.epoch)

    def _check_statistics(self, name: str, least: float) -> None:
        given = getattr(self, name)
        if given is None:
            return
        values = _check.numbers(given)
        if values is None or values.dim() != 1:
            values = torch.empty(0)
        inside = len(values) in (1, self.images.shape[1])
        fits = inside and bool((values.isfinite() & (values > least)).all())
        above = "" if least < 0 else f" above {least:g}"
        _check.require(fits, name, f"hold one finite number{above}, or one a channel", given)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), masks=masks)

    @property
    def per_epoch(self) -> int:
        """How many samples an epoch takes."""
        return len(self) if self.epoch is None else min(self.epoch, len(self))

    def plain(self, index: Tensor) -> Tensor:
        """Return the images of these numbers in the model's space, as they are."""
        return self._prepared(self.images[index])

    def augmented(self, index: Tensor, key: Sequence[int]) -> Tensor:
        """Return the images of these numbers shifted and mirrored at random, by (key, number of the image)."""
        return self._prepared(self._moved(self.images, index, key))

    def augmented_masks(self, index: Tensor, key: Sequence[int]) -> Tensor | None:
        """Return the masks of these numbers, moved as ``augmented`` moves the images, in the images' dtype.

        What comes in from beyond the rim is 0.
        """
        if self.masks is None:
            return None
        dtype = self.images.dtype if self.images.is_floating_point() else torch.float32
        return self._moved(self.masks, index, key).to(dtype)

    def _moved(self, values: Tensor, index: Tensor, key: Sequence[int]) -> Tensor:
        """Return rows of values [M, ..., H, W] shifted and mirrored."""
        x, (height, width), p = values[index], values.shape[-2:], self.pad
        if not (p or self.flip):
            return x
        top, left, mirror = _random.bits(key, index, range(1), 3)[0].unbind(1)
        rows = top.remainder(2 * p + 1)[:, None] + torch.arange(height, device=x.device)
        across = torch.arange(width, device=x.device)
        if self.flip:
            across = torch.where((mirror < 0)[:, None], width - 1 - across, across)
        columns = left.remainder(2 * p + 1)[:, None] + across
        padded = functional.pad(x, (p, p, p, p)).movedim((-2, -1), (1, 2))
        first = torch.arange(len(x), device=x.device)[:, None, None]
        return padded[first, rows[:, :, None], columns[:, None, :]].movedim((1, 2), (-2, -1))

    def _prepared(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x
        x = x.float() / 255
        if self.mean is None or self.std is None:
            return x
        mean, std = (x.new_tensor(list(values)).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def order(self, size: int, key: Sequence[int]) -> Iterator[Tensor]:
        """Yield the numbers of each batch of ``size`` of one epoch in random order; what is left over is dropped."""
        one = torch.zeros(1, dtype=torch.long)
        order = _random.bits(key, one, range(1), len(self))[0, 0].argsort().to(self.labels.device)
        yield from order[: self.per_epoch // size * size].split(size)
