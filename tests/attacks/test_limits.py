"""Balls, early stopping and restarts: exact, per sample, and blind to how a batch is split."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attacks.nets import CHANNELS, cnn, pairs
from torch import Tensor

import fastxai
from fastxai.attacks import Ball, Manipulation, Restarts
from fastxai.explainers import BetaSmoothing, Gradient, SmoothGrad, reduce_map
from fastxai.metrics import pcc

LOW, HIGH = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)


class Recorder(Gradient):
    """Counts the rows of every call and keeps the iterates of the smoothed net."""

    def __init__(self, net: fastxai.Net) -> None:
        super().__init__(net)
        self.rows: list[int] = []
        self.images: list[Tensor] = []

    def map_and_scores(self, x, target=None, *, net=None, parameters=True):
        if net is not self.net:
            self.rows.append(len(x))
            self.images.append(x.detach().clone())
        return super().map_and_scores(x, target, net=net, parameters=parameters)


def attack(**changes) -> Manipulation:
    settings = {"steps": 12, "lr": 0.05, "bounds": CHANNELS, "judge_every": 3} | changes
    return Manipulation(Recorder(fastxai.compile(cnn())), **settings)


def length(x: Tensor, norm: str) -> Tensor:
    return x.flatten(1).norm(dim=1) if norm == "l2" else x.flatten(1).abs().amax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_every_iterate_lies_in_the_ball_and_the_bounds(norm, optimizer):
    x, target_map = pairs()
    x = (x * 3).clamp(LOW, HIGH)
    eps = {"linf": 0.07, "l2": 0.5}[norm]
    one = attack(ball=Ball(eps, norm), optimizer=optimizer, lr=0.05 if optimizer == "adam" else 0.1)
    result = one.perturb(x, target_map)
    for images in (*one.explainer.images, result.images):
        assert bool((length(images - x, norm) <= eps * (1 + 1e-12)).all())
        assert bool(((images >= LOW) & (images <= HIGH)).all())
    reached = length(one.explainer.images[-1] - x, norm)
    assert bool((reached > 0.5 * eps).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_nearest_point_then_clamped(norm):
    """Against bisection along the segment for l2 and per element for linf."""
    origin = torch.rand(4, 3, 8, 8, dtype=torch.float64) - 0.5
    x = origin + torch.randn(4, 3, 8, 8, dtype=torch.float64) * torch.tensor([0.001, 0.1, 1, 10]).view(4, 1, 1, 1)
    low, high = LOW.flatten(), HIGH.flatten()
    got = Ball(0.3, norm).project(x, origin, (low - torch.inf, high + torch.inf))
    moved = x - origin
    if norm == "l2":
        want = origin + moved * (0.3 / length(moved, norm)).clamp(max=1).view(4, 1, 1, 1)
    else:
        want = torch.maximum(torch.minimum(x, origin + 0.3), origin - 0.3)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-15)
    clamped = Ball(0.3, norm).project(x, origin, (low * 0.1, high * 0.1))
    torch.testing.assert_close(clamped, want.clamp(LOW * 0.1, HIGH * 0.1), rtol=1e-14, atol=1e-15)


def test_a_large_ball_changes_nothing():
    x, target_map = pairs()
    free, held = (attack(ball=ball).perturb(x, target_map) for ball in (None, Ball(100.0)))
    torch.testing.assert_close(held.images, free.images, rtol=0, atol=1e-14)


def test_stop_freezes_each_sample_at_the_first_judged_iterate_that_meets_it():
    x, target_map = pairs(6)
    one = attack(steps=30, lr=0.01)
    one.perturb(x, target_map)
    net, classes = fastxai.compile(cnn()), cnn()(x).argmax(1)
    judged = list(range(3, 30, 3))
    alike, held = [], []
    for step in judged:
        images = one.explainer.images[step]
        alike.append(pcc(reduce_map(net.gradient(images, classes)), target_map))
        held.append(net(images).argmax(1) == classes)
    alike, held = torch.stack(alike), torch.stack(held)
    level = alike.amax(0).median().item() * 0.9
    meets = held & (alike >= level)
    first = torch.where(meets.any(0), torch.tensor(judged)[meets.int().argmax(0)], 0)
    assert 0 < int(meets.any(0).sum()) < 6

    stopped = attack(steps=30, lr=0.01, stop=level)
    result = stopped.perturb(x, target_map)
    done = meets.any(0)
    assert torch.equal(result.best_step[done], first[done])
    for i in done.nonzero()[:, 0].tolist():
        torch.testing.assert_close(result.images[i], one.explainer.images[first[i]][i], rtol=0, atol=1e-12)
        assert not result.history["map"][: first[i], i].isnan().any()
        assert result.history["map"][first[i] :, i].isnan().all()
    assert not result.history["map"][:, ~done].isnan().any()
    left = [6 - int((done & (first <= step)).sum()) for step in range(30)]
    assert stopped.explainer.rows == left


def test_an_attack_ends_when_every_sample_has_stopped():
    x, target_map = pairs()
    one = attack(steps=500, stop=-1.0)
    result = one.perturb(x, target_map)
    # Every original meets the level: it is returned, and the batch is empty at the first judgement.
    assert torch.equal(result.images, x) and not result.best_step.any()
    assert result.history["map"].shape == (2, 3) and not result.interrupted


def test_smooth_nets_stop_too():
    x, target_map = pairs(4)
    model = cnn(torch.nn.Softplus(5.0, threshold=200))
    settings = {"steps": 24, "lr": 0.02, "beta": None, "bounds": CHANNELS, "judge_every": 6}
    whole = Manipulation(Gradient(model), **settings).perturb(x, target_map)
    level = whole.metrics.to_target.pcc.median().item()
    result = Manipulation(Gradient(model), **settings, stop=level).perturb(x, target_map)
    met = result.metrics.to_target.pcc >= level
    assert 0 < int(met.sum()) < 4 and bool((result.best_step <= whole.best_step).all())
    # A sample that is done stays as it was, also before it leaves the batch.
    with_all = Manipulation(Gradient(model), **(settings | {"judge_every": 1}), stop=level).perturb(x, target_map)
    assert torch.equal(result.best_step, with_all.best_step)
    torch.testing.assert_close(result.images, with_all.images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_start_in_the_ball_and_differ(norm):
    x, target_map = pairs()
    eps = {"linf": 0.2, "l2": 2.0}[norm]
    one = attack(ball=Ball(eps, norm), restarts=Restarts(4))
    one.perturb(x, target_map)
    starts = one.explainer.images[0].view(4, 3, *x.shape[1:])
    assert torch.equal(starts[0], x)
    moved = (starts[1:] - x).flatten(0, 1)
    assert bool((length(moved, norm) <= eps * (1 + 1e-12)).all()) and bool((length(moved, norm) > 0.8 * eps).all())
    assert len({tuple(m.flatten()[:3].tolist()) for m in moved}) == 9


def test_restarts_never_hurt_and_report_where_they_came_from():
    x, target_map = pairs(5)
    alone = attack(steps=9).perturb(x, target_map)
    result = attack(steps=9, restarts=Restarts(5, sigma=0.2, seed=3)).perturb(x, target_map)

    def term(r: fastxai.attacks.AttackResult) -> Tensor:
        return r.metrics.to_target.mse

    assert bool((term(result) <= term(alone) * (1 + 1e-9)).all()) and bool((term(result) < term(alone)).any())
    first = result.best_restart == 0
    torch.testing.assert_close(result.images[first], alone.images[first], rtol=0, atol=1e-12)
    assert not bool(first.all()) and bool(result.class_kept.all())
    torch.testing.assert_close(result.history["map"][:, first], alone.history["map"][:, first])
    assert result.history["map"].shape == (9, 5)


def test_restarts_do_not_depend_on_the_batch():
    x, target_map = pairs(4)
    one = attack(restarts=Restarts(3, sigma=0.1), stop=0.3)
    together = one.perturb(x, target_map, index=torch.tensor([7, 1, 30, 2]))
    parts = [
        one.perturb(x[:1], target_map[:1], index=torch.tensor([7])),
        one.perturb(x[1:], target_map[1:], index=torch.tensor([1, 30, 2])),
    ]
    torch.testing.assert_close(torch.cat([p.images for p in parts]), together.images, rtol=0, atol=1e-10)
    assert torch.equal(torch.cat([p.best_restart for p in parts]), together.best_restart)
    assert torch.equal(torch.cat([p.best_step for p in parts]), together.best_step)


def test_a_sample_leaves_with_all_its_restarts():
    x, target_map = pairs(3)
    one = attack(steps=30, lr=0.01, restarts=Restarts(3, sigma=0.05), stop=0.2)
    result = one.perturb(x, target_map)
    met = result.metrics.to_target.pcc >= 0.2
    assert bool(met.any())
    assert all(rows % 3 == 0 for rows in one.explainer.rows)
    assert one.explainer.rows[-1] == 3 * int((~met).sum()) or bool(met.all())


def test_a_smoothed_view_keeps_its_beta():
    x, target_map = pairs()
    net = fastxai.compile(cnn())
    explainer = BetaSmoothing(Gradient(net), 0.8)
    given, none = (
        Manipulation(explainer, steps=6, lr=0.02, bounds=CHANNELS, beta=beta).perturb(x, target_map)
        for beta in ((10.0, 100.0), None)
    )
    assert torch.equal(given.images, none.images)
    # The output term compares the smoothed net with itself: at the original it is zero.
    assert bool((given.history["output"][0] == 0).all()) and bool((given.history["output"][-1] > 0).all())
    smooth = SmoothGrad(explainer, 3, stdev=0.1)
    result = Manipulation(smooth, steps=6, lr=0.02, bounds=CHANNELS).perturb(x, target_map)
    torch.testing.assert_close(result.maps, reduce_map(smooth.attribute(result.images, cnn()(x).argmax(1))).detach())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"ball": 0.1}, TypeError, "ball must be a Ball or None, got float"),
        ({"restarts": 3}, TypeError, "restarts must be a Restarts or None, got int"),
        ({"stop": 1.5}, ValueError, r"stop must be a correlation, -1 \.\. 1, got 1.5"),
        ({"restarts": Restarts(2)}, ValueError, "restarts must have a sigma where the attack has no ball"),
    ],
)
def test_setting_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        dataclasses.replace(attack(), **change)


def test_group_errors():
    for make, message in (
        (lambda: Ball(0.0), "eps must be finite and positive"),
        (lambda: Ball(1.0, "l1"), "norm must be one of 'linf', 'l2'"),
        (lambda: Restarts(0), "count must be a positive int, got 0"),
        (lambda: Restarts(2, sigma=-1.0), "sigma must be finite and positive"),
        (lambda: Restarts(2, seed=0.5), "seed must be an int, got 0.5"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            make()
    x, target_map = pairs()
    with pytest.raises(ValueError, match=r"index must have shape \[3\], got \[2\]"):
        attack().perturb(x, target_map, index=torch.arange(2))
    with pytest.raises(TypeError, match=r"index must be a torch.Tensor, got list"):
        attack().perturb(x, target_map, index=[0, 1, 2])  # type: ignore[arg-type]
