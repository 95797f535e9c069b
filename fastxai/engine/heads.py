"""Heads: the scalar f(z) of the scores that a map explains, with its first two derivatives.

They seed the sweeps: nu_v = Df, nu_0 = D2f z_v. All tensors are [rows, K]; rows do not interact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["Custom", "Head", "Logit", "Output", "Probability", "head"]

Output = str | Callable[[Tensor, Tensor], Tensor]


class Head(ABC):
    """f(z, k) for scores z [rows, K] and classes k [rows]."""

    @abstractmethod
    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return f [rows], in torch operations that autograd may differentiate."""

    @abstractmethod
    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return Df [rows, K]."""

    @abstractmethod
    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor | None:
        """Return D2f w [rows, K]; None is zero."""


def _one_hot(z: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(z, memory_format=torch.contiguous_format).scatter_(1, target[:, None], 1)


class Logit(Head):
    """f = z_k."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return z_k."""
        return z.gather(1, target[:, None])[:, 0]

    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return e_k."""
        return _one_hot(z, target)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> None:
        """Return zero."""


class Probability(Head):
    """f = p_k, p = softmax(z)."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return p_k."""
        return z.softmax(1).gather(1, target[:, None])[:, 0]

    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return p_k d, d = e_k - p."""
        p = z.softmax(1)
        return p.gather(1, target[:, None]) * (_one_hot(z, target) - p)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """Return p_k (d (d.w) - C(w)), C(w) = p w - p (p.w)."""
        p = z.softmax(1)
        d = _one_hot(z, target) - p
        mean = (p * w).sum(1, keepdim=True)
        return p.gather(1, target[:, None]) * (d * (d * w).sum(1, keepdim=True) - p * (w - mean))


class Custom(Head):
    """f given as a function (scores [rows, K], classes [rows]) -> [rows]; autograd differentiates it alone.

    Tensors that the function closes over are constants: no gradient reaches them.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return f."""
        f = self.function(z, target)
        _check.shape(_check.tensor(f, "output(logits, target)"), "output(logits, target)", (z.shape[0],))
        return f

    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return Df by one backward."""
        return self._derivatives(z, target, None)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """Return D2f w by a double backward."""
        return self._derivatives(z, target, w)

    def _derivatives(self, z: Tensor, target: Tensor, w: Tensor | None) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            (first,) = _grad(self.value(leaf, target.clone()), leaf, None, create_graph=w is not None)
            return first.detach() if w is None else _grad(first, leaf, w.clone())[0].detach()


def _grad(y: Tensor, x: Tensor, nu: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    """Return y's gradient, zero where y does not depend on x."""
    if not y.requires_grad:
        return (torch.zeros_like(x),)
    nu = torch.ones_like(y) if nu is None else nu
    return torch.autograd.grad(y, x, nu, allow_unused=True, materialize_grads=True, **options)


def head(output: Output) -> Head:
    """Return the head of a name ("logit" or "probability") or of a function.

    Raises:
        ValueError: the name is unknown.
    """
    if callable(output):
        return Custom(output)
    _check.one_of(output, "output", ("logit", "probability"))
    return Logit() if output == "logit" else Probability()
