"""A small net whose class is the image's strongest channel, and pairs of images of different classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastxai
from fastxai.evaluation import Space, Task
from fastxai.explainers import Explainer

SPACE = Space((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def small_net() -> nn.Module:
    torch.manual_seed(1)
    first, second, last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(24, 3)
    with torch.no_grad():
        for k in range(3):
            first.weight[k, k, 1, 1] += 1
            second.weight[k, k, 1, 1] += 1
            last.weight[k, 4 * k : 4 * k + 4] += 0.5
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), last).eval()


def coloured(count: int) -> Tensor:
    """Noise [N, 3, 8, 8] in [0, 1], stronger in channel i % 3."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    for i in range(count):
        images[i, i % 3] += 0.5
    return images


def task(explainer: Explainer | None = None, count: int = 2, **changes: object) -> Task:
    images = SPACE.enter(coloured(count + 1))
    net = fastxai.compile(small_net())
    return Task(
        explainer=fastxai.Gradient(net) if explainer is None else explainer,
        space=SPACE,
        x=images[:-1],
        target_x=images[1:],
        pairs=list(range(count)),
        **{"settings": {}, **changes},  # type: ignore[arg-type]
    )
