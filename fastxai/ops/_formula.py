"""The activations as formulas that autograd, functorch and the compiler may differentiate, and when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastxai.kernels.formulas import Activation, value

__all__ = ["derivative", "formula", "needs_formula"]


def needs_formula(x: Tensor) -> bool:
    """Return True where a registered op cannot serve x: in torch.compile, in torch.func, or with a tangent.

    An op that has only a backward strips the tangent of forward-mode AD without a word. The functorch query has no
    public name; it also covers a tensor that the transformed function merely closes over.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad.unpack_dual(x).tangent is not None
    )


def _gate(act: Activation, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P, P') whose derivative P' is the curvature surrogate of a ReLU-like activation."""
    p = torch.sigmoid(act.beta * a)
    slope = act.beta * p * torch.sigmoid(-act.beta * a)
    if act.name == "relu6":
        top = torch.sigmoid(act.beta * (a - 6))
        return p - top, slope - act.beta * top * torch.sigmoid(-act.beta * (a - 6))
    low = act.alpha if act.name == "leaky_relu" else 0.0
    return (1 - low) * p, (1 - low) * slope


def formula(act: Activation, a: Tensor) -> Tensor:
    """Return s(a), shape as ``a``, with the derivatives that ``act.second`` names.

    A curvature surrogate is s + e d / 2 - (P' - [P']) d^2 / 12, where d = a - [a], e = P - [P] and [.] is a constant
    to autograd. d and e are exact zeros, so value and first derivative are those of s to the last bit; the second
    derivative is P', the third P'', the fourth P''' (a finite a is needed: d is NaN at infinity).
    """
    y = value(act, a)
    if act.second != "curvature":
        return y
    gate, slope = _gate(act, a)
    d = a - a.detach()
    return y + (gate - gate.detach()) * d / 2 - (slope - slope.detach()) * d * d / 12


def _primal(act: Activation, kept: Tensor) -> Tensor:
    """Return a from the number kept, with da/dkept = 1: cotangents of ``kept`` are written in a's coordinate."""
    if act.name != "softplus":
        return kept
    q = kept.detach().abs().clamp_min(torch.finfo(kept.dtype).tiny)
    return torch.copysign(torch.log1p(-q) - torch.log(q), kept.detach()) / act.beta + (kept - kept.detach())


def derivative(act: Activation, kept: Tensor, order: int) -> Tensor:
    """Return the derivative of s of that order at the kept number, itself differentiable any number of times."""

    def climb(a: Tensor, order: int) -> Tensor:
        return formula(act, a) if order == 0 else torch.func.grad(lambda t: climb(t, order - 1).sum())(a)

    return climb(_primal(act, kept), order)
