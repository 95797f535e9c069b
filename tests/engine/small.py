"""One small network with every kind of derived weight, and what the tests of the interface ask of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from engine.nets import directions, error, hvp, oracle, randomise
from torch import Tensor, nn

import fastxai
from fastxai import Net

SHAPE = (2, 6, 5)


class Small(nn.Module):
    """Everything that keeps derived weights: folded batch norms, a scale of its own, a slice of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.heads = nn.Parameter(torch.randn(6, 4 * 3 * 2))
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.act(self.bn(self.conv(x)))) * self.gain
        return F.linear(h.flatten(1), self.heads[2:5])


def small(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(Small(), seed).to(dtype)


def batch(n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def smooth(model: nn.Module, beta: float = 3.0) -> Net:
    return fastxai.compile(model, activation="softplus", beta=beta)


def agrees(net: Net, model: nn.Module, x: Tensor, beta: float = 3.0) -> bool:
    """Does the smoothed net say what autograd says of the model as it is now?"""
    g, hv = hvp(oracle(model, beta), x, directions(x, 1), 1)
    with torch.no_grad():
        scores = oracle(model, beta)(x)
    return (
        error(net(x), scores) < 1e-12
        and error(net.gradient(x, 1), g) < 1e-11
        and error(net.hvp(x, directions(x, 1), 1), hv, 2) < 1e-11
    )
