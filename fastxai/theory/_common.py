"""What the theory functions share: the class held fixed, H v on flat vectors, memory chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net, arguments

__all__ = ["Target", "count", "flat_hvp", "pieces", "prepare", "row_norm"]

Target = arguments.Target

# Bytes that the directions, basis vectors or path points of one call may take.
_BUDGET = 2**27


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
    return x, arguments.classes(target, x)


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
