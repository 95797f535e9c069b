"""Small float64 networks for paths: every way in which an affine prefix can meet the rest of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from engine.nets import randomise
from torch import Tensor, nn


class Smooth(nn.Module):
    """softplus_2, its second derivative not cut off."""

    def forward(self, a: Tensor) -> Tensor:
        return F.softplus(a, 2.0, 200)


class Pools(nn.Module):
    """Convolutions and max-pools, one of them overlapping and with a border."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.act = nn.Conv2d(3, 3, 2), act
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.act(self.norm(self.first(x))), 3, 2, 1, ceil_mode=True)
        return self.head(F.max_pool2d(self.act(self.second(y)), 2, 1).flatten(1))


class Residual(nn.Module):
    """Addition, concatenation, reflected border, depthwise and strided convolutions, average pool, a product."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
        self.deep = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.strided, self.norm = nn.Conv2d(6, 2, 2, stride=2), nn.BatchNorm2d(6)
        self.act, self.head = act, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = y + self.deep(self.act(y))
        both = self.act(self.norm(torch.cat([self.act(z), y], 1)))
        pooled = F.avg_pool2d(self.strided(both), 2, 2, 1, ceil_mode=True, count_include_pad=False)
        return self.head((pooled * torch.sigmoid(pooled)).flatten(1))


class Branches(nn.Module):
    """Normalisation, a border of ones and two affine branches; a max-pool reads one of them, an activation both."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 1, bias=False)
        self.act, self.head, self.shift = act, nn.Linear(54, 3), nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.3) / 0.7 + self.shift
        wide, narrow = self.wide(F.pad(x, (1, 1, 1, 1), value=1.0)), self.narrow(x)
        pooled = F.max_pool2d(wide, 3, 2, 1)
        active = F.avg_pool2d(self.act(wide + narrow), 2) + F.avg_pool2d(self.act(narrow), 2)
        return self.head(self.act(torch.cat([pooled, active], 1).flatten(1)))


class Gated(nn.Module):
    """Nothing affine but the input, read by an activation and by a product; softmax inside."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.head = act, nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x * self.act(x).flatten(1).softmax(1).view(x.shape)).flatten(1))


class Affine(nn.Module):
    """No activation at all."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def mlp(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 3))


NETS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pools": Pools,
    "residual": Residual,
    "branches": Branches,
    "gated": Gated,
    "affine": Affine,
    "mlp": mlp,
}


def make(name: str, act: nn.Module | None = None) -> nn.Module:
    """Return the seeded net in eval mode; [N, 2, 6, 6] to 3 classes."""
    return randomise(NETS[name](Smooth() if act is None else act), 3).double()


def images(n: int = 3, seed: int = 5) -> Tensor:
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
