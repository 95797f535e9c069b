"""Order-2 activation jets in Triton; contract and reference are in ``fastxai.kernels.mixed``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.activation import Activation
from fastxai.kernels.triton import launch, loaded, numbers
from fastxai.kernels.triton.activation import (
    _CUBIC_C,
    _CUBIC_K,
    _ELU,
    _GELU,
    _GELU_TANH,
    _LEAKY_SOFTPLUS,
    _SATURATED,
    _SIGMOID,
    _SILU,
    _SOFTPLUS,
    _SOFTPLUS6,
    _TANH,
    _clamped,
    _cubic,
    _exp_beta,
    _exp_parts,
    _negative,
    _normal_parts,
    _share,
    _sigmoid_parts,
    _slopes,
)

__all__ = ["pull", "push"]


@triton.jit
def _softplus_third(q, a, beta):
    """beta^2 p(1-p)(1-2p) from q = min(p, 1-p) and the sign of a."""
    size = beta * beta * (q * (1.0 - q)) * (1.0 - 2 * q)
    return tl.where(_negative(a), size, -size)


@triton.jit
def _third(kept, beta_head, beta_tail, alpha, ACT: tl.constexpr):
    """S''' from the kept number; zero where s'' jumps or is a surrogate."""
    beta = beta_head + beta_tail
    if ACT == _SOFTPLUS:
        d3 = _softplus_third(tl.abs(kept), kept, beta)
    elif ACT == _SIGMOID:
        q, _ = _sigmoid_parts(kept)
        d1 = q * (1.0 - q)
        d3 = d1 * (1.0 - 6 * d1)
    elif ACT == _TANH:
        q, _ = _sigmoid_parts(2 * kept)
        d1 = 4 * q * (1.0 - q)
        d3 = d1 * (4.0 - 6 * d1)
    elif ACT == _SILU:
        q, t = _sigmoid_parts(kept)
        slope = q * (1.0 - q)
        d3 = slope * (kept * (1.0 - 6 * slope) - 3 * tl.where(kept > 0, t, -t))
    elif ACT == _GELU:
        _, density = _normal_parts(kept)
        size = _clamped(tl.abs(kept), 14.5)
        d3 = density * tl.where(kept > 0, size, -size) * (size * size - 4.0)
    elif ACT == _GELU_TANH:
        size = _clamped(tl.abs(kept), 14.5)
        a = tl.where(kept > 0, size, -size)
        double_u, du, ddu = _cubic(a)
        q, t = _sigmoid_parts(double_u)
        slope = q * (1.0 - q)
        t = tl.where(a > 0, t, -t)
        cubic = 12 * _CUBIC_C * _CUBIC_K - 12 * t * du * ddu + du * du * du * (8.0 - 48 * slope)
        d3 = slope * (6 * (ddu - 2 * t * du * du) + a * cubic)
    elif ACT == _ELU:
        e, _ = _exp_parts(_clamped(tl.abs(kept), _SATURATED), 0.0)
        d3 = tl.where(kept > 0, 0.0, alpha * e)
    elif ACT == _SOFTPLUS6:
        low = _share(_exp_beta(kept, beta_head, beta_tail))
        high = _share(_exp_beta(kept - 6, beta_head, beta_tail))
        d3 = _softplus_third(low, kept, beta) - _softplus_third(high, kept - 6, beta)
    elif ACT == _LEAKY_SOFTPLUS:
        q = _share(_exp_beta(kept, beta_head, beta_tail))
        d3 = (1.0 - alpha) * _softplus_third(q, kept, beta)
    else:
        d3 = tl.zeros_like(kept)
    return d3


@triton.jit
def _push_kernel(
    y,
    kept,
    a_v,
    a,
    size,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    CURVED: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    d1, d2 = _slopes(tl.load(kept + at, mask).to(tl.float32), beta_head, beta_tail, alpha, ACT, CURVED)
    mixed = d1 * tl.load(a + at, mask).to(tl.float32)
    bent = tl.zeros_like(d1)
    a_u = a
    y_u = y
    for _ in range(DIRECTIONS):
        a_u += size
        y_u += size
        u = tl.load(a_u + at, mask).to(tl.float32)
        bent += u * tl.load(a_v + at, mask).to(tl.float32)
        a_v += size
        tl.store(y_u + at, d1 * u, mask)
    tl.store(y + at, mixed + d2 * bent, mask)


@triton.jit
def _pull_kernel(
    mu,
    kept,
    a_v,
    a,
    nu,
    bar,
    size,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    CURVED: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    keep = tl.load(kept + at, mask).to(tl.float32)
    d1, d2 = _slopes(keep, beta_head, beta_tail, alpha, ACT, CURVED)
    nu_v = tl.load(nu + at, mask).to(tl.float32)
    once = d2 * nu_v
    twice = _third(keep, beta_head, beta_tail, alpha, ACT) * nu_v
    total = d1 * tl.load(bar + at, mask).to(tl.float32) + once * tl.load(a + at, mask).to(tl.float32)
    mu_v = mu
    for _ in range(DIRECTIONS):
        a += size
        nu += size
        bar += size
        mu_v += size
        u = tl.load(a + at, mask).to(tl.float32)
        v = tl.load(a_v + at, mask).to(tl.float32)
        bar_v = tl.load(bar + at, mask).to(tl.float32)
        total += d2 * (u * tl.load(nu + at, mask).to(tl.float32) + v * bar_v) + twice * (u * v)
        a_v += size
        tl.store(mu_v + at, d1 * bar_v + once * u, mask)
    tl.store(mu + at, total, mask)


def _settings(act: Activation, directions: int) -> dict[str, int | bool]:
    return {"ACT": act.code, "CURVED": act.second == "curvature", "DIRECTIONS": directions}


def push(act: Activation, kept: Tensor, a_v: Tensor, a: Tensor, directions: int) -> Tensor:
    """Push the mixed component and the directions u; see ``fastxai.kernels.mixed.push``."""
    y, size = torch.empty_like(a), kept.numel()
    launch(_push_kernel, size, kept, y, kept, a_v, a, size, *numbers(act), **_settings(act, directions))
    return y


def pull(act: Activation, kept: Tensor, a_v: Tensor, a: Tensor, nu: Tensor, bar: Tensor, directions: int) -> Tensor:
    """Pull (nu_0, nu_v); see ``fastxai.kernels.mixed.pull``."""
    mu, size = torch.empty_like(bar), kept.numel()
    launch(_pull_kernel, size, kept, mu, kept, a_v, a, nu, bar, size, *numbers(act), **_settings(act, directions))
    return mu
