"""Appendix C of [R]: another beta, the same function."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastxai
from fastxai import theory
from fastxai.models import CNN

BETAS = st.floats(0.1, 50)


def mlp(beta: float, depth: int = 4) -> nn.Sequential:
    torch.manual_seed(depth)
    widths = [*[5, 7, 4, 6, 3][:depth], 2]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Softplus(beta)]
    return nn.Sequential(*layers[:-1]).double()


@given(BETAS, BETAS, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_scores_of_dense_networks_stay(first: float, second: float, depth: int) -> None:
    model = mlp(first, depth)
    other = theory.interchange_beta(model, first, second)
    x = torch.randn(20, 5, dtype=torch.float64)
    assert (other(x) - model(x)).abs().max() < 1e-12
    assert [m.beta for m in other.modules() if isinstance(m, nn.Softplus)] == [second] * (depth - 1)
    back = theory.interchange_beta(other, second, first)
    for a, b in zip(back.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("first", "second"), [(10.0, 1.0), (1.0, 10.0), (0.5, 100.0)])
def test_scores_of_the_cnn_stay(first: float, second: float) -> None:
    torch.manual_seed(0)
    model = CNN(lambda: nn.Softplus(first)).double()
    before = [p.clone() for p in model.parameters()]
    other = theory.interchange_beta(model, first, second)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (other(x) - model(x)).abs().max() < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    ratio = first / second
    expected = {"conv1.weight": ratio, "linear2.weight": 1 / ratio, "linear2.bias": 1.0}
    for name, p in model.named_parameters():
        factor = expected.get(name, ratio if name.endswith("bias") else 1.0)
        torch.testing.assert_close(other.get_parameter(name), factor * p, rtol=1e-14, atol=0)


def test_the_map_the_hessian_and_its_bound_stay_too() -> None:
    model = CNN().double()
    net = fastxai.compile(model, activation="softplus", beta=10.0)
    other = fastxai.compile(theory.interchange_beta(model, 10.0, 1.0), activation="softplus", beta=1.0)
    x, v = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    assert (net(x) - other(x)).abs().max() < 1e-12
    assert (net.base(x) - other.base(x)).abs().max() < 1e-12
    for a, b in ((net.gradient(x, 0), other.gradient(x, 0)), (net.hvp(x, v, 0), other.hvp(x, v, 0))):
        assert (a - b).abs().max() < 1e-10 * a.abs().max()
    bounds = [
        theory.softplus_bound(theory.layer_norms(n, x, 0), beta, linear_head=True)
        for n, beta in ((net, 10.0), (other, 1.0))
    ]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-12)


class Branches(nn.Module):
    """Two layers read the input and two give the scores; functions stand for modules."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.a, self.b, self.c = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(6, 3, 3)
        self.d, self.e = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x) + self.b(x))
        y = self.act(self.c(F.max_pool2d(torch.cat([y, -y], dim=1), 2)) + 2 * 0)
        y = F.dropout(y, 0.5, self.training).mean((2, 3)).view(x.size(0), -1)
        return self.d(y) + self.e(y)


class Plain(Branches):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x) + self.b(x))
        y = self.act(self.c(F.max_pool2d(torch.cat([y, -y], dim=1), 2)))
        y = F.dropout(y, 0.5, self.training).mean((2, 3)).view(x.size(0), -1)
        return self.d(y) + self.e(y)


def test_branches() -> None:
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    model = Plain(nn.Softplus(4.0)).double().eval()
    assert (theory.interchange_beta(model, 4, 1)(x) - model(x)).abs().max() < 1e-12
    relu = Plain(F.relu).double().eval()
    assert (theory.interchange_beta(relu, 4, 1)(x) - relu(x)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="model must commute with a positive factor between its layers, got add"):
        theory.interchange_beta(Branches(nn.Softplus(4.0)), 4, 1)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(2, 3), nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x) + self.shift))


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 3), nn.Softplus(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)) + x)


class Switch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def tied() -> nn.Sequential:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.Softplus(), layer)


def ends(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Softplus(), nn.Linear(2, 2), act)


BAD: dict[str, tuple[nn.Module, str]] = {
    "batch norm": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)),
        "commute with a positive factor between its layers, got BatchNorm2d at '1'",
    ),
    "tanh": (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), "commute .* got Tanh at '1'"),
    "another beta": (nn.Sequential(nn.Linear(2, 3), nn.Softplus(2), nn.Linear(3, 2)), "softplus of beta 1.* got 2"),
    "first": (nn.Sequential(nn.Softplus(), nn.Linear(3, 2)), "layers before and behind each activation, got Softplus"),
    "last": (ends(nn.Softplus()), "layers before and behind each activation, got Softplus at '3'"),
    "softmax": (ends(nn.Softmax(1)), "commute .* got Softmax at '3'"),
    "tied": (tied(), "use each layer once"),
    "weight norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "plain weights"),
    "a parameter added": (Shift(), "commute .* got shift"),
    "a skip from the input": (Skip(), "scale alike what it joins, got add"),
    "control flow": (Switch(), "traceable by torch.fx"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    model, message = BAD[name]
    with pytest.raises(ValueError, match=f"model must .*{message}"):
        theory.interchange_beta(model, 1.0, 2.0)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Net"):
        theory.interchange_beta(fastxai.compile(mlp(1.0)), 1.0, 2.0)  # type: ignore[arg-type]
    for first, second, name in ((0.0, 1.0, "beta_from"), (1.0, float("inf"), "beta_to")):
        with pytest.raises(ValueError, match=f"{name} must be finite and positive"):
            theory.interchange_beta(mlp(1.0), first, second)
    for first, second in ((1e300, 1e-300), (1e-300, 1e300)):
        with pytest.raises(ValueError, match="beta_from / beta_to must be finite and positive"):
            theory.interchange_beta(mlp(first), first, second)
    for first, second in ((1e50, 1.0), (1e-50, 1.0)):
        with pytest.raises(ValueError, match=r"beta_from / beta_to must keep the weights of Linear.* finite"):
            theory.interchange_beta(mlp(first).float(), first, second)
