"""Every rule: map and derivative against zennit, the derivative in every tensor against gradcheck and differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zennit.rules as zr
from engine.nets import error
from engine.rule_checks import (
    HOOKED,
    NETS,
    RULED,
    by_zennit,
    compiled,
    differentiated,
    from_page,
    images,
    make,
    slopes,
    softplus,
    worst,
    zennit_composite,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

import fastxai
from fastxai.engine import rules

TARGETS = torch.tensor([1, 0, 3])
LOW, HIGH = (-1.5, -1.6, -2.0), (1.5, 1.7, 2.0)


def channels(bound: tuple[float, ...]) -> Tensor:
    return torch.tensor(bound, dtype=torch.float64).view(1, -1, 1, 1)


OWN = from_page("flat_rules.py")
# Name -> our rule at every layer, zennit's.
RULES: dict[str, tuple[rules.Rule, Callable[[], Any]]] = {
    "epsilon": (rules.Epsilon(), zr.Epsilon),
    "epsilon-0.1": (rules.Epsilon(0.1), lambda: zr.Epsilon(0.1)),
    "z-plus": (rules.ZPlus(bias=True), zr.ZPlus),
    "alpha2-beta1": (rules.AlphaBeta(), zr.AlphaBeta),
    "alpha1-beta0": (rules.AlphaBeta(1e-3, alpha=1, beta=0), lambda: zr.AlphaBeta(1, 0, stabilizer=1e-3)),
    "gamma": (rules.Gamma(), zr.Gamma),
    "gamma-2": (rules.Gamma(1e-3, gamma=2.0), lambda: zr.Gamma(2.0, stabilizer=1e-3)),
    "w-square": (OWN["WSquare"](), zr.WSquare),
    "flat": (OWN["Flat"](), zr.Flat),
}
FIRST: dict[str, tuple[rules.Rule, Callable[[], Any]]] = {
    "z-box": (rules.ZBox(LOW, HIGH), lambda: zr.ZBox(channels(LOW), channels(HIGH))),
    "w-square": (OWN["WSquare"](), zr.WSquare),
    "flat": (OWN["Flat"](), zr.Flat),
}


def check_against_zennit(
    name: str, act: Callable[[], nn.Module], seed: str, composite: rules.Composite, theirs: tuple[Any, ...]
) -> None:
    """Compare map and input gradient; 1e-10 although 1 / (z + 1e-6) amplifies rounding where z is small."""
    net = fastxai.compile(make(name, act))
    ours = differentiated(lambda x: net.relevance(x, composite, TARGETS, seed=seed), images())
    model = make(name, act, **({"hooked": True} if name == "residual" else {}))
    want = by_zennit(model, zennit_composite(*theirs), images(), TARGETS, seed)
    assert error(ours[0], want[0]) < 1e-10
    assert error(ours[1], want[1]) < 1e-10 or float(want[1].abs().max()) == float(ours[1].abs().max()) == 0


@pytest.mark.parametrize("act, seed", [(nn.ReLU, "one"), (softplus, "score")], ids=["relu", "softplus"])
@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("rule", RULES)
def test_rule_equals_zennit(rule, name, act, seed):
    ours, theirs = RULES[rule]
    check_against_zennit(name, act, seed, rules.lrp(ours, ours), (theirs(), theirs()))


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("rule", FIRST)
def test_rule_of_the_first_layer_equals_zennit(rule, name):
    ours, theirs = FIRST[rule]
    composite = rules.lrp(rules.ZPlus(bias=True), rules.Epsilon(), ours)
    check_against_zennit(name, nn.ReLU, "one", composite, (zr.ZPlus(), zr.Epsilon(), theirs()))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=st.sampled_from([*RULES, "z-box"]),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 3]),
    bias=st.booleans(),
)
def test_any_convolution_equals_zennit(rule, size, kernel, stride, padding, groups, bias):
    torch.manual_seed(sum(size) + sum(kernel))
    conv = nn.Conv2d(3, 6, kernel, stride, padding, groups=groups, bias=bias)
    model = nn.Sequential(conv, nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()
    ours, theirs = {**RULES, **FIRST}[rule]
    x = 3 * torch.rand(3, 3, *size, dtype=torch.float64) - 1.5
    composite, net = rules.lrp(rules.Epsilon(), rules.Epsilon(), ours), fastxai.compile(model)
    got = differentiated(lambda x: net.relevance(x, composite, TARGETS), x)
    want = by_zennit(model, zennit_composite(zr.Epsilon(), zr.Epsilon(), theirs()), x, TARGETS)
    torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-10 * float(want[0].abs().max()))
    torch.testing.assert_close(got[1], want[1], rtol=1e-9, atol=1e-10 * float(want[1].abs().max()))


# A wide stabilizer keeps the epsilon rules' derivatives of order one, so that differences resolve them.
STABLE = rules.Epsilon(0.3)
BOX = rules.ZBox(-2.0, 2.0)
COMPOSITES: dict[str, rules.Composite] = {
    "epsilon": rules.lrp(STABLE, STABLE, stabilizer=0.3, scale=STABLE),
    "epsilon-plus": rules.lrp(rules.ZPlus(bias=True), STABLE, stabilizer=0.3),
    "epsilon-gamma-box": rules.lrp(rules.Gamma(), STABLE, BOX, stabilizer=0.3),
    "epsilon-alpha2-beta1": rules.lrp(rules.AlphaBeta(), STABLE, stabilizer=0.3),
    "z-plus-z-box": rules.lrp(rules.ZPlus(), rules.ZPlus(), BOX, stabilizer=0.3),
    "w-square": rules.lrp(rules.ZPlus(), OWN["WSquare"](), OWN["WSquare"](), stabilizer=0.3),
    "guided": rules.Composite(activation=rules.GuidedBackprop()),
    "guided-reference": rules.Composite(activation=rules.GuidedBackprop("reference")),
}


def covered(composite: str) -> list[str]:
    return list(NETS if composite.startswith("guided") else RULED)


@pytest.mark.parametrize("composite, name", [(c, n) for c in COMPOSITES for n in covered(c)])
def test_slopes_in_the_input_and_every_parameter(composite, name):
    for beta, seed in ((None, "one"), (2.0, "score")):
        model = make(name)
        net = compiled(model, beta)
        found = slopes(
            lambda x, net=net, seed=seed: net.relevance(x, COMPOSITES[composite], TARGETS, seed=seed),
            [images().requires_grad_(), *model.parameters()],
        )
        assert worst(found) < 1e-6
        assert sum(abs(want) > 0 for _, want in found) >= len(found) - 1  # a bias that nothing reads, at most


@pytest.mark.parametrize("beta", [None, 2.0])
@pytest.mark.parametrize("index, name", list(enumerate(NETS)))
def test_gradcheck(index, name, beta):
    """Every output against every tensor. gradcheck's own atol, scaled up in fast mode, would pass maps this small."""
    model, seed = make(name), ("one", "score")[index % 2]
    known = [c for c in COMPOSITES if name in covered(c)]

    def explain(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        return compiled(model, beta).relevance(x, COMPOSITES[known[index % len(known)]], TARGETS[:2], seed=seed)

    leaves = (images(2).requires_grad_(), *model.parameters())
    assert gradcheck(explain, leaves, fast_mode=True, atol=1e-10, rtol=1e-4, eps=1e-5)


def test_box_moves_with_what_lies_before_the_layer():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.7, -1.3, 2.0]))  # a negative gain swaps the ends
    net, composite = fastxai.compile(model.eval()), rules.lrp(rules.ZPlus(), rules.ZPlus(), rules.ZBox(LOW, HIGH))
    leaves = [images().requires_grad_(), *model.parameters()]
    assert worst(slopes(lambda x: net.relevance(x, composite, TARGETS), leaves)) < 1e-6
