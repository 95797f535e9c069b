"""What the theory functions share: the class held fixed, H v on flat vectors, random numbers by key, memory chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net

__all__ = ["KINDS", "Target", "count", "draw", "flat_hvp", "pieces", "prepare", "row_norm"]

Target = int | Tensor | None

KINDS = ("rademacher", "gaussian")
# Bytes that the directions, basis vectors or path points of one call may take.
_BUDGET = 2**27
_GOLDEN, _MIX_1, _MIX_2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def count(value: Any, name: str, least: int = 1) -> int:
    """Return the value if it is an int of at least ``least``; ValueError otherwise."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _check.require(fits, name, f"be an int of at least {least}", value)
    return value


def prepare(net: Any, x: Any, target: Target, name: str = "x", least: int = 1) -> tuple[Tensor, Tensor]:
    """Return (x detached [N, ...], target as a LongTensor [N]); ``target=None`` is the model's own prediction on x.

    Raises:
        TypeError: net is no compiled net, x no floating point tensor, target no integer.
        ValueError: x has no batch dimension or fewer than ``least`` elements a sample; the target's shape is wrong.
    """
    _check.require(isinstance(net, Net), "net", "come from fastxai.compile", type(net).__name__, TypeError)
    x = _check.tensor(x, name).detach()
    size = math.prod(x.shape[1:])
    _check.require(x.dim() >= 2, name, "have shape [N, ...]", list(x.shape))
    _check.require(size >= least, name, f"have at least {least} elements a sample", list(x.shape))
    if target is None:
        return x, net.base(x).argmax(1)
    if isinstance(target, Tensor):
        _check.require(not target.is_floating_point(), "target", "hold integers", target.dtype, TypeError)
        target = target.expand(x.shape[:1]) if target.dim() == 0 else target
        return x, _check.shape(target, "target", (x.shape[0],)).to(x.device, torch.long)
    _check.require(isinstance(target, int), "target", "be an int, a LongTensor [N] or None", target, TypeError)
    return x, torch.full(x.shape[:1], target, dtype=torch.long, device=x.device)


def flat_hvp(net: Net, x: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v [N, D] or [S, N, D] -> H v of the same shape."""

    def product(v: Tensor) -> Tensor:
        return net.hvp(x, v.reshape(*v.shape[:-1], *x.shape[1:]), target).reshape(v.shape)

    return product


def row_norm(v: Tensor) -> Tensor:
    """Return the Euclidean norm over the last dimension."""
    return torch.linalg.vector_norm(v, dim=-1)


def pieces(total: int, each: int) -> Iterator[slice]:
    """Split ``total`` things of ``each`` bytes into slices that fit the memory budget, one thing at the least."""
    step = max(1, _BUDGET // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose products wrap; >> keeps the sign, which the masks take away."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))


def draw(kind: str, x: Tensor, seed: int, index: Tensor | None, rows: range) -> Tensor:
    """Return random vectors [len(rows), N, D] for x [N, ...] with E v v^T = 1, in x's dtype and on its device.

    Each number depends on (seed, index of its sample, row, position) alone: not on how a batch or the rows are split,
    nor on dtype or device but for rounding. ``index=None`` gives every sample the same vectors.

    Raises:
        TypeError: seed is no int, index holds no integers.
        ValueError: the kind is unknown, index has not the shape [N].
    """
    _check.one_of(kind, "kind", KINDS)
    _check.require(isinstance(seed, int), "seed", "be an int", seed, TypeError)
    samples, size = x.shape[0], math.prod(x.shape[1:])
    if index is None:
        keys = torch.zeros(1, dtype=torch.long, device=x.device)
    else:
        _check.require(
            not _check.tensor(index, "index", False).is_floating_point(),
            "index",
            "hold integers",
            index.dtype,
            TypeError,
        )
        keys = _check.shape(index, "index", (samples,)).to(x.device, torch.long)
    start = torch.full((1,), seed % 2**63, dtype=torch.long, device=x.device)
    row = torch.arange(rows.start + 1, rows.stop + 1, device=x.device)[:, None]
    bits = _mix(_mix(_mix(start + _GOLDEN) + keys * _GOLDEN) + row * _GOLDEN)
    bits = _mix(bits[:, :, None] + torch.arange(1, size + 1, device=x.device) * _GOLDEN)
    if kind == "rademacher":
        v = torch.where(bits < 0, -1.0, 1.0)
    else:
        u, angle = ((part & (2**32 - 1)).double() / 2**32 for part in (bits >> 32, bits))
        v = (-2 * torch.log(u + 2.0**-33)).sqrt() * torch.cos(2 * math.pi * angle)
    return v.to(x.dtype).expand(len(rows), samples, size)
