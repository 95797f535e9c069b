"""Proportional shares: relevance over a stabilised sum, and the adjoint of that division.

Contract (all backends; tensors of one shape, dtype and memory format):

    share    r, z -> S = kappa r / stab(z);  stab(z) = z + epsilon where z >= 0, -0.0 included, else z - epsilon
    adjoint  d = dL/dS, z, S -> t = dL/dr = kappa q, dz = dL/dz = -q S;  q = d / stab(z)

With y and sign (1 or -1), S and t are zero where y is zero or has the other sign.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native
from fastxai.kernels.activation import widened

__all__ = ["adjoint", "share"]


def _over_stable(x: Tensor, z: Tensor, epsilon: float) -> Tensor:
    return widened(x) / torch.where(z < 0, widened(z) - epsilon, widened(z) + epsilon)


def _where(y: Tensor | None, sign: int, x: Tensor) -> Tensor:
    return torch.where(y * sign > 0, x, 0) if y is not None and sign else x


def _share_reference(r: Tensor, z: Tensor, epsilon: float, kappa: float, y: Tensor | None, sign: int) -> Tensor:
    return _where(y, sign, kappa * _over_stable(r, z, epsilon)).to(z.dtype)


def _adjoint_reference(
    d: Tensor, z: Tensor, shares: Tensor, epsilon: float, kappa: float, y: Tensor | None, sign: int
) -> tuple[Tensor, Tensor]:
    quotient = _over_stable(d, z, epsilon)
    return _where(y, sign, kappa * quotient).to(z.dtype), (-quotient * widened(shares)).to(z.dtype)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import proportional

    return proportional


def _launch(name: str, how: tuple[float, float, int], z: Tensor, *operands: Tensor | None) -> None:
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


def share(r: Tensor, z: Tensor, epsilon: float, kappa: float = 1.0, y: Tensor | None = None, sign: int = 0) -> Tensor:
    """Divide relevance by what it is shared among, S = kappa r / stab(z), where sign y > 0.

    Args:
        r: relevance [...].
        z: the sum of all contributions [...]; a copy is made where it is not dense, channels first or last.
        epsilon: of stab(z) = z + epsilon sign(z), sign(0) = 1.
        kappa: a factor.
        y: [...], whose sign decides; not read where ``sign`` is 0.
        sign: 1, -1, or 0 for everywhere.

    Returns:
        S [...], in z's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, or y is missing.
    """
    _check_like(z, r=r)
    y = _check_mask(y, sign, z)
    z, r, y = _native.alike(z, r, y)
    match _backend.pick(z):
        case "reference":
            return _share_reference(r, z, epsilon, kappa, y, sign)
        case "cpu":
            shares = _memory.empty_like(z)
            _launch("share", (epsilon, kappa, sign), z, r, z, y, shares)
            return shares
        case _:  # Triton serves "cuda" too
            return _triton().share(r, z, epsilon, kappa, y, sign)


def adjoint(
    d: Tensor, z: Tensor, shares: Tensor, epsilon: float, kappa: float = 1.0, y: Tensor | None = None, sign: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the cotangents t = kappa q and dz = -q S of r and z, q = d / stab(z), given that of S.

    Args:
        d: cotangent of S [...]; its memory may become t's.
        z: as for ``share``.
        shares: S [...], what ``share`` returned.
        epsilon: as for ``share``.
        kappa: as for ``share``.
        y: as for ``share``.
        sign: as for ``share``.

    Returns:
        (t, dz), both [...], in z's memory format.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, or y is missing.
    """
    _check_like(z, d=d, shares=shares)
    y = _check_mask(y, sign, z)
    z, d, shares, y = _native.alike(z, d, shares, y)
    match _backend.pick(z):
        case "reference":
            return _adjoint_reference(d, z, shares, epsilon, kappa, y, sign)
        case "cpu":
            dz = _memory.empty_like(z)
            _launch("adjoint", (epsilon, kappa, sign), z, d, z, shares, y, d, dz)
            return d, dz
        case _:  # Triton serves "cuda" too
            return _triton().adjoint(d, z, shares, epsilon, kappa, y, sign)
