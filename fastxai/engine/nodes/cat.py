"""Concatenation and, as its inverse, slices (in ``slice.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.trace import Unsupported

__all__ = ["Cat"]


class Cat(Linear):
    """Concatenation along a dimension other than the batch."""

    pulls_new_memory = False
    keeps_sign = True

    def __init__(self, xs: list[Node], axis: int) -> None:
        out = torch.cat([torch.empty(1, *x.shape, device="meta") for x in xs], axis)
        super().__init__(xs, out.shape[1:])
        self.axis = axis
        self.sizes = [x.shape[axis - 1] for x in xs]

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(xs, self.axis)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Split."""
        return nu.split(self.sizes, self.axis)


@builds("cat", "concat", "concatenate")
def _build(tensors: Any, dim: int = 0, axis: int | None = None) -> Node:
    tensors = list(tensors)
    if not all(isinstance(t, Node) for t in tensors):
        raise Unsupported("it concatenates a constant")
    along = (dim if axis is None else axis) % tensors[0].dim
    if along == 0:
        raise Unsupported("it concatenates along the batch")
    return Cat(tensors, along)
