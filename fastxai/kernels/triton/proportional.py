"""Proportional shares in Triton; contract and reference are in ``fastxai.kernels.proportional``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.proportional import Shares
from fastxai.kernels.triton import launch

__all__ = ["adjoint", "share"]


@triton.jit
def _over_stable(x, z, epsilon, ALONE: tl.constexpr):
    quotient = tl.div_rn(x, tl.where(z < 0, z - epsilon, z + epsilon))
    return tl.where(z == 0, 0.0, quotient) if ALONE else quotient


@triton.jit
def _share_kernel(shares, r, z, y, size, epsilon, kappa, SIGN: tl.constexpr, ALONE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    z_at = tl.load(z + at, mask).to(tl.float32)
    share = kappa * _over_stable(tl.load(r + at, mask).to(tl.float32), z_at, epsilon, ALONE)
    if SIGN != 0:
        share = tl.where(tl.load(y + at, mask).to(tl.float32) * SIGN > 0, share, 0.0)
    tl.store(shares + at, share, mask)


@triton.jit
def _adjoint_kernel(
    t, dz, d, z, shares, y, size, epsilon, kappa, SIGN: tl.constexpr, ALONE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    z_at = tl.load(z + at, mask).to(tl.float32)
    quotient = _over_stable(tl.load(d + at, mask).to(tl.float32), z_at, epsilon, ALONE)
    tl.store(dz + at, -quotient * tl.load(shares + at, mask).to(tl.float32), mask)
    cotangent = kappa * quotient
    if SIGN != 0:
        cotangent = tl.where(tl.load(y + at, mask).to(tl.float32) * SIGN > 0, cotangent, 0.0)
    tl.store(t + at, cotangent, mask)


def share(r: Tensor, z: Tensor, how: Shares, y: Tensor | None) -> Tensor:
    """Divide relevance by what it is shared among; see ``fastxai.kernels.proportional.share``."""
    shares, size = torch.empty_like(z), z.numel()
    epsilon, kappa = float(how.epsilon), float(how.kappa)
    launch(_share_kernel, size, z, shares, r, z, y, size, epsilon, kappa, SIGN=how.sign, ALONE=how.alone)
    return shares


def adjoint(d: Tensor, z: Tensor, shares: Tensor, how: Shares, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the cotangents of r and z; see ``fastxai.kernels.proportional.adjoint``."""
    dz, size = torch.empty_like(z), z.numel()
    epsilon, kappa = float(how.epsilon), float(how.kappa)
    launch(_adjoint_kernel, size, z, d, dz, d, z, shares, y, size, epsilon, kappa, SIGN=how.sign, ALONE=how.alone)
    return d, dz
