"""Layers below a ReLU, where relevance counts for nothing: what the rules leave out there is zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastxai
from fastxai.engine.explain import RuleRuntime
from fastxai.engine.jets import Node
from fastxai.engine.rules import AlphaBeta, Composite, Epsilon, Gamma, GuidedBackprop, Rule, ZBox, ZPlus, lrp
from fastxai.engine.rules._rule import Site
from fastxai.engine.runtime import Activations


class Branches(nn.Module):
    """A skip, a concatenation, pools before and behind the activation, and a permutation."""

    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 3), nn.Conv2d(4, 2, 3)
        self.dense, self.head = nn.Linear(5 * 9, 6), nn.Linear(6, 3)
        self.act, self.pool = act(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = x + self.act(self.body(x))
        x = torch.cat([self.act(self.pool(self.left(x))), self.pool(self.act(self.right(x)))], 1)
        return self.head(self.act(self.dense(x.transpose(1, 3).flatten(1))))


COMPOSITES = {
    "gamma": lrp(Gamma(gamma=0.5), Gamma()),
    "gamma, zb": lrp(Gamma(), Epsilon(), ZBox(-1.0, 1.0)),
    "mixed": lrp(AlphaBeta(), Gamma(), ZPlus()),
}


def made(act: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """Return a float64 net and inputs with flat regions, where a first layer without bias gives exact zeros."""
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    x[:, :, 2:, :6] = 0
    return Branches(act).double(), x


def closed_nodes(monkeypatch: pytest.MonkeyPatch, explain: Callable[[], object]) -> set[str]:
    """Return the module paths of the layers that were taken as closed."""
    found: set[str] = set()
    sites = RuleRuntime._sites

    def watched(self: RuleRuntime, *args: object) -> list[Site]:
        made = sites(self, *args)  # type: ignore[arg-type]
        found.update(site.node.path for site in made if site.closed)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(RuleRuntime, "_sites", watched)
        explain()
    return found


@pytest.mark.parametrize("seed", ["one", "score"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6], ids=str)
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=list(COMPOSITES))
def test_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, composite: Composite, act: Callable[[], nn.Module], seed: str
) -> None:
    results = []
    for whole in (False, True):
        torch.manual_seed(1)
        model, x = made(act)
        x.requires_grad_()
        if whole:
            monkeypatch.setattr(RuleRuntime, "_closed", lambda self, node, acts: False)
        h, scores = fastxai.LRP(model, composite, seed=seed).map_and_scores(x, 1)
        wanted = [x, *model.parameters()]
        value = (h**3 + h.square() * torch.arange(8)).sum() + scores.square().sum()
        results.append((h.detach(), *torch.autograd.grad(value, wanted, materialize_grads=True)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    assert all(bool(g.abs().max() > 0) for g in results[0])


def test_which_layers_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"first", "body", "left", "right", "dense"}

    def found(act: Callable[[], nn.Module], composite: Composite, **view: object) -> set[str]:
        model, x = made(act)
        net = fastxai.compile(model, **view)  # type: ignore[arg-type]
        return closed_nodes(monkeypatch, lambda: fastxai.LRP(net, composite).attribute(x, 1))

    gamma = COMPOSITES["gamma"]
    assert found(nn.ReLU, gamma) == layers
    for other in (nn.LeakyReLU, nn.SiLU, nn.Softplus):
        assert found(other, gamma) == set()
    assert found(nn.ReLU, gamma, activation="softplus", beta=5.0) == set()
    # what reads the activation must multiply by it: the ordinary derivative does not
    assert found(nn.ReLU, Composite(Gamma(), Rule(), activation=gamma.activation, add=Epsilon())) == {"first", "body"}
    assert found(nn.ReLU, Composite(Gamma(), Gamma(), activation=GuidedBackprop(), add=Epsilon())) == set()
    assert found(nn.ReLU, lrp(Gamma(), Gamma(), paths=[("body", Rule())])) == layers - {"first"}


def test_they_are_found_once_for_each_kind_of_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every chunk, and again where a view has other activations."""
    model, x = made(nn.ReLU)
    net, asked = fastxai.compile(model), []
    closed = RuleRuntime._closed

    def watched(self: RuleRuntime, node: Node, acts: Activations) -> bool:
        asked.append(node)
        return closed(self, node, acts)

    monkeypatch.setattr(RuleRuntime, "_closed", watched)
    monkeypatch.setattr(RuleRuntime, "most", lambda *_: 1)
    counts = []
    for view in (net, net, *(net.with_activation("softplus", beta) for beta in (5.0, 5.0, 7.0)), net):
        assert fastxai.LRP(view, COMPOSITES["gamma"]).attribute(x, 1).shape == x.shape
        counts.append(len(asked))
    assert 0 < counts[0] == counts[1] < counts[2] == counts[3] == counts[4] == counts[5]
