"""Addition of a constant: to the primal component only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai.engine.graph import same
from fastxai.engine.jets import Node, Pulled, Sweep
from fastxai.engine.weights import Apply, Expr

__all__ = ["Bias"]


def per_channel(bias: Tensor, dim: int) -> Tensor:
    """View a [C] tensor so that it broadcasts along dim 1 of a [N, C, ...] tensor."""
    return bias.view(-1, *[1] * (dim - 2))


def sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """Sum a [N, ...] gradient over the batch and over every dimension that a constant was broadcast along."""
    return grad.sum_to_size(shape) if len(shape) == grad.dim() else grad.sum(0).sum_to_size(shape)


class Bias(Node):
    """y = x + b, b of shape [C] (``channel``) or anything that broadcasts against one sample."""

    pulls_new_memory = False

    def __init__(self, x: Node, bias: Expr, *, channel: bool) -> None:
        super().__init__([same(x, x.shape)], x.shape, [bias])
        self.channel = channel

    def prepare(self, *params: Tensor) -> Tensor:
        """Return b as it broadcasts."""
        return per_channel(params[0], self.dim) if self.channel else params[0]

    def merge(self, other: Bias) -> Expr:
        """Return the expression of both channel biases together."""
        return Apply(torch.add, (self.params[0], other.params[0]), {})

    def weight(self, s: Sweep) -> None:
        """Return None: for rules, the linear map of y = x + b is the identity."""

    def apply(self, w: None, *xs: Tensor) -> Tensor:
        """Return x."""
        return xs[0]

    def transpose(self, w: None, nu: Tensor) -> Pulled:
        """Return nu."""
        return [nu]

    def collect(self, s: Sweep, xs: Sequence[Tensor], nu: Tensor) -> None:
        """Collect b's gradient, the sum of nu."""
        if self.slot in s.wanted:
            grad = nu.sum([0, *range(2, self.dim)]) if self.channel else sum_to(nu, s.prepared[self.index].shape)
            s.collect(self.slot, grad)

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Add b to component 0; tangents pass."""
        if s.extend:
            return xs[0]
        x = xs[0] if self.owns_input else xs[0].clone()
        x[: s.n] += s.prepared[self.index]
        return x

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pass every cotangent; b's gradient is the sum of nu_0."""
        if s.extend and nu is not None:
            self.collect(s, (), nu[: s.n])
        return [nu]
