"""Order-2 activation jets in Triton; contract and reference are in ``fastxai.kernels.mixed``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.activation import Activation
from fastxai.kernels.triton import launch
from fastxai.kernels.triton.activation import _numbers, _slopes, _third

__all__ = ["pull", "push"]


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
    launch(_push_kernel, size, kept, y, kept, a_v, a, size, *_numbers(act), **_settings(act, directions))
    return y


def pull(
    act: Activation, kept: Tensor, a_v: Tensor, a: Tensor, nu: Tensor, bar: Tensor, directions: int
) -> Tensor:
    """Pull (nu_0, nu_v); see ``fastxai.kernels.mixed.pull``."""
    mu, size = torch.empty_like(bar), kept.numel()
    launch(_pull_kernel, size, kept, mu, kept, a_v, a, nu, bar, size, *_numbers(act), **_settings(act, directions))
    return mu
