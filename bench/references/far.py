"""[F] eq. 5 to 11 in plain autograd, from the paper, one sample at a time: attack, then a loss with the weights' graph.

    5   l(x) + lambda max_{x~} d_s[S(x~), S_T]                 6   max_{x~} l(x~) + lambda d_s[S(x~), S_T]

The maximum is the best of x and of all iterates of all starts; in eq. 5, of those of x's class, up to where it changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# S of one image [1, ...] that requires a gradient, for a label; the third argument is the unperturbed image.
Map = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


@dataclass
class Plain:
    """What an objective is made of.

    Attributes:
        ifia: bench/references/ifia.py.
        settings: its Settings, but for ``explain``.
        explain: S.
        weight: lambda.
        adversarial: eq. 6 instead of 5.
        beta: of the attack's bent ReLU.
        outer: of the outer step's; None leaves ReLU as it is.
        zero: S_T is 0 instead of S(x).
    """

    ifia: ModuleType
    settings: Any
    explain: Map
    weight: float
    adversarial: bool
    beta: float
    outer: float | None
    zero: bool = False


def sharing(model: nn.Module, beta: float | None, ifia: ModuleType) -> nn.Module:
    """Return a copy of the model that bends but has the same weights."""
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU) and beta is not None:
                setattr(module, name, ifia.Bent(beta))
    return model


def loss(plain: Plain, model: nn.Module, x: Tensor, y: Tensor, starts: Tensor) -> Tensor:
    """Return eq. 5 or 6 as a mean over the batch; starts [R, N, ...]."""
    outer = sharing(model, plain.outer, plain.ifia)
    total = torch.zeros((), dtype=x.dtype)
    for one, k, origins in zip(x.split(1), y.tolist(), starts.unbind(1), strict=True):
        worst = attacked(plain, model, one, k, origins)
        label = torch.tensor([k])
        total = total + F.cross_entropy(model(worst if plain.adversarial else one), label)
        h, goal = (plain.explain(outer, at.clone().requires_grad_(), one, k) for at in (worst, one))
        total = total + plain.weight * plain.settings.d(h, torch.zeros_like(h) if plain.zero else goal)
    return total / len(x)


def attacked(plain: Plain, model: nn.Module, x: Tensor, k: int, starts: Tensor) -> Tensor:
    """Return x~ [1, ...] of one image [1, ...]; starts [R, ...]."""
    bent = plain.ifia.bent(model, plain.beta)
    settings = replace(plain.settings, explain=lambda model, at, k: plain.explain(model, at, x, k))
    zero = torch.zeros_like(x) if plain.zero else None
    best, highest = x, -float("inf")
    for start in [x, *starts.split(1)]:
        # At x itself only the value counts, where no start is x.
        steps = replace(settings, steps=0) if start is x else settings
        if plain.adversarial:
            iterates, values = ascend(plain, bent, x, start, k, steps)
        else:
            iterates, values = plain.ifia.ifia(bent, x, start, k, steps, zero)
        for image, value in zip(iterates, values, strict=True):
            same = plain.adversarial or bent(image).argmax() == bent(x).argmax()
            if same and value > highest:
                best, highest = image, value
    return best


def ascend(
    plain: Plain, model: nn.Module, x: Tensor, start: Tensor, k: int, settings: Any
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 2 with S_T of the caller's choice."""
    goal = plain.ifia.target(model, x, k, settings)
    goal = torch.zeros_like(goal) if plain.zero else goal
    x_adv, iterates, values = start, [], []
    for _ in range(settings.steps + 1):
        leaf = x_adv.clone().requires_grad_()
        value = F.cross_entropy(model(leaf), torch.tensor([k]))
        value = value + plain.weight * settings.d(settings.explain(model, leaf, k), goal)
        iterates.append(x_adv)
        values.append(value.item())
        x_adv = plain.ifia.moved(x_adv, torch.autograd.grad(value, leaf)[0], x, settings)
    return iterates, values


def integrated_gradients(steps: int, *, from_x: bool = False, of_loss: bool = False) -> Map:
    """(x~ - b) * mean of the gradients at the midpoints from b, b = 0 or the unperturbed image, of score or loss."""

    def explain(model: nn.Module, at: Tensor, x: Tensor, k: int) -> Tensor:
        b = x if from_x else torch.zeros_like(x)
        total = torch.zeros_like(x)
        for i in range(steps):
            point = b + (i + 0.5) / steps * (at - b)
            point = point if point.requires_grad else point.requires_grad_()
            value = F.cross_entropy(model(point), torch.tensor([k])) if of_loss else model(point)[0, k]
            total = total + torch.autograd.grad(value, point, create_graph=True)[0]
        return (at - b) * total / steps

    return explain


def alignment(model: nn.Module, at: Tensor, x: Tensor, k: int) -> Tensor:
    """Eq. 9: the pointwise cosines of the image with the gradients of the label and of the best other class."""
    scores = model(at)[0]
    other = max((j for j in range(len(scores)) if j != k), key=lambda j: scores[j].item())
    up, down = (torch.autograd.grad(scores[j], at, create_graph=True)[0] for j in (k, other))
    return (up / up.norm() - down / down.norm()) * at / at.norm()


def soft(a: Tensor, b: Tensor) -> Tensor:
    """log(1 + exp(-sum(a - b)))."""
    return torch.log1p(torch.exp(-(a - b).sum()))


def pgd(model: nn.Module, x: Tensor, y: Tensor, starts: Tensor, size: float, eps: float, steps: int) -> Tensor:
    """Return every image's iterate with the highest loss, in [0, 1], by signed steps from ``starts``; or x itself."""
    criterion = nn.CrossEntropyLoss(reduction="none")
    images, best = starts, x
    for _ in range(steps + 1):
        leaf = images.clone().requires_grad_()
        with torch.no_grad():
            better = criterion(model(images), y) > criterion(model(best), y)
            best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), images, best)
        (g,) = torch.autograd.grad(criterion(model(leaf), y).sum(), leaf)
        images = (images + size * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return best
