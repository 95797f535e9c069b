"""A dense layer that reads a flattened image as it lies, against the same network flattened in two steps."""

from __future__ import annotations

import copy

import pytest
import torch
from engine.nets import randomise
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import softplus

import fastxai
from fastxai.engine import rules
from fastxai.engine.nodes.linear import Dense
from fastxai.engine.rules.composite import COMPOSITES

LOW, HIGH = torch.tensor([0.0, -1, -2]), torch.tensor([1.0, 2, 3])
RULES = {name: make(LOW, HIGH) for name, make in COMPOSITES.items()} | {
    "gamma": rules.lrp(rules.Gamma(), rules.Gamma()),
    "alpha_beta": rules.lrp(rules.AlphaBeta(), rules.AlphaBeta()),
}


class InTwoSteps(nn.Module):
    """Flatten, in a way that leaves a dense layer its features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).flatten(1)


def pair(*, first: bool) -> list[nn.Module]:
    """Return a network whose dense layer reads an image, the ``first`` layer or behind a convolution, and its twin."""
    front = [] if first else [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()]
    rear = [nn.Linear(20 * (3 if first else 5), 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)]
    model = randomise(nn.Sequential(*front, nn.Flatten(), *rear)).double().eval()
    twin = copy.deepcopy(nn.Sequential(*front, InTwoSteps(), *rear)).double().eval()
    for net, image in ((model, True), (twin, False)):
        run, _ = fastxai.compile(net)._backend(inputs())
        assert [node.image is not None for node in run.graph.nodes if isinstance(node, Dense)] == [image, False]  # type: ignore[union-attr]
    return [model, twin]


def inputs() -> Tensor:
    return torch.rand(3, 3, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_rules(name: str, first: bool) -> None:
    results = []
    for model in pair(first=first):
        x = inputs().requires_grad_()
        r, scores = fastxai.compile(model).relevance(x, RULES[name], 1)
        results.append([r, scores, *grad(r.square().sum() + scores.sum(), [x, *model.parameters()])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("first", [True, False])
def test_integrals_patterns_and_norms(first: bool) -> None:
    results = []
    for model in pair(first=first):
        net, x, xbar = fastxai.compile(model), inputs().requires_grad_(), torch.zeros_like(inputs()).requires_grad_()
        points = torch.linspace(0.1, 1, 5, dtype=torch.double), torch.full((5,), 0.2, dtype=torch.double)
        h, _ = net.with_activation("softplus", 3.0).differentiable_integral(x, xbar, points, 1)
        derivatives = grad(h.square().sum(), [x, xbar, *model.parameters()], allow_unused=True)
        data = torch.rand(27, 3, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2))
        patterns = fastxai.PatternTrainer(net).fit([data])
        explained = fastxai.PatternAttribution(net, patterns).attribute(x.detach(), 1)
        norms = [fastxai.theory.layer_norms(net, x.detach(), norm=norm) for norm in ("frobenius", "spectral", "kernel")]
        results.append([h, *derivatives, explained, *norms, *[patterns.tensors[n] for n in sorted(patterns.tensors)]])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_several_readers_and_a_replaced_weight() -> None:
    class Readers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(60, 4), nn.Linear(60, 4), nn.Linear(60, 4)

        def forward(self, x: Tensor) -> Tensor:
            flat = softplus(x).flatten(1)
            return self.a(flat) * self.b(flat) + self.c(x.view(x.shape[0], -1)) + flat[:, 5:9]

    model = Readers().double()
    net = fastxai.compile(model)
    for _ in range(2):
        x, v = inputs().requires_grad_(), inputs().flip(0)
        (want,) = grad(model(x)[:, 1].sum(), x, create_graph=True)
        torch.testing.assert_close(net.gradient(x.detach(), 1), want.detach())
        (hv,) = grad((want * v).sum(), x)
        torch.testing.assert_close(net.hvp(x.detach(), v, 1), hv)
        model.a.weight = nn.Parameter(torch.randn(60, 4, dtype=torch.double).T)
