"""Stability of maps: against the same thing by hand, however the data is cut."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from evaluation.small import SPACE, coloured, small_net
from torch import Tensor, nn

import fastxai
from fastxai.data.noise import KINDS, noisy
from fastxai.evaluation import METHODS, explainer, stability
from fastxai.explainers import BetaSmoothing, Explainer, PatternTrainer, SmoothGrad, reduce_map
from fastxai.metrics import mse, pcc, ssim

NOISE = partial(noisy, low=SPACE.low, high=SPACE.high, seed=4)
LEVELS = (0.01, 0.2)
PERTURBATIONS = [partial(NOISE, level=level) for level in LEVELS]


def inputs(count: int) -> Tensor:
    return SPACE.enter(coloured(count))


def method(name: str) -> Explainer:
    net = fastxai.compile(small_net())
    return explainer(name, net, SPACE, patterns=PatternTrainer(net).fit([inputs(4)]))


def wavering() -> Explainer:
    """A map of a net whose class noise changes easily."""
    model = small_net()
    torch.manual_seed(0)
    nn.init.normal_(model[-1].weight, std=0.01)  # type: ignore[arg-type]
    return fastxai.Gradient(model)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_sample_by_sample(name: str, kind: str) -> None:
    one, x = method(name), inputs(5)
    found = stability(one, x, [partial(NOISE, level=level, kind=kind) for level in LEVELS], chunk=2)
    for result, level in zip(found, LEVELS, strict=True):
        for i in range(len(x)):
            image = x[i : i + 1]
            other = NOISE(image, level=level, kind=kind, index=torch.tensor([i]))
            k = int(one.net(image).argmax(1))
            h, before = (reduce_map(one.attribute(each, k)).detach() for each in (other, image))
            assert result.classes[i] == k and result.perturbed_classes[i] == one.net(other).argmax(1)[0]
            for metric, values in ((pcc, result.similarity.pcc), (ssim, result.similarity.ssim)):
                torch.testing.assert_close(values[i], metric(h, before)[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(result.similarity.mse[i], mse(h, before)[0], rtol=1e-3, atol=1e-12)


def test_both_maps_explain_the_class_at_x() -> None:
    one, x = wavering(), inputs(30)
    [found] = stability(one, x, [partial(NOISE, level=0.5)])
    changed = found.changed
    assert 0 < changed.sum() < 30
    other = NOISE(x, level=0.5, index=torch.arange(30))
    classes = one.net(x).argmax(1)
    assert torch.equal(changed, one.net(other).argmax(1) != classes)
    h = reduce_map(one.attribute(x, classes)).detach()
    same, own = (reduce_map(one.attribute(other, k)).detach() for k in (classes, one.net(other).argmax(1)))
    torch.testing.assert_close(found.similarity.pcc, pcc(same, h), rtol=0, atol=1e-5)
    assert not torch.allclose(found.similarity.pcc[changed], pcc(own, h)[changed], atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    one, x = method("gradient"), inputs(7)
    expected = stability(one, x, PERTURBATIONS)
    done: list[int] = []
    found = stability(one, x, PERTURBATIONS, chunk=chunk, progress=done.append)
    assert sum(done) == 7 and max(done) <= chunk and len(done) == -(-7 // chunk)
    halves = [
        stability(one, x[rows], PERTURBATIONS, index=torch.arange(7)[rows]) for rows in (slice(2), slice(2, None))
    ]
    for i, one_level in enumerate(expected):
        for name in ("pcc", "ssim", "mse"):
            value = getattr(one_level.similarity, name)
            torch.testing.assert_close(getattr(found[i].similarity, name), value, rtol=1e-4, atol=1e-9)
            joined = torch.cat([getattr(half[i].similarity, name) for half in halves])
            torch.testing.assert_close(joined, value, rtol=1e-4, atol=1e-9)
        assert torch.equal(found[i].perturbed_classes, one_level.perturbed_classes)


def test_the_maps_at_x_are_made_once() -> None:
    seen: list[int] = []

    class Counted(fastxai.Gradient):
        def map_and_scores(self, x: Tensor, *arguments: object, **more: object) -> tuple[Tensor, Tensor]:
            seen.append(len(x))
            return super().map_and_scores(x, *arguments, **more)  # type: ignore[arg-type]

    stability(Counted(small_net()), inputs(5), [*PERTURBATIONS, *PERTURBATIONS], chunk=3)
    assert seen == [3] * 5 + [2] * 5


def test_smoother_maps_are_more_stable() -> None:
    plain, x = method("gradient"), inputs(12)
    smooth = [BetaSmoothing(plain, 1.0), SmoothGrad(plain, 20, stdev=0.2 * SPACE.span)]
    [base] = stability(plain, x, PERTURBATIONS[1:])
    for one in smooth:
        [found] = stability(one, x, PERTURBATIONS[1:])
        assert found.similarity.pcc.mean() > base.similarity.pcc.mean()
        # The class is that of the model as given, not of its smoothed view.
        assert torch.equal(found.classes, base.classes) and torch.equal(found.changed, base.changed)


def test_no_noise_changes_nothing() -> None:
    [found] = stability(method("gradient"), inputs(3), [partial(NOISE, level=0.0)])
    assert torch.equal(found.similarity.mse, torch.zeros(3)) and not found.changed.any()
    torch.testing.assert_close(found.similarity.pcc, torch.ones(3))
    torch.testing.assert_close(found.similarity.ssim, torch.ones(3))


def test_any_perturbation() -> None:
    [found] = stability(method("gradient"), inputs(4), [lambda x, *, index: x.flip(3)])
    assert found.similarity.pcc.shape == (4,)


def test_empty_and_none() -> None:
    one = method("gradient")
    found = stability(one, inputs(3)[:0], PERTURBATIONS)
    assert [result.similarity.pcc.shape for result in found] == [(0,)] * 2
    assert found[0].changed.shape == (0,)
    assert stability(one, inputs(3), []) == []


def test_errors() -> None:
    one, x = method("gradient"), inputs(2)
    with pytest.raises(TypeError, match="explainer must be a fastxai explainer, got Linear"):
        stability(nn.Linear(2, 2), x, PERTURBATIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have shape \[N, C, H, W\]"):
        stability(one, x[0], PERTURBATIONS)
    with pytest.raises(ValueError, match="chunk must be an int of at least 1, got 0"):
        stability(one, x, PERTURBATIONS, chunk=0)
    with pytest.raises(ValueError, match=r"index must have shape \[2\]"):
        stability(one, x, PERTURBATIONS, index=torch.arange(3))
    with pytest.raises(ValueError, match=r"perturbation\(x\) must have shape \[2, 3, 8, 8\]"):
        stability(one, x, [lambda x, *, index: x[..., 1:]])
