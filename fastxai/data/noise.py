"""Noisy copies of inputs, the same however a data set is cut into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _check, _random

__all__ = ["KINDS", "noisy"]

KINDS = ("gaussian", "laplace", "salt_and_pepper")

Bound = float | Sequence[float] | Tensor


def noisy(
    x: Tensor,
    level: float,
    kind: str = "gaussian",
    *,
    low: Bound = 0.0,
    high: Bound = 1.0,
    seed: int = 0,
    index: Tensor | None = None,
    clamp: bool = False,
) -> Tensor:
    """Return x with random noise of a level nu, in units of the range of valid inputs.

    - "gaussian": x + N(0, sigma^2), sigma = (x_max - x_min) nu;
    - "laplace": x + Laplace(0, b), b = (x_max - x_min) nu;
    - "salt_and_pepper": round(nu / 2 H W) pixels become x_max or x_min, either with probability 1/2, in all channels.

    With bounds per channel it is the noise of the same level on the [0, 1] image, seen through (x - mean) / std. Every
    number depends on the seed, the number of its sample and its place alone: not on the batch, and on dtype and device
    only by rounding. Levels of one seed share them, so that a higher level is more of the same noise.

    Args:
        x: inputs [N, C, ...], or [N, C] (a pixel is then one element).
        level: nu, 0 or more; at most 2 for "salt_and_pepper".
        kind: one of ``KINDS``.
        low: x_min, the lowest valid value in the space of x: a number, or one a channel.
        high: x_max, the highest one.
        seed: of the noise.
        index: numbers of the samples in their data set, LongTensor [N]; None: 0 .. N - 1.
        clamp: True brings the result back into the range; [R] does not.

    Returns:
        The noisy copy, of x's shape and dtype.

    Raises:
        TypeError: x is no floating point tensor, seed no int, or index holds no integers.
        ValueError: kind is unknown; level, a bound, or the shape of x or index does not fit.

    [R] eq. 11 and appendix D.5 (nu .005 flips 3 pixels of 32x32).

    >>> from fastxai.data import noisy
    >>> x = torch.full((2, 3, 32, 32), 0.5)
    >>> (noisy(x, 0.005, "salt_and_pepper") != x).all(1).sum((1, 2))
    tensor([3, 3])
    """
    _check.require(_check.tensor(x, "x").dim() >= 2, "x", "have shape [N, C, ...]", list(x.shape))
    _check.one_of(kind, "kind", KINDS)
    _check.not_negative(level, "level")
    _check.require(isinstance(seed, int), "seed", "be an int", seed, TypeError)
    lowest, highest = _bound(low, "low", x), _bound(high, "high", x)
    _check.require(bool((lowest < highest).all()), "low, high", "be below one another", (low, high))
    numbers = _check.index_of(index, x)
    # Beside the seed, so that no noise repeats the directions of Hessian-vector products by the same seed.
    key = (seed, 1 + KINDS.index(kind))
    if kind == "salt_and_pepper":
        return _flipped(x, level, lowest, highest, (key, numbers))
    size = math.prod(x.shape[1:])
    if kind == "gaussian":
        draws = _random.normal(key, numbers, range(1), size)
    else:
        # The inverse of the exponential distribution, with a sign of its own: exact in both tails, never infinite.
        draws = _random.uniform(key, numbers, range(1), size).log() * _random.signs(key, numbers, range(1, 2), size)
    made = x + level * (highest - lowest) * draws[0].to(x.dtype).view(x.shape)
    return made.clamp(lowest, highest) if clamp else made


def _flipped(x: Tensor, level: float, low: Tensor, high: Tensor, source: tuple[tuple[int, int], Tensor]) -> Tensor:
    """Return x with some pixels white or black."""
    _check.require(level <= 2, "level", "be at most 2 for salt_and_pepper", level)
    shape = [1, *x.shape[2:]] if x.dim() > 2 else list(x.shape[1:])
    pixels = math.prod(shape)
    # Whole 64-bit numbers: float32 ones tie, and which of two equal ones comes first is left open by topk.
    order = _random.bits(*source, range(1), pixels)[0]
    chosen = order.topk(round(level / 2 * pixels), dim=1).indices
    flip = torch.zeros_like(order, dtype=torch.bool).scatter(1, chosen, True).view(len(x), *shape)
    white = (_random.signs(*source, range(1, 2), pixels)[0] > 0).view(len(x), *shape)
    return torch.where(flip, torch.where(white, high, low), x)


def _bound(value: Bound, name: str, x: Tensor) -> Tensor:
    """Return the bound as [C or 1, 1, ...] in x's dtype and on its device."""
    bound = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    fits = tuple(bound.shape) in ((), (channels,)) and bool(bound.isfinite().all())
    _check.require(fits, name, f"be one finite number or {channels}", value)
    return bound.view(-1, *[1] * (x.dim() - 2))
