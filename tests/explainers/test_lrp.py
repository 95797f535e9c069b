"""LRP's named composites against zennit, Captum and the paper's equations written out; seeds and boxes."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import zennit.composites as zc
from engine.nets import error, zoo
from engine.rule_checks import (
    by_zennit,
    chosen,
    compiled,
    differentiated,
    from_page,
    images,
    loss,
    make,
    recursion,
    softplus,
    vjp,
)
from torch import Tensor, nn
from torch.autograd import grad
from zennit.torchvision import ResNetBasicBlockCanonizer

import fastxai
from fastxai import LRP
from fastxai.engine import rules

TARGETS, BETA = torch.tensor([1, 0, 3]), 2.0
LOW, HIGH = (-1.5, -1.6, -2.0), (1.5, 1.7, 2.0)


def channels(bound: tuple[float, ...]) -> Tensor:
    return torch.tensor(bound, dtype=torch.float64).view(1, -1, 1, 1)


ZENNIT = {
    "epsilon_plus": zc.EpsilonPlus,
    "epsilon_alpha2_beta1": zc.EpsilonAlpha2Beta1,
    "epsilon_gamma_box": lambda **options: zc.EpsilonGammaBox(channels(LOW), channels(HIGH), **options),
}


@pytest.mark.parametrize("name, seed", [("vgg", "one"), ("vgg", "score"), ("cnn", "one"), ("resnet18", "score")])
@pytest.mark.parametrize("composite", ZENNIT)
def test_equals_zennit(composite, name, seed):
    model, x = (make("vgg"), images(1)) if name == "vgg" else zoo(name, n=1)
    explainer = LRP(model, composite, low=LOW, high=HIGH, seed=seed)
    ours = differentiated(lambda x: explainer.map_and_scores(x, TARGETS[:1]), x)
    want = by_zennit(model, ZENNIT[composite](canonizers=[ResNetBasicBlockCanonizer()]), x, TARGETS[:1], seed)
    assert error(ours[0], want[0]) < 1e-10
    assert error(ours[1], want[1]) < 1e-10


class Flat(nn.Module):
    """A small convolutional net whose layers Captum knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.pool = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
        self.narrow, self.second, self.linear = nn.Conv2d(5, 4, 3, bias=False), nn.ReLU(), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.second(self.narrow(self.pool(self.act(self.conv(x))))).flatten(1))


def test_equals_captum_with_its_own_stabilizer():
    torch.manual_seed(2)
    model, x = Flat().double(), images()
    want = captum.attr.LRP(model).attribute(x.clone().requires_grad_(), TARGETS).detach()
    own = rules.Epsilon(1e-9)
    assert error(LRP(model, rules.lrp(own, own, stabilizer=1e-9), seed="score").attribute(x, TARGETS), want) < 1e-10
    assert error(LRP(model, "epsilon", seed="score").attribute(x, TARGETS), want) < 1e-3  # stabilizer 1e-6


def test_captum_refuses_softplus():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2))
    with pytest.raises(TypeError, match="has no rule defined"):
        captum.attr.LRP(model).attribute(torch.ones(1, 4), 0)
    assert LRP(model, "epsilon").attribute(torch.ones(1, 4), 0).isfinite().all()


def stable(z: Tensor, epsilon: float = 1e-9) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and no bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight)


def z_box(layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """[M] eq. 3."""
    w = layer.weight
    parts = ((x, w), (channels(LOW).expand_as(x), w.clamp(min=0)), (channels(HIGH).expand_as(x), w.clamp(max=0)))
    (z, low, high) = (apply(layer, a, v) for a, v in parts)
    s = r / stable(z - low - high)
    shares = [a * vjp(lambda a, v=v: apply(layer, a, v), a, s) for a, v in parts]
    return shares[0] - shares[1] - shares[2]


def z_plus(layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """[M] eq. 2, where x has two signs by the products that are positive."""
    w = layer.weight
    parts = ((x.clamp(min=0), w.clamp(min=0)), (x.clamp(max=0), w.clamp(max=0)))
    s = r / stable(apply(layer, *parts[0]) + apply(layer, *parts[1]))
    first, second = (a * vjp(lambda a, v=v: apply(layer, a, v), a, s) for a, v in parts)
    return first + second


@pytest.mark.parametrize("seed", ["one", "score"])
@pytest.mark.parametrize("act", [softplus, nn.ReLU], ids=["softplus", "relu"])
@pytest.mark.parametrize("name", ["vgg", "forked", "shared"])
def test_equals_the_papers_equations_written_out(name, act, seed):
    """Map and derivative in the input and every parameter, by autograd through [M] eq. 1 to 3."""
    model = make(name, act)

    def rule(layer: nn.Module, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        match layer:
            case nn.Conv2d() | nn.Linear():
                return z_box(layer, x, r) if x is leaf else z_plus(layer, x, r)
            case nn.ReLU() | nn.Softplus():
                return r
            case _:
                return vjp(layer, x, r)

    leaf = images().requires_grad_()
    scores, back = recursion(model, leaf, rule)
    want = back(chosen(scores, TARGETS, seed))
    leaves = [leaf, *model.parameters()]
    explainer = LRP(model, "zplus_zb", low=LOW, high=HIGH, seed=seed)
    ours, ours_scores = explainer.map_and_scores(leaf, TARGETS)
    assert error(ours, want) < 1e-12
    totals = [loss(h) + loss(s) for h, s in ((ours, ours_scores), (want, scores))]
    got, expected = (grad(total, leaves, materialize_grads=True) for total in totals)
    for a, b in zip(got, expected, strict=True):
        assert error(a[None], b[None]) < 1e-10


def test_softplus_view_equals_a_softplus_net():
    view = compiled(make("vgg"), 2.0)
    model = make("vgg", softplus)
    for composite in ("epsilon_plus", "zplus_zb"):
        explainers = [LRP(net, composite, low=LOW, high=HIGH) for net in (view, model)]
        h, want = (differentiated(lambda x, e=e: e.map_and_scores(x, TARGETS), images()) for e in explainers)
        assert error(h[0], want[0]) < 1e-12 and error(h[1], want[1]) < 1e-12


def test_a_map_of_ones_own_from_the_page():
    """In the softplus view too, and under the wrappers of other maps."""
    model = make("vgg")
    gap = from_page("relevance_gap.py")["RelevanceGap"](model)
    parts = [LRP(model, composite) for composite in ("epsilon_plus", "epsilon")]
    view = gap.net.with_activation("softplus", BETA)
    ours = differentiated(lambda x: gap.map_and_scores(x, TARGETS, net=view), images())
    h, dx = differentiated(
        lambda x: [parts[0].map_and_scores(x, TARGETS, net=view)[0] - parts[1].map_and_scores(x, TARGETS, net=view)[0]],
        images(),
    )
    assert error(ours[0], h) < 1e-14 and error(ours[1], dx) < 1e-14
    smoothed = fastxai.BetaSmoothing(gap, beta=BETA).attribute(images(), TARGETS)
    assert torch.equal(smoothed, ours[0])


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.mark.parametrize("composite", ["zplus_zb", "epsilon_gamma_box"])
def test_box_of_the_image_is_normalised_with_it(composite):
    """Relevance of a normalised pixel is that of the pixel; x-gradients differ by 1 / std."""
    model, x = make("vgg"), images(raw=False)
    mean, std = (torch.tensor(t, dtype=torch.float64).view(1, 3, 1, 1) for t in (MEAN, STD))
    low, high = (((bound - mean) / std).flatten().tolist() for bound in (0.0, 1.0))
    inside = LRP(fastxai.compile(model, mean=MEAN, std=STD), composite)
    outside = LRP(model, composite, low=low, high=high)
    ours = differentiated(lambda x: inside.map_and_scores(x, TARGETS), x)
    want = differentiated(lambda x: outside.map_and_scores(x, TARGETS), (x - mean) / std)
    assert error(ours[0], want[0]) < 1e-12 and error(ours[1], want[1] / std) < 1e-12


class Swapped(nn.Module):
    """A model that wants blue first and other units, as Caffe's do; it flips or indexes, and turns the sign."""

    def __init__(self, model: nn.Module, *, flip: bool) -> None:
        super().__init__()
        self.model, self.flip = model, flip

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) if self.flip else x[:, [2, 1, 0]]
        return self.model(-2.0 * x + 0.5)


@pytest.mark.parametrize("flip", [True, False])
def test_box_follows_channels_units_and_signs(flip):
    model, x = make("vgg"), images()
    got = LRP(Swapped(model, flip=flip), "zplus_zb", low=LOW, high=HIGH).attribute(x, TARGETS)
    ends = [[0.5 - 2 * b for b in bound[::-1]] for bound in (HIGH, LOW)]
    want = LRP(model, "zplus_zb", low=ends[0], high=ends[1]).attribute(0.5 - 2 * x.flip(1), TARGETS)
    assert error(got, want.flip(1)) < 1e-12


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"composite": "lrp"}, ValueError, "composite must be one of 'epsilon', .*got 'lrp'"),
        ({"composite": 3}, TypeError, "composite must be a name or a rules.Composite, got int"),
        ({"seed": "two"}, ValueError, "seed must be one of 'one', 'score', got 'two'"),
        ({"composite": "zplus_zb"}, ValueError, "low, high must be given for composite 'zplus_zb' on raw inputs"),
        ({"composite": "epsilon_gamma_box", "low": 0.0}, ValueError, "low, high must be given"),
        ({"composite": "zplus_zb", "low": 1.0, "high": 1.0}, ValueError, "low below high"),
        ({"composite": "zplus_zb", "low": [0.0, 2.0], "high": 1.0}, ValueError, "low below high"),
        ({"composite": "zplus_zb", "low": "dark", "high": 1.0}, TypeError, "low must be a number or one a channel"),
    ],
)
def test_settings_are_checked(options, kind, message):
    with pytest.raises(kind, match=message):
        LRP(make("vgg"), **options)


def test_a_box_of_two_channels_does_not_fit_three():
    explainer = LRP(make("vgg"), "zplus_zb", low=(0.0, 0.0), high=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"have one value or 3, one a channel, got \[2\]"):
        explainer.attribute(images(), 1)


def test_what_cannot_be_explained():
    with pytest.raises(TypeError, match=r"net must be a compiled net or a torch\.nn\.Module"):
        LRP(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="mul at '2' has no rule"):
        LRP(make("gated")).attribute(images(), 1)
