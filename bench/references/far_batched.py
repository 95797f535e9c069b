"""IFIA and a step of AAT in plain autograd as one writes them for speed: all points of all samples in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from references import plain
from torch import Tensor, nn

__all__ = ["Attack", "aat_gradients", "ascent", "attacked", "moved", "pcl", "top_k"]


@dataclass(frozen=True)
class Attack:
    """IFIA on integrated gradients from zero, in the ball |x_adv - x|_inf <= eps, within [0, 1].

    Attributes:
        points: places t_k and weights w_k of the integral.
        distance: (map, map of the originals) -> [N].
        eps, size, steps: radius, step size, how many steps.
    """

    points: tuple[Tensor, Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    eps: float
    size: float
    steps: int


def pcl(a: Tensor, b: Tensor) -> Tensor:
    """1 - (PCC + 1) / 2."""
    a, b = (F.normalize(h - h.mean(1, keepdim=True)) for h in (a.flatten(1), b.flatten(1)))
    return (1 - (a * b).sum(1)) / 2


def top_k(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """What the k largest pixels of the second map lose; maps are summed over the channels as |.|, and sum to 1."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = (h.abs().sum(1).flatten(1) for h in (a, b))
        a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
        # Digits have fewer than k pixels that are not black: of equal values the first count, which topk does not say.
        return (b - a).gather(1, b.argsort(dim=1, descending=True, stable=True)[:, :k]).sum(1)

    return distance


def ascent(attack: Attack, bent: nn.Module, images: Tensor, y: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (d_s [N], its gradient, scores [N, K]) at images; the model's ReLUs are bent."""
    leaf = images.detach().requires_grad_()
    d = attack.distance(plain.integrated_gradient(bent, leaf, y, attack.points, create_graph=True), goal)
    (gradient,) = torch.autograd.grad(d.sum(), leaf)
    with torch.no_grad():
        scores = bent(images)
    return d.detach(), gradient, scores


def moved(attack: Attack, images: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
    """Step, project, clip."""
    return (images + attack.size * gradient.sign()).clamp(x - attack.eps, x + attack.eps).clamp(0, 1)


def attacked(attack: Attack, bent: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Return every sample's iterate of its own class with the highest d_s, or x; who changes the class is dropped."""
    with torch.no_grad():
        classes = bent(x).argmax(1)
    goal = plain.integrated_gradient(bent, x, y, attack.points).detach()
    best, highest = x.clone(), attack.distance(goal, goal)
    rows, images = torch.arange(len(x)), start
    for t in range(attack.steps + 1):
        if t < attack.steps:
            d, gradient, scores = ascent(attack, bent, images, y[rows], goal[rows])
        else:
            gradient = None
            d = attack.distance(plain.integrated_gradient(bent, images, y[rows], attack.points), goal[rows])
            with torch.no_grad():
                scores = bent(images)
        held = scores.argmax(1) == classes[rows]
        better = held & (d > highest[rows])
        best[rows[better]], highest[rows[better]] = images[better].detach(), d[better].detach()
        if gradient is None or not held.any():
            break
        rows, images, gradient = rows[held], images[held], gradient[held]
        images = moved(attack, images, gradient, x[rows])
    return best


def aat_gradients(
    attack: Attack, models: tuple[nn.Module, nn.Module, nn.Module], x: Tensor, y: Tensor, start: Tensor, weight: float
) -> list[Tensor]:
    """Return the gradient of l(x) + lambda PCL[IG(x~), IG(x)] in the weights ([F] eq. 10).

    ``models`` are the model, the same with bent ReLUs and frozen weights, and with bent ReLUs and the model's weights.
    """
    model, bent, outer = models
    images = attacked(attack, bent, x, y, start)
    maps = [plain.integrated_gradient(outer, at, y, attack.points, create_graph=True) for at in (images, x)]
    loss = F.cross_entropy(model(x), y) + weight * attack.distance(*maps).mean()
    return list(torch.autograd.grad(loss, list(model.parameters())))
