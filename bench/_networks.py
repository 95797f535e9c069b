"""The networks that the benches time: the ones of the papers, smoothed so that their Hessian is not zero."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastxai.models import CNN, MNISTCNN

SHARED = Path(__file__).resolve().parents[2] / "shared"
BETA = 10.0


class Softplus(nn.Module):
    """softplus_beta as PyTorch users write it: the plain side of every comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x, BETA)


def smoothed(model: nn.Module) -> nn.Module:
    """Replace every nn.ReLU of a model by softplus_beta, in place."""
    for module in list(model.modules()):
        for name, child in module._modules.items():  # named_children() would skip the second use of a shared ReLU
            if isinstance(child, nn.ReLU):
                module._modules[name] = Softplus()
    return model.eval().requires_grad_(False)


def _cnn() -> nn.Module:
    return CNN()


def _mnist_cnn() -> nn.Module:
    return MNISTCNN()


def _resnet20() -> nn.Module:
    sys.path.insert(0, str(SHARED / "data" / "models"))
    try:
        import nets
    finally:
        sys.path.pop(0)
    return nets.load("cifar10_resnet20")


def _vgg16() -> nn.Module:
    import torchvision

    return torchvision.models.vgg16()


# name: (makes the model, per-sample input shape)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "cnn": (_cnn, (3, 32, 32)),
    "mnist_cnn": (_mnist_cnn, (1, 28, 28)),
    "resnet20": (_resnet20, (3, 32, 32)),
    "vgg16": (_vgg16, (3, 224, 224)),
}


def network(name: str, batch: int, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """Return (smoothed model, inputs [N, ...], targets [N]), seeded."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = smoothed(make()).to(device)
    x = torch.randn(batch, *shape, device=device)
    return model, x, model(x).argmax(1)
