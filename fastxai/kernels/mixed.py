"""Activation jets of order 2: what a kept order-1 start lacks of the mixed second derivatives.

A start of ``kernels.activation`` with S directions v left ``kept``, its tangents a_v and its cotangents (nu_v, nu_0^s).
Directions u^s of their own go with them; w stands for the mixed components, summed over s, and enters linearly.
Contract (all backends; components side by side in dim 0, N rows each):

    push   a = (a_w, a_u^1 .. a_u^S) [(1+S)N, ...] -> y of the same shape
           y_w = s' a_w + s'' sum_s a_u^s a_v^s;   y_u^s = s' a_u^s
    pull   bar = (nu_0, nu_v^1 .. nu_v^S) [(1+S)N, ...] -> mu of the same shape, nu being the start's
           mu_v^s = s' nu_v^s + s'' a_u^s nu_v
           mu_0 = s' nu_0 + s'' (a_w nu_v + sum_s (a_u^s nu_0^s + a_v^s nu_v^s)) + s''' nu_v sum_s a_u^s a_v^s

Here nu_v without an index is the start's, which all its directions share. Each component of one sweep meets the same
component of the other: (nu_v, nu_0) of the start belongs to (w, u), and (nu_0, nu_v) to the start's (y, y_v).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native
from fastxai.kernels.activation import check_rows, widened
from fastxai.kernels.formulas import Activation, derivatives, third

__all__ = ["pull", "push"]


def _components(x: Tensor, kept: Tensor) -> Tensor:
    return widened(x).reshape(-1, *kept.shape)


def _push_reference(act: Activation, kept: Tensor, a_v: Tensor, a: Tensor) -> Tensor:
    d1, d2 = derivatives(act, widened(kept))
    y = d1 * _components(a, kept)
    y[0] += d2 * (_components(a, kept)[1:] * _components(a_v, kept)).sum(0)
    return y.flatten(0, 1).to(a.dtype)


def _pull_reference(act: Activation, kept: Tensor, a_v: Tensor, a: Tensor, nu: Tensor, bar: Tensor) -> Tensor:
    (d1, d2), d3 = derivatives(act, widened(kept)), third(act, widened(kept))
    v, a, nu, bars = (_components(x, kept) for x in (a_v, a, nu, bar))
    w, u, nu_v, nu_0 = a[0], a[1:], nu[0], nu[1:]
    mu = d1 * bars
    mu[0] += d2 * (w * nu_v + (u * nu_0 + v * bars[1:]).sum(0)) + d3 * nu_v * (u * v).sum(0)
    mu[1:] += d2 * u * nu_v
    return mu.flatten(0, 1).to(bar.dtype)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import mixed

    return mixed


def _launch(backend: str, name: str, act: Activation, kept: Tensor, directions: int, *operands: Tensor) -> None:
    addresses = (x.data_ptr() for x in (kept, *operands))
    scalars = *act.scalars, _native.DTYPES[kept.dtype], kept.numel(), directions
    _native.launch(backend, "mixed_" + name, kept, *scalars, *addresses)


def _check_order(act: Activation) -> None:
    if act.second == "curvature":
        _check.require(False, "act", "have a third derivative, which the surrogate 'curvature' has not", act)


def push(act: Activation, kept: Tensor, a_v: Tensor, a: Tensor, directions: int = 1) -> Tensor:
    """Push the mixed component and the directions u through y = s(a).

    Args:
        act: the activation.
        kept: [N, ...] from ``activation.push``.
        a_v: [SN, ...] tangents of the start's pre-activation.
        a: [(1+S)N, ...], (a_w, a_u).
        directions: S.

    Returns:
        y [(1+S)N, ...], in kept's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, or the activation is the curvature surrogate's.
    """
    _check_order(act)
    check_rows(kept, a_v=(a_v, directions), a=(a, 1 + directions))
    if not kept.numel():
        return torch.empty_like(a)
    match _backend.pick(kept):
        case "reference":
            return _push_reference(act, kept, a_v, a)
        case "triton":
            return _triton().push(act, *_native.alike(kept, a_v, a), directions)
        case compiled:
            kept, a_v, a = _native.alike(kept, a_v, a)
            y = _memory.empty_like(a)
            _launch(compiled, "push", act, kept, directions, a_v, a, y)
            return y


def pull(
    act: Activation,
    kept: Tensor,
    a_v: Tensor,
    a: Tensor,
    nu: Tensor,
    bar: Tensor,
    directions: int = 1,
) -> Tensor:
    """Pull (nu_0, nu_v) back through y = s(a).

    Args:
        act: the activation.
        kept: [N, ...] from ``activation.push``.
        a_v: [SN, ...] tangents of the start's pre-activation.
        a: [(1+S)N, ...], (a_w, a_u) as given to ``push``.
        nu: [(1+S)N, ...], the start's (nu_v, nu_0).
        bar: [(1+S)N, ...], (nu_0, nu_v).
        directions: S.

    Returns:
        mu [(1+S)N, ...], in kept's memory format.

    Raises:
        ValueError: as for ``push``.
    """
    _check_order(act)
    components = 1 + directions
    check_rows(kept, a_v=(a_v, directions), a=(a, components), nu=(nu, components), bar=(bar, components))
    if not kept.numel():
        return torch.empty_like(bar)
    match _backend.pick(kept):
        case "reference":
            return _pull_reference(act, kept, a_v, a, nu, bar)
        case "triton":
            return _triton().pull(act, *_native.alike(kept, a_v, a, nu, bar), directions)
        case compiled:
            kept, a_v, a, nu, bar = _native.alike(kept, a_v, a, nu, bar)
            mu = _memory.empty_like(bar)
            _launch(compiled, "pull", act, kept, directions, a_v, a, nu, bar, mu)
            return mu
