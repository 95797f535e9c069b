"""The seven initialisations of [F]: their statistics, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastxai.models import INITIALISATIONS, MNISTCNN, initialise

# [F] appendix A.3, in words of its own: spread of weights (bound or standard deviation) by fan in and fan out, biases.
UNIFORM = {
    "pytorch": lambda i, o: 1 / math.sqrt(i),
    "uniform": lambda i, o: 0.1,
    "he_uniform": lambda i, o: math.sqrt(6 / i),
    "glorot_uniform": lambda i, o: math.sqrt(6 / (i + o)),
}
NORMAL = {
    "normal": lambda i, o: 0.1,
    "he_normal": lambda i, o: math.sqrt(2 / i),
    "glorot_normal": lambda i, o: math.sqrt(2 / (i + o)),
}
FANS = {
    "conv1": (25, 800),
    "conv2": (32 * 25, 64 * 25),
    "linear1": (64 * 49, 1024),
    "linear2": (1024, 10),
}


def made(name: str, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: value.detach().double() for key, value in initialise(MNISTCNN(), name).named_parameters()}


def is_uniform(values: Tensor, bound: float) -> None:
    """Within the bound; mean and variance within five standard errors, those of n independent draws."""
    n = values.numel()
    assert values.abs().max() <= bound * (1 + 1e-6)
    assert abs(values.mean()) < 5 * bound / math.sqrt(3 * n)
    # Var(u^2) = b^4 (1/5 - 1/9).
    assert abs(values.square().mean() - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / n)
    # A normal distribution of this variance would leave the bound.
    assert n < 100 or values.abs().max() > 0.9 * bound


def is_normal(values: Tensor, std: float) -> None:
    """Mean, variance and share beyond one standard deviation within five standard errors."""
    n = values.numel()
    assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert abs(values.square().mean() - std**2) < 5 * std**2 * math.sqrt(2 / n)
    beyond = math.erfc(1 / math.sqrt(2))
    assert abs((values.abs() > std).double().mean() - beyond) < 5 * math.sqrt(beyond * (1 - beyond) / n)


@pytest.mark.parametrize("name", INITIALISATIONS)
def test_statistics_of_every_layer(name: str) -> None:
    found = made(name)
    for layer, (fan_in, fan_out) in FANS.items():
        weights, biases = found[f"{layer}.weight"].flatten(), found[f"{layer}.bias"]
        if name in UNIFORM:
            is_uniform(weights, UNIFORM[name](fan_in, fan_out))
        else:
            is_normal(weights, NORMAL[name](fan_in, fan_out))
        if name in ("pytorch", "uniform"):
            is_uniform(biases, UNIFORM[name](fan_in, fan_out))
            assert biases.unique().numel() > 1
        else:
            assert (biases == (torch.tensor(0.1) if name == "normal" else 0)).all()


def test_there_are_seven_and_each_is_another() -> None:
    assert len(INITIALISATIONS) == 7 and set(INITIALISATIONS) == UNIFORM.keys() | NORMAL.keys()
    assert len({float(made(name)["conv1.weight"].sum()) for name in INITIALISATIONS}) == 7


@pytest.mark.parametrize("name", INITIALISATIONS)
def test_a_seed_gives_the_same_weights(name: str) -> None:
    one, same, other = made(name), made(name), made(name, 1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_other_layers_and_missing_biases_stay() -> None:
    norm = nn.BatchNorm2d(4)
    norm.weight.data.fill_(3.0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), norm, nn.Conv1d(4, 4, 1), nn.ConvTranspose2d(4, 2, 3))
    assert initialise(model, "normal") is model
    assert (norm.weight == 3).all() and (norm.bias == 0).all()
    for layer, count in ((2, 4), (3, 2)):
        torch.testing.assert_close(model[layer].bias, torch.full((count,), 0.1))


def test_pytorch_is_what_a_fresh_layer_has() -> None:
    torch.manual_seed(3)
    fresh = nn.Linear(7, 5)
    used = initialise(nn.Linear(7, 5), "he_normal")
    torch.manual_seed(3)
    assert all(map(torch.equal, initialise(used, "pytorch").parameters(), fresh.parameters()))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name must be one of 'pytorch', 'normal', .*, got 'xavier'"):
        initialise(nn.Linear(2, 2), "xavier")
