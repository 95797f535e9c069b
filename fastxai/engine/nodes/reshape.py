"""Reshapes and permutations within a sample, and operations that change nothing in eval mode."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.trace import BATCH, Unsupported

__all__ = ["Permute", "Reshape"]


class Reshape(Linear):
    """Another shape of the same elements, sample by sample."""

    makes_memory = False
    passes_memory = True
    pulls_new_memory = False
    keeps_sign = True

    def __init__(self, x: Node, shape: tuple[int, ...]) -> None:
        super().__init__([x], shape)

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Reshape."""
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Reshape back."""
        return [nu.reshape(nu.shape[0], *self.inputs[0].shape)]


class Permute(Linear):
    """A permutation of the dimensions behind the batch."""

    makes_memory = False
    pulls_new_memory = False
    keeps_sign = True

    def __init__(self, x: Node, order: tuple[int, ...]) -> None:
        super().__init__([x], [x.shape[d - 1] for d in order[1:]])
        self.order = order
        self.inverse = tuple(order.index(d) for d in range(len(order)))

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Permute."""
        return xs[0].permute(self.order)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Permute back."""
        return [nu.permute(self.inverse)]


def _sizes(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)


@builds("view", "reshape")
def _reshape(input: Node, *shape: Any, **named: Any) -> Node:
    sizes = list(_sizes(shape or (named["shape"],)))
    if any(not isinstance(n, int) for n in sizes):
        raise Unsupported("it reinterprets the dtype")
    total = BATCH * math.prod(input.shape)
    if -1 in sizes:
        known = math.prod(n for n in sizes if n != -1)
        sizes[sizes.index(-1)] = total // known if known else 0
    if not sizes or sizes[0] != BATCH:
        raise Unsupported("it mixes samples of the batch")
    return Reshape(input, tuple(sizes[1:]))


@builds("flatten")
def _flatten(input: Node, start_dim: int = 0, end_dim: int = -1) -> Node:
    out = torch.empty(1, *input.shape, device="meta").flatten(max(start_dim % input.dim, 1), end_dim % input.dim)
    if start_dim % input.dim == 0:
        raise Unsupported("it mixes samples of the batch")
    return Reshape(input, tuple(out.shape[1:]))


@builds("squeeze")
def _squeeze(input: Node, dim: Any = None) -> Node:
    dims = range(1, input.dim) if dim is None else [d % input.dim for d in ((dim,) if isinstance(dim, int) else dim)]
    return Reshape(input, tuple(n for i, n in enumerate(input.shape, 1) if not (i in dims and n == 1)))


@builds("unsqueeze")
def _unsqueeze(input: Node, dim: int) -> Node:
    at = dim % (input.dim + 1)
    if at == 0:
        raise Unsupported("it moves the batch dimension")
    return Reshape(input, (*input.shape[: at - 1], 1, *input.shape[at - 1 :]))


@builds("permute")
def _permute(input: Node, *dims: Any, **named: Any) -> Node:
    order = tuple(d % input.dim for d in _sizes(dims or (named["dims"],)))
    if order[0] != 0:
        raise Unsupported("it moves the batch dimension")
    return Permute(input, order)


@builds("transpose", "swapaxes", "swapdims")
def _transpose(input: Node, dim0: int, dim1: int) -> Node:
    order = list(range(input.dim))
    order[dim0 % input.dim], order[dim1 % input.dim] = dim1 % input.dim, dim0 % input.dim
    return _permute(input, order)


@builds("contiguous", "clone", "identity", "alias", "float", "double", "to", "detach_copy")
def _identity(input: Node, *_: Any, **__: Any) -> Node:
    return input


@builds("dropout", "dropout2d", "feature_dropout", "alpha_dropout", "dropout1d")
def _dropout(input: Node, p: float = 0.5, training: bool = True, inplace: bool = False) -> Node:
    if training and p > 0:
        raise Unsupported("dropout is active")
    return input
