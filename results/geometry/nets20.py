"""Pretrained networks for the study, from the models beside the project; inputs normalised as for ImageNet."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "shared" / "data" / "models"))
import nets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (123.0, 117.0, 104.0)
UNIT = 1 / 128


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10."""
    return nets.load("cifar10_resnet20")


class Caffe(nn.Module):
    """SqueezeNet, which wants BGR in 0 .. 255 less a mean, behind a change of normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.load("imagenet_squeezenet10")
        mean, std, shift = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD, CAFFE_MEAN))
        self.register_buffer("scale", 255 * std)
        self.register_buffer("shift", 255 * mean - shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * self.scale + self.shift).flip(1))


def squeezenet() -> nn.Module:
    """SqueezeNet 1.0 for ImageNet."""
    return Caffe().eval()


def squeezenet_unit() -> nn.Module:
    """The same function with activations 1/128 as large, until the last layer.

    SqueezeNet's input of 0 .. 255 makes pre-activations of some hundreds, where a softplus of beta 10 is a ReLU; [M]'s
    betas count in units of those that normalised inputs make.
    """
    model = squeezenet()
    first, *between, last = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for module in (first, *between):
            module.bias.mul_(UNIT)
        first.weight.mul_(UNIT)
        last.weight.div_(UNIT)
    return model
