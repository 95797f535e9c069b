"""Attacks on networks with kinks that softplus takes the place of nowhere, and on networks without kinks."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from attacks.nets import CHANNELS, pairs
from torch import Tensor, nn

import fastxai
from fastxai.attacks import Manipulation, Restarts
from fastxai.explainers import Gradient, InputXGradient


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


class Where(nn.Module):
    """A ReLU that nothing takes for one."""

    def forward(self, a: Tensor) -> Tensor:
        return torch.where(a > 0, a, 0 * a)


@pytest.mark.parametrize("restarts", [None, Restarts(2, sigma=0.1)])
def test_kinks_that_softplus_does_not_replace_warn_whatever_beta(restarts):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Where(), nn.Flatten(), nn.Linear(72, 4)).double()
    x, target_map = pairs()
    explainer = Gradient(fastxai.compile(model, fallback=True))
    with pytest.warns(UserWarning, match="takes the place of nothing in Sequential .* beta changes nothing"):
        result = Manipulation(explainer, steps=3, bounds=CHANNELS, restarts=restarts).perturb(x, target_map)
    assert restarts or torch.equal(result.images, x)


def test_maps_that_move_without_curvature_warn_of_kinks_too():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Where(), nn.Flatten(), nn.Linear(72, 4)).double()
    attack = Manipulation(InputXGradient(fastxai.compile(model, fallback=True)), steps=3, bounds=CHANNELS)
    with pytest.warns(UserWarning, match="beta changes nothing"):
        assert not torch.equal(attack.perturb(*pairs()).images, pairs()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(attack, beta=None).perturb(*pairs())


def test_a_smooth_network_needs_no_beta():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 4)).double()
    attack = Manipulation(Gradient(model), steps=3, lr=0.01, bounds=CHANNELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [replace(attack, beta=beta).perturb(*pairs()) for beta in (None, (10.0, 100.0))]
    assert torch.equal(results[0].images, results[1].images) and not torch.equal(results[0].images, pairs()[0])
