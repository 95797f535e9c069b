"""Proportional shares: relevance over a stabilised sum, and the adjoint of that division.

Contract (all backends; tensors of one shape, dtype and memory format):

    share    r, z -> S = kappa r / stab(z);  stab(z) = z + epsilon where z >= 0, -0.0 included, else z - epsilon
    adjoint  d = dL/dS, z, S -> t = dL/dr = kappa q, dz = dL/dz = -q S;  q = d / stab(z)

With y and sign (1 or -1), S and t are zero where y is zero or has the other sign; with ``alone`` all three where z is.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native
from fastxai.kernels.activation import widened

__all__ = ["Shares", "adjoint", "share"]


class Shares(NamedTuple):
    """How relevance is shared.

    Attributes:
        epsilon: of stab(z) = z + epsilon sign(z), sign(0) = 1.
        kappa: a factor.
        sign: of y, where there are shares: 1, -1, or 0 for everywhere.
        alone: whether there are none where z is zero.
    """

    epsilon: float
    kappa: float = 1.0
    sign: int = 0
    alone: bool = False


def _over_stable(x: Tensor, z: Tensor, how: Shares) -> Tensor:
    quotient = widened(x) / torch.where(z < 0, widened(z) - how.epsilon, widened(z) + how.epsilon)
    return quotient.masked_fill_(z == 0, 0) if how.alone else quotient


def _where(y: Tensor | None, sign: int, x: Tensor) -> Tensor:
    return torch.where(y * sign > 0, x, 0) if y is not None and sign else x


def _share_reference(r: Tensor, z: Tensor, how: Shares, y: Tensor | None) -> Tensor:
    return _where(y, how.sign, how.kappa * _over_stable(r, z, how)).to(z.dtype)


def _adjoint_reference(d: Tensor, z: Tensor, shares: Tensor, how: Shares, y: Tensor | None) -> tuple[Tensor, Tensor]:
    quotient = _over_stable(d, z, how)
    return _where(y, how.sign, how.kappa * quotient).to(z.dtype), (-quotient * widened(shares)).to(z.dtype)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import proportional

    return proportional


def _launch(name: str, how: Shares, z: Tensor, *operands: Tensor | None) -> None:
    addresses = (0 if x is None else x.data_ptr() for x in operands)
    _native.launch("cpu", "proportional_" + name, z, *how, _native.DTYPES[z.dtype], z.numel(), *addresses)


def _check_like(z: Tensor, **operands: Tensor) -> None:
    # messages are formatted on failure only
    for name, x in operands.items():
        if x.shape != z.shape or x.dtype != z.dtype or x.device != z.device:
            _check.shape(x, name, tuple(z.shape))
            _check.same_place(x, name, z, "z")


def _check_mask(y: Tensor | None, sign: int, z: Tensor) -> Tensor | None:
    """Return y where it decides anything."""
    if sign == 0:
        return None
    if sign not in (1, -1):
        _check.one_of(sign, "sign", (1, 0, -1))
    if y is None:
        _check.require(False, "y", f"be given for sign {sign}", y)
    else:
        _check_like(z, y=y)
    return y


def share(r: Tensor, z: Tensor, how: Shares, y: Tensor | None = None) -> Tensor:
    """Divide relevance by what it is shared among, S = kappa r / stab(z), where sign y > 0.

    Args:
        r: relevance [...].
        z: the sum of all contributions [...]; a copy is made where it is not dense, channels first or last.
        how: epsilon, kappa, and where there are shares.
        y: [...], whose sign decides; not read where ``how.sign`` is 0.

    Returns:
        S [...], in z's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, or y is missing.
    """
    _check_like(z, r=r)
    y = _check_mask(y, how.sign, z)
    z, r, y = _native.alike(z, r, y)
    match _backend.pick(z):
        case "reference":
            return _share_reference(r, z, how, y)
        case "cpu":
            shares = _memory.empty_like(z)
            _launch("share", how, z, r, z, y, shares)
            return shares
        case _:  # Triton serves "cuda" too
            return _triton().share(r, z, how, y)


def adjoint(d: Tensor, z: Tensor, shares: Tensor, how: Shares, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cotangents t = kappa q and dz = -q S of r and z, q = d / stab(z), given that of S.

    Args:
        d: cotangent of S [...]; its memory may become t's.
        z: as for ``share``.
        shares: S [...], what ``share`` returned.
        how: as for ``share``.
        y: as for ``share``.

    Returns:
        (t, dz), both [...], in z's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, or y is missing.
    """
    _check_like(z, d=d, shares=shares)
    y = _check_mask(y, how.sign, z)
    z, d, shares, y = _native.alike(z, d, shares, y)
    match _backend.pick(z):
        case "reference":
            return _adjoint_reference(d, z, shares, how, y)
        case "cpu":
            dz = _memory.empty_like(z)
            _launch("adjoint", how, z, d, z, shares, y, d, dz)
            return d, dz
        case _:  # Triton serves "cuda" too
            return _triton().adjoint(d, z, shares, how, y)
