"""IFIA and its adversarial form: [F]'s algorithms step by step, the class, the ball, and blindness to the batch."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from attacks.ascents import HIGH, LOW, adversarial, attack, cnn, explainer, images, length
from attacks.nets import CHANNELS, REPOSITORY, load
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastxai
from fastxai import IFIA, AdversarialIFIA
from fastxai.attacks import _map_ascent, dissimilarities
from fastxai.explainers import BetaSmoothing, Gradient, reduce_map


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return load(REPOSITORY / "bench" / "references" / "ifia.py")


def reference(plain: ModuleType, one: Any, kind: str) -> Any:
    d = {"top_k": plain.top_k(one.k)}.get(one.dissimilarity) or getattr(plain, one.dissimilarity)
    explain = plain.gradient if kind == "gradient" else plain.integrated_gradients(4)
    return plain.Settings(one.eps, one.step_size, one.steps, one.norm, explain, d, LOW, HIGH)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("kind", "d"), [("gradient", "pcl"), ("gradient", "top_k"), ("gradient", "mass_centre"), ("ig", "l1")]
)
def test_algorithm_1_step_by_step(plain, monkeypatch, norm, kind, d):
    # Frozen rows stay in the batch, so that every iterate is recorded.
    monkeypatch.setattr(_map_ascent, "_rows_alike", lambda explainer: False)
    x = images()
    one = attack(kind, dissimilarity=d, norm=norm, eps=0.2 if norm == "linf" else 2.0, restarts=2, random_start=True)
    result = one.perturb(x)
    model, classes, shaped = plain.bent(cnn(), 2.0), cnn()(x).argmax(1).tolist(), reference(plain, one, kind)
    ours = torch.stack(one.explainer.images[1:]).unflatten(1, (2, 5))  # [steps + 1, restarts, N, ...]
    flips = 0
    for n in range(5):
        best = 0.0, x[n : n + 1], 0, 0
        for r in range(2):
            iterates, values = plain.ifia(model, x[n : n + 1], ours[0, r, n : n + 1], classes[n], shaped)
            for t, (iterate, value) in enumerate(zip(iterates, values, strict=True)):
                torch.testing.assert_close(ours[t, r, n : n + 1], iterate, rtol=0, atol=1e-11)
                if model(iterate).argmax() == classes[n] and value > best[0]:
                    best = value, iterate, t, r
            # A sample stays where its class changed.
            changed = model(iterates[-1]).argmax() != classes[n]
            assert changed or len(iterates) == 7
            flips += int(changed)
            assert bool((ours[len(iterates) :, r, n] == ours[len(iterates) - 1, r, n]).all())
        value, iterate, t, r = best
        torch.testing.assert_close(result.images[n : n + 1], iterate, rtol=0, atol=1e-11)
        assert result.dissimilarity[n].item() == pytest.approx(value, abs=1e-10)
        assert (result.best_step[n], result.best_restart[n]) == (t, r)
    assert 0 < flips < 10


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("kind", "d", "weight"), [("gradient", "pcl", 0.7), ("ig", "cosine", 2.0), ("ig", "pcl", 0.0)])
def test_algorithm_2_step_by_step(plain, norm, kind, d, weight):
    x, y = images(), torch.tensor([0, 1, 2, 3, 4])
    one = AdversarialIFIA(
        explainer(kind), eps=0.2, steps=5, beta=2.0, dissimilarity=d, norm=norm, lambda_=weight, bounds=CHANNELS
    )
    one = dataclasses.replace(one, random_start=bool(weight))
    result = one.perturb(x, y)
    model, shaped = plain.bent(cnn(), 2.0), reference(plain, one, kind)
    ours = torch.stack(one.explainer.images[1:])
    for n in range(5):
        iterates, values = plain.adversarial_ifia(model, x[n : n + 1], ours[0, n : n + 1], y[n].item(), shaped, weight)
        torch.testing.assert_close(ours[:, n], torch.cat(iterates), rtol=0, atol=1e-11)
        best = max(range(6), key=values.__getitem__)
        assert result.best_step[n] == best
        torch.testing.assert_close(result.images[n : n + 1], iterates[best], rtol=0, atol=1e-11)
        got = result.terms["loss"][n] + weight * result.terms["dissimilarity"][n]
        assert got.item() == pytest.approx(values[best], abs=1e-10)
        together = result.history["loss"][:, n] + weight * result.history["dissimilarity"][:, n]
        torch.testing.assert_close(together, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [attack, adversarial])
@pytest.mark.parametrize("changes", [{}, {"norm": "l2", "eps": 2.0, "dissimilarity": "top_k", "random_start": "signs"}])
def test_a_batch_is_its_samples(make, changes):
    x, index = images(), torch.tensor([7, 1, 30, 2, 9])
    one = make(restarts=3, **changes)
    together = one.perturb(x, index=index)
    parts = [one.perturb(x[n : n + 1], index=index[n : n + 1]) for n in range(5)]
    for name in ("images", "maps", "best_step", "best_restart", "class_kept"):
        got = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(got, getattr(together, name), rtol=0, atol=1e-12)
    for name, values in together.history.items():
        got = torch.cat([part.history[name] for part in parts], 1)
        torch.testing.assert_close(got, values, rtol=0, atol=1e-11, equal_nan=True)
    assert len(set(together.best_restart.tolist())) > 1
    other = make(restarts=3, seed=(0, 1), **changes).perturb(x, index=index)
    assert not torch.equal(other.images, together.images)


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    d=st.sampled_from(["pcl", "l2", "top_k", "ssim"]),
    eps=st.floats(0.01, 5),
    step=st.floats(0.05, 3),
    start=st.sampled_from([None, True, "signs"]),
    seed=st.integers(-(2**63), 2**63),
    scale=st.floats(0.1, 3),
)
def test_every_iterate_lies_in_the_ball_and_the_bounds(norm, d, eps, step, start, seed, scale):
    x = (images(3) * scale).clamp(LOW, HIGH)
    settings_ = {"norm": norm, "dissimilarity": d, "eps": eps, "rel_stepsize": step, "random_start": start}
    one = attack(steps=3, restarts=2, seed=seed, freeze=False, **settings_)
    result = one.perturb(x)
    for iterates in (*one.explainer.images[1:], result.images.repeat(2, 1, 1, 1)):
        assert bool((length(iterates - x.repeat(2, 1, 1, 1), norm) <= eps * (1 + 1e-12)).all())
        assert bool(((iterates >= LOW) & (iterates <= HIGH)).all())
    assert bool(result.class_kept.all()) and torch.equal(cnn()(result.images).argmax(1), cnn()(x).argmax(1))
    # The original has 0, but for roundings.
    assert bool((result.dissimilarity >= -1e-15).all())


@pytest.mark.parametrize("changes", [{}, {"norm": "l2", "eps": 2.0, "restarts": 3}, {"steps": 0, "eps": 1.0}])
def test_what_stops_leaves_the_batch_and_nothing_else_changes(monkeypatch, changes):
    x = images(8)
    dropped = attack(dissimilarity="top_k", random_start=True, **changes)
    result = dropped.perturb(x)
    monkeypatch.setattr(_map_ascent, "_rows_alike", lambda explainer: False)
    frozen = attack(dissimilarity="top_k", random_start=True, **changes)
    want = frozen.perturb(x)
    torch.testing.assert_close(result.images, want.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.history["dissimilarity"], want.history["dissimilarity"], equal_nan=True)
    assert torch.equal(result.best_step, want.best_step) and torch.equal(result.best_restart, want.best_restart)
    whole = [len(i) for i in frozen.explainer.images[1:]]
    left = [len(i) for i in dropped.explainer.images[1:]]
    assert whole == [8 * frozen.restarts] * (frozen.steps + 1)
    assert left == sorted(left, reverse=True) and (frozen.steps == 0 or left[-1] < whole[-1])


def test_an_attack_ends_when_every_sample_has_stopped():
    x = images(8)
    one = attack(dissimilarity="top_k", eps=4.0, alpha=4.0, steps=50)
    result = one.perturb(x[3:4])
    assert len(one.explainer.images) < 10 and bool(result.class_kept.all())
    assert result.history["dissimilarity"].shape == (51, 1) and bool(result.history["dissimilarity"][-1].isnan().all())


def test_a_sample_whose_class_changed_is_never_returned(monkeypatch):
    monkeypatch.setattr(_map_ascent, "_rows_alike", lambda explainer: False)
    x = images(8)
    stops, goes_on = attack(dissimilarity="top_k"), attack(dissimilarity="top_k", freeze=False)
    result, free = stops.perturb(x), goes_on.perturb(x)
    classes = cnn()(x).argmax(1)
    kept = torch.stack([cnn()(iterate).argmax(1) == classes for iterate in stops.explainer.images[1:]])
    first = torch.where(kept.all(0), 7, (~kept).int().argmax(0))
    assert bool((first < 7).any()) and bool((first == 7).any())
    # The value of the iterate that changed the class is the last one of the history.
    steps = torch.arange(7)[:, None]
    assert torch.equal(result.history["dissimilarity"].isnan(), steps > first)
    assert not free.history["dissimilarity"].isnan().any()
    for one, got in ((stops, result), (goes_on, free)):
        held = torch.stack([cnn()(iterate).argmax(1) == classes for iterate in one.explainer.images[1:]])
        values = torch.where(held, got.history["dissimilarity"], 0).nan_to_num()
        torch.testing.assert_close(got.dissimilarity, values.amax(0), rtol=0, atol=0)
        assert bool(got.class_kept.all())
    assert bool((free.dissimilarity >= result.dissimilarity).all())


def test_results_are_those_of_the_model_as_given():
    x = images()
    one = attack("ig", dissimilarity="pcl")
    result = one.perturb(x)
    classes = cnn()(x).argmax(1)
    h, h_0 = (one.explainer.inner.attribute(i, classes).detach() for i in (result.images, x))
    torch.testing.assert_close(result.dissimilarity, dissimilarities.pcl(h, h_0))
    torch.testing.assert_close(result.maps, reduce_map(h))
    torch.testing.assert_close(result.original_maps, reduce_map(h_0))
    assert result.target_maps is result.original_maps
    scores = cnn()(result.images)
    torch.testing.assert_close(result.output_change.logits, (scores - cnn()(x)).norm(dim=1).detach())
    torch.testing.assert_close(result.metrics.to_original.pcc, fastxai.metrics.pcc(result.maps, result.original_maps))
    assert result.metrics.image.ssim.shape == (5,) and result.metrics is result.metrics


def test_the_label_is_explained_and_the_prediction_must_hold():
    x = images()
    classes = cnn()(x).argmax(1)
    y = (classes + 1) % 5
    one = attack(dissimilarity="top_k")
    result = one.perturb(x, y)
    torch.testing.assert_close(result.original_maps, reduce_map(one.explainer.attribute(x, y)).detach())
    assert torch.equal(cnn()(result.images).argmax(1), classes) and bool((result.dissimilarity > 0).any())
    assert torch.equal(attack().perturb(x, 2).images, attack().perturb(x, torch.full((5,), 2)).images)
    assert torch.equal(attack().perturb(x).images, attack().perturb(x, classes).images)


def test_target_maps_repel(plain, monkeypatch):
    monkeypatch.setattr(_map_ascent, "_rows_alike", lambda explainer: False)
    x, goal = images(), torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = attack(dissimilarity="pcl")
    result = one.perturb(x, target_map=goal)
    shaped = reference(plain, one, "gradient")
    model, classes = plain.bent(cnn(), 2.0), cnn()(x).argmax(1).tolist()
    assert torch.equal(one.explainer.images[1], x)
    for n in range(5):
        iterates, values = plain.ifia(model, x[n : n + 1], x[n : n + 1], classes[n], shaped, goal[n : n + 1])
        for t, iterate in enumerate(iterates):
            torch.testing.assert_close(one.explainer.images[1 + t][n : n + 1], iterate, rtol=0, atol=1e-11)
        assert values[0] == pytest.approx(result.history["dissimilarity"][0, n].item())
    torch.testing.assert_close(result.target_maps, reduce_map(goal))
    # With the channels summed it means the same wherever those are compared.
    for d in ("pcl", "top_k"):
        bare, full = (attack(dissimilarity=d, reduce="abs_sum").perturb(x, target_map=g) for g in (goal.sum(1), goal))
        torch.testing.assert_close(bare.images, full.images, rtol=0, atol=1e-12)
        torch.testing.assert_close(bare.target_maps, full.target_maps)
    given_bare = attack(dissimilarity="pcl").perturb(x, target_map=goal.sum(1))
    torch.testing.assert_close(given_bare.images, attack(reduce="abs_sum").perturb(x, target_map=goal).images)


def test_beta_bends_relu_and_nothing_else():
    x = images()
    runs = [attack(beta=beta, dissimilarity="top_k") for beta in (0.5, 50.0)]
    one, other = (run.perturb(x) for run in runs)
    torch.testing.assert_close(one.original_maps, other.original_maps)
    torch.testing.assert_close(one.history["dissimilarity"][0], other.history["dissimilarity"][0])
    assert not torch.equal(one.images, other.images)
    # A view of the user's own stays.
    surrogate = fastxai.compile(cnn(), surrogate="curvature", beta=0.5)
    given = IFIA(Gradient(surrogate), eps=0.3, steps=6, beta=50.0, k=20, bounds=CHANNELS, dissimilarity="top_k")
    assert torch.equal(given.perturb(x).images, one.images)


def test_smoothed_maps_are_judged_by_the_class_of_the_model_as_given():
    x, y = images(8), torch.arange(8) % 5
    smooth = BetaSmoothing(Gradient(cnn()), 1.0)
    changes = {"eps": 0.3, "steps": 6, "k": 20, "bounds": CHANNELS, "dissimilarity": "top_k"}
    result = IFIA(smooth, **changes).perturb(x)
    classes = cnn()(x).argmax(1)
    assert torch.equal(cnn()(result.images).argmax(1), classes) and bool((result.dissimilarity > 0).any())
    torch.testing.assert_close(result.maps, reduce_map(smooth.attribute(result.images, classes)).detach())
    both = AdversarialIFIA(smooth, **changes, lambda_=0.5).perturb(x, y)
    loss = nn.functional.cross_entropy(cnn()(both.images), y, reduction="none").detach()
    torch.testing.assert_close(both.terms["loss"], loss)
    # With no weight on the map, whichever net gives it does not matter.
    plain_net, smoothed = (AdversarialIFIA(e, **changes, lambda_=0.0).perturb(x, y) for e in (smooth.explainer, smooth))
    torch.testing.assert_close(plain_net.images, smoothed.images, rtol=0, atol=1e-12)
