"""Steps of attacks in Triton; contract and reference are in ``fastxai.kernels.attack_step``.

Adam and the sign step are one pass over all elements. The L2 step has one program for each sample, which loops over its
elements once for each length that it needs; a sample of a usual image stays in the second-level cache meanwhile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.attack_step import BETA_1, BETA_2, EPS, geometry
from fastxai.kernels.triton import BLOCK, launch, wide

__all__ = ["adam_clamp", "l2_project_clip", "sign_project_clip"]

Box = tuple[Tensor, Tensor]


@triton.jit
def _clipped(value, low, high):
    return tl.where(value < low, low, tl.where(value > high, high, value))


@triton.jit
def _bounds(low, high, number, mask, elements, channels, inner):
    """Return the bounds of elements by number."""
    channel = (number % elements // inner) % channels
    return tl.load(low + channel, mask).to(tl.float32), tl.load(high + channel, mask).to(tl.float32)


@triton.jit
def _adam_kernel(
    out,
    x,
    gradient,
    m,
    v,
    low,
    high,
    frozen,
    size,
    elements,
    channels,
    inner,
    beta_1,
    rest_1,
    beta_2,
    rest_2,
    eps,
    step,
    correction,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    number = at if WIDE else at.to(tl.int32)
    lowest, highest = _bounds(low, high, number, mask, elements, channels, inner)
    old = tl.load(x + at, mask).to(tl.float32)
    g = tl.load(gradient + at, mask).to(tl.float32)
    mean = tl.load(m + at, mask)
    square = tl.load(v + at, mask)
    new_mean = beta_1 * mean + rest_1 * g
    new_square = beta_2 * square + rest_2 * (g * g)
    if correction is None:
        factor = tl.load(step).to(tl.float32)
        rate = tl.load(step + 1).to(tl.float32)
    else:
        factor = step
        rate = correction
    spread = tl.sqrt_rn(new_square) * rate + eps
    moved = _clipped(old - tl.div_rn(factor * new_mean, spread), lowest, highest)
    if frozen is not None:
        stays = tl.load(frozen + number // elements, mask).to(tl.int1)
        moved = tl.where(stays, old, moved)
        new_mean = tl.where(stays, mean, new_mean)
        new_square = tl.where(stays, square, new_square)
    tl.store(out + at, moved, mask)
    tl.store(m + at, new_mean, mask)
    tl.store(v + at, new_square, mask)


@triton.jit
def _ball_end(origin, eps):
    """Return origin + eps, or where that was rounded to outside of the ball, a number or two before it."""
    end = origin + eps
    before = end - tl.abs(end) * 1.1920928955078125e-07  # float32's spacing at 1
    return tl.where(end - origin > eps, tl.maximum(before, origin), end)


@triton.jit
def _sign_kernel(
    out,
    x,
    gradient,
    origin,
    low,
    high,
    frozen,
    size,
    elements,
    channels,
    inner,
    alpha,
    eps,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    number = at if WIDE else at.to(tl.int32)
    lowest, highest = _bounds(low, high, number, mask, elements, channels, inner)
    old = tl.load(x + at, mask).to(tl.float32)
    moved = old
    if gradient is not None:
        g = tl.load(gradient + at, mask).to(tl.float32)
        moved += alpha * ((g > 0).to(tl.float32) - (g < 0).to(tl.float32))
    centre = tl.load(origin + at, mask).to(tl.float32)
    moved = _clipped(_clipped(moved, -_ball_end(-centre, eps), _ball_end(centre, eps)), lowest, highest)
    if frozen is not None:
        moved = tl.where(tl.load(frozen + number // elements, mask).to(tl.int1), old, moved)
    tl.store(out + at, moved, mask)


@triton.jit
def _scale(largest):
    """Return what makes squares neither vanish nor overflow."""
    return tl.where((largest > 0) & (largest < float("inf")), largest, 1.0)


@triton.jit
def _moved(x, gradient, at, mask, step):
    """Return x + step g in float32."""
    value = tl.load(x + at, mask, other=0).to(tl.float32)
    if gradient is not None:
        value += step * tl.load(gradient + at, mask, other=0).to(tl.float32)
    return value


@triton.jit
def _l2_kernel(
    out,
    x,
    gradient,
    origin,
    low,
    high,
    frozen,
    elements,
    channels,
    inner,
    alpha,
    eps,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    base = sample * elements
    place = tl.arange(0, BLOCK)
    step = 0.0
    if gradient is not None:
        most = tl.zeros([BLOCK], tl.float32)
        for start in range(0, elements, BLOCK):
            g = tl.load(gradient + base + start + place, start + place < elements, other=0).to(tl.float32)
            most = tl.where(tl.abs(g) > most, tl.abs(g), most)
        scale = _scale(tl.max(most, 0))
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, elements, BLOCK):
            g = tl.load(gradient + base + start + place, start + place < elements, other=0).to(tl.float32)
            g = tl.div_rn(g, scale)
            sums += g * g
        length = tl.sqrt_rn(tl.sum(sums, 0)) * scale
        step = tl.where(length == 0, 0.0, tl.div_rn(alpha, length))
    most = tl.zeros([BLOCK], tl.float32)
    for start in range(0, elements, BLOCK):
        at = base + start + place
        mask = start + place < elements
        far = _moved(x, gradient, at, mask, step) - tl.load(origin + at, mask, other=0).to(tl.float32)
        most = tl.where(tl.abs(far) > most, tl.abs(far), most)
    scale = _scale(tl.max(most, 0))
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, elements, BLOCK):
        at = base + start + place
        mask = start + place < elements
        far = _moved(x, gradient, at, mask, step) - tl.load(origin + at, mask, other=0).to(tl.float32)
        far = tl.div_rn(far, scale)
        sums += far * far
    length = tl.sqrt_rn(tl.sum(sums, 0)) * scale
    outside = length > eps
    shrink = tl.div_rn(eps, tl.where(outside, length, 1.0))
    for start in range(0, elements, BLOCK):
        at = base + start + place
        mask = start + place < elements
        lowest, highest = _bounds(low, high, start + place, mask, elements, channels, inner)
        old = tl.load(x + at, mask).to(tl.float32)
        moved = _moved(x, gradient, at, mask, step)
        centre = tl.load(origin + at, mask).to(tl.float32)
        moved = tl.where(outside, centre + shrink * (moved - centre), moved)
        moved = _clipped(moved, lowest, highest)
        if frozen is not None:
            moved = tl.where(tl.load(frozen + sample).to(tl.int1), old, moved)
        tl.store(out + at, moved, mask)


def adam_clamp(
    operands: tuple[Tensor, ...], rates: tuple[float, float] | Tensor, box: Box, frozen: Tensor | None
) -> Tensor:
    """Step Adam by lr / (1-b1^t), 1 / sqrt(1-b2^t), in memory or not; see ``kernels.attack_step.adam_clamp``."""
    x = operands[0]
    steps = (rates, None) if isinstance(rates, Tensor) else rates
    out, size = torch.empty_like(x), x.numel()
    launch(
        _adam_kernel, size, x, out, *operands, *box, frozen, size, *geometry(x)[1:],
        BETA_1, 1 - BETA_1, BETA_2, 1 - BETA_2, EPS, *steps, WIDE=wide(size),
    )  # fmt: skip
    return out


def sign_project_clip(
    x: Tensor, gradient: Tensor | None, origin: Tensor, alpha: float, eps: float, box: Box, frozen: Tensor | None
) -> Tensor:
    """Step by sign; see ``fastxai.kernels.attack_step.sign_project_clip``."""
    out, size = torch.empty_like(x), x.numel()
    launch(
        _sign_kernel, size, x, out, x, gradient, origin, *box, frozen, size, *geometry(x)[1:], float(alpha), eps,
        WIDE=wide(size),
    )  # fmt: skip
    return out


def l2_project_clip(
    x: Tensor, gradient: Tensor | None, origin: Tensor, alpha: float, eps: float, box: Box, frozen: Tensor | None
) -> Tensor:
    """Step by direction; see ``fastxai.kernels.attack_step.l2_project_clip``."""
    out, (samples, *rest) = torch.empty_like(x), geometry(x)
    covered = samples * BLOCK if x.numel() else 0
    launch(_l2_kernel, covered, x, out, x, gradient, origin, *box, frozen, *rest, float(alpha), eps)
    return out
