"""Activation jets in Triton; the contract and the float64 reference are in ``fastxai.kernels.activation``.

Arithmetic is float32 whatever the storage. One function, ``_exp_parts``, gives exp(-z) and 1 - exp(-z) with a relative
error of a few ulp, and everything is built on it: ``tl.exp`` multiplies z by log2(e) in float32 first, so its relative
error grows with z (5e-6 at z = 80), and 1 - exp(-z) cancels near z = 0. Products that stand in an exponent are carried
in two floats for the same reason. exp(-z) is gradually denormal below 2^-126 and 0 from z = 104 on.

Accuracy against float64: values are within 2e-6 relative, tails included, and so are s' and s'' except beside their
roots (SiLU, GELU). GELU's Phi(-x) is exp(-x^2/2) times a polynomial for Mills' ratio: nothing cancels (4e-7 down to
a = -13). The exception is gelu_tanh below a = -5, whose exponent is a cubic rounded to float32: 4e-6 at a = -7.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels.activation import NAMES, Activation
from fastxai.kernels.triton import launch, loaded, numbers, wide

__all__ = ["pull", "pull_primal", "push"]

_IDENTITY = tl.constexpr(NAMES.index("identity"))
_SOFTPLUS = tl.constexpr(NAMES.index("softplus"))
_SIGMOID = tl.constexpr(NAMES.index("sigmoid"))
_TANH = tl.constexpr(NAMES.index("tanh"))
_SILU = tl.constexpr(NAMES.index("silu"))
_GELU = tl.constexpr(NAMES.index("gelu"))
_GELU_TANH = tl.constexpr(NAMES.index("gelu_tanh"))
_ELU = tl.constexpr(NAMES.index("elu"))
_RELU6 = tl.constexpr(NAMES.index("relu6"))
_LEAKY_RELU = tl.constexpr(NAMES.index("leaky_relu"))
_SOFTPLUS6 = tl.constexpr(NAMES.index("softplus6"))
_LEAKY_SOFTPLUS = tl.constexpr(NAMES.index("leaky_softplus"))

_SATURATED = tl.constexpr(110.0)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HEAD = tl.constexpr(0.693359375)
_LN2_TAIL = tl.constexpr(-2.1219444005469057e-4)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_CUBIC_C = tl.constexpr(0.7978845608028654)
_CUBIC_K = tl.constexpr(0.044715)


@triton.jit
def _head(x):
    """The leading 12 bits of x's significand: the product of two heads is exact in float32."""
    return (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def _negative(x):
    """Is the sign bit set (-0.0 included)?"""
    return x.to(tl.int32, bitcast=True) < 0


@triton.jit
def _with_sign(magnitude, x):
    """The magnitude with x's sign bit, -0.0 included, which ``-magnitude`` (0 - magnitude in Triton 3.6) loses."""
    bits = magnitude.to(tl.int32, bitcast=True) | (x.to(tl.int32, bitcast=True) & -2147483648)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _exp_parts(hi, lo):
    """(exp(-z), 1 - exp(-z)) for z = hi + lo in [0, 110]: z = n ln2 - t with |t| < 0.36, exp(t) - 1 by its series."""
    n = tl.floor(hi * _LOG2_E + 0.5)
    t = n * _LN2_TAIL - ((hi - n * _LN2_HEAD) + lo)
    series = 1.0 + t * (1 / 2 + t * (1 / 6 + t * (1 / 24 + t * (1 / 120 + t * (1 / 720 + t * (1 / 5040))))))
    power = n.to(tl.int32)
    half = power >> 1
    # 2^-n in two factors, neither of them denormal
    s1 = ((127 - half) << 23).to(tl.float32, bitcast=True)
    s2 = ((127 - power + half) << 23).to(tl.float32, bitcast=True)
    above = t * series
    scale = s1 * s2
    return (1.0 + above) * s1 * s2, (1.0 - scale) - scale * above


@triton.jit
def _clamped(size, limit):
    """min(size, limit) that keeps a NaN."""
    return tl.where(size > limit, limit, size)


@triton.jit
def _share(e):
    """Return e / (1 + e) = min(p, 1-p), e = exp(-|z|): rounded once where it is denormal, which a division is not."""
    return e * (1.0 / (1.0 + e))


@triton.jit
def _sigmoid_parts(z):
    """(min(p, 1-p), tanh(|z|/2)) for p = sig(z)."""
    e, rest = _exp_parts(_clamped(tl.abs(z), _SATURATED), 0.0)
    return _share(e), rest * (1.0 / (1.0 + e))


@triton.jit
def _exp_beta(a, beta_head, beta_tail):
    """exp(-|beta a|), beta = beta_head + beta_tail (12 bits and the rest)."""
    size = _clamped(tl.abs(a), (1.0 / beta_head) * _SATURATED)
    head = _head(size)
    e, _ = _exp_parts(head * beta_head, (size - head) * beta_head + size * beta_tail)
    return e


@triton.jit
def _log1p_unit(e):
    """log(1 + e) for e in [0, 1] = 2 atanh(e / (2 + e)) by its series: accurate for small e."""
    s = e * (1.0 / (2.0 + e))
    x = s * s
    return 2 * s * (1.0 + x * (1 / 3 + x * (1 / 5 + x * (1 / 7 + x * (1 / 9 + x * (1 / 11 + x * (1 / 13)))))))


@triton.jit
def _normal_parts(a):
    """(Phi(a), density(a)): Phi(-x) = density(x) M(x), x >= 0, M = Mills' ratio as u poly(u), u = 1 / (1 + 0.35 x)."""
    x = _clamped(tl.abs(a), 14.5)
    head = _head(x)
    e, _ = _exp_parts(head * head * 0.5, (x - head) * (x + head) * 0.5)
    u = 1.0 / (1.0 + 0.35 * x)
    # minimax fit of (1 + 0.35 x) M(x) in u on x in [0, 15], relative error 3.2e-8
    ratio = 0.361106 + u * -0.073102936
    ratio = 0.3995369 + u * (-0.64144915 + u * ratio)
    ratio = 0.3003330 + u * (0.2646363 + u * (-0.058312573 + u * ratio))
    ratio = u * (0.3499786 + u * (0.35058787 + u * ratio))
    density = e * _INV_SQRT_2PI
    tail = density * ratio
    return tl.where(a > 0, 1.0 - tail, tail), density


@triton.jit
def _cubic(a):
    """(2u, du, ddu) of gelu_tanh: u = c (a + k a^3), c = sqrt(2/pi), k = 0.044715."""
    square = a * a
    du = (1.0 + square * (3 * _CUBIC_K)) * _CUBIC_C
    return a * (1.0 + square * _CUBIC_K) * (2 * _CUBIC_C), du, a * (6 * _CUBIC_C * _CUBIC_K)


@triton.jit
def _slopes(kept, beta_head, beta_tail, alpha, ACT: tl.constexpr, CURVED: tl.constexpr):
    """(s', s'') from the kept number; CURVED gives a ReLU-like activation the curvature surrogate."""
    if ACT == _SOFTPLUS:
        q = tl.abs(kept)
        d1 = tl.where(_negative(kept), q, 1.0 - q)
        d2 = (beta_head + beta_tail) * (q * (1.0 - q))
    elif ACT == _SIGMOID:
        q, t = _sigmoid_parts(kept)
        d1 = q * (1.0 - q)
        d2 = tl.where(kept > 0, -d1 * t, d1 * t)
    elif ACT == _TANH:
        q, t = _sigmoid_parts(2 * kept)
        d1 = 4 * q * (1.0 - q)
        d2 = tl.where(kept > 0, -2 * t * d1, 2 * t * d1)
    elif ACT == _SILU:
        q, t = _sigmoid_parts(kept)
        slope = q * (1.0 - q)
        d1 = tl.where(kept > 0, 1.0 - q, q) + kept * slope
        d2 = slope * (2.0 - tl.abs(kept) * t)
    elif ACT == _GELU:
        below, density = _normal_parts(kept)
        size = _clamped(tl.abs(kept), 14.5)
        d1 = below + tl.where(kept > 0, size * density, -size * density)
        d2 = density * (2.0 - size * size)
    elif ACT == _GELU_TANH:
        size = _clamped(tl.abs(kept), 14.5)
        a = tl.where(kept > 0, size, -size)
        double_u, du, ddu = _cubic(a)
        q, t = _sigmoid_parts(double_u)
        dt = 4 * q * (1.0 - q)
        d1 = tl.where(a > 0, 1.0 - q, q) + a * dt * du * 0.5
        d2 = dt * du + a * dt * (ddu * 0.5 - tl.where(a > 0, t, -t) * du * du)
    elif ACT == _ELU:
        e, _ = _exp_parts(_clamped(tl.abs(kept), _SATURATED), 0.0)
        d1 = tl.where(kept > 0, 1.0, alpha * e)
        d2 = tl.where(kept > 0, 0.0, alpha * e)
    elif ACT == _IDENTITY:
        d1 = tl.full(kept.shape, 1.0, tl.float32)
        d2 = tl.zeros_like(kept)
    elif ACT == _SOFTPLUS6:
        below = _exp_beta(kept, beta_head, beta_tail)
        above = _exp_beta(kept - 6, beta_head, beta_tail)
        low, high = _share(below), _share(above)
        d1 = tl.where(kept > 6, high - low, tl.where(kept > 0, 1.0 - low - high, low - high))
        d2 = (beta_head + beta_tail) * (low * (1.0 - low) - high * (1.0 - high))
    elif ACT == _LEAKY_SOFTPLUS:
        e = _exp_beta(kept, beta_head, beta_tail)
        q = _share(e)
        d1 = alpha + (1.0 - alpha) * tl.where(_negative(kept), q, 1.0 - q)
        d2 = (1.0 - alpha) * (beta_head + beta_tail) * (q * (1.0 - q))
    else:
        inside = (kept > 0) & (kept < 6) if ACT == _RELU6 else kept > 0
        low = alpha if ACT == _LEAKY_RELU else 0.0
        d1 = tl.where(inside, 1.0, low)
        d2 = tl.zeros_like(kept)
        if CURVED:
            e = _exp_beta(kept, beta_head, beta_tail)
            q = _share(e)
            d2 = (beta_head + beta_tail) * (q * (1.0 - q)) * (1.0 - low)
            if ACT == _RELU6:
                e = _exp_beta(kept - 6, beta_head, beta_tail)
                q = _share(e)
                d2 -= (beta_head + beta_tail) * (q * (1.0 - q))
    return d1, d2


@triton.jit
def _value(a, beta_head, beta_tail, alpha, ACT: tl.constexpr):
    """(s(a), the number kept)."""
    kept = a
    if ACT == _SOFTPLUS:
        e = _exp_beta(a, beta_head, beta_tail)
        y = tl.where(a > 0, a, 0.0) + _log1p_unit(e) * (1.0 / (beta_head + beta_tail))
        kept = _with_sign(_share(e), a)
    elif ACT == _SIGMOID:
        q, _ = _sigmoid_parts(a)
        y = tl.where(a > 0, 1.0 - q, q)
    elif ACT == _TANH:
        _, t = _sigmoid_parts(2 * a)
        y = tl.where(a > 0, t, -t)
    elif ACT == _SILU:
        q, _ = _sigmoid_parts(a)
        y = a * tl.where(a > 0, 1.0 - q, q)
    elif ACT == _GELU:
        below, _ = _normal_parts(a)
        y = a * below
    elif ACT == _GELU_TANH:
        double_u, _, _ = _cubic(a)
        q, _ = _sigmoid_parts(double_u)
        y = a * tl.where(a > 0, 1.0 - q, q)
    elif ACT == _ELU:
        _, rest = _exp_parts(_clamped(tl.abs(a), _SATURATED), 0.0)
        y = tl.where(a > 0, a, -alpha * rest)
    elif ACT == _IDENTITY:
        y = a
    elif ACT == _SOFTPLUS6:
        below = _exp_beta(a, beta_head, beta_tail)
        above = _exp_beta(a - 6, beta_head, beta_tail)
        y = tl.where(a < 0, 0.0, tl.where(a > 6, 6.0, a))
        y += (_log1p_unit(below) - _log1p_unit(above)) * (1.0 / (beta_head + beta_tail))
    elif ACT == _LEAKY_SOFTPLUS:
        e = _exp_beta(a, beta_head, beta_tail)
        y = tl.where(a > 0, a, 0.0) + _log1p_unit(e) * (1.0 / (beta_head + beta_tail))
        y = alpha * a + (1.0 - alpha) * y
    elif ACT == _LEAKY_RELU:
        y = tl.where(a > 0, a, alpha * a)
    else:
        y = tl.where(a < 0, 0.0, a)
        if ACT == _RELU6:
            y = tl.where(y > 6, 6.0, y)
    return y, kept


@triton.jit
def _push_kernel(
    y,
    kept,
    a,
    bias,
    size,
    channels,
    inner,
    beta_head,
    beta_tail,
    alpha,
    ACT: tl.constexpr,
    CURVED: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    beta_head, beta_tail = loaded(beta_head, beta_tail)
    primal = tl.load(a + at, mask).to(tl.float32)
    if bias is not None:
        number = at if WIDE else at.to(tl.int32)
        primal += tl.load(bias + (number // inner) % channels, mask).to(tl.float32)
    value, keep = _value(primal, beta_head, beta_tail, alpha, ACT)
    d1, _ = _slopes(keep, beta_head, beta_tail, alpha, ACT, CURVED)
    y_v = y
    for _ in range(DIRECTIONS):
        a += size
        y_v += size
        tl.store(y_v + at, d1 * tl.load(a + at, mask).to(tl.float32), mask)
    # after the tangents' loads, which the compiler may not move above a store
    tl.store(y + at, value, mask)
    tl.store(kept + at, keep, mask)


@triton.jit
def _pull_kernel(
    mu_v,
    mu_0,
    kept,
    a_v,
    nu_v,
    nu_0,
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
    tangent = tl.load(nu_v + at, mask).to(tl.float32)
    for _ in range(DIRECTIONS):
        mu = tl.zeros_like(tangent)
        if nu_0 is not None:
            mu = d1 * tl.load(nu_0 + at, mask).to(tl.float32)
            nu_0 += size
        if a_v is not None:
            mu += d2 * tl.load(a_v + at, mask).to(tl.float32) * tangent
            a_v += size
        tl.store(mu_0 + at, mu, mask)
        mu_0 += size
    # after the directions' loads, which the compiler may not move above a store
    if mu_v is not None:
        tl.store(mu_v + at, d1 * tangent, mask)


def push(
    act: Activation, a: Tensor, directions: int = 0, bias: Tensor | None = None, *, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Push a jet of order 0 or 1; see ``fastxai.kernels.activation.push``."""
    primal = a[: a.shape[0] // (1 + directions)]
    y = torch.empty_like(a)
    kept = primal if overwrite else torch.empty_like(primal)
    size = primal.numel()
    channels, inner = (1, 1) if bias is None else (a.shape[1], a.stride(1))
    bias = bias if bias is None else bias.contiguous()
    launch(
        _push_kernel, size, a, y, kept, a, bias, size, channels, inner, *numbers(act),
        ACT=act.code, CURVED=act.second == "curvature", DIRECTIONS=directions, WIDE=wide(size),
    )  # fmt: skip
    return y, kept


def _pull(
    act: Activation,
    out: tuple[Tensor | None, Tensor],
    kept: Tensor,
    a_v: Tensor | None,
    nu: tuple[Tensor, Tensor | None],
    directions: int,
) -> None:
    """Fill out = (mu_v or None, mu_0) from nu = (nu_v, nu_0 or None)."""
    size = kept.numel()
    launch(
        _pull_kernel, size, kept, *out, kept, None if act.flat else a_v, *nu, size, *numbers(act),
        ACT=act.code, CURVED=act.second == "curvature", DIRECTIONS=directions,
    )  # fmt: skip


def pull(
    act: Activation, kept: Tensor, a_v: Tensor | None, nu: Tensor, directions: int = 0, *, overwrite: bool = False
) -> Tensor:
    """Pull the cotangents of an order-0 or order-1 jet; see ``fastxai.kernels.activation.pull``."""
    mu = nu if overwrite else torch.empty_like(nu)
    n = kept.shape[0]
    _pull(act, (mu[:n], mu[n:]), kept, a_v, (nu[:n], nu[n:]), directions)
    return mu


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
    """Pull the primal cotangents alone; see ``fastxai.kernels.activation.pull_primal``."""
    mu = nu_0 if overwrite and nu_0 is not None else torch.empty_like(a_v)
    _pull(act, (None, mu), kept, a_v, (nu_v, nu_0), directions)
    return mu
