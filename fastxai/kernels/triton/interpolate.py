"""Activations along a straight path in Triton; contract and reference are in ``fastxai.kernels.interpolate``.

One program holds a block of elements and loops over the points: what the points share is read once, the sums are kept
in float32 registers and written once, whatever the storage. The number of points is a run-time argument, so that a
chunk of another length compiles nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.activation import Activation
from fastxai.kernels.interpolate import bias_geometry, rows_like
from fastxai.kernels.triton import launch, loaded, numbers, wide
from fastxai.kernels.triton.activation import _slopes, _value

__all__ = ["push", "reduce", "reduce_primal", "tangent"]


@triton.jit
def _push_kernel(
    y,
    kept,
    a,
    bias,
    t,
    size,
    points,
    channels,
    inner,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    start = tl.load(a + at, mask).to(tl.float32)
    step = tl.load(a + size + at, mask).to(tl.float32)
    if bias is not None:
        number = at if WIDE else at.to(tl.int32)
        start += tl.load(bias + (number // inner) % channels, mask).to(tl.float32)
    for k in range(points):
        primal = start + tl.load(t + k).to(tl.float32) * step
        value, keep = _value(primal, beta_head, beta_tail, alpha, ACT)
        tl.store(y + at, value, mask)
        tl.store(kept + at, keep, mask)
        y += size
        kept += size


@triton.jit
def _tangent_kernel(
    y_v,
    kept,
    a_v,
    size,
    points,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    CURVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    shared = tl.load(a_v + at, mask).to(tl.float32)
    for _ in range(points):
        d1, _ = _slopes(tl.load(kept + at, mask).to(tl.float32), beta_head, beta_tail, alpha, ACT, CURVED)
        tl.store(y_v + at, d1 * shared, mask)
        y_v += size
        kept += size


@triton.jit
def _reduce_kernel(
    m_0,
    m_1,
    kept,
    a_v,
    nu_v,
    nu_0,
    t,
    size,
    points,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    CURVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both reductions: without a_v there is no curvature, without nu_0 no straight part, without m_1 no moment."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    total = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    shared = total
    if a_v is not None:
        shared = tl.load(a_v + at, mask).to(tl.float32)
    for k in range(points):
        d1, d2 = _slopes(tl.load(kept + at, mask).to(tl.float32), beta_head, beta_tail, alpha, ACT, CURVED)
        kept += size
        mu = tl.zeros([BLOCK], tl.float32)
        if nu_0 is not None:
            mu = d1 * tl.load(nu_0 + at, mask).to(tl.float32)
            nu_0 += size
        if a_v is not None:
            mu += d2 * (shared * tl.load(nu_v + at, mask).to(tl.float32))
            nu_v += size
        total += mu
        if m_1 is not None:
            moment += tl.load(t + k).to(tl.float32) * mu
    tl.store(m_0 + at, total, mask)
    if m_1 is not None:
        tl.store(m_1 + at, moment, mask)


def push(act: Activation, a: Tensor, t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Activate every point of a path; see ``fastxai.kernels.interpolate.push``."""
    size = a.numel() // 2
    y, kept = (rows_like(a, t.shape[0] * (a.shape[0] // 2)) for _ in range(2))
    launch(
        _push_kernel, size, a, y, kept, a, bias, t, size, t.shape[0], *bias_geometry(a, bias), *numbers(act),
        ACT=act.code, WIDE=wide(size),
    )  # fmt: skip
    return y, kept


def tangent(act: Activation, kept: Tensor, a_v: Tensor) -> Tensor:
    """Push one tangent at all points; see ``fastxai.kernels.interpolate.tangent``."""
    y_v, size = rows_like(kept, kept.shape[0]), a_v.numel()
    points = kept.shape[0] // max(a_v.shape[0], 1)
    launch(_tangent_kernel, size, kept, y_v, kept, a_v, size, points, *numbers(act), ACT=act.code, CURVED=False)
    return y_v


def reduce(act: Activation, kept: Tensor, nu: Tensor, points: int) -> Tensor:
    """Pull back and add up; see ``fastxai.kernels.interpolate.reduce``."""
    mu = rows_like(kept, kept.shape[0] // max(points, 1))
    launch(
        _reduce_kernel, mu.numel(), kept, mu, None, kept, None, None, nu, None, mu.numel(), points, *numbers(act),
        ACT=act.code, CURVED=False,
    )  # fmt: skip
    return mu


def reduce_primal(act: Activation, kept: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor | None, t: Tensor) -> Tensor:
    """Pull primal cotangents back and reduce them twice; see ``fastxai.kernels.interpolate.reduce_primal``."""
    rows, size = a_v.shape[0], a_v.numel()
    m = rows_like(kept, 2 * rows)
    curved = (None, None) if act.flat else (a_v, nu_v)
    launch(
        _reduce_kernel, size, kept, m[:rows], m[rows:], kept, *curved, nu_0, t, size, t.shape[0], *numbers(act),
        ACT=act.code, CURVED=act.second == "curvature",
    )  # fmt: skip
    return m
