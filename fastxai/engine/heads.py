"""Heads: the scalar f(z) of the scores that a map explains, with its first three derivatives.

They seed the sweeps: nu_v = Df, nu_0 = D2f z_v; in an extension nu_v = D2f z_u, nu_0 = D2f z_w + D3f[z_u, z_v]. All
tensors are [rows, K]; rows do not interact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["CrossEntropy", "Custom", "Head", "Logit", "Output", "Probability", "head"]

Output = str | Callable[[Tensor, Tensor], Tensor]


class Head(ABC):
    """f(z, k) for scores z [rows, K] and classes k [rows].

    Attributes:
        linear: all derivatives but the first are zero.
    """

    linear = False

    @abstractmethod
    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return f [rows], in torch operations that autograd may differentiate."""

    @abstractmethod
    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return Df [rows, K]."""

    @abstractmethod
    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor | None:
        """Return D2f w [rows, K]; None is zero."""

    @abstractmethod
    def d3(self, z: Tensor, target: Tensor, u: Tensor, w: Tensor) -> Tensor | None:
        """Return D3f[u, w] [rows, K]; None is zero."""


def _covariance(p: Tensor, w: Tensor) -> Tensor:
    """C(w) = p w - p (p.w), the Jacobian of softmax applied to w."""
    return p * w - p * (p * w).sum(1, keepdim=True)


def _turn(p: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """T[u, w] = q w - q (p.w) - p (q.w), q = C(u): the second derivative of softmax."""
    q = _covariance(p, u)
    return q * (w - (p * w).sum(1, keepdim=True)) - p * (q * w).sum(1, keepdim=True)


def _one_hot(z: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(z, memory_format=torch.contiguous_format).scatter_(1, target[:, None], 1)


class Logit(Head):
    """f = z_k."""

    linear = True

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return z_k."""
        return z.gather(1, target[:, None])[:, 0]

    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return e_k."""
        return _one_hot(z, target)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> None:
        """Return zero."""

    def d3(self, z: Tensor, target: Tensor, u: Tensor, w: Tensor) -> None:
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
        return p.gather(1, target[:, None]) * (d * (d * w).sum(1, keepdim=True) - _covariance(p, w))

    def d3(self, z: Tensor, target: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return p_k ((d.u) (d (d.w) - C(w)) - C(u) (d.w) - d (C(u).w) - T[u, w])."""
        p = z.softmax(1)
        d, q = _one_hot(z, target) - p, _covariance(p, u)
        d_u, d_w, q_w = ((a * b).sum(1, keepdim=True) for a, b in ((d, u), (d, w), (q, w)))
        second = d * d_w - _covariance(p, w)
        return p.gather(1, target[:, None]) * (d_u * second - q * d_w - d * q_w - _turn(p, u, w))


class CrossEntropy(Head):
    """f = log sum exp(z) - z_k, the loss of class k."""

    def value(self, z: Tensor, target: Tensor) -> Tensor:
        """Return -log p_k."""
        return -z.log_softmax(1).gather(1, target[:, None])[:, 0]

    def d1(self, z: Tensor, target: Tensor) -> Tensor:
        """Return p - e_k."""
        return z.softmax(1) - _one_hot(z, target)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """Return C(w) = p w - p (p.w)."""
        return _covariance(z.softmax(1), w)

    def d3(self, z: Tensor, target: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return T[u, w]."""
        return _turn(z.softmax(1), u, w)


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
        return self._derivatives(z, target)

    def d2(self, z: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """Return D2f w by a double backward."""
        return self._derivatives(z, target, w)

    def d3(self, z: Tensor, target: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Return D3f[u, w] by a triple backward."""
        return self._derivatives(z, target, u, w)

    def _derivatives(self, z: Tensor, target: Tensor, *directions: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            y = self.value(leaf, target.clone())
            for order, w in enumerate((None, *directions)):
                (y,) = _grad(y, leaf, None if w is None else w.clone(), create_graph=order < len(directions))
            return y.detach()


def _grad(y: Tensor, x: Tensor, nu: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
    """Return y's gradient, zero where y does not depend on x."""
    if not y.requires_grad:
        return (torch.zeros_like(x),)
    nu = torch.ones_like(y) if nu is None else nu
    return torch.autograd.grad(y, x, nu, allow_unused=True, materialize_grads=True, **options)


def head(output: Output) -> Head:
    """Return the head of a name ("logit", "probability" or "cross_entropy") or of a function.

    Raises:
        ValueError: the name is unknown.
    """
    if callable(output):
        return Custom(output)
    heads = {"logit": Logit, "probability": Probability, "cross_entropy": CrossEntropy}
    _check.one_of(output, "output", tuple(heads))
    return heads[output]()
