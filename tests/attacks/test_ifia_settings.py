"""IFIA with every map, start, layout and preset; what it says of wrong settings."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from attacks.ascents import adversarial, attack, cnn, images, length
from attacks.nets import CHANNELS
from torch import nn

import fastxai
from fastxai import IFIA, AdversarialIFIA
from fastxai.attacks import Ball
from fastxai.explainers import (
    LRP,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    Patterns,
    Saliency,
    SmoothGrad,
)


def small_patterns(model: nn.Module) -> Patterns:
    return Patterns({name: 0.5 + torch.rand_like(p) for name, p in model.named_parameters() if p.dim() > 1})


EXPLAINERS = {
    "saliency": Saliency,
    "input_x_gradient": InputXGradient,
    "guided_backprop": GuidedBackprop,
    "lrp": lambda net: LRP(net, "epsilon"),
    "smooth_grad": lambda net: SmoothGrad(Gradient(net), 3, stdev=0.1),
    "probability": lambda net: IntegratedGradients(net, n_steps=3, output="probability"),
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_map_can_be_attacked(name):
    x, made = images(3), EXPLAINERS[name](fastxai.compile(cnn()))
    one = IFIA(made, eps=0.1, steps=4, k=20, bounds=CHANNELS, dissimilarity="top_k", random_start=True)
    result = one.perturb(x)
    assert bool(result.class_kept.all()) and bool((length(result.images - x, "linf") <= 0.1 * (1 + 1e-12)).all())
    assert bool((result.dissimilarity > 0).any())
    random = IFIA.ghorbani(made, "random", eps=0.1, k=20, bounds=CHANNELS, restarts=5).perturb(x)
    assert result.dissimilarity.mean() > random.dissimilarity.mean()


def test_pattern_attribution_can_be_attacked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double()
    made = PatternAttribution(model, small_patterns(model))
    result = IFIA(made, eps=0.1, dissimilarity="top_k", k=10, bounds=(-1, 1)).perturb(images(3))
    assert int((result.dissimilarity > 0).sum()) >= 2 and bool(result.class_kept.all())


def test_starts():
    x = images(4) / 3
    one = attack(dissimilarity="top_k", restarts=3)
    one.perturb(x)
    starts = one.explainer.images[1].unflatten(0, (3, 4))
    assert torch.equal(starts[0], x) and bool((length((starts[1:] - x).flatten(0, 1), "linf") > 0.25).all())
    everywhere = attack(dissimilarity="top_k", restarts=3, random_start=True)
    everywhere.perturb(x)
    moved = everywhere.explainer.images[1].unflatten(0, (3, 4))
    assert torch.equal(moved[1:], starts[1:]) and bool((moved[0] != x).all())
    for norm, eps in (("linf", 0.3), ("l2", 2.0)):
        signs = attack(norm=norm, eps=eps, random_start="signs", steps=0, restarts=2)
        signs.perturb(x)
        offset = (signs.explainer.images[1].unflatten(0, (2, 4)) - x).flatten(0, 1)
        torch.testing.assert_close(length(offset, norm), torch.full((8,), eps, dtype=torch.float64), rtol=1e-6, atol=0)
        # The bounds are far from the first two channels.
        torch.testing.assert_close(offset[:, :2].abs(), offset.abs().amax().expand(8, 2, 8, 8), rtol=1e-6, atol=0)
    uniform = Ball(2.0, "l2").draw((0,), torch.arange(500), range(2), 3)
    # In three dimensions the cube of the relative radius is uniform.
    cubes = (uniform.norm(dim=2) / 2).pow(3).flatten().sort().values
    assert (cubes - torch.linspace(0, 1, 1000)).abs().max() < 1.95 / 1000**0.5
    assert uniform.mean((0, 1)).abs().max() < 0.15


def test_ig_norm_is_one_line():
    """[F] eq. 8: integrated gradients from x, in the 1-norm."""
    x = images(8)
    made = IntegratedGradients(cnn(), baselines=x, n_steps=4, method="midpoint")
    result = IFIA(made, eps=0.3, bounds=CHANNELS, dissimilarity="l1").perturb(x)
    # Some stopped: their baselines stayed with them.
    assert 0 < int(result.history["dissimilarity"].isnan().any(0).sum()) < 8
    classes = cnn()(x).argmax(1)
    got = IntegratedGradients(cnn(), n_steps=4, method="midpoint").attribute(result.images, classes, baselines=x)
    torch.testing.assert_close(result.dissimilarity, got.abs().sum((1, 2, 3)).detach())
    assert int((result.dissimilarity > 0).sum()) >= 6 and not result.original_maps.any()


def test_layouts_dtypes_and_the_fallback_agree():
    x = images(4)
    want = attack(dissimilarity="top_k", restarts=2).perturb(x)
    wide = torch.zeros(4, 3, 8, 16, dtype=torch.float64)
    wide[..., ::2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        torch.testing.assert_close(attack(dissimilarity="top_k", restarts=2).perturb(same).images, want.images)
    slow = Gradient(fastxai.compile(cnn(), fallback=True))
    changes = {"eps": 0.3, "steps": 6, "beta": 2.0, "k": 20, "bounds": CHANNELS, "dissimilarity": "top_k"}
    torch.testing.assert_close(IFIA(slow, **changes, restarts=2).perturb(x).images, want.images, rtol=0, atol=1e-11)
    both = [AdversarialIFIA(e, **changes).perturb(x, 1).images for e in (slow, Gradient(cnn()))]
    torch.testing.assert_close(*both, rtol=0, atol=1e-11)
    single = IFIA(Gradient(cnn().float()), **changes).perturb(x.float())
    assert single.images.dtype == torch.float32 and bool(single.class_kept.all())
    assert bool((length(single.images - x.float(), "linf") <= 0.3 * (1 + 1e-6)).all())


def test_inputs_without_pixels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.rand(4, 12, dtype=torch.float64)
    for d in ("pcl", "top_k", "mass_centre"):
        result = IFIA(Gradient(model), eps=0.2, dissimilarity=d, k=3).perturb(x)
        assert result.maps.shape == x.shape and bool((result.dissimilarity > 0).any())
        torch.testing.assert_close(result.maps.sum(1), torch.ones(4, dtype=torch.float64))


def test_an_empty_batch():
    x = images(0)
    for one in (attack(restarts=2), attack(dissimilarity="top_k", norm="l2"), adversarial(restarts=2)):
        result = one.perturb(x)
        assert result.images.shape == (0, 3, 8, 8) and result.maps.shape == (0, 8, 8)
        assert result.history["dissimilarity"].shape == (7, 0) and result.best_step.shape == (0,)
    assert attack().perturb(x, target_map=x).images.shape == x.shape


def test_a_dissimilarity_of_ones_own():
    x = images(3)
    named = attack(dissimilarity="cosine").perturb(x)
    own = attack(dissimilarity=lambda a, b: 1 - nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))).perturb(x)
    torch.testing.assert_close(own.images, named.images, rtol=0, atol=1e-12)


def test_what_does_not_move_says_so():
    x = images(2)
    with pytest.warns(UserWarning, match="no gradient where the attack starts"):
        result = attack(beta=None, dissimilarity="top_k").perturb(x)
    assert torch.equal(result.images, x) and not result.dissimilarity.any() and not result.best_step.any()


def test_presets():
    net = fastxai.compile(cnn())
    eps = {"mnist": 0.3, "fashion_mnist": 0.1, "cifar10": 0.03, "gtsrb": 0.03, "restricted_imagenet": 0.01}
    k = {"mnist": 50, "fashion_mnist": 50, "cifar10": 100, "gtsrb": 100, "restricted_imagenet": 300}
    for data in eps:
        one = IFIA.preset(Gradient(net), data)
        assert (one.eps, one.k, one.steps, one.restarts, one.beta) == (eps[data], k[data], 7, 3, 1.0)
        assert one.dissimilarity == "top_k" and one.step_size == pytest.approx(1.2 / 7 * eps[data])
    assert IFIA.preset(Gradient(net), "mnist", k=7, restarts=1).k == 7
    for kind in ("top_k", "mass_centre", "random"):
        one = IFIA.ghorbani(Gradient(net), kind)
        assert (one.eps, one.step_size, one.k, one.freeze) == (8 / 255, 0.5 / 255, 1000, False)
    x = images(3) / 3
    random = IFIA.ghorbani(Gradient(net), "random", eps=0.02, k=20, bounds=CHANNELS, restarts=4).perturb(x)
    torch.testing.assert_close((random.images - x).abs(), torch.full_like(x, 0.02), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"eps": 0.0}, ValueError, "eps must be finite and positive"),
        ({"eps": True}, ValueError, "eps must be finite and positive, got True"),
        ({"norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2'"),
        ({"steps": -1}, ValueError, "steps must be an int, 0 or more, got -1"),
        ({"restarts": 0}, ValueError, "restarts must be an int, 1 or more, got 0"),
        ({"alpha": 0.1, "rel_stepsize": 0.1}, ValueError, "rel_stepsize must be None beside alpha"),
        ({"alpha": -1.0}, ValueError, "alpha must be finite and positive"),
        ({"random_start": "normal"}, ValueError, "random_start must be one of None, False, True, 'signs'"),
        ({"seed": 0.5}, ValueError, "seed must be an int or a tuple of ints"),
        ({"dissimilarity": "mse"}, ValueError, "dissimilarity must be one of 'pcl', 'l1'"),
        ({"k": 0}, ValueError, "k must be a positive int"),
        ({"reduce": "max"}, ValueError, "reduce must be one of 'auto', 'abs_sum', 'sum', None"),
        ({"beta": 0.0}, ValueError, "beta must be finite and positive"),
        ({"bounds": (0, 1, 2)}, ValueError, r"bounds must be \(lowest, highest\)"),
        ({"bounds": None}, ValueError, r"bounds must be \(lowest, highest\), got None"),
        ({"freeze": "never"}, TypeError, "freeze must be a bool, got never"),
        ({"explainer": cnn()}, TypeError, "explainer must be a fastxai explainer, got Sequential"),
    ],
)
def test_setting_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        dataclasses.replace(attack(), **change)


@pytest.mark.parametrize("kind", [IFIA, AdversarialIFIA])
def test_a_known_map_is_not_computed_again(monkeypatch, kind):
    x, explainer = images(3), IntegratedGradients(cnn(), n_steps=3)
    known = explainer.attribute(x, 2)
    one = kind(explainer, eps=0.1, steps=2, bounds=CHANNELS)
    want, rows = one.perturb(x, 2), []
    inner = IntegratedGradients.map_and_scores
    monkeypatch.setattr(
        IntegratedGradients, "map_and_scores", lambda *args, **how: rows.append(len(args[1])) or inner(*args, **how)
    )
    assert torch.equal(one.perturb(x, 2, original_map=known).images, want.images)
    again = len(rows)
    assert torch.equal(one.perturb(x, 2).images, want.images)
    assert len(rows) - again == again + 1
    with pytest.raises(ValueError, match=r"original_map must have shape \[3, 3, 8, 8\]"):
        one.perturb(x, 2, original_map=known[:2])
    with pytest.raises(ValueError, match="original_map must have x's dtype"):
        one.perturb(x, 2, original_map=known.float())


@pytest.mark.parametrize("name", ["top_k", "mass_centre", "ssim", "l2"])
def test_a_dissimilarity_by_its_function_is_that_by_its_name(name):
    x, function = images(3), getattr(fastxai.attacks.dissimilarities, name)
    given = [function, functools.partial(function, k=9)] if name == "top_k" else [function]
    for target_map in (None, images(6)[3:, 0].abs()):
        want = attack(dissimilarity=name, k=9, restarts=2).perturb(x, None, target_map)
        for one, k in zip(given, (9, 100), strict=False):
            got = attack(dissimilarity=one, k=k, restarts=2).perturb(x, None, target_map)
            assert torch.equal(want.images, got.images) and torch.equal(want.dissimilarity, got.dissimilarity)


def test_results_are_read_at_a_glance():
    x = images(3)
    said = str(attack().perturb(x))
    assert "dissimilarity" in said and "class kept 3/3" in said and len(said) < 200
    assert "loss" in str(fastxai.PGD(cnn(), eps=0.1, steps=2, bounds=CHANNELS).perturb(x))
    unbounded = attack(bounds=(-math.inf, math.inf)).perturb(x)
    with pytest.raises(ValueError, match="bounds must be finite where images are compared"):
        unbounded.metrics  # noqa: B018


def test_presets_keep_their_reach():
    """All steps together go 1.2 eps, however many there are, unless a step size is given."""
    one = IFIA.preset(Gradient(cnn()), "cifar10", steps=3)
    assert one.step_size == pytest.approx(0.03 * 1.2 / 3)
    assert IFIA.preset(Gradient(cnn()), "cifar10", alpha=0.01).step_size == 0.01


def test_argument_errors():
    x = images(3)
    hole, few = torch.tensor([1.0, 0.0, 1.0]).double()[:, None, None], torch.zeros(3, 8, 8).double()
    few[:, 0, :4] = 1
    cases = [
        ({}, (x[0, 0, 0],), {}, ValueError, r"x must have shape \[N, C, \.\.\.\]"),
        ({}, (x.long(),), {}, TypeError, "x must have a floating point dtype"),
        ({}, (x * 5,), {}, ValueError, "x must lie within the bounds"),
        ({"bounds": ([0.0] * 2, [1.0] * 2)}, (x,), {}, ValueError, "bounds must be numbers or 3 values"),
        ({"bounds": ("a", 1.0)}, (x,), {}, ValueError, r"bounds must be numbers or 3 values .*, got .a."),
        ({}, (x, 5), {}, ValueError, r"y must lie in 0 \.\. 4, got 5 \.\. 5"),
        ({}, (x, torch.rand(3)), {}, TypeError, "y must hold integers"),
        ({}, (x, torch.zeros(3, dtype=torch.bool)), {}, TypeError, "y must hold integers, got torch.bool"),
        ({}, (x, True), {}, TypeError, "y must be an int, a LongTensor"),
        ({}, (x, torch.zeros(2, dtype=torch.long)), {}, ValueError, r"y must have shape \[3\]"),
        ({}, (x, "cat"), {}, TypeError, "y must be an int, a LongTensor"),
        ({}, (x,), {"index": torch.arange(2)}, ValueError, r"index must have shape \[3\]"),
        ({"reduce": None}, (x, None, x[:, 0]), {}, ValueError, r"target_map must have shape \[3, 3, 8, 8\]"),
        ({}, (x, None, x[:2]), {}, ValueError, r"target_map must have shape \[3, 3, 8, 8\]"),
        ({}, (x, None, x / 0), {}, ValueError, "target_map must be finite"),
        ({}, (x, None, x.float()), {}, ValueError, "target_map must have x's dtype"),
        ({"random_start": False}, (x,), {}, ValueError, "random_start must not be False: pcl has no gradient at equal"),
        ({"dissimilarity": "top_k", "k": 65}, (x,), {}, ValueError, "k must be from 1 to 64"),
        ({"dissimilarity": lambda a, b: (a - b).sum()}, (x,), {}, ValueError, r"\(S, S_T\) must have shape \[3\]"),
        ({}, (x, None, x[:, 0] - 1), {}, ValueError, r"target_map must not be negative.* for samples \[0, 1, 2\]"),
        ({}, (x, None, x[:, 0].abs() * hole), {}, ValueError, r"target_map must have a sum .* samples \[1\]"),
        (
            {"dissimilarity": "top_k", "k": 9},
            (x, None, few),
            {},
            ValueError,
            "target_map must have 9 values that",
        ),
        (
            {"dissimilarity": lambda a, b: (a / 0).sum((1, 2, 3))},
            (x,),
            {},
            ValueError,
            r"\(S, S_T\) must be finite at x",
        ),
        (
            {"dissimilarity": lambda a, b: (a - b).square().sum((1, 2, 3)).sqrt(), "random_start": False},
            (x,),
            {},
            ValueError,
            r"the objective's gradient must be finite where the attack starts.* for samples \[0, 1, 2\]",
        ),
        (
            {"dissimilarity": lambda a, b: b.sum((1, 2, 3))},
            (x,),
            {},
            ValueError,
            "dissimilarity must be differentiable",
        ),
    ]
    for change, positional, named, kind, message in cases:
        with pytest.raises(kind, match=message):
            attack(**change).perturb(*positional, **named)
    with pytest.raises(ValueError, match="lambda_ must be finite and not negative"):
        adversarial(lambda_=-1.0)
    with pytest.raises(ValueError, match="data must be one of 'mnist'"):
        IFIA.preset(Gradient(cnn()), "svhn")
    with pytest.raises(ValueError, match="kind must be one of 'top_k'"):
        IFIA.ghorbani(Gradient(cnn()), "centre")
