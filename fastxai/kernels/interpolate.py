"""Activations along a straight path: K points a_0 + t_k a_d share two rows, so no interpolated tensor is ever stored.

Contract (all backends; N rows; positions t_0 .. t_{K-1}; a [KN, ...] tensor is k-major: row k N + n):

    push           a [2N, ...] = (a_0, a_d) -> y [KN, ...], kept [KN, ...];  y_k = s(a_0 + b + t_k a_d)
    tangent        a_v [N, ...] -> y_v [KN, ...] = s'(kept_k) a_v: one tangent for all points
    reduce         nu [KN, ...] -> [N, ...] = sum_k s'(kept_k) nu_k; quadrature weights are in nu already
    reduce_primal  mu_k = s'(kept_k) nu_0,k + s''(kept_k) a_v nu_v,k -> (M0, M1) [2N, ...] = sum_k mu_k, sum_k t_k mu_k

``kept`` is the number of ``kernels.activation``, one per element and point.
"""

from __future__ import annotations

from math import prod
from types import ModuleType

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native, activation
from fastxai.kernels.activation import Activation

__all__ = ["push", "reduce", "reduce_primal", "tangent"]


def _order(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _native.is_channels_last(x) else torch.contiguous_format


def _along(t: Tensor, x: Tensor) -> Tensor:
    """Return t as [K, 1, ...], to be multiplied with [K, *x.shape]."""
    return activation.widened(t).view(-1, *[1] * x.dim())


def _by_point(x: Tensor, points: int) -> Tensor:
    """Return [KN, ...] as [K, N, ...], in float32 or float64."""
    return activation.widened(x).reshape(points, x.shape[0] // max(points, 1), *x.shape[1:])


def _stored(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).contiguous(memory_format=_order(like))


def _push_reference(act: Activation, a: Tensor, t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    start, step = _by_point(a, 2)
    if bias is not None:
        start = start + activation._bias_shape(activation.widened(bias), a)
    y, kept = activation._push_reference(act, (start + _along(t, start) * step).flatten(0, 1), 0, None)
    return _stored(y, a), _stored(kept, a)


def _tangent_reference(act: Activation, kept: Tensor, a_v: Tensor) -> Tensor:
    points = kept.shape[0] // max(a_v.shape[0], 1)
    return _stored(activation._pull_reference(act, kept, None, a_v.repeat(points, *[1] * (a_v.dim() - 1)), 0), kept)


def _reduce_reference(act: Activation, kept: Tensor, nu: Tensor, points: int) -> Tensor:
    mu = activation._pull_reference(act, activation.widened(kept), None, activation.widened(nu), 0)
    return _stored(_by_point(mu, points).sum(0), kept)


def _reduce_primal_reference(
    act: Activation, kept: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor | None, t: Tensor
) -> Tensor:
    tangents = activation.widened(a_v).repeat(t.shape[0], *[1] * (a_v.dim() - 1))
    nu_0 = None if nu_0 is None else activation.widened(nu_0)
    mu = activation._pull_primal_reference(
        act, activation.widened(kept), tangents, activation.widened(nu_v), nu_0, 1
    ).reshape(t.shape[0], *a_v.shape)
    return _stored(torch.cat([mu.sum(0), (_along(t, a_v) * mu).sum(0)]), kept)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import interpolate

    return interpolate


def bias_geometry(a: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """Return (channels, inner): element i of the dense tensor a has channel (i // inner) % channels."""
    return (1, 1) if bias is None else (a.shape[1], prod(a.shape[2:]) if a.is_contiguous() else 1)


def rows_like(like: Tensor, rows: int) -> Tensor:
    """Return uninitialised memory for [rows, *like.shape[1:]] in the dense tensor's memory format."""
    return _memory.empty((rows, *like.shape[1:]), like, last=_order(like) is torch.channels_last)


def _launch(
    name: str, act: Activation, like: Tensor, numbers: tuple[int, ...], operands: tuple[Tensor | None, ...]
) -> None:
    addresses = (0 if x is None else x.data_ptr() for x in operands)
    _native.launch("cpu", "interpolate_" + name, like, *act.scalars, _native.DTYPES[like.dtype], *numbers, *addresses)


def _push_cpu(act: Activation, a: Tensor, t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    rows = a.shape[0] // 2
    y, kept = (rows_like(a, t.shape[0] * rows) for _ in range(2))
    _launch("push", act, a, (a.numel() // 2, t.shape[0], *bias_geometry(a, bias)), (a, bias, t, y, kept))
    return y, kept


def _tangent_cpu(act: Activation, kept: Tensor, a_v: Tensor) -> Tensor:
    y_v = rows_like(kept, kept.shape[0])
    points = kept.shape[0] // max(a_v.shape[0], 1)
    _launch("tangent", act, kept, (a_v.numel(), points), (kept, a_v, y_v))
    return y_v


def _reduce_cpu(act: Activation, kept: Tensor, nu: Tensor, points: int) -> Tensor:
    mu = rows_like(kept, kept.shape[0] // max(points, 1))
    _launch("reduce", act, kept, (mu.numel(), points), (kept, nu, mu))
    return mu


def _reduce_primal_cpu(
    act: Activation, kept: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor | None, t: Tensor
) -> Tensor:
    m = rows_like(kept, 2 * a_v.shape[0])
    _launch("reduce_primal", act, kept, (a_v.numel(), t.shape[0]), (kept, a_v, nu_v, nu_0, t, m))
    return m


def _check_like(x: Tensor, name: str, shape: tuple[int, ...], like: Tensor, like_name: str) -> None:
    # messages are formatted on failure only
    if x.shape != shape or x.dtype != like.dtype or x.device != like.device:
        _check.shape(x, name, shape)
        _check.same_place(x, name, like, like_name)


def _check_positions(t: Tensor, like: Tensor, like_name: str) -> Tensor:
    _check.require(_check.tensor(t, "t").dim() == 1, "t", "have shape [K]", list(t.shape))
    _check_like(t, "t", tuple(t.shape), like, like_name)
    return t.contiguous()


def push(act: Activation, a: Tensor, t: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Activate every point of a path, y_k = s(a_0 + b + t_k a_d).

    Args:
        act: the activation.
        a: [2N, C, ...] = (a_0, a_d), start and difference; copied where it is not dense, channels first or last.
        t: [K] positions, of a's dtype and device.
        bias: [C], added to the start only, or None.

    Returns:
        (y, kept), both [KN, C, ...] with the points outermost, in a's memory format.

    Raises:
        TypeError: t is no floating point tensor.
        ValueError: the rows of a are odd, t is not [K] or the bias not [C] of a's dtype and device.
    """
    _check.require(a.dim() > 0 and a.shape[0] % 2 == 0, "a", "have 2N rows, a start and a difference", list(a.shape))
    t = _check_positions(t, a, "a")
    if bias is not None:
        _check.require(a.dim() > 1, "a", "have shape [2N, C, ...] beside a bias", list(a.shape))
        _check_like(bias, "bias", tuple(a.shape[1:2]), a, "a")
        bias = bias.contiguous()
    a = _native.dense(a)
    match _backend.pick(a):
        case "reference":
            return _push_reference(act, a, t, bias)
        case "cpu":
            return _push_cpu(act, a, t, bias)
        case _:  # Triton serves "cuda" too
            return _triton().push(act, a, t, bias)


def tangent(act: Activation, kept: Tensor, a_v: Tensor) -> Tensor:
    """Push one tangent, the same at all points of the path, y_v,k = s'(kept_k) a_v.

    Args:
        act: the activation.
        kept: [KN, ...] from ``push``.
        a_v: [N, ...].

    Returns:
        y_v [KN, ...], in kept's memory format.

    Raises:
        ValueError: kept's rows are no multiple of a_v's, or shapes, dtypes or devices do not belong together.
    """
    _check_like(a_v, "a_v", (a_v.shape[0], *kept.shape[1:]), kept, "kept")
    n = a_v.shape[0]
    _check.require(
        kept.shape[0] % n == 0 if n else not kept.shape[0], "kept", f"have rows in multiples of {n}", list(kept.shape)
    )
    kept, a_v = _native.alike(kept, a_v)
    match _backend.pick(kept):
        case "reference":
            return _tangent_reference(act, kept, a_v)
        case "cpu":
            return _tangent_cpu(act, kept, a_v)
        case _:  # Triton serves "cuda" too
            return _triton().tangent(act, kept, a_v)


def reduce(act: Activation, kept: Tensor, nu: Tensor, points: int) -> Tensor:
    """Pull the cotangents of all points back and add them up, mu = sum_k s'(kept_k) nu_k.

    Args:
        act: the activation.
        kept: [KN, ...] from ``push``.
        nu: [KN, ...], already times the quadrature weights.
        points: K; the result of K = 0 has no rows, since N is not known.

    Returns:
        mu [N, ...], in kept's memory format.

    Raises:
        ValueError: kept's rows are no multiple of K, or shapes, dtypes or devices do not belong together.
    """
    rows = kept.shape[0]
    _check.require(
        rows % points == 0 if points > 0 else not (points or rows),
        "kept", f"have rows in multiples of {points} points", list(kept.shape),
    )  # fmt: skip
    _check_like(nu, "nu", tuple(kept.shape), kept, "kept")
    kept, nu = _native.alike(kept, nu)
    match _backend.pick(kept):
        case "reference":
            return _reduce_reference(act, kept, nu, points)
        case "cpu":
            return _reduce_cpu(act, kept, nu, points)
        case _:  # Triton serves "cuda" too
            return _triton().reduce(act, kept, nu, points)


def reduce_primal(act: Activation, kept: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor | None, t: Tensor) -> Tensor:
    """Pull primal cotangents back and reduce them twice, mu_k = s' nu_0,k + s'' a_v nu_v,k.

    M0 = sum_k mu_k belongs to the start of the path, M1 = sum_k t_k mu_k to its difference.

    Args:
        act: the activation.
        kept: [KN, ...] from ``push``.
        a_v: [N, ...] tangent of the pre-activation, the same at all points.
        nu_v: [KN, ...] cotangents of the tangents, at y.
        nu_0: [KN, ...] cotangents of the primal at y, or None for zero.
        t: [K] positions, of kept's dtype and device.

    Returns:
        (M0, M1) as one tensor [2N, ...], in kept's memory format.

    Raises:
        TypeError: t is no floating point tensor.
        ValueError: shapes, dtypes or devices do not belong together.
    """
    t = _check_positions(t, kept, "kept")
    _check_like(a_v, "a_v", (a_v.shape[0], *kept.shape[1:]), kept, "kept")
    whole = (t.shape[0] * a_v.shape[0], *kept.shape[1:])
    _check_like(kept, "kept", whole, kept, "kept")
    _check_like(nu_v, "nu_v", whole, kept, "kept")
    if nu_0 is not None:
        _check_like(nu_0, "nu_0", whole, kept, "kept")
    kept, a_v, nu_v, nu_0 = _native.alike(kept, a_v, nu_v, nu_0)
    match _backend.pick(kept):
        case "reference":
            return _reduce_primal_reference(act, kept, a_v, nu_v, nu_0, t)
        case "cpu":
            return _reduce_primal_cpu(act, kept, a_v, nu_v, nu_0, t)
        case _:  # Triton serves "cuda" too
            return _triton().reduce_primal(act, kept, a_v, nu_v, nu_0, t)
