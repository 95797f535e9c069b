"""[M] eq. 4 in plain autograd, from the paper: double backward through the softplus network.

loss = c P^2 mean_p (h(x_adv)_p - h_t,p)^2 + gamma mean_k (softmax g(x_adv)_k - softmax g(x)_k)^2        per sample
h = sum over channels of |nabla g_k|, divided by its sum; beta(t) = beta_0 (beta_e / beta_0)^(t/T); Adam; clamp
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Smooth(nn.Module):
    """ReLU while beta is None, else softplus_beta."""

    def __init__(self) -> None:
        super().__init__()
        self.beta: float | None = None

    def forward(self, a: Tensor) -> Tensor:
        # PyTorch's default threshold, 20, would set the second derivative to 0 beyond beta a = 20.
        return F.relu(a) if self.beta is None else F.softplus(a, self.beta, threshold=80)


def smoothed(model: nn.Module) -> nn.Module:
    """A copy of the model, in eval mode and with frozen weights, whose nn.ReLU modules are ``Smooth``."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        # named_children would name a module that is used twice only once.
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU):
                setattr(module, name, Smooth())
    return model


def set_beta(model: nn.Module, beta: float | None) -> None:
    for module in model.modules():
        if isinstance(module, Smooth):
            module.beta = beta


def heatmap(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """The map [N, H, W] and the scores [N, K]; x requires a gradient."""
    scores = model(x)
    (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), x, create_graph=create_graph)
    h = gradient.abs().sum(1)
    return h / h.sum((1, 2), keepdim=True), scores


@dataclass
class Settings:
    steps: int
    lr: float
    beta: tuple[float, float] | None
    c: float
    gamma: float
    low: Tensor
    high: Tensor
    judge_every: int = 10


@dataclass
class Plain:
    """The loop's result: the best judged iterate [N, C, H, W], its map, and whether its class is the original's."""

    images: Tensor
    maps: Tensor
    kept: Tensor


def manipulate(
    model: nn.Module,
    x: Tensor,
    target_map: Tensor,
    settings: Settings,
    after_step: Callable[[int, Tensor], None] = lambda step, images: None,
) -> Plain:
    """Run the attack on a model made by ``smoothed``; ``after_step`` sees every iterate."""
    pixels = x.shape[2] * x.shape[3]

    def map_term(h: Tensor) -> Tensor:
        return settings.c * pixels**2 * (h - target_map).square().mean((1, 2))

    def judge(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        set_beta(model, None)
        h, scores = heatmap(model, images.detach().requires_grad_(), classes, create_graph=False)
        return h.detach(), map_term(h).detach(), scores.detach().argmax(1) == classes

    set_beta(model, None)
    scores = model(x).detach()
    classes, output = scores.argmax(1), scores.softmax(1)
    best, best_term = x.clone(), judge(x)[1]
    x_adv = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x_adv], lr=settings.lr)
    for step in range(settings.steps):
        if settings.beta is not None:
            start, end = settings.beta
            set_beta(model, start * (end / start) ** (step / settings.steps))
        h, scores = heatmap(model, x_adv, classes, create_graph=True)
        loss = map_term(h) + settings.gamma * (scores.softmax(1) - output).square().mean(1)
        (x_adv.grad,) = torch.autograd.grad(loss.sum(), x_adv)
        optimizer.step()
        x_adv.data.clamp_(settings.low, settings.high)
        after_step(step, x_adv.detach())
        if (settings.steps - step - 1) % settings.judge_every == 0:
            _, term, held = judge(x_adv)
            better = held & (term < best_term)
            best = torch.where(better[:, None, None, None], x_adv.detach(), best)
            best_term = torch.where(better, term, best_term)
    h, _, kept = judge(best)
    return Plain(best, h, kept)
