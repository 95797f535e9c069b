"""Small networks that together hold every kind of node: smooth ones for gradcheck, ReLU ones for the peers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A convolution with a skip, one activation used twice."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.norm(self.first(x)))))


class Branches(nn.Module):
    """Two convolutions of one input, concatenated."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, 2, 1)
        self.wide = nn.Conv2d(channels, 3, 3, padding=1, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.act(self.narrow(x)), self.act(self.wide(x))], 1)


class Twice(nn.Module):
    """The same convolution and the same linear layer, used twice each."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(72, 72), act

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(self.act(self.conv(x)))).flatten(1)
        return self.linear(self.act(self.linear(y)))[:, :4]


def conv_net(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), act, nn.Flatten(), nn.Linear(108, 6), act, nn.Linear(6, 4))


def pool_net(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), act, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))


def residual_net(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), Residual(3, act), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))


def cat_net(act: nn.Module) -> nn.Module:
    return nn.Sequential(Branches(2, act), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(45, 4))


NETS = {"conv": conv_net, "pool": pool_net, "residual": residual_net, "cat": cat_net, "shared": Twice}


def make(name: str, act: nn.Module) -> nn.Module:
    """Return the float64 net in eval mode, its batch norms with statistics that matter; [N, 2, 6, 6] to 4 classes."""
    torch.manual_seed(3)
    net = NETS[name](act)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 2),
                (module.bias, -1, 1),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return net.double().eval()


def softplus(beta: float = 2.0) -> nn.Module:
    """Softplus whose second derivative PyTorch does not cut off."""
    return nn.Softplus(beta, threshold=200)


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
