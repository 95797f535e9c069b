"""Slices, splits and channel permutations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.trace import Unsupported

__all__ = ["Flip", "Select", "Slice"]


class Slice(Linear):
    """x[:, i, j, ...] with slices (strided or not) behind the batch."""

    makes_memory = False
    keeps_sign = True

    def __init__(self, x: Node, where: tuple[slice, ...]) -> None:
        super().__init__([x], torch.empty(1, *x.shape, device="meta")[where].shape[1:])
        self.where = where

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Read the slice."""
        return xs[0][self.where]

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Write the slice into zeros."""
        shape = (nu.shape[0], *self.inputs[0].shape)
        last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        mu = torch.empty(shape, dtype=nu.dtype, device=nu.device, memory_format=last).zero_()
        mu[self.where] = nu
        return [mu]


class Select(Linear):
    """The elements at given positions of one dimension, in their order: channel permutations and gathers."""

    keeps_sign = True

    def __init__(self, x: Node, axis: int, positions: tuple[int, ...]) -> None:
        super().__init__([x], (*x.shape[: axis - 1], len(positions), *x.shape[axis:]))
        self.axis, self.positions = axis, positions

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Gather."""
        return xs[0].index_select(self.axis, torch.tensor(self.positions, device=xs[0].device))

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Scatter-add."""
        mu = nu.new_zeros(nu.shape[0], *self.inputs[0].shape)
        return [mu.index_add_(self.axis, torch.tensor(self.positions, device=nu.device), nu)]


class Flip(Linear):
    """Reversal along dimensions behind the batch; its own transpose."""

    keeps_sign = True

    def __init__(self, x: Node, dims: tuple[int, ...]) -> None:
        super().__init__([x], x.shape)
        self.dims = dims

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Reverse."""
        return xs[0].flip(self.dims)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Reverse."""
        return [nu.flip(self.dims)]


@builds("__getitem__", "getitem")
def _getitem(input: Node, key: Any) -> Node:
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (input.dim - len(keys) + 1)
    if not keys or keys[0] != slice(None):
        raise Unsupported("it selects samples of the batch")
    lists = [i for i, k in enumerate(keys) if isinstance(k, list)]
    if len(lists) == 1 and all(k == slice(None) for i, k in enumerate(keys) if i != lists[0]):
        axis = lists[0]
        return Select(input, axis, tuple(int(i) % input.shape[axis - 1] for i in keys[axis]))
    if not all(isinstance(k, slice) for k in keys):
        raise Unsupported("it indexes with something other than slices or one list of positions")
    return Slice(input, tuple(keys))


@builds("narrow")
def _narrow(input: Node, dim: int, start: int, length: int) -> Node:
    axis = dim % input.dim
    if axis == 0:
        raise Unsupported("it selects samples of the batch")
    start %= input.shape[axis - 1]
    return Slice(input, (*[slice(None)] * axis, slice(start, start + length)))


@builds("chunk")
def _chunk(input: Node, chunks: int, dim: int = 0) -> list[Node]:
    size = -(-input.shape[dim % input.dim - 1] // chunks)
    return _split(input, size, dim)


@builds("split", "split_with_sizes")
def _split(tensor: Node, split_size_or_sections: Any, dim: int = 0) -> list[Node]:
    axis = dim % tensor.dim
    if axis == 0:
        raise Unsupported("it splits the batch")
    total, sizes = tensor.shape[axis - 1], split_size_or_sections
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_narrow(tensor, axis, start, size) for start, size in zip(starts, sizes, strict=True)]


@builds("flip")
def _flip(input: Node, *dims: Any) -> Node:
    axes = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    axes = tuple(d % input.dim for d in axes)
    if 0 in axes:
        raise Unsupported("it reverses the batch")
    return Flip(input, axes)
