"""Random numbers that are a function of (key, sample, row, position): the same on every device, rank and chunk.

A key is a seed, or a seed and a step. Every row of every sample is a SplitMix64 stream of its own. A number of the key
may be a LongTensor [] on the index's device: recorded calls follow it, where ints would be frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["DISTRIBUTIONS", "bits", "normal", "probes", "signs", "uniform"]

DISTRIBUTIONS = ("rademacher", "gaussian")
Key = Sequence[int | Tensor]
_STEP, *_FACTORS = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap; >> keeps the sign, which the masks take away."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _FACTORS[0]
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _FACTORS[1]
    return z ^ ((z >> 31) & (2**33 - 1))


def bits(key: Key, index: Tensor, rows: range, count: int) -> Tensor:
    """Return int64 [len(rows), N, count] for samples of the given numbers [N]."""
    stream = torch.zeros(1, dtype=torch.long, device=index.device)
    for number in key:
        wrapped = number if isinstance(number, Tensor) else (number + 2**63) % 2**64 - 2**63
        stream = _mix(stream * _STEP + wrapped)
    stream = _mix(_mix(stream + _STEP) + index.long() * _STEP)
    row = torch.arange(rows.start + 1, rows.stop + 1, device=index.device)[:, None]
    place = torch.arange(1, count + 1, device=index.device)
    return _mix(_mix(stream + row * _STEP)[:, :, None] + place * _STEP)


def _halves(key: Key, index: Tensor, rows: range, count: int) -> tuple[Tensor, Tensor]:
    """Return two float32 numbers in (0, 1] for each of ``count`` positions."""
    both = bits(key, index, rows, count)
    high, low = (((both >> shift & 0xFFFFFFFF).double() + 0.5).mul_(2.0**-32).float() for shift in (32, 0))
    return high, low


def uniform(key: Key, index: Tensor, rows: range, count: int) -> Tensor:
    """Return float32 [len(rows), N, count] in (0, 1]."""
    return torch.cat(_halves(key, index, rows, -(-count // 2)), 2)[:, :, :count]


def normal(key: Key, index: Tensor, rows: range, count: int) -> Tensor:
    """Return standard normal float32 [len(rows), N, count], by Box and Muller's transform; at most 6.8 in size."""
    u, angle = _halves(key, index, rows, -(-count // 2))
    radius, angle = u.log().mul_(-2).sqrt_(), angle.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 2)[:, :, :count]


def signs(key: Key, index: Tensor, rows: range, count: int) -> Tensor:
    """Return 1 and -1 as float32 [len(rows), N, count]."""
    return 1 + 2 * (bits(key, index, rows, count) >> 63).float()


def probes(kind: str, x: Tensor, key: Key, index: Tensor | None, rows: range) -> Tensor:
    """Return random vectors [len(rows), N, D] for x [N, ...] with E v v^T = 1, in x's dtype and on its device.

    Each number depends on (key, index of its sample, row, position) alone: not on how a batch or the rows are split,
    nor on dtype or device but for rounding. ``index=None`` gives every sample the same vectors.

    Raises:
        TypeError: the key holds something else than ints and LongTensors [], index no integers.
        ValueError: the kind is unknown, index has not the shape [N].
    """
    _check.one_of(kind, "kind", DISTRIBUTIONS)
    for number in key:
        live = isinstance(number, Tensor) and number.dtype == torch.long and not number.dim()
        _check.require(live or isinstance(number, int), "seed", "be an int", number, TypeError)
    samples, size = x.shape[0], math.prod(x.shape[1:])
    if index is None:
        numbers = torch.zeros(1, dtype=torch.long, device=x.device)
    else:
        whole = not _check.tensor(index, "index", False).is_floating_point()
        _check.require(whole, "index", "hold integers", index.dtype, TypeError)
        numbers = _check.shape(index, "index", (samples,)).to(x.device)
    v = (signs if kind == "rademacher" else normal)(key, numbers, rows, size)
    return v.to(x.dtype).expand(len(rows), samples, size)
