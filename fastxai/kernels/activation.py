"""Activation jets: push a truncated Taylor polynomial through y = s(a), pull cotangents back.

Contract (all backends; components lie side by side in dim 0, S = number of directions, N = primal rows):

    push         a [(1+S)N, ...] -> y [(1+S)N, ...], kept [N, ...]
                 y_0 = s(a_0 + b);  y_v = s' a_v;  b is a channel bias on component 0 only
    pull         nu [(1+S)N, ...] = (nu_v, nu_0^1 .. nu_0^S) -> mu of the same shape
                 mu_v = s' nu_v;  mu_0^i = s' nu_0^i + s'' a_v^i nu_v;  S = 0: mu = s' nu
    pull_primal  nu_v [N, ...], nu_0 [SN, ...] or None -> mu_0^i = s' nu_0^i + s'' a_v^i nu_v  [SN, ...]

``kept`` is the one number per element from which s', s'' follow: m = sign(a) min(p, 1-p), p = sig(beta a), for
softplus (p alone loses s'' to cancellation), the biased pre-activation itself for every other activation.
The derivative of a tangent given ``kept`` (y_v = s' a_v) is ``pull`` with S = 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native
from fastxai.kernels.formulas import NAMES, RELU_LIKE, Activation, derivatives, small, stable_value, value

__all__ = [
    "NAMES", "RELU_LIKE", "Activation", "check_rows", "derivatives", "pull", "pull_primal", "push", "value", "widened",
]  # fmt: skip


def widened(x: Tensor) -> Tensor:
    """Return x in the precision that the reference computes in."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _bias_shape(bias: Tensor, a: Tensor) -> Tensor:
    return bias.view(-1, *[1] * (a.dim() - 2))


def _push_reference(act: Activation, a: Tensor, directions: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = widened(a).unflatten(0, (1 + directions, -1)) if a.shape[0] else widened(a).reshape(1 + directions, *a.shape)
    primal = wide[0] if bias is None else wide[0] + _bias_shape(widened(bias), a)
    y = stable_value(act, primal)
    kept = torch.copysign(small(act.factor * primal), primal) if act.name == "softplus" else primal
    tangents = derivatives(act, kept)[0] * wide[1:]
    out = torch.cat([y[None], tangents]).flatten(0, 1)
    return out.to(a.dtype), kept.to(a.dtype)


def _pull_reference(act: Activation, kept: Tensor, a_v: Tensor | None, nu: Tensor, directions: int) -> Tensor:
    d1, d2 = derivatives(act, widened(kept))
    wide = widened(nu).reshape(1 + directions, *kept.shape)
    mu = d1 * wide
    if a_v is not None and directions and not act.flat:
        mu[1:] += d2 * widened(a_v).reshape(directions, *kept.shape) * wide[0]
    return mu.flatten(0, 1).to(nu.dtype)


def _pull_primal_reference(
    act: Activation, kept: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor | None, directions: int
) -> Tensor:
    d1, d2 = derivatives(act, widened(kept))
    mu = torch.zeros_like(widened(a_v)).reshape(directions, *kept.shape)
    if not act.flat:
        mu = d2 * widened(a_v).reshape(directions, *kept.shape) * widened(nu_v)
    if nu_0 is not None:
        mu = mu + d1 * widened(nu_0).reshape(directions, *kept.shape)
    return mu.flatten(0, 1).to(nu_v.dtype)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import activation

    return activation


def _compiled_push(
    backend: str, act: Activation, a: Tensor, directions: int, bias: Tensor | None, overwrite: bool
) -> tuple[Tensor, Tensor]:
    y = _memory.empty_like(a)
    if directions == 0:
        kept = a if overwrite else _memory.empty_like(a)
    else:
        rows = a.shape[0] // (1 + directions)
        kept = a[:rows] if overwrite else _memory.empty_like(a[:rows])
    channels, inner, bias_address = (1, 1, 0) if bias is None else (a.shape[1], max(a.stride(1), 1), bias.data_ptr())
    _native.launch(
        backend, "activation_push", a,
        *act.scalars, _native.DTYPES[a.dtype], kept.numel(), directions, channels, inner,
        a.data_ptr(), bias_address, y.data_ptr(), kept.data_ptr(),
    )  # fmt: skip
    return y, kept


def _compiled_pull(
    backend: str, act: Activation, kept: Tensor, a_v: Tensor | None, nu: Tensor, directions: int, overwrite: bool
) -> Tensor:
    mu = nu if overwrite else _memory.empty_like(nu)
    _native.launch(
        backend, "activation_pull", nu,
        *act.scalars, _native.DTYPES[nu.dtype], kept.numel(), directions,
        kept.data_ptr(), 0 if a_v is None else a_v.data_ptr(), nu.data_ptr(), mu.data_ptr(),
    )  # fmt: skip
    return mu


def _compiled_pull_primal(
    backend: str, act: Activation, operands: tuple[Tensor, ...], directions: int, overwrite: bool
) -> Tensor:
    kept, a_v, nu_v, nu_0 = operands
    mu = nu_0 if overwrite and nu_0 is not None else _memory.empty_like(a_v)
    _native.launch(
        backend, "activation_pull_primal", kept,
        *act.scalars, _native.DTYPES[kept.dtype], kept.numel(), directions,
        kept.data_ptr(), a_v.data_ptr(), nu_v.data_ptr(), 0 if nu_0 is None else nu_0.data_ptr(), mu.data_ptr(),
    )  # fmt: skip
    return mu


def check_rows(kept: Tensor, **components: tuple[Tensor | None, int]) -> None:
    """Check that each (x, count) holds ``count`` components of kept's shape, dtype and device."""
    n, *tail = kept.shape
    # messages are formatted on failure only: a network calls this many times per millisecond of work
    for name, (x, count) in components.items():
        if x is not None and (x.shape != (count * n, *tail) or x.dtype != kept.dtype or x.device != kept.device):
            _check.shape(x, name, (count * n, *tail))
            _check.same_place(x, name, kept, "kept")


def _check_bias(bias: Tensor, a: Tensor) -> Tensor:
    if bias.shape != a.shape[1:2] or bias.dtype != a.dtype or bias.device != a.device:
        _check.shape(bias, "bias", (a.shape[1],))
        _check.same_place(bias, "bias", a, "a")
    return bias.contiguous()


def push(
    act: Activation, a: Tensor, directions: int = 0, bias: Tensor | None = None, *, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Push a jet of order 0 (no directions) or 1 through y = s(a).

    Args:
        act: the activation.
        a: [(1+S)N, C, ...], component 0 first; a copy is made where it is not dense, channels first or last.
        directions: S.
        bias: [C], added to component 0 only, or None.
        overwrite: allow ``kept`` to take the memory of a's component 0 (its tangents stay).

    Returns:
        (y, kept) of shapes [(1+S)N, ...] and [N, ...], in a's memory format.

    Raises:
        ValueError: the rows are no multiple of 1 + S, or the bias is not [C] of a's dtype and device.
    """
    if directions < 0 or a.shape[0] % (1 + directions):
        _check.require(False, "a", f"have a multiple of 1 + {directions} rows", list(a.shape))
    bias = None if bias is None else _check_bias(bias, a)
    match _backend.pick(a):
        case "reference":
            return _push_reference(act, a, directions, bias)
        case "triton":
            return _triton().push(act, _native.dense(a), directions, bias, overwrite=overwrite)
        case compiled:
            return _compiled_push(compiled, act, _native.dense(a), directions, bias, overwrite)


def pull(
    act: Activation, kept: Tensor, a_v: Tensor | None, nu: Tensor, directions: int = 0, *, overwrite: bool = False
) -> Tensor:
    """Pull the cotangents (nu_v, nu_0^1 .. nu_0^S) back through y = s(a); S = 0 multiplies by s'.

    Args:
        act: the activation.
        kept: [N, ...] from ``push``.
        a_v: [SN, ...] tangents of the pre-activation; None when S = 0 or the activation is flat.
        nu: [(1+S)N, ...].
        directions: S.
        overwrite: allow the result to take nu's memory.

    Returns:
        mu [(1+S)N, ...], in kept's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together.
    """
    a_v = None if act.flat or not directions else a_v
    if a_v is None and directions and not act.flat:
        _check.require(False, "a_v", f"be given for {directions} directions", a_v)
    check_rows(kept, a_v=(a_v, directions), nu=(nu, 1 + directions))
    match _backend.pick(nu):
        case "reference":
            return _pull_reference(act, kept, a_v, nu, directions)
        case "triton":
            kept, a_v, nu = _native.alike(kept, a_v, nu)
            return _triton().pull(act, kept, a_v, nu, directions, overwrite=overwrite)
        case compiled:
            kept, a_v, nu = _native.alike(kept, a_v, nu)
            return _compiled_pull(compiled, act, kept, a_v, nu, directions, overwrite)


def pull_primal(
    act: Activation,
    kept: Tensor,
    a_v: Tensor,
    nu_v: Tensor,
    nu_0: Tensor | None,
    directions: int = 1,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Return mu_0^i = s' nu_0^i + s'' a_v^i nu_v for i = 1 .. S, nu_v being known already.

    Args:
        act: the activation.
        kept: [N, ...] from ``push``.
        a_v: [SN, ...] tangents of the pre-activation.
        nu_v: [N, ...] cotangent of the tangent, at y.
        nu_0: [SN, ...] cotangents of the primal at y, or None for zero.
        directions: S.
        overwrite: allow the result to take nu_0's memory.

    Returns:
        mu_0 [SN, ...], in kept's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together.
    """
    check_rows(kept, a_v=(a_v, directions), nu_v=(nu_v, 1), nu_0=(nu_0, directions))
    match _backend.pick(kept):
        case "reference":
            return _pull_primal_reference(act, kept, a_v, nu_v, nu_0, directions)
        case "triton":
            kept, a_v, nu_v, nu_0 = _native.alike(kept, a_v, nu_v, nu_0)
            return _triton().pull_primal(act, kept, a_v, nu_v, nu_0, directions, overwrite=overwrite)
        case compiled:
            operands = _native.alike(kept, a_v, nu_v, nu_0)
            return _compiled_pull_primal(compiled, act, operands, directions, overwrite)
