"""Dense layer on the last dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Layer, Node, Pulled
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Expr, shape_of

__all__ = ["Dense"]


class Dense(Layer):
    """y = x W^T; the bias is a node of its own, unless rules are assigned."""

    def __init__(self, x: Node, weight: Expr) -> None:
        super().__init__([x], (*x.shape[:-1], shape_of(weight)[0]), [weight])

    def affine(self, w: Any, bias: Tensor | None, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        return torch.nn.functional.linear(x, w, bias)

    def spread(self, bias: Tensor) -> Tensor:
        """Return b: features come last."""
        return bias

    def bias_grad(self, mu: Tensor) -> Tensor:
        """Sum over all rows."""
        return mu.flatten(0, -2).sum(0)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Return nu W."""
        return [torch.matmul(nu, w)]

    def weight_grad(self, w: Any, mu: Tensor, x: Tensor) -> Tensor:
        """Return mu^T x, summed over all rows."""
        return mu.flatten(0, -2).t() @ x.flatten(0, -2)


@builds("linear")
def _build(input: Node, weight: Expr, bias: Expr | None = None) -> Node:
    if not isinstance(input, Node) or not input.shape or isinstance(weight, Node):
        raise Unsupported("the weight depends on the input, or the input has one dimension")
    node = Dense(input, weight)
    return node if bias is None else Bias(node, bias, channel=node.dim == 2)
