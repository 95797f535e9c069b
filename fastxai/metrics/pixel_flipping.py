"""Pixel flipping: how fast the score falls as the pixels that a map calls relevant are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai._check import require, shape, tensor

__all__ = ["FlippingCurve", "PixelFlipping", "pixel_flipping"]

# Bytes of flipped images that one call of the score gets, where the batch itself is smaller.
_CHUNK = 2**24


@dataclass(frozen=True)
class FlippingCurve:
    """What the network says of each sample after each fraction of its pixels is flipped.

    Attributes:
        scores: softmax probability of the target, [N, F].
        logits: the target's own value, [N, F].
        correct: the target is the predicted class, [N, F] bool.
    """

    scores: Tensor
    logits: Tensor
    correct: Tensor

    @property
    def area(self) -> Tensor:
        """Mean of ``scores`` over the curve, [N]; lower is better."""
        return self.scores.mean(1)


@dataclass(frozen=True)
class PixelFlipping:
    """The curve of a map beside that of a random order.

    Attributes:
        fractions: share of the pixels that is flipped, [F]; whole pixels, so rounded.
        relevant: the pixels that the map calls most relevant first.
        random: the pixels in random order, the baseline.
    """

    fractions: Tensor
    relevant: FlippingCurve
    random: FlippingCurve


@torch.no_grad()
def pixel_flipping(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    h: Tensor,
    target: int | Tensor | None = None,
    *,
    fractions: int | Sequence[float] = 20,
    value: float | Sequence[float] | Tensor = 0.0,
    seed: int | tuple[int, int] = 0,
) -> PixelFlipping:
    """Flip the most relevant pixels of each image, all channels at once, and follow the score of the target.

    At fraction f the round(f H W) pixels with the largest h are ``value``; of equal ones the lower index goes first.
    Pass -h to flip the least relevant first. The random order of a sample depends on the seed and the sample's number
    alone, not on the batch it comes in. All fractions of all samples go through the score in common calls, of as many
    images as x has or of 16 MiB of images, whichever is more.

    Args:
        score: [M, C, H, W] -> class scores before softmax [M, K], for any M: a compiled net, a module in eval mode or
            any function.
        x: images [N, C, H, W].
        h: map reduced to one value a pixel [N, H, W], without NaN.
        target: class as an int, LongTensor [N], or None for the one predicted on x.
        fractions: in [0, 1], ascending or not; an int T means 0, 1/T, ..., 1.
        value: what a flipped pixel becomes, in the space of x: one number, or one a channel.
        seed: of the random order; (seed, i) where the first sample of the batch is number i of its data set.

    Returns:
        The curves of the map and of the random order.

    Raises:
        TypeError: x or h is no floating point tensor, target no integer.
        ValueError: a shape, device or range is wrong, or h has NaN.

    [M] section 4 (pixels set to 0, random order beside it).

    >>> net, x = torch.nn.Flatten(), torch.tensor([[[[3.0, 1.0]]]])
    >>> fastxai.metrics.pixel_flipping(net, x, x[:, 0], fractions=2).relevant.correct
    tensor([[ True, False,  True]])
    """
    tensor(x, "x")
    require(x.dim() == 4 and 0 not in x.shape[1:], "x", "have shape [N, C, H, W]", list(x.shape))
    n, _, height, width = x.shape
    shape(tensor(h, "h"), "h", (n, height, width))
    require(h.device == x.device, "h", f"be on x's device {x.device}", h.device)
    require(not bool(h.isnan().any()), "h", "have no NaN", "NaN")
    flipped, counts = _pixel_value(value, x), _pixel_counts(fractions, height * width)
    chosen = _targets(score, x, target)
    highest = int(chosen.max()) if n else 0
    order = torch.stack((h.flatten(1).argsort(dim=1, descending=True, stable=True), _random_order(seed, h)))
    places = order.argsort(dim=2).int().flatten(0, 1)

    limits = torch.tensor(counts, dtype=torch.int32, device=x.device)[:, None]
    steps, total = len(counts), 2 * len(counts) * n
    scores, logits = x.new_empty(total), x.new_empty(total)
    correct = torch.empty(total, dtype=torch.bool, device=x.device)
    # A row is one sample at one fraction of one curve, the sample running fastest.
    for rows in torch.arange(total, device=x.device).split(max(n, _CHUNK // x[0].nbytes)) if n else ():
        sample = rows % n
        flip = places[rows // (steps * n) * n + sample] < limits[rows // n % steps]
        every = _every_score(score, torch.where(flip.view(-1, 1, height, width), flipped, x[sample]))
        require(highest < every.shape[1], "target", f"be below {every.shape[1]}, the number of classes", highest)
        k = chosen[sample, None]
        scores[rows], logits[rows] = every.softmax(1).gather(1, k)[:, 0], every.gather(1, k)[:, 0]
        correct[rows] = every.argmax(1) == k[:, 0]
    curves = [part.view(2, steps, n).mT.unbind(0) for part in (scores, logits, correct)]
    relevant, random = (FlippingCurve(*parts) for parts in zip(*curves, strict=True))
    share = torch.tensor(counts, dtype=x.dtype, device=x.device) / (height * width)
    return PixelFlipping(share, relevant, random)


def _every_score(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    every = tensor(score(images), "score(x)")
    fits = every.dim() == 2 and every.shape[0] == len(images)
    require(fits, "score(x)", f"have shape [{len(images)}, K]", list(every.shape))
    return every.to(images.dtype)


def _targets(score: Callable[[Tensor], Tensor], x: Tensor, target: int | Tensor | None) -> Tensor:
    """The class of each sample, LongTensor [N]."""
    if target is None:
        return _every_score(score, x).argmax(1) if len(x) else torch.zeros(0, dtype=torch.int64, device=x.device)
    chosen = torch.as_tensor(target, device=x.device)
    whole = not (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool)
    require(whole, "target", "be an int or an integer tensor", chosen.dtype, TypeError)
    require(tuple(chosen.shape) in ((), (len(x),)), "target", f"be one int or have shape [{len(x)}]", chosen.shape)
    require(bool((chosen >= 0).all()), "target", "be zero or positive", target)
    return chosen.long().expand(len(x))


def _pixel_value(value: float | Sequence[float] | Tensor, x: Tensor) -> Tensor:
    """What a flipped pixel becomes, [C or 1, 1, 1]."""
    flipped = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    require(tuple(flipped.shape) in ((), (channels,)), "value", f"be one number or {channels}", list(flipped.shape))
    return flipped.view(-1, 1, 1)


def _pixel_counts(fractions: int | Sequence[float], pixels: int) -> list[int]:
    """How many pixels are flipped at each fraction."""
    if isinstance(fractions, int):
        require(fractions >= 1, "fractions", "be a positive int or a sequence", fractions)
        fractions = [i / fractions for i in range(fractions + 1)]
    fits = len(fractions) > 0 and all(0 <= fraction <= 1 for fraction in fractions)
    require(fits, "fractions", "be one number in [0, 1] or more", fractions)
    return [int(fraction * pixels + 0.5) for fraction in fractions]


def _random_order(seed: int | tuple[int, int], h: Tensor) -> Tensor:
    """A permutation of the pixels for each sample, [N, HW]: they are sorted by a hash of seed, sample and pixel."""
    numbers = seed if isinstance(seed, tuple) else (seed, 0)
    fits = len(numbers) == 2 and all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers)
    require(fits, "seed", "be an int in [0, 2^31) or two of them", seed)
    n, height, width = h.shape
    samples = torch.arange(n, device=h.device)[:, None] + numbers[1]
    pixels = torch.arange(height * width, device=h.device)
    key = _mix(samples ^ _mix(torch.full_like(samples, numbers[0] + 1)))
    return _mix(key ^ _mix(pixels + 1)).argsort(dim=1, stable=True)


def _mix(z: Tensor) -> Tensor:
    """A bijection of [0, 2^32) that scatters its bits."""
    # Factors below 2^31 keep the products inside int64.
    z = (z ^ (z >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    z = (z ^ (z >> 12)) * 0x297A2D39 & 0xFFFFFFFF
    return z ^ (z >> 15)
