"""Products: of two tensors, or with a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Curved, Node
from fastxai.engine.nodes.add import constant
from fastxai.engine.nodes.scale import Scale
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Apply

__all__ = ["Mul"]


class Mul(Curved):
    """y = a b, each broadcast against the other within a sample."""

    def __init__(self, a: Node, b: Node) -> None:
        if len(a.shape) != len(b.shape):
            raise Unsupported(f"factors of shapes {list(a.shape)} and {list(b.shape)} align across the batch")
        super().__init__([a, b], torch.broadcast_shapes(a.shape, b.shape))

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        """Return a b."""
        return xs[0] * xs[1]

    def tangent(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor]) -> Tensor:
        """Return a_v b + a b_v."""
        return vs[0] * xs[1] + xs[0] * vs[1]

    def cotangent(self, xs: Sequence[Tensor], y: Tensor, nu: Tensor) -> list[Tensor]:
        """Return nu b and nu a."""
        return [self._sum(nu * xs[1], 0), self._sum(nu * xs[0], 1)]

    def curvature(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor], nu: Tensor) -> list[Tensor]:
        """Return nu b_v and nu a_v."""
        return [self._sum(nu * vs[1], 0), self._sum(nu * vs[0], 1)]

    def bend(self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
        """Return a_u b_v + a_v b_u."""
        return us[0] * vs[1] + vs[0] * us[1]

    def twist(
        self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor], nu: Tensor
    ) -> list[Tensor]:
        """Return zero: products of two have no third derivative."""
        return [nu.new_zeros(u.shape) for u in us]

    def _sum(self, product: Tensor, which: int) -> Tensor:
        """Sum over what the factor was broadcast along; leading dimensions stay."""
        shape = self.inputs[which].shape
        lead = product.shape[: product.dim() - len(shape)]
        return product.sum_to_size(*lead, *shape)


@builds("mul", "multiply", "__rmul__")
def _mul(input: Any, other: Any) -> Node:
    if isinstance(input, Node) and isinstance(other, Node):
        return Mul(input, other)
    node, factor = (input, other) if isinstance(input, Node) else (other, input)
    expr, channel = constant(factor, node)
    return Scale(node, expr, channel=channel)


@builds("div", "divide", "true_divide", "__truediv__")
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Node:
    if not isinstance(input, Node) or isinstance(other, Node) or rounding_mode is not None:
        raise Unsupported("it divides by something that depends on the input, or rounds")
    other = 1.0 / other if isinstance(other, (int, float)) else Apply(torch.reciprocal, (other,), {})
    expr, channel = constant(other, input)
    return Scale(input, expr, channel=channel)
