"""The presets of [M] on its networks, untrained: the loop in plain autograd step by step, a lower loss, the same class.

Widths of the heads and images are small, weights are seeded. ``pytest -s -m slow`` prints every figure.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from attacks.nets import plain_loop
from engine.nets import zoo
from torch import Tensor, nn

import fastxai
from fastxai.attacks import Manipulation, target_maps
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
    SmoothGrad,
    reduce_map,
)

STEPS = 50
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(-1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(-1, 1, 1)
LOW, HIGH = -MEAN / STD, (1 - MEAN) / STD
# By rules the reference goes down a plain sequence of layers.
RULES = ("guided_backprop", "lrp", "pattern_attribution")
MAPS = ("gradient", "input_x_gradient", "integrated_gradients", *RULES)
# A row is that of the map, of the network, or of a wrapper around the map.
CASES = [
    *((name, "gradient", "network") for name in ("alexnet", "resnet18", "vgg16", "densenet121")),
    *(("alexnet", kind, "map") for kind in MAPS),
    *(("alexnet", "gradient", wrapper) for wrapper in ("smooth_grad", "beta_smoothing")),
    *((name, "gradient", "map") for name in ("resnet18", "vgg16", "densenet121")),
    ("vgg16", "lrp", "map"),
]


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return plain_loop()


def flat(name: str) -> nn.Module:
    """AlexNet or VGG-16 as one sequence: at these sizes the average pool copies a single pixel."""
    model, _ = zoo(name)
    first, *head = (layer for layer in model.classifier if not isinstance(layer, nn.Dropout))  # type: ignore[union-attr]
    channels = [m for m in model.features if isinstance(m, nn.Conv2d)][-1].out_channels  # type: ignore[union-attr]
    summed = nn.Linear(channels, first.out_features, dtype=torch.float64)
    with torch.no_grad():
        summed.weight.copy_(first.weight.unflatten(1, (channels, -1)).sum(2))
        summed.bias.copy_(first.bias)
    return nn.Sequential(*model.features, nn.Flatten(), summed, *head).eval()  # type: ignore[arg-type]


def replaceable(model: nn.Module) -> nn.Module:
    """The model with modules alone as its ReLUs, which is all that the reference replaces; DenseNet has a function."""
    if type(model).__name__ != "DenseNet":
        return model
    return nn.Sequential(model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier).eval()  # type: ignore[arg-type]


def both(kind: str, net: fastxai.Net, plain: ModuleType) -> tuple[Explainer, Any]:
    """Return our explainer and the reference's map."""
    match kind:
        case "gradient":
            return Gradient(net), plain.gradient
        case "input_x_gradient":
            return InputXGradient(net), plain.input_x_gradient
        case "integrated_gradients":
            return IntegratedGradients(net, n_steps=3, method="riemann_right"), plain.integrated_gradients(3)
        case "guided_backprop":
            return GuidedBackprop(net), plain.guided_backprop
        case "lrp":
            low, high = (bound.flatten().tolist() for bound in (LOW, HIGH))
            return LRP(net, "zplus_zb", low=low, high=high), plain.lrp(LOW, HIGH)
    seed = torch.Generator().manual_seed(6)
    found = {
        name: 0.5 + torch.rand(p.shape, dtype=p.dtype, generator=seed)
        for name, p in net.model.named_parameters()
        if name.endswith("weight")
    }
    return PatternAttribution(net, Patterns(found)), plain.pattern_attribution(found)


def watched(attack: Manipulation, x: Tensor, target_map: Tensor) -> tuple[fastxai.attacks.AttackResult, Tensor]:
    """Run an attack; return its result and every iterate [T, N, C, H, W]."""
    moved: list[Tensor] = []
    seen: list[Tensor] = []
    explain = attack.explainer.map_and_scores

    def spied(images: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        (moved if images.requires_grad else seen).append(images.detach().clone())
        return explain(images, *args, **options)

    attack.explainer.map_and_scores = spied  # type: ignore[method-assign]
    result = attack.perturb(x, target_map)
    # The last iterate is judged, and then the result is measured.
    return result, torch.stack([*moved[1:], seen[-2]])


def first(attack: Manipulation) -> Manipulation:
    """The attack's first iterations; ``steps`` alone would let beta grow to its end in them."""
    betas = attack.betas()
    return replace(attack, steps=STEPS, beta=None if betas is None else (betas[0], betas[STEPS]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "row"), CASES)
def test_presets_follow_plain_autograd_and_lower_the_loss(plain, name, kind, row):
    model, images = zoo(name, n=1)
    if kind in RULES:
        model = flat(name)
    x = ((images - MEAN) / STD).clamp(LOW, HIGH)
    target_map = reduce_map(target_maps.random((len(x), *x.shape[2:]), 5, 2.0).double(), None)
    ours, explain = both(kind, fastxai.compile(model), plain)
    own = None
    if row == "smooth_grad":
        ours = SmoothGrad(ours, 3, stdev=0.2, seed=3)
        explain = plain.smooth_grad(explain, 0.2 * ours._draws(x, "x")[1:])
    elif row == "beta_smoothing":
        ours, own = BetaSmoothing(ours, 0.8), 0.8
    attack = first(Manipulation.preset(ours, "imagenet", name if row == "network" else None))
    smooth = plain.smoothed(replaceable(model))
    f = plain.softmax if attack.output == "softmax" else lambda scores: scores
    every = 1 if attack.beta is None and own is None else attack.judge_every
    settings = plain.Settings(STEPS, attack.lr, attack.beta, attack.c, attack.gamma, LOW, HIGH, every, explain, own, f)

    def reference(layout: torch.memory_format) -> tuple[Any, Tensor]:
        found: list[Tensor] = []
        start, network = x.contiguous(memory_format=layout), smooth.to(memory_format=layout)
        result = plain.manipulate(
            network, start, target_map, settings, lambda _, iterate: found.append(iterate.clone())
        )
        return result, torch.stack(found)

    # The engine's layout.
    want, theirs = reference(torch.channels_last)
    got, iterates = watched(attack, x, target_map)
    reach = attack.lr * STEPS
    difference = (iterates - theirs).abs().max().item() / reach
    # The bound of test_maps.py, where it is explained. Here the output term has a weight of up to 1e6, which multiplies
    # the roundings of f(g(x_adv)) - f(g(x)): the reference in its other layout is up to 5e-10 off itself.
    bound = 1e-10
    if difference > bound:
        bound = 2 * (reference(torch.contiguous_format)[1] - theirs).abs().max().item() / reach

    def loss(images: Tensor) -> Tensor:
        """Of the network at the last iteration's beta, [N]."""
        betas = attack.betas()
        plain.set_beta(smooth, own)
        output, classes = f(smooth(x)), model(x).argmax(1)
        if betas is not None:
            plain.set_beta(smooth, betas[-1])
        h, scores = plain.heatmap(smooth, images.clone().requires_grad_(), classes, False, explain)
        weight = attack.c * h[0].numel() ** 2
        return weight * (h - target_map).square().mean((1, 2)) + attack.gamma * (f(scores) - output).square().mean(1)

    before, after = loss(x).detach(), loss(iterates[-1]).detach()
    judged = [(h - target_map).square().mean((1, 2)) for h in (got.original_maps, got.maps)]
    figures = {
        "loss_before": before.tolist(),
        "loss_after": after.tolist(),
        "judged_map_mse_ratio": (judged[1] / judged[0]).tolist(),
        "best_step": got.best_step.tolist(),
        "class_kept": got.class_kept.tolist(),
        "class_of_the_last": (model(iterates[-1]).argmax(1) == model(x).argmax(1)).tolist(),
        "moved": ((iterates[-1] - x).abs().max() / attack.lr).item(),
        "largest_difference_of_reach": difference,
        "bound": bound,
    }
    print(name, kind, row, figures)
    assert (iterates[-1] - x).abs().max() > 10 * attack.lr
    assert difference < bound
    torch.testing.assert_close(got.images, want.images, rtol=0, atol=bound * reach)
    torch.testing.assert_close(got.maps, want.maps, rtol=1e-8, atol=1e-8 * want.maps.max().item())
    assert torch.equal(got.class_kept, want.kept) and bool(got.class_kept.all())
    assert bool((after < before).all()) and figures["class_of_the_last"] == [True] * len(x)
