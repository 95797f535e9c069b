"""Maps of ResNet-18 and DenseNet-121: their derivatives against differences, and what relevance they conserve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from engine.nets import ZOO, zoo
from engine.rule_checks import loss, without_biases
from torch import Tensor, nn
from torch.autograd import grad

import fastxai
from fastxai import LRP
from fastxai.engine import rules
from fastxai.engine.rules import COMPOSITES
from fastxai.explainers import Explainer, Gradient, GuidedBackprop, InputXGradient

# The named composites with a wide stabilizer where sums of both signs are divided by: at 1e-6 the map of a softplus
# net bends within 1e-7 of the input, and differences resolve nothing (they agree to 1e-4 there).
STABLE = rules.Epsilon(0.3)
BOX = rules.ZBox(0.0, 1.0)
RELEVANCE = {
    "epsilon": rules.lrp(STABLE, STABLE, stabilizer=0.3),
    "epsilon_plus": rules.lrp(rules.ZPlus(bias=True), STABLE, stabilizer=0.3),
    "epsilon_alpha2_beta1": rules.lrp(rules.AlphaBeta(0.3), STABLE, stabilizer=0.3),
    "epsilon_gamma_box": rules.lrp(rules.Gamma(0.3), STABLE, BOX, stabilizer=0.3),
    "zplus_zb": rules.lrp(rules.ZPlus(), rules.ZPlus(), BOX, stabilizer=0.3),
}
MAPS: dict[str, Callable[[fastxai.Net], Explainer]] = {
    "gradient": Gradient,
    "input_x_gradient": InputXGradient,
    "guided": GuidedBackprop,
    "guided_reference": lambda net: GuidedBackprop(net, "reference"),
    **{name: lambda net, c=composite: LRP(net, c) for name, composite in RELEVANCE.items()},
}
deep = pytest.mark.parametrize("name", ["resnet18", "densenet121"])


@cache
def smooth(name: str) -> tuple[fastxai.Net, Tensor]:
    model, x = zoo(name, n=1)
    return fastxai.compile(model, activation="softplus", beta=ZOO[name][1]), x


BRIEF = {
    "resnet18": ("gradient", "guided", "guided_reference", "epsilon_gamma_box"),
    "densenet121": ("input_x_gradient", "epsilon_plus"),
}
SLOPES = [
    pytest.param(name, kind, marks=() if kind in BRIEF[name] else pytest.mark.slow) for name in BRIEF for kind in MAPS
]


@pytest.mark.parametrize("name, kind", SLOPES)
def test_slopes_in_the_input_and_in_all_parameters(name, kind):
    """The step is so small that max-pools keep their winners and Guided Backprop its signs."""
    (net, x), step = smooth(name), 1e-7
    explainer, leaves = MAPS[kind](net), [x.clone().requires_grad_(), *net.model.parameters()]
    scale = explainer.attribute(x, 1).detach().abs().mean()

    def total() -> Tensor:
        return loss(explainer.attribute(leaves[0], 1) / scale)

    g = torch.Generator().manual_seed(3)
    along = [torch.randn(t.shape, generator=g, dtype=t.dtype) * t.detach().abs().mean() for t in leaves]
    slopes = grad(total(), leaves, materialize_grads=True)

    @torch.no_grad()
    def difference(part: slice) -> float:
        values = []
        for shift in (step, -2 * step):
            torch._foreach_add_(leaves[part], along[part], alpha=shift)
            values.append(total())
        torch._foreach_add_(leaves[part], along[part], alpha=step)
        return float(values[0] - values[1]) / (2 * step)

    for part in (slice(0, 1), slice(1, None)):
        shares = torch.cat([(a * b).flatten() for a, b in zip(slopes[part], along[part], strict=True)])
        # the norm is what the sum of so many shares of random signs is typically
        assert float(shares.sum()) == pytest.approx(difference(part), rel=1e-6, abs=1e-6 * float(shares.norm()))


def conserved(model: nn.Module, x: Tensor, composite: str) -> Tensor:
    """Return the sum of each map over the relevance that it started with; pixels in [0, 1]."""
    return LRP(model, composite, low=0.0, high=1.0).attribute(x).flatten(1).sum(1).detach()


def rows() -> Iterator[tuple[str, str, Tensor]]:
    """Yield (network, composite, what is conserved) for the table of docs/rules.md: ``pytest -s -m slow`` prints it."""
    demo = fastxai.compile(fastxai.models.demo(), mean=fastxai.models.DEMO_MEAN, std=fastxai.models.DEMO_STD)
    nets = {"demo": (demo, fastxai.data.demo_photos()[0])}
    for name in ("resnet18", "densenet121"):
        nets[name] = zoo(name)
        model, x = zoo(name)
        nets[f"{name}, no biases"] = without_biases(model), x
    for name, (model, x) in nets.items():
        for composite in COMPOSITES:
            yield name, composite, conserved(model, x, composite)


@pytest.mark.slow
def test_table_of_the_page():
    for name, composite, sums in rows():
        print(f"{name:24} {composite:22}", " ".join(f"{s:.6g}" for s in sums))
        assert sums.isfinite().all()


@pytest.mark.parametrize(
    "name, composite",
    [("resnet18", c) for c in COMPOSITES]
    + [pytest.param("densenet121", c, marks=() if c == "zplus_zb" else pytest.mark.slow) for c in COMPOSITES],
)
def test_without_biases_every_composite_conserves_relevance(name, composite):
    """Up to the stabilizers, 1e-6 against sums of order one, at each of up to 121 layers."""
    model, x = zoo(name, n=1)
    sums = conserved(without_biases(model), x, composite)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=3e-5)


@deep
def test_z_plus_without_bias_conserves_relevance_of_any_net(name):
    """Its denominators leave the bias out. What is lost goes to the stabilizers of sums and averages."""
    model, x = zoo(name, n=1)
    sums = conserved(model, x, "zplus_zb")
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-5)
    assert (conserved(model, x, "epsilon_plus") - 1).abs().min() > 0.01  # the biases' share is gone


def test_sums_start_from_the_seed():
    model, x = zoo("cnn")
    h, scores = LRP(model, "zplus_zb", low=0.0, high=1.0, seed="score").map_and_scores(x, 1)
    torch.testing.assert_close(h.flatten(1).sum(1), scores[:, 1], rtol=1e-6, atol=0)
    assert conserved(without_biases(model), x, "zplus_zb").sub(1).abs().max() < 1e-6
