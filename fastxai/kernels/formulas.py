"""Activations: the one Python home of each function and its first two derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import _check

__all__ = [
    "NAMES", "RELU_LIKE", "SECOND", "Activation", "derivatives", "dials", "small", "split", "stable_value", "third",
    "value",
]  # fmt: skip

# The position in this tuple is the activation's number in csrc/math.h and kernels/triton/activation.py.
NAMES = (
    "identity",
    "softplus",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
    "elu",
    "relu",
    "relu6",
    "leaky_relu",
    "softplus6",
    "leaky_softplus",
)
RELU_LIKE = ("relu", "relu6", "leaky_relu")
_SMOOTH = {"relu": "softplus", "relu6": "softplus6", "leaky_relu": "leaky_softplus"}
SECOND = ("own", "curvature", "none")
MONOTONE = ("identity", "softplus", "sigmoid", "tanh", "elu", *RELU_LIKE, "softplus6", "leaky_softplus")


def split(beta: float) -> tuple[float, float]:
    """Return (head, tail), beta = head + tail, head of 12 bits: float32 kernels carry products with beta in two."""
    significand, exponent = math.frexp(beta)
    head = math.ldexp(round(significand * 4096), exponent - 12)
    return head, beta - head


def dials(betas: Sequence[float], device: torch.device) -> Tensor:
    """Return one row (beta, its head, its tail) for each beta, float64 [T, 3].

    A tensor [3] that a row was copied to may stand for ``Activation.beta``: kernels read it when they run.
    """
    return torch.tensor([(beta, *split(beta)) for beta in betas], dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Activation:
    """One activation function with its first two derivatives.

    Args:
        name: one of ``NAMES``.
        beta: sharpness of softplus, or of the curvature surrogate of a ReLU-like activation; > 0. Or a tensor as
            ``dials`` says, which captured calls follow where a number would be frozen; the kernels of "cuda" take none.
        alpha: the negative slope of leaky_relu, the scale of elu.
        second: "own" second derivative, or for ReLU-like ones "curvature" ([F]: s'' = beta p(1-p)) or "none".

    Raises:
        ValueError: unknown name, beta not positive and finite, or a surrogate on a smooth activation.
    """

    name: str
    beta: float | Tensor = 1.0
    alpha: float = 0.01
    second: str = "own"

    def __post_init__(self) -> None:
        _check.one_of(self.name, "activation", NAMES)
        _check.one_of(self.second, "second", SECOND)
        if isinstance(self.beta, Tensor):
            _check.shape(self.beta, "beta", (3,))
            _check.require(self.beta.dtype == torch.float64, "beta", "be float64 where it is a tensor", self.beta.dtype)
        else:
            _check.positive(self.beta, "beta")
        _check.require(
            self.second == "own" or self.name in RELU_LIKE, "second", f"be 'own' for {self.name}", self.second
        )
        _check.require(-1e30 < self.alpha < 1e30, "alpha", "be finite", self.alpha)

    @property
    def code(self) -> int:
        """The activation's number in the compiled kernels."""
        return NAMES.index(self.name)

    @cached_property
    def scalars(self) -> tuple[int, int, Any, float]:
        """How the compiled kernels take this activation: code, number of the second derivative, beta, alpha.

        Beta that lies in memory is a function, which ``_native.launch`` calls.
        """
        beta: Any = self.beta
        if isinstance(beta, Tensor):
            _check.require(
                beta.device.type == "cpu", "beta", "be a number for the kernels of 'cuda'", "a tensor", TypeError
            )
            beta = beta.numpy()[:1].item
        return self.code, SECOND.index(self.second), beta, float(self.alpha)

    @cached_property
    def flat(self) -> bool:
        """True if s'' is zero everywhere."""
        return self.name == "identity" or (self.name in RELU_LIKE and self.second != "curvature")

    @property
    def factor(self) -> float | Tensor:
        """Beta as formulas take it: a number, or a tensor without dimensions."""
        return self.beta[0] if isinstance(self.beta, Tensor) else self.beta

    def smoothed(self, beta: float | Tensor) -> Activation:
        """Return the softplus form of a ReLU-like activation."""
        return Activation(_SMOOTH[self.name], beta=beta, alpha=self.alpha)

    @property
    def monotone(self) -> bool:
        """True if s never decreases, so that max-pooling commutes with it."""
        return self.name in MONOTONE and not (self.name in ("leaky_relu", "leaky_softplus", "elu") and self.alpha < 0)


def value(act: Activation, a: Tensor) -> Tensor:
    """Return s(a) as a formula that autograd may differentiate any number of times."""
    match act.name:
        case "identity":
            return a.clone()
        case "softplus":
            return -F.logsigmoid(-act.factor * a) / act.factor
        case "sigmoid":
            return torch.sigmoid(a)
        case "tanh":
            return torch.tanh(a)
        case "silu":
            return a * torch.sigmoid(a)
        case "gelu":
            return a * torch.special.erfc(-a * 0.5**0.5) / 2
        case "gelu_tanh":
            # Autograd of F.gelu(approximate="tanh") has a NaN third derivative for |a| >= 30.
            return a * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3))
        case "elu":
            return F.elu(a, act.alpha)
        case "relu":
            return F.relu(a)
        case "relu6":
            return F.relu6(a)
        case "softplus6":
            return (F.logsigmoid(-act.factor * (a - 6)) - F.logsigmoid(-act.factor * a)) / act.factor
        case "leaky_softplus":
            return act.alpha * a - (1 - act.alpha) * F.logsigmoid(-act.factor * a) / act.factor
        case _:
            return F.leaky_relu(a, act.alpha)


def small(z: Tensor) -> Tensor:
    """min(p, 1-p) for p = sig(z), without cancellation."""
    e = torch.exp(-z.abs())
    return e / (1 + e)


def derivatives(act: Activation, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return (s', s'') from the kept number, in plain torch; shapes as ``kept``."""
    a, beta = kept, act.factor
    match act.name:
        case "softplus":
            q = kept.abs()
            return torch.where(torch.signbit(kept), q, 1 - q), beta * q * (1 - q)
        case "sigmoid":
            d1 = small(a) * (1 - small(a))
            return d1, -d1 * torch.tanh(a / 2)
        case "tanh":
            d1 = 4 * small(2 * a) * (1 - small(2 * a))
            return d1, -2 * torch.tanh(a) * d1
        case "silu":
            slope = small(a) * (1 - small(a))
            return torch.sigmoid(a) + a * slope, slope * (2 - a * torch.tanh(a / 2))
        case "gelu":
            density = torch.exp(-a * a / 2) * (2 * torch.pi) ** -0.5
            return torch.special.erfc(-a * 0.5**0.5) / 2 + a * density, density * (2 - a * a)
        case "gelu_tanh":
            c, k = (2 / torch.pi) ** 0.5, 0.044715
            u, du, ddu = c * (a + k * a**3), c * (1 + 3 * k * a * a), 6 * c * k * a
            dt = 4 * small(2 * u) * (1 - small(2 * u))
            return torch.sigmoid(2 * u) + a * dt * du / 2, dt * du + a * dt * (ddu / 2 - torch.tanh(u) * du * du)
        case "elu":
            low = act.alpha * torch.exp(a.clamp(max=0))
            return torch.where(a > 0, torch.ones_like(a), low), torch.where(a > 0, torch.zeros_like(a), low)
        case "identity":
            return torch.ones_like(a), torch.zeros_like(a)
        case "softplus6":
            # p(a) - p(a - 6), from the smaller of p and 1 - p on each side
            low, high = small(beta * a), small(beta * (a - 6))
            d1 = torch.where(a > 6, high - low, torch.where(a > 0, 1 - low - high, low - high))
            return d1, beta * (low * (1 - low) - high * (1 - high))
        case "leaky_softplus":
            q = small(beta * a)
            slope = torch.where(torch.signbit(a), q, 1 - q)
            return act.alpha + (1 - act.alpha) * slope, (1 - act.alpha) * beta * q * (1 - q)
    inside = (a > 0) & (a < 6) if act.name == "relu6" else a > 0
    low = act.alpha if act.name == "leaky_relu" else 0.0
    d1 = inside.to(a.dtype) * (1 - low) + low
    if act.second != "curvature":
        return d1, torch.zeros_like(a)
    d2 = beta * small(beta * a) * (1 - small(beta * a)) * (1 - low)
    if act.name == "relu6":
        d2 = d2 - beta * small(beta * (a - 6)) * (1 - small(beta * (a - 6)))
    return d1, d2


def third(act: Activation, kept: Tensor) -> Tensor:
    """Return s''' from the kept number, in plain torch; zero wherever s'' jumps (ELU at 0) or is a surrogate."""
    a, beta = kept, act.factor
    match act.name:
        case "softplus":
            return _softplus_third(beta, kept.abs(), kept)
        case "sigmoid":
            d1 = small(a) * (1 - small(a))
            return d1 * (1 - 6 * d1)
        case "tanh":
            d1 = 4 * small(2 * a) * (1 - small(2 * a))
            return d1 * (4 - 6 * d1)
        case "silu":
            slope = small(a) * (1 - small(a))
            return slope * (a * (1 - 6 * slope) - 3 * torch.tanh(a / 2))
        case "gelu":
            return torch.exp(-a * a / 2) * (2 * torch.pi) ** -0.5 * a * (a * a - 4)
        case "gelu_tanh":
            c, k = (2 / torch.pi) ** 0.5, 0.044715
            u, du, ddu, dddu = c * (a + k * a**3), c * (1 + 3 * k * a * a), 6 * c * k * a, 6 * c * k
            slope, t = small(2 * u) * (1 - small(2 * u)), torch.tanh(u)
            bend = ddu - 2 * t * du * du
            return slope * (6 * bend + a * (2 * dddu - 12 * t * du * ddu + du**3 * (8 - 48 * slope)))
        case "elu":
            return torch.where(a > 0, torch.zeros_like(a), act.alpha * torch.exp(a.clamp(max=0)))
        case "softplus6":
            return _softplus_third(beta, small(beta * a), a) - _softplus_third(beta, small(beta * (a - 6)), a - 6)
        case "leaky_softplus":
            return (1 - act.alpha) * _softplus_third(beta, small(beta * a), a)
    return torch.zeros_like(a)


def _softplus_third(beta: float | Tensor, q: Tensor, a: Tensor) -> Tensor:
    """beta^2 p(1-p)(1-2p) from q = min(p, 1-p) and the sign of a."""
    return torch.copysign(beta * beta * q * (1 - q) * (1 - 2 * q), -a)


def _tail(z: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-z.abs()))


def stable_value(act: Activation, a: Tensor) -> Tensor:
    """s(a) in the form of the compiled kernels: the kinked function plus its smooth tails."""
    if act.name == "softplus":
        return a.clamp(min=0) + _tail(act.factor * a) / act.factor
    if act.name == "softplus6":
        return a.clamp(0, 6) + (_tail(act.factor * a) - _tail(act.factor * (a - 6))) / act.factor
    return value(act, a)
