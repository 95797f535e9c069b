"""[F] algorithms 1 and 2 in plain autograd, from the paper, one sample at a time.

    1   while argmax f(x_adv) = argmax f(x):   x_adv <- Project(x_adv + eta Normalize(nabla d_s[S(x_adv), S(x)]))
    2                                          x_adv <- Project(x_adv + eta Normalize(nabla (l + lambda d_s)))

Forward pass and maps are those of ReLU; its second derivative is beta p (1 - p), p = sigmoid(beta a) ([F] section 4).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Step(torch.autograd.Function):
    """1 where a > 0; its derivative is decreed."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.beta = beta
        return (a > 0).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        p = torch.sigmoid(ctx.beta * ctx.saved_tensors[0])
        return grads[0] * ctx.beta * p * (1 - p), None


class _ReLU(torch.autograd.Function):
    """max(a, 0)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.beta = beta
        return a.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * _Step.apply(ctx.saved_tensors[0], ctx.beta), None  # type: ignore[operator]


class Bent(nn.Module):
    """ReLU with the decreed second derivative."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, a: Tensor) -> Tensor:
        return _ReLU.apply(a, self.beta)  # type: ignore[return-value]


def bent(model: nn.Module, beta: float) -> nn.Module:
    """A copy of the model, in eval mode and with frozen weights, whose nn.ReLU modules are ``Bent``."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        # named_children would name a module that is used twice only once.
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU):
                setattr(module, name, Bent(beta))
    return model


# A map h of one input x [1, ...] that requires a gradient, for a class.
Map = Callable[[nn.Module, Tensor, int], Tensor]


def gradient(model: nn.Module, x: Tensor, k: int) -> Tensor:
    """nabla g_k."""
    return torch.autograd.grad(model(x)[0, k], x, create_graph=True)[0]


def integrated_gradients(steps: int, baseline: Tensor | float = 0.0) -> Map:
    """(x - xbar) * mean of nabla g_k at the midpoints of ``steps`` parts of the way from xbar."""

    def explain(model: nn.Module, x: Tensor, k: int) -> Tensor:
        points = [baseline + (i + 0.5) / steps * (x - baseline) for i in range(steps)]
        total = torch.autograd.grad(model(torch.cat(points))[:, k].sum(), points, create_graph=True)
        return (x - baseline) * torch.stack(total).mean(0)

    return explain


def pixels(h: Tensor) -> Tensor:
    """Channels summed as |.|, scaled to sum 1."""
    h = h.abs().sum(1)
    return h / h.sum()


def pcl(a: Tensor, b: Tensor) -> Tensor:
    """1 - (PCC + 1) / 2."""
    return 1 - (torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] + 1) / 2


def l1(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|_1."""
    return (a - b).abs().sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos."""
    return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)


def top_k(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Minus the sum of the map over the k largest pixels of the original map, which is added for a zero."""

    def d(a: Tensor, b: Tensor) -> Tensor:
        a, b = pixels(a).flatten(), pixels(b).flatten()
        places = b.topk(k).indices
        return b[places].sum() - a[places].sum()

    return d


def mass_centre(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the centres of mass."""

    def centre(h: Tensor) -> Tensor:
        h = pixels(h)[0]
        down, across = (torch.arange(n, dtype=h.dtype) for n in h.shape)
        return torch.stack([(h * down[:, None]).sum(), (h * across).sum()])

    return (centre(a) - centre(b)).norm()


@dataclass
class Settings:
    eps: float
    eta: float
    steps: int
    norm: str
    explain: Map
    d: Callable[[Tensor, Tensor], Tensor]
    low: Tensor
    high: Tensor


def moved(x_adv: Tensor, g: Tensor, x: Tensor, settings: Settings) -> Tensor:
    """Normalize, step, project onto the ball, clip to the bounds."""
    if settings.norm == "linf":
        offset = (x_adv + settings.eta * g.sign() - x).clamp(-settings.eps, settings.eps)
    else:
        offset = x_adv + settings.eta * g / g.norm() - x
        offset = offset * min(1.0, settings.eps / offset.norm().item())
    return torch.minimum(torch.maximum(x + offset, settings.low), settings.high)


def target(model: nn.Module, x: Tensor, k: int, settings: Settings) -> Tensor:
    """S(x)."""
    return settings.explain(model, x.clone().requires_grad_(), k).detach()


def ifia(
    model: nn.Module, x: Tensor, start: Tensor, k: int, settings: Settings, goal: Tensor | None = None
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 1 from ``start``: the iterates [1, ...] that the class holds at, the one that changed it, their d_s."""
    goal = target(model, x, k, settings) if goal is None else goal
    x_adv, iterates, values = start, [], []
    for i in range(settings.steps + 1):
        leaf = x_adv.clone().requires_grad_()
        d = settings.d(settings.explain(model, leaf, k), goal)
        iterates.append(x_adv)
        values.append(d.item())
        if i == settings.steps or model(x_adv).argmax() != model(x).argmax():
            break
        x_adv = moved(x_adv, torch.autograd.grad(d, leaf)[0], x, settings)
    return iterates, values


def adversarial_ifia(
    model: nn.Module, x: Tensor, start: Tensor, k: int, settings: Settings, weight: float
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 2 from ``start``: the iterates [1, ...] and l + lambda d_s at each; PGD where lambda is 0."""
    goal = target(model, x, k, settings)
    x_adv, iterates, values = start, [], []
    for _ in range(settings.steps + 1):
        leaf = x_adv.clone().requires_grad_()
        value = F.cross_entropy(model(leaf), torch.tensor([k]))
        if weight:
            value = value + weight * settings.d(settings.explain(model, leaf, k), goal)
        iterates.append(x_adv)
        values.append(value.item())
        x_adv = moved(x_adv, torch.autograd.grad(value, leaf)[0], x, settings)
    return iterates, values
