"""Every map under attack: the trajectory of the same loop in plain autograd, from the paper's equations.

Both loops round differently, in float64 by parts in 1e16 of each gradient. Adam's first steps are near lr sign(d), so
an element whose gradient is small against the others moves by a relative error that is not: over 50 steps the iterates
here differ by up to 4e-13 of the way that they can go, lr times steps. The bound is 1e-10.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from attacks.nets import plain_loop
from torch import Tensor, nn

import fastxai
from fastxai.attacks import Manipulation, target_maps
from fastxai.attacks._task import step_seeds
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
    reduce_map,
)
from fastxai.metrics import pcc

CHANNELS = ([-2.0, -2.5, -2.0], [2.0, 2.5, 3.0])
LOW, HIGH = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)
POINTS = {"small": 30, "demo": 2}


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return plain_loop()


def network(name: str) -> nn.Module:
    if name == "demo":
        return fastxai.models.demo().double()
    torch.manual_seed(2)
    return (
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(54, 12),
            nn.ReLU(),
            nn.Linear(12, 5),
        )
        .double()
        .eval()
    )


def batch(name: str) -> tuple[Tensor, Tensor]:
    if name == "demo":
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (fastxai.models.DEMO_MEAN, fastxai.models.DEMO_STD))
        x = ((fastxai.data.demo_photos()[0] - mean) / std)[:1].double()
    else:
        x = torch.rand(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    # Its sum is 1 in float32; the attack scales it to 1 in float64, the reference takes it as it is.
    return x, reduce_map(target_maps.random((len(x), *x.shape[2:]), 5, 2.0).double(), None)


def patterns(model: nn.Module) -> dict[str, Tensor]:
    seed = torch.Generator().manual_seed(6)
    return {
        name: 0.5 + torch.rand(p.shape, dtype=p.dtype, generator=seed)
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }


def both(kind: str, model: nn.Module, x: Tensor, plain: ModuleType, points: int) -> tuple[Explainer, Any]:
    """Return our explainer and the reference's map."""
    net = fastxai.compile(model)
    match kind:
        case "gradient":
            return Gradient(net), plain.gradient
        case "saliency":
            return Saliency(net), plain.gradient
        case "input_x_gradient":
            return InputXGradient(net), plain.input_x_gradient
        case "integrated_gradients":
            ours = IntegratedGradients(net, n_steps=points, method="riemann_right")
            return ours, plain.integrated_gradients(points)
        case "guided_backprop":
            return GuidedBackprop(net), plain.guided_backprop
        case "pattern_attribution":
            found = patterns(model)
            return PatternAttribution(net, Patterns(found)), plain.pattern_attribution(found)
        case _:
            low, high = (bound.flatten().tolist() for bound in (LOW, HIGH))
            return LRP(net, "zplus_zb", low=low, high=high), plain.lrp(LOW, HIGH)


KINDS = (
    "gradient",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "guided_backprop",
    "pattern_attribution",
    "lrp",
)


def run(plain: ModuleType, name: str, ours: Explainer, explain: Any, *, lr: float, beta: Any, own: float | None = None):
    """Run both loops for 50 iterations and compare every iterate and the result."""
    model, (x, target_map) = network(name), batch(name)
    steps, every = 50, 1 if beta is None and own is None else 10
    iterates: list[Tensor] = []
    settings = plain.Settings(steps, lr, beta, 10.0, 100.0, LOW, HIGH, every, explain, own)
    want = plain.manipulate(
        plain.smoothed(model), x, target_map, settings, lambda _, images: iterates.append(images.clone())
    )
    seen: list[Tensor] = []
    attack = Manipulation(ours, steps=steps, lr=lr, beta=beta, bounds=CHANNELS, judge_every=every)
    step = attack.explainer.map_and_scores

    def spied(images: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if images.requires_grad:
            seen.append(images.detach().clone())
        return step(images, *args, **options)

    ours.map_and_scores = spied  # type: ignore[method-assign]
    got = attack.perturb(x, target_map)
    assert len(seen) == steps == len(iterates)
    errors = torch.stack([(a - b).abs().amax() for a, b in zip(seen[1:], iterates, strict=False)])
    assert (iterates[-1] - x).abs().max() > 10 * lr
    assert errors.max() < 1e-10 * lr * steps, errors
    torch.testing.assert_close(got.images, want.images, rtol=0, atol=1e-10 * lr * steps)
    torch.testing.assert_close(got.maps, want.maps, rtol=1e-8, atol=1e-8 * want.maps.max().item())
    assert torch.equal(got.class_kept, want.kept)


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, "small") for kind in KINDS), *((kind, "demo") for kind in KINDS if kind != "saliency")]
)
def test_same_trajectory_as_plain_autograd(plain, kind, name):
    beta = None if kind == "lrp" else (10.0, 100.0)
    model, (x, _) = network(name), batch(name)
    ours, explain = both(kind, model, x, plain, POINTS[name])
    run(plain, name, ours, explain, lr=2e-4 if kind == "lrp" else 1e-3, beta=beta)


@pytest.mark.parametrize("kind", ["gradient", "lrp", "guided_backprop"])
def test_same_trajectory_around_smooth_grad(plain, kind):
    model, (x, _) = network("small"), batch("small")
    inner, explain = both(kind, model, x, plain, 5)
    ours = SmoothGrad(inner, 4, stdev=0.2, seed=3)
    noise = 0.2 * ours._draws(x, "x")[1:]
    beta = None if kind == "lrp" else (10.0, 100.0)
    run(plain, "small", ours, plain.smooth_grad(explain, noise), lr=1e-3, beta=beta)


@pytest.mark.parametrize("kind", KINDS)
def test_same_trajectory_of_beta_smoothed_maps(plain, kind):
    model, (x, _) = network("small"), batch("small")
    inner, explain = both(kind, model, x, plain, 5)
    run(plain, "small", BetaSmoothing(inner, 0.8), explain, lr=1e-3, beta=None, own=0.8)


@pytest.mark.parametrize("kind", ["gradient", "lrp"])
def test_same_result_where_noise_is_redrawn(plain, kind):
    model, (x, target_map) = network("small"), batch("small")
    inner, explain = both(kind, model, x, plain, 5)
    ours = SmoothGrad(inner, 4, stdev=0.2, seed=3)
    seeds = 3, *step_seeds(3, 50)
    noise = [0.2 * SmoothGrad(inner, 4, seed=seed)._draws(x, "x")[1:] for seed in seeds]
    assert (torch.pdist(torch.stack(noise).flatten(1)) > 1).all()
    of_steps = iter(noise[1:])

    def redrawn(model: nn.Module, images: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        eps = next(of_steps) if create_graph else noise[0]
        return plain.smooth_grad(explain, eps)(model, images, classes, create_graph)

    beta = None if kind == "lrp" else (10.0, 100.0)
    settings = plain.Settings(50, 1e-3, beta, 10.0, 100.0, LOW, HIGH, 10, redrawn, None)
    iterates: list[Tensor] = []
    want = plain.manipulate(
        plain.smoothed(model), x, target_map, settings, lambda _, images: iterates.append(images.clone())
    )
    attack = Manipulation(ours, steps=50, lr=1e-3, beta=beta, bounds=CHANNELS, redraw=True)
    got, again = (attack.perturb(x, target_map) for _ in range(2))
    torch.testing.assert_close(got.images, want.images, rtol=0, atol=5e-12)
    torch.testing.assert_close(got.maps, want.maps, rtol=1e-8, atol=1e-10)
    assert (got.best_step > 0).all() and torch.equal(got.images, again.images)
    # Noise that stays is another attack, other seeds are too, and the explainer's own noise has not changed.
    assert not torch.equal(replace(attack, redraw=False).perturb(x, target_map).images, got.images)
    other = SmoothGrad(inner, 4, stdev=0.2, seed=4)
    assert not torch.equal(replace(attack, explainer=other).perturb(x, target_map).images, got.images)
    last = reduce_map(ours.attribute(iterates[-1], model(x).argmax(1)))
    torch.testing.assert_close(got.last_pcc, pcc(last, target_map), rtol=0, atol=1e-9)
