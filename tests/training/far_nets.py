"""The small network and the batch that FAR is tested on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPS, STEPS, POINTS, LAMBDA, BETA = 0.1, 3, 3, 0.7, 4.0
SETTINGS: dict[str, Any] = {"steps": STEPS, "beta": BETA, "seed": 5}


def cnn(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    layers = [nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            # Enough units are on for every gradient to have a direction.
            nn.init.kaiming_normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.2)  # type: ignore[arg-type]
    return model


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.rand(n, 1, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)
