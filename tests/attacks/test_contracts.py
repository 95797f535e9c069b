"""What every attack keeps to: balls and bounds to the last bit, no NaN in silence, rows that belong to settings."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.ascents import cnn, images
from torch import Tensor, nn

import fastxai
from fastxai import IFIA, PGD, AdversarialIFIA
from fastxai.attacks import Ball, Manipulation
from fastxai.attacks._map_ascent import _rows_alike
from fastxai.evaluation import robustness
from fastxai.explainers import BetaSmoothing, Explainer, Gradient, IntegratedGradients, SmoothGrad
from fastxai.training import PerBatch

EPS = 0.03
RANDOM = {"random_start": True, "restarts": 2, "steps": 3}


class Roots(nn.Module):
    """Scores of sqrt(x): finite at 0, where the gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.sqrt())


def attacks(net: fastxai.Net) -> list[IFIA | AdversarialIFIA | PGD | Manipulation]:
    one, bounds = Gradient(net), (-2.0, 2.0)
    return [
        IFIA(one, eps=EPS, bounds=bounds, **RANDOM),
        AdversarialIFIA(one, eps=EPS, bounds=bounds, **RANDOM),
        PGD(net, eps=EPS, bounds=bounds, **RANDOM),
        Manipulation(one, steps=3, lr=0.02, bounds=bounds, ball=Ball(EPS)),
    ]


def run(attack: IFIA | AdversarialIFIA | PGD | Manipulation, x: Tensor) -> Tensor:
    if isinstance(attack, Manipulation):
        return attack.perturb(x, torch.rand(len(x), *x.shape[2:], dtype=x.dtype)).images
    return attack.perturb(x).images


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ball_and_bounds_hold_to_the_last_bit(number: int, dtype: torch.dtype) -> None:
    attack, x = attacks(fastxai.compile(cnn().to(dtype)))[number], images(4).to(dtype).clamp(-2, 2)
    # The bounds missed by a rounding, as after (1 - mean) / std.
    x[0, 0, 0, :2] = torch.tensor([2 + 1e-6, -2 - 1e-6])
    moved = run(attack, x)
    assert bool(((moved - x.clamp(-2, 2)).abs() <= EPS).all()) and not torch.equal(moved, x)
    assert bool((moved.abs() <= 2).all())


def test_images_that_miss_the_bounds_by_a_rounding_are_returned_within_them() -> None:
    x = images(2).float().clamp(-2, 2)
    x[0, 0, 0, 0] = 2 + 1e-6
    result = IFIA(Gradient(cnn().float()), eps=EPS, steps=0, dissimilarity="top_k", k=9, bounds=(-2.0, 2.0)).perturb(x)
    assert torch.equal(result.images, x.clamp(-2, 2)) and torch.equal(result.originals, result.images)


@pytest.mark.parametrize("number", range(4))
def test_what_is_not_finite_is_refused_by_the_samples_number(number: int) -> None:
    model = cnn()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match=r"x must have finite (maps|scores), got inf or nan for samples \[0, 1, 2\]"):
        run(attacks(fastxai.compile(model))[number], images(3))
    if number == 2:
        return
    x = torch.rand(3, 1, 8, 8)
    x[1, 0, 2, 2] = 0
    net = fastxai.compile(Roots(), fallback=True)
    attack = attacks(net)[number]
    object.__setattr__(attack, "bounds", (0.0, 1.0))
    with pytest.raises(ValueError, match=r"x must have finite maps, got inf or nan for samples \[1\]"):
        run(attack, x)


def test_maps_that_are_known_must_be_finite() -> None:
    x = images(10)
    known = torch.full_like(x, math.nan)
    with pytest.raises(ValueError, match=r"original_map must be finite, got .* \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]"):
        IFIA(Gradient(cnn()), eps=EPS, bounds=(-5.0, 5.0)).perturb(x, original_map=known)


def test_maps_that_are_not_finite_are_not_robust() -> None:
    x = torch.rand(3, 1, 8, 8)
    x[1, 0, 2, 2] = 0
    net = fastxai.compile(Roots(), fallback=True)
    labels = net(x).argmax(1)
    for one in (Gradient(net), IntegratedGradients(net, n_steps=3)):
        with pytest.raises(ValueError, match=r"(x must have finite maps|gradient must be finite).* for samples \[1\]"):
            robustness(IFIA.preset(one, "mnist", k=5, steps=2), x, labels)


class Shifted(Explainer):
    """IG whose baselines are one a sample, behind a class that attacks know nothing of."""

    def __init__(self, net: fastxai.Net, baselines: Tensor) -> None:
        super().__init__(net)
        self.inner = IntegratedGradients(net, baselines, n_steps=3)

    def map_and_scores(self, x, target=None, *, net=None, parameters=True):
        return self.inner.map_and_scores(x, target, net=net, parameters=parameters)


def test_rows_of_unknown_explainers_stay_where_they_are() -> None:
    x, net = images(8), fastxai.compile(cnn())
    known, unknown = IntegratedGradients(net, x.flip(0), n_steps=3), Shifted(net, x.flip(0))
    settings = {"steps": 6, "bounds": (-9.0, 9.0), "random_start": True}
    want, got = (IFIA(one, eps=2.0, **settings).perturb(x) for one in (known, unknown))
    assert bool(want.history["dissimilarity"].isnan().any()), "a class changes"
    assert torch.equal(got.images, want.images)


def test_baselines_of_samples_with_restarts_are_a_function() -> None:
    x, net = images(4), fastxai.compile(cnn())
    one = IntegratedGradients(net, lambda rows: x.flip(0).repeat(len(rows) // 4, 1, 1, 1), n_steps=3)
    result = IFIA(one, eps=0.1, steps=3, restarts=3, bounds=(-9.0, 9.0)).perturb(x)
    alone = IntegratedGradients(net, x.flip(0), n_steps=3)
    maps = alone.attribute(result.images, net(x).argmax(1))
    torch.testing.assert_close(result.maps, fastxai.explainers.reduce_map(maps), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=r"baselines must have shape \[12, 3, 8, 8\]"):
        IFIA(alone, eps=0.1, steps=3, restarts=3, bounds=(-9.0, 9.0)).perturb(x)


def test_explainers_say_whether_rows_are_alike() -> None:
    net = fastxai.compile(cnn())
    assert Gradient(net).rows_alike and fastxai.LRP(net).rows_alike and not Shifted(net, images(1)).rows_alike
    assert not _rows_alike(type("Own", (Gradient,), {})(net)), "a subclass speaks for itself"
    counted: list[int] = []

    class Counted(Gradient):
        rows_alike = True

        def map_and_scores(self, x, target=None, *, net=None, parameters=True):
            counted.append(len(x))
            return super().map_and_scores(x, target, net=net, parameters=parameters)

    x = images(8)
    for one in (Counted(net), BetaSmoothing(Counted(net), 2.0), SmoothGrad(Counted(net), 2)):
        counted.clear()
        result = IFIA(one, eps=2.0, steps=6, bounds=(-9.0, 9.0), random_start=True).perturb(x)
        assert bool(result.history["dissimilarity"].isnan().any()) and min(counted) < 8


def test_equal_maps_are_left_by_further_restarts() -> None:
    settings = {"steps": 2, "bounds": (-9.0, 9.0), "random_start": False, "dissimilarity": "pcl"}
    with pytest.raises(ValueError, match="random_start must not be False"):
        IFIA(Gradient(cnn()), eps=0.1, **settings).perturb(images(2))
    result = IFIA(Gradient(cnn()), eps=0.1, restarts=3, **settings).perturb(images(2))
    assert bool((result.best_restart > 0).all()) and bool((result.dissimilarity > 0).all())


@pytest.mark.parametrize("number", range(4))
def test_inference_mode(number: int) -> None:
    attack = attacks(fastxai.compile(cnn()))[number]
    x = images(2).clamp(-2, 2)
    with torch.inference_mode():
        made = x.clone()
        with pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\) must be left"):
            run(attack, x)
    torch.manual_seed(0)
    want = run(attack, x)
    torch.manual_seed(0)
    assert torch.equal(run(attack, made), want)


def test_explainers_of_batches_have_no_net_outside_objectives() -> None:
    attack = IFIA(PerBatch(lambda batch: Gradient(batch.net)), eps=EPS)
    with pytest.raises(RuntimeError, match="PerBatch has no net outside an objective"):
        attack.perturb(images(2).abs())
