"""Sums of tensors and constants; a difference is a sum with a scaled term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds, same
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.scale import Scale
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Apply, Constant, Expr, shape_of

__all__ = ["Add", "constant", "scaled"]


class Add(Linear):
    """y = x_1 + x_2."""

    pulls_new_memory = False
    keeps_sign = True

    def __init__(self, a: Node, b: Node) -> None:
        super().__init__([a, same(b, a.shape)], a.shape)

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Return the sum."""
        return xs[0] + xs[1]

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Pass nu to both."""
        return [nu, nu]


def constant(value: Any, node: Node) -> tuple[Expr, bool]:
    """Return a number or an expression as a weight of the node, and whether it is one value per channel.

    Raises:
        Unsupported: it has a batch dimension of its own, or would broadcast the node.
    """
    if isinstance(value, (int, float)):
        return Constant(torch.tensor(float(value), dtype=torch.float64)), False
    shape = shape_of(value)
    if len(shape) > node.dim or (len(shape) == node.dim and shape[0] != 1):
        raise Unsupported(f"a constant of shape {list(shape)} has a batch dimension")
    tail = shape[1:] if len(shape) == node.dim else shape
    if torch.broadcast_shapes(tail, node.shape) != torch.Size(node.shape):
        raise Unsupported(f"a constant of shape {list(shape)} broadcasts the input's {list(node.shape)}")
    return value, False


def scaled(x: Node, factor: float) -> Node:
    """Return factor x."""
    return x if factor == 1 else Scale(x, constant(factor, x)[0], channel=False)


def _scaled_constant(value: Any, factor: float) -> Any:
    if factor == 1:
        return value
    return value * factor if isinstance(value, (int, float)) else Apply(torch.mul, (value, factor), {})


def _sum(a: Any, b: Any, alpha: float) -> Node:
    if isinstance(a, Node) and isinstance(b, Node):
        return Add(a, scaled(b, alpha))
    if isinstance(a, Node):
        expr, channel = constant(_scaled_constant(b, alpha), a)
        return Bias(a, expr, channel=channel)
    expr, channel = constant(a, b)
    return Bias(scaled(b, alpha), expr, channel=channel)


@builds("add", "__radd__")
def _add(input: Any, other: Any, *, alpha: float = 1) -> Node:
    return _sum(input, other, float(alpha))


@builds("sub", "subtract")
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Node:
    return _sum(input, other, -float(alpha))


@builds("rsub", "__rsub__")
def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Node:
    return _sum(other, input, -float(alpha))


@builds("neg", "negative")
def _neg(input: Node) -> Node:
    return scaled(input, -1.0)
