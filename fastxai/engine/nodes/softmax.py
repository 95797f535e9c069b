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
        """Return D_v C(nu) = q nu - q (p.nu) - p (q.nu), q = C(v)."""
        q = covariance(y, vs[0], self.axis)
        p_nu, q_nu = (y * nu).sum(self.axis, keepdim=True), (q * nu).sum(self.axis, keepdim=True)
        return [q * (nu - p_nu) - y * q_nu]


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
