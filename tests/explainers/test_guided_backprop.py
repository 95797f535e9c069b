"""Guided Backprop against Captum and zennit, and on softplus nets, which they do not know, against a recursion."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import zennit.composites as zc
from engine.nets import error, gradient, oracle, zoo
from engine.rule_checks import (
    HOOKED,
    by_zennit,
    chosen,
    compiled,
    differentiated,
    images,
    loss,
    make,
    recursion,
    softplus,
    vjp,
)
from torch import Tensor, nn
from torch.autograd import grad

import fastxai
from fastxai.engine import rules
from fastxai.explainers import GuidedBackprop

BETA = 2.0
TARGETS = torch.tensor([1, 0, 3])
PEERS_WARN = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU", "ignore:Input Tensor 0 did not")


def by_captum(model: nn.Module, x: Tensor) -> Tensor:
    return captum.attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), TARGETS[: len(x)]).detach()


def subject(name: str) -> tuple[nn.Module, Tensor]:
    return (make(name), images()) if name in HOOKED else zoo(name)


@PEERS_WARN
@pytest.mark.parametrize("name", [*HOOKED, "cnn", "alexnet"])
def test_equals_captum_and_zennit_on_relu_nets(name):
    model, x = subject(name)
    ours = GuidedBackprop(model).attribute(x, TARGETS[: len(x)])
    assert error(ours, by_captum(model, x)) < 1e-12
    assert error(ours, by_zennit(model, zc.GuidedBackprop(), x, TARGETS[: len(x)])[0]) < 1e-12
    assert error(ours, gradient(oracle(model), x, TARGETS[: len(x)])) > 0.1


@PEERS_WARN
@pytest.mark.parametrize("name", HOOKED)
def test_peers_give_the_plain_gradient_on_softplus_nets(name):
    """Silently: their hooks know nn.ReLU alone. Ours is another map there."""
    model, x = make(name, softplus), images()
    plain = gradient(oracle(model), x, TARGETS)
    assert error(by_captum(model, x), plain) < 1e-12
    assert error(by_zennit(model, zc.GuidedBackprop(), x, TARGETS)[0], plain) < 1e-12
    for mode in ("rectified", "reference"):
        assert error(GuidedBackprop(model, mode).attribute(x, TARGETS), plain) > 0.1


def by_hand(model: nn.Module, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return (map, scores) by a recursion over layers: s'(a) f(r) at activations, J^T r elsewhere."""

    def rule(layer: nn.Module, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        match layer:
            case nn.ReLU():
                return r.clamp(min=0) * (x > 0)
            case nn.Softplus():
                passed = F.softplus(r, BETA, threshold=200) if mode == "reference" else r.clamp(min=0)
                return passed * torch.sigmoid(BETA * x)
            case nn.LeakyReLU():
                return r.clamp(min=0) * torch.where(x > 0, 1, layer.negative_slope * torch.ones_like(x))
            case _:
                return vjp(layer, x, r)

    scores, back = recursion(model, x, rule)
    return back(chosen(scores, TARGETS, "one")), scores


@pytest.mark.parametrize("mode", ["rectified", "reference"])
@pytest.mark.parametrize("act", [softplus, nn.ReLU, nn.LeakyReLU, nn.Tanh], ids=lambda act: act.__name__)
@pytest.mark.parametrize("name", ["vgg", "forked", "geometry", "shared"])
def test_equals_the_recursion(name, act, mode):
    """Map, scores and derivative in the input and every parameter; activations that are no ReLUs are not filtered."""
    model, x = make(name, act), images().requires_grad_()
    leaves = [x, *model.parameters()]
    ours, want = GuidedBackprop(model, mode).map_and_scores(x, TARGETS), by_hand(model, x, mode)
    totals = [loss(h) + loss(scores) for h, scores in (ours, want)]
    got, expected = (grad(total, leaves, materialize_grads=True) for total in totals)
    assert error(ours[0], want[0]) < 1e-12 and error(ours[1], want[1]) < 1e-12
    for a, b in zip(got, expected, strict=True):
        assert error(a[None], b[None]) < 1e-10


@pytest.mark.parametrize("mode", ["rectified", "reference"])
def test_softplus_view_equals_a_softplus_net(mode):
    view, model = compiled(make("vgg"), BETA), make("vgg", softplus)
    explainers = [GuidedBackprop(net, mode) for net in (view, model)]
    h, want = (differentiated(lambda x, e=e: e.map_and_scores(x, TARGETS), images()) for e in explainers)
    assert error(h[0], want[0]) < 1e-12 and error(h[1], want[1]) < 1e-12


def test_reference_mode_is_the_rectified_one_on_relu_nets_and_in_the_limit():
    model, x = make("vgg"), images()
    rectified = GuidedBackprop(model).attribute(x, TARGETS)
    assert torch.equal(GuidedBackprop(model, "reference").attribute(x, TARGETS), rectified)
    errors = [
        error(GuidedBackprop(compiled(model, beta), "reference").attribute(x, TARGETS), rectified)
        for beta in (1e2, 1e4, 1e6)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_curvature_surrogate_keeps_the_map_and_bends_it():
    """dh/dx is zero on a ReLU net; with s'' = beta p (1 - p) in place of zero it is not."""
    model = make("vgg")
    plain, bent = (
        differentiated(lambda x, net=net: GuidedBackprop(net).map_and_scores(x, TARGETS), images())
        for net in (fastxai.compile(model), fastxai.compile(model, surrogate="curvature", beta=BETA))
    )
    assert error(bent[0], plain[0]) < 1e-13
    assert plain[1].abs().max() == 0 and bent[1].abs().max() > 1e-6


def test_nothing_passes_where_relevance_is_negative():
    """One hidden unit, w_2 < 0: relevance -1 stops there, the gradient does not."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[0].bias.fill_(1.0), model[2].weight.fill_(-1.0)
    x = torch.ones(1, 2)
    assert torch.equal(GuidedBackprop(model).attribute(x, 0), torch.zeros(1, 2))
    assert torch.equal(fastxai.Gradient(model).attribute(x, 0), -torch.ones(1, 2))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="mode must be one of 'rectified', 'reference', got 'hard'"):
        GuidedBackprop(make("vgg"), "hard")
    with pytest.raises(TypeError, match="net must be a compiled net"):
        GuidedBackprop("vgg")  # type: ignore[arg-type]
    assert GuidedBackprop(make("vgg")).composite == rules.Composite(activation=rules.GuidedBackprop())
