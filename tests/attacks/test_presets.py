"""Presets: every row of [M], the derivation of c, the space that the step sizes are in."""

from __future__ import annotations

import pytest
import torch
from attacks.nets import cnn
from torch import nn

import fastxai
from fastxai.attacks import Manipulation, _presets
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    Patterns,
    Saliency,
    SmoothGrad,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GROWTH = (10.0, 100.0)


def explainer(name: str, net: fastxai.Net | None = None) -> Explainer:
    net = fastxai.compile(cnn()) if net is None else net
    outer, _, inner = name.rpartition("+")
    made = {
        "Gradient": lambda: Gradient(net),
        "Saliency": lambda: Saliency(net),
        "GxI": lambda: InputXGradient(net),
        "IG": lambda: IntegratedGradients(net, n_steps=3),
        "LRP": lambda: LRP(net, "zplus_zb", low=-3.0, high=3.0),
        "GBP": lambda: GuidedBackprop(net),
        "PA": lambda: PatternAttribution(net, Patterns({})),
    }[inner]()
    return {"": lambda: made, "SG": lambda: SmoothGrad(made), "beta": lambda: BetaSmoothing(made, 0.8)}[outer]()


# [M]: (iterations, step size, beta) of ImageNet
ROWS = {
    "Gradient": (1500, 1e-3, GROWTH),
    "Saliency": (1500, 1e-3, GROWTH),
    "GxI": (1500, 1e-3, GROWTH),
    "IG": (500, 5e-3, GROWTH),
    "LRP": (1500, 2e-4, None),
    "GBP": (1500, 1e-3, GROWTH),
    "PA": (1500, 2e-3, GROWTH),
    "SG+Gradient": (1500, 3e-3, GROWTH),
    "SG+Saliency": (1500, 3e-3, GROWTH),
    "SG+LRP": (1500, 3e-4, None),
    "beta+Gradient": (500, 2.5e-4, None),
    "beta+GxI": (500, 2.5e-4, None),
    "beta+IG": (200, 2.5e-3, None),
    "beta+LRP": (1500, 2e-4, None),
    "beta+GBP": (500, 5e-4, None),
    "beta+PA": (500, 5e-4, None),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_paper(name):
    attack = Manipulation.preset(explainer(name), "imagenet")
    assert (attack.steps, attack.lr, attack.beta) == ROWS[name]
    assert attack.output == "softmax" and attack.optimizer == "adam" and attack.ball is None
    assert attack.c * 50176**2 == pytest.approx(1e11) and attack.gamma == 1e6


@pytest.mark.parametrize(
    ("network", "row"),
    [
        ("vgg16", (1500, 1e-3, GROWTH)),
        ("alexnet", (4000, 1e-3, GROWTH)),
        ("densenet121", (2000, 5e-4, (30.0, 300.0))),
        ("resnet18", (2000, 1e-3, GROWTH)),
    ],
)
def test_rows_of_other_networks(network, row):
    attack = Manipulation.preset(explainer("Gradient"), "imagenet", network)
    assert (attack.steps, attack.lr, attack.beta) == row
    assert attack.output == "logits" and attack.gamma == 10 and attack.c * 50176**2 == pytest.approx(1e11)
    assert network in _presets.networks("imagenet") and not _presets.networks("cifar10")


@pytest.mark.parametrize("name", ["LRP", "Gradient", "SG+Gradient", "beta+IG"])
def test_cifar10_has_its_own_factors(name):
    attack = Manipulation.preset(explainer(name), "cifar10", mean=MEAN, std=STD)
    assert (attack.steps, attack.lr, attack.beta) == ROWS[name]
    assert attack.c * 1024**2 == pytest.approx(1e7) and attack.gamma == 1e2 and attack.output == "softmax"


def test_the_weight_of_the_map_is_forty_and_ten():
    assert _presets.weight(1e11, 224 * 224) == pytest.approx(40, rel=0.01)
    assert _presets.weight(1e7, 32 * 32) == pytest.approx(10, rel=0.05)
    # [M]'s first term at its resolution, and ours
    h, h_t = torch.rand(2, 32, 32, dtype=torch.float64)
    ours = _presets.weight(1e7, 1024) * 1024**2 * (h - h_t).square().mean()
    torch.testing.assert_close(ours, 1e7 * nn.functional.mse_loss(h, h_t))


def test_every_row_makes_an_attack_that_runs():
    for data, table in _presets._tables().items():
        assert data in _presets.DATA and table["beta"] == list(GROWTH)
        for group in ("maps", "networks", "SmoothGrad", "BetaSmoothing"):
            for row in table.get(group, {}).values():
                assert row["steps"] > 0 and 0 < row["lr"] < 1
    x = (torch.rand(2, 3, 8, 8, dtype=torch.float64) - 0.5) * 2
    attack = Manipulation.preset(explainer("Gradient"), "imagenet", steps=2)
    assert attack.perturb(x, torch.rand(2, 8, 8, dtype=torch.float64)).images.shape == x.shape


def test_bounds_and_step_follow_the_space():
    low, high = Manipulation.preset(explainer("Gradient"), "imagenet").bounds
    assert low == pytest.approx([-m / s for m, s in zip(MEAN, STD, strict=True)])
    assert high == pytest.approx([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    given = Manipulation.preset(explainer("Gradient"), "imagenet", mean=[0.5] * 3, std=[0.25] * 3)
    assert given.bounds == ([-2.0] * 3, [2.0] * 3)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    assert Manipulation.preset(explainer("Gradient"), "cifar10", mean=mean, std=std).bounds == given.bounds
    images = explainer("Gradient", fastxai.compile(cnn(), mean=MEAN, std=STD))
    attack = Manipulation.preset(images, "imagenet")
    assert attack.bounds == (0.0, 1.0) and attack.lr == pytest.approx(1e-3 * sum(STD) / 3)
    only_mean = Manipulation.preset(explainer("Gradient", fastxai.compile(cnn(), mean=MEAN)), "cifar10")
    assert only_mean.bounds == (0.0, 1.0) and only_mean.lr == 1e-3


def test_changes_and_subclasses():
    class Mine(Gradient):
        """A map of one's own."""

    attack = Manipulation.preset(Mine(cnn()), "imagenet", lr=0.5, judge_every=3)
    assert (attack.steps, attack.lr, attack.judge_every) == (1500, 0.5, 3)


def test_errors():
    preset = Manipulation.preset
    for call, kind, message in (
        (lambda: preset(cnn(), "imagenet"), TypeError, "explainer must be a fastxai explainer"),  # type: ignore[arg-type]
        (lambda: preset(explainer("Gradient"), "mnist"), ValueError, "data must be one of 'imagenet', 'cifar10'"),
        (
            lambda: preset(explainer("Gradient"), "imagenet", "vgg19"),
            ValueError,
            "network must be None or one of vgg",
        ),
        (lambda: preset(explainer("LRP"), "imagenet", "vgg16"), ValueError, "network must be None: "),
        (lambda: preset(explainer("SG+GBP"), "imagenet"), ValueError, "inside SmoothGrad: Gradient, LRP, got GuidedB"),
        (lambda: preset(SmoothGrad(explainer("beta+Gradient")), "imagenet"), ValueError, "got BetaSmoothing"),
        (lambda: preset(explainer("Gradient"), "cifar10"), ValueError, "mean, std must be given"),
        (lambda: preset(explainer("Gradient"), "imagenet", std=[0.0] * 3), ValueError, "std positive"),
        (lambda: preset(explainer("Gradient"), "imagenet", std=[float("inf")] * 3), ValueError, "one finite number"),
        (lambda: preset(explainer("Gradient"), "imagenet", mean=[float("nan")] * 3), ValueError, "mean, std must be"),
        (lambda: preset(explainer("Gradient"), "imagenet", mean=[]), ValueError, "mean, std must be given"),
        (lambda: preset(explainer("Gradient"), "imagenet", mean=0.5), ValueError, r"mean, std .*, got \(0\.5, None\)"),  # type: ignore[arg-type]
        (lambda: preset(explainer("Gradient"), "imagenet", mean="abc"), ValueError, "mean, std must be given"),  # type: ignore[arg-type]
        (lambda: preset(explainer("Gradient"), "imagenet", speed=3), TypeError, "speed"),
        (
            lambda: preset(explainer("Gradient", fastxai.compile(cnn(), mean=MEAN)), "imagenet", mean=MEAN, std=STD),
            ValueError,
            "be None for a net that normalises itself",
        ),
    ):
        with pytest.raises(kind, match=message):
            call()
