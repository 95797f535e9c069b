"""What the tests of ascending attacks share: images near class borders, attacks that record what they ask for."""

from __future__ import annotations

from typing import Any

import torch
from attacks.nets import CHANNELS
from attacks.nets import cnn as other_cnn
from torch import Tensor, nn

import fastxai
from fastxai import IFIA, AdversarialIFIA
from fastxai.explainers import Gradient, IntegratedGradients

LOW, HIGH = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)


class Recorder(Gradient):
    """Keeps the inputs of every call; the first are the originals."""

    rows_alike = True

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.net)
        self.inner, self.images = inner, []

    def map_and_scores(self, x, target=None, *, net=None, parameters=True):
        self.images.append(x.detach().clone())
        return self.inner.map_and_scores(x, target, net=net, parameters=parameters)


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def cnn() -> nn.Module:
    """The network with scores whose mean over images is 0, so that classes are close to each other."""
    model = other_cnn()
    with torch.no_grad():
        model[-1].bias -= model(images(64)).mean(0)  # type: ignore[index]
    return model


def explainer(kind: str = "gradient", model: nn.Module | None = None) -> Recorder:
    net = fastxai.compile(model or cnn())
    return Recorder(Gradient(net) if kind == "gradient" else IntegratedGradients(net, n_steps=4, method="midpoint"))


def attack(kind: str = "gradient", **changes: Any) -> IFIA:
    # At this radius some samples change their class on the way and others do not.
    changes = {"eps": 0.3, "steps": 6, "beta": 2.0, "k": 20, "bounds": CHANNELS} | changes
    return IFIA(explainer(kind), **changes)


def adversarial(**changes: Any) -> AdversarialIFIA:
    changes = {"eps": 0.3, "steps": 6, "beta": 2.0, "k": 20, "bounds": CHANNELS, "lambda_": 0.5} | changes
    return AdversarialIFIA(explainer(), **changes)


def length(x: Tensor, norm: str) -> Tensor:
    return x.flatten(1).norm(dim=1) if norm == "l2" else x.flatten(1).abs().amax(1)
