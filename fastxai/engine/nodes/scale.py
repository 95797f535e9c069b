"""Multiplication by a constant, and batch norm in eval mode as a scale and a bias per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.nodes.bias import Bias, per_channel, sum_to
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Apply, Expr

__all__ = ["Scale"]


class Scale(Linear):
    """y = c x, c of shape [C] (``channel``) or anything that broadcasts against one sample."""

    def __init__(self, x: Node, factor: Expr, *, channel: bool) -> None:
        super().__init__([x], x.shape, [factor])
        self.channel = channel

    def pack(self, weight: Tensor) -> Tensor:
        """Return c as it broadcasts."""
        return per_channel(weight, self.dim) if self.channel else weight

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Return c x."""
        return xs[0] * w

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Return c nu."""
        return [nu * w]

    def weight_grad(self, w: Any, mu: Tensor, x: Tensor) -> Tensor:
        """Sum of mu x."""
        product = mu * x
        return product.sum([0, *range(2, self.dim)]) if self.channel else sum_to(product, w.shape)


def _factor(weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    root = torch.rsqrt(var + eps)
    return root if weight is None else weight * root


def _shift(bias: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor:
    return -mean * factor if bias is None else bias - mean * factor


@builds("batch_norm")
def _build(
    input: Node,
    running_mean: Expr | None,
    running_var: Expr | None,
    weight: Expr | None = None,
    bias: Expr | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Node:
    if training or running_mean is None or running_var is None:
        raise Unsupported("it normalises by the statistics of the batch")
    factor = Apply(_factor, (weight, running_var, eps), {})
    return Bias(Scale(input, factor, channel=True), Apply(_shift, (bias, running_mean, factor), {}), channel=True)
