"""IFIA and its adversarial form: [F]'s algorithms step by step, the class, the ball, and blindness to the batch."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from attacks.nets import CHANNELS, REPOSITORY, load
from attacks.nets import cnn as other_cnn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastxai
from fastxai import IFIA, AdversarialIFIA
from fastxai.attacks import Ball, _map_ascent, dissimilarities
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
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

LOW, HIGH = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)


class Recorder(Gradient):
    """Keeps the inputs of every call; the first are the originals."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.net)
        self.inner, self.images = inner, []

    def map_and_scores(self, x, target=None, *, net=None, parameters=True):
        self.images.append(x.detach().clone())
        return self.inner.map_and_scores(x, target, net=net, parameters=parameters)


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return load(REPOSITORY / "bench" / "references" / "ifia.py")


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def cnn() -> nn.Module:
    """The network with scores whose mean over images is 0, so that classes are close to each other."""
    model = other_cnn()
    with torch.no_grad():
        model[-1].bias -= model(images(64)).mean(0)  # type: ignore[index]
    return model


def explainer(kind: str = "gradient", model: nn.Module | None = None) -> Recorder:
    net = fastxai.compile(model or cnn())
    return Recorder(Gradient(net) if kind == "gradient" else IntegratedGradients(net, n_steps=4, method="midpoint"))


def attack(kind: str = "gradient", **changes: Any) -> IFIA:
    # At this radius some samples change their class on the way and others do not.
    changes = {"eps": 0.3, "steps": 6, "beta": 2.0, "k": 20, "bounds": CHANNELS} | changes
    return IFIA(explainer(kind), **changes)


def reference(plain: ModuleType, one: Any, kind: str) -> Any:
    d = {"top_k": plain.top_k(one.k)}.get(one.dissimilarity) or getattr(plain, one.dissimilarity)
    explain = plain.gradient if kind == "gradient" else plain.integrated_gradients(4)
    return plain.Settings(one.eps, one.step_size, one.steps, one.norm, explain, d, LOW, HIGH)


def length(x: Tensor, norm: str) -> Tensor:
    return x.flatten(1).norm(dim=1) if norm == "l2" else x.flatten(1).abs().amax(1)


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


@pytest.mark.parametrize("make", [attack, lambda **changes: adversarial(**changes)])
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


def adversarial(**changes: Any) -> AdversarialIFIA:
    changes = {"eps": 0.3, "steps": 6, "beta": 2.0, "k": 20, "bounds": CHANNELS, "lambda_": 0.5} | changes
    return AdversarialIFIA(explainer(), **changes)


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
        ({"explainer": cnn()}, TypeError, "explainer must be a fastxai explainer, got Sequential"),
    ],
)
def test_setting_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        dataclasses.replace(attack(), **change)


def test_argument_errors():
    x = images(3)
    cases = [
        ({}, (x[0, 0, 0],), {}, ValueError, r"x must have shape \[N, C, \.\.\.\]"),
        ({}, (x.long(),), {}, TypeError, "x must have a floating point dtype"),
        ({}, (x * 5,), {}, ValueError, "x must lie within the bounds"),
        ({"bounds": ([0.0] * 2, [1.0] * 2)}, (x,), {}, ValueError, "bounds must be numbers or 3 values"),
        ({}, (x, 5), {}, ValueError, r"y must lie in 0 \.\. 4, got 5 \.\. 5"),
        ({}, (x, torch.rand(3)), {}, TypeError, "y must hold integers"),
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
    with pytest.raises(ValueError, match="lambda_ must be finite, zero or positive"):
        adversarial(lambda_=-1.0)
    with pytest.raises(ValueError, match="data must be one of 'mnist'"):
        IFIA.preset(Gradient(cnn()), "svhn")
    with pytest.raises(ValueError, match="kind must be one of 'top_k'"):
        IFIA.ghorbani(Gradient(cnn()), "centre")
