"""Softmax and log-softmax along one dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Curved, Node
from fastxai.engine.trace import Unsupported

__all__ = ["LogSoftmax", "Softmax"]


def covariance(p: Tensor, w: Tensor, axis: int) -> Tensor:
    """C(w) = p w - p (p.w), the Jacobian of softmax applied to w."""
    return p * w - p * (p * w).sum(axis, keepdim=True)


def turn(p: Tensor, v: Tensor, w: Tensor, axis: int) -> Tensor:
    """D_v C(w) = q w - q (p.w) - p (q.w), q = C(v); symmetric in v and w."""
    q = covariance(p, v, axis)
    return q * (w - (p * w).sum(axis, keepdim=True)) - p * (q * w).sum(axis, keepdim=True)


def turn_again(p: Tensor, u: Tensor, v: Tensor, w: Tensor, axis: int) -> Tensor:
    """D_u D_v C(w): ``turn`` differentiated once more."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axis, keepdim=True)

    p_u, q, q_u = covariance(p, u, axis), covariance(p, v, axis), turn(p, u, v, axis)
    return q_u * (w - dot(p, w)) - q * dot(p_u, w) - p_u * dot(q, w) - p * dot(q_u, w)


class Softmax(Curved):
    """p = exp(x) / sum exp(x)."""

    def __init__(self, x: Node, axis: int) -> None:
        super().__init__([x], x.shape)
        self.axis = axis - x.dim  # counted from the end, so that directions may lead

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        """Return p."""
        return xs[0].softmax(self.axis)

    def tangent(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor]) -> Tensor:
        """Return C(v)."""
        return covariance(y, vs[0], self.axis)

    def cotangent(self, xs: Sequence[Tensor], y: Tensor, nu: Tensor) -> list[Tensor]:
        """Return C(nu), C being symmetric."""
        return [covariance(y, nu, self.axis)]

    def curvature(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor], nu: Tensor) -> list[Tensor]:
        """Return D_v C(nu)."""
        return [turn(y, vs[0], nu, self.axis)]

    def bend(self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
        """Return D_u C(v)."""
        return turn(y, us[0], vs[0], self.axis)

    def twist(
        self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor], nu: Tensor
    ) -> list[Tensor]:
        """Return D_u D_v C(nu)."""
        return [turn_again(y, us[0], vs[0], nu, self.axis)]


class LogSoftmax(Curved):
    """y = x - log sum exp(x)."""

    def __init__(self, x: Node, axis: int) -> None:
        super().__init__([x], x.shape)
        self.axis = axis - x.dim

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        """Return log p."""
        return xs[0].log_softmax(self.axis)

    def tangent(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor]) -> Tensor:
        """Return v - p.v."""
        return vs[0] - (y.exp() * vs[0]).sum(self.axis, keepdim=True)

    def cotangent(self, xs: Sequence[Tensor], y: Tensor, nu: Tensor) -> list[Tensor]:
        """Return nu - p sum(nu)."""
        return [nu - y.exp() * nu.sum(self.axis, keepdim=True)]

    def curvature(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor], nu: Tensor) -> list[Tensor]:
        """Return -C(v) sum(nu)."""
        return [-covariance(y.exp(), vs[0], self.axis) * nu.sum(self.axis, keepdim=True)]

    def bend(self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
        """Return -C(u).v, the same for every component."""
        return (-covariance(y.exp(), us[0], self.axis) * vs[0]).sum(self.axis, keepdim=True).expand_as(vs[0])

    def twist(
        self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor], nu: Tensor
    ) -> list[Tensor]:
        """Return -D_u C(v) sum(nu)."""
        return [-turn(y.exp(), us[0], vs[0], self.axis) * nu.sum(self.axis, keepdim=True)]


def _axis(x: Node, dim: Any, dtype: Any) -> int:
    if dim is None or dim % x.dim == 0 or dtype is not None:
        raise Unsupported("its dimension is not given, is the batch, or it changes the dtype")
    return dim % x.dim


@builds("softmax")
def _softmax(input: Node, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Node:
    return Softmax(input, _axis(input, dim, dtype))


@builds("log_softmax")
def _log_softmax(input: Node, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Node:
    return LogSoftmax(input, _axis(input, dim, dtype))
