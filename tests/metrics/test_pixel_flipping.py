"""Pixel flipping against a loop over samples, fractions and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxai
from fastxai.metrics import pixel_flipping as flip


def images_of(n=5, c=3, height=6, width=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, height, width, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(n, height, width, generator=generator, dtype=torch.float64).to(dtype)


class Linear:
    """Scores of a linear network, and a count of what it was asked."""

    def __init__(self, x, classes=4):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(x[0].numel(), classes, generator=generator, dtype=torch.float64).to(x.dtype)
        self.calls = []

    def __call__(self, x):
        self.calls.append(len(x))
        return x.flatten(1) @ self.weight


def by_hand(score, x, h, target, fractions, value):
    """(scores, logits, correct), [N, F] each, one pixel at a time."""
    n, _, height, width = x.shape
    rows = []
    for i in range(n):
        order = np.argsort(-h[i].flatten().numpy(), kind="stable")
        for fraction in fractions:
            image = x[i].clone()
            for pixel in order[: int(fraction * height * width + 0.5)]:
                image[:, pixel // width, pixel % width] = torch.as_tensor(value, dtype=x.dtype)
            logits = score(image[None])[0]
            k = int(target[i])
            rows.append((logits.softmax(0)[k], logits[k], logits.argmax() == k))
    return [
        torch.tensor(column).view(n, len(fractions)).to(t)
        for column, t in zip(zip(*rows, strict=True), TYPES, strict=True)
    ]


TYPES = (torch.float64, torch.float64, torch.bool)


def same(curve, expected):
    for got, want in zip((curve.scores, curve.logits, curve.correct), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, [0.5, -1.0, 2.0], torch.tensor([0.5, -1.0, 2.0])])
@pytest.mark.parametrize("target", [None, 2, torch.tensor([3, 0, 0, 1, 2])])
def test_it_equals_the_loop(target, value):
    x, h = images_of()
    score, fractions = Linear(x), [0.0, 0.03, 0.5, 0.31, 1.0]
    result = flip(score, x, h, target, fractions=fractions, value=value)
    k = score(x).argmax(1) if target is None else torch.as_tensor(target).expand(5)
    same(result.relevant, by_hand(score, x, h, k, fractions, value))
    torch.testing.assert_close(result.relevant.area, result.relevant.scores.mean(1))
    assert result.fractions.tolist() == [0, 1 / 42, 0.5, 13 / 42, 1]
    assert result.relevant.scores.dtype == x.dtype and result.relevant.correct.dtype == torch.bool
    # nothing and everything flipped: there the order cannot matter
    for end in (0, -1):
        torch.testing.assert_close(result.random.logits[:, end], result.relevant.logits[:, end])
    assert not torch.allclose(result.random.logits, result.relevant.logits)


def test_ties_go_to_the_lowest_index_and_the_sign_turns_the_order():
    x, h = images_of()
    score, coarse = Linear(x), (2 * h).round()
    for sign in (1, -1):
        result = flip(score, x, sign * coarse, 1, fractions=6)
        same(result.relevant, by_hand(score, x, sign * coarse, [1] * 5, [i / 6 for i in range(7)], 0.0))


def test_the_right_map_beats_chance_and_its_opposite_loses():
    x, _ = images_of(40)
    score = Linear(x)
    k = score(x).argmax(1)
    h = (x * score.weight.T[k].view_as(x)).sum(1)
    result, opposite = flip(score, x, h, k), flip(score, x, -h, k)
    assert result.fractions.shape == (21,)
    assert (result.relevant.logits.mean(1) < result.random.logits.mean(1)).all()
    assert (opposite.relevant.logits.mean(1) > opposite.random.logits.mean(1)).all()
    assert result.relevant.area.mean() < result.random.area.mean() < opposite.relevant.area.mean()
    # of a linear network the contribution of each pixel is known: the logit falls by the largest ones
    gone = h.flatten(1).sort(1, descending=True).values.cumsum(1)
    counts = (result.fractions * 42).round().long()
    expected = h.flatten(1).sum(1, keepdim=True) - torch.cat((torch.zeros(40, 1), gone), 1)[:, counts]
    torch.testing.assert_close(result.relevant.logits, expected, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 8), st.integers(0, 7))
def test_splitting_the_batch_changes_nothing(seed, first, cut):
    x, h = images_of(7)
    score = Linear(x)
    k = score(x).argmax(1)
    whole = flip(score, x, h, k, fractions=5, seed=(seed, first))
    parts = [
        flip(score, x[rows], h[rows], k[rows], fractions=5, seed=(seed, first + (rows.start or 0)))
        for rows in (slice(None, cut), slice(cut, None))
    ]
    for name in ("relevant", "random"):
        joined = [
            torch.cat([getattr(getattr(part, name), field) for part in parts])
            for field in ("scores", "logits", "correct")
        ]
        same(getattr(whole, name), joined)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_only_the_order_of_the_map_counts(seed):
    x, h = images_of(3, seed=seed)
    score = Linear(x)
    result, again = flip(score, x, h, 0, fractions=7), flip(score, x, h.exp() * 3 + 1, 0, fractions=7)
    assert torch.equal(result.relevant.logits, again.relevant.logits)
    assert ((result.relevant.scores >= 0) & (result.relevant.scores <= 1)).all()
    assert torch.equal(result.random.logits, again.random.logits)


def test_random_orders_are_permutations_that_depend_on_seed_and_sample():
    """Seen through a score that reads the pixels: only flipped ones are 0."""
    n, side, steps = 40, 8, 64
    x = torch.ones(n, 1, side, side)
    seen = []

    def score(images):
        seen.append(images.flatten(1))
        return images.flatten(1)[:, :2]

    def masks(seed):
        seen.clear()
        flip(score, x, torch.zeros(n, side, side), 0, fractions=steps, seed=seed)
        return torch.cat(seen).view(2, steps + 1, n, side * side)[1] == 0

    zero, other = masks(0), masks(1)
    assert torch.equal(zero, masks((0, 0))) and torch.equal(zero[:, 3:], masks((0, 3))[:, :-3])
    assert torch.equal(zero.sum(2), torch.arange(steps + 1)[:, None].expand(-1, n))
    assert (zero[1:] >= zero[:-1]).all()
    first = torch.cat((zero, other), 1).int().argmax(0)  # when each pixel is flipped
    assert len(first.unique(dim=0)) == 2 * n
    # each pixel's place is uniform in 1..64 over 80 orders: mean 32.5, deviation 18.5 / sqrt(80) = 2.1
    assert (first.double().mean(0) - 32.5).abs().max() < 5 * 2.1
    ranks = first.double() - 32.5
    similar = (ranks @ ranks.T / ranks.square().sum(1)).fill_diagonal_(0)
    assert similar.abs().max() < 6 / side  # correlations of 64 values deviate by 1/8


def test_calls_are_common_and_bounded():
    x, h = images_of(3, 3, 256, 256, dtype=torch.float32)
    score = Linear(x)
    flip(score, x, h, 0, fractions=10)
    assert score.calls == [21, 21, 21, 3]  # of 2 * 11 * 3 images, 16 MiB are 21
    score.calls.clear()
    x, h = images_of(3)
    flip(score_of := Linear(x), x, h, None, fractions=10)
    assert score_of.calls == [3, 66]


def test_a_compiled_net_is_a_score_and_no_gradient_is_kept():
    x, h = images_of(dtype=torch.float32)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(80, 3))
    by_net, by_model = flip(fastxai.compile(model), x, h, 1), flip(model, x, h, 1)
    torch.testing.assert_close(by_net.relevant.scores, by_model.relevant.scores)
    torch.testing.assert_close(by_net.random.scores, by_model.random.scores)
    assert not by_model.relevant.logits.requires_grad


def test_scores_in_another_dtype_come_in_that_of_the_images():
    x, h = images_of()
    score = Linear(x)
    result = flip(lambda images: score(images).float(), x, h, 1)
    assert result.relevant.logits.dtype == result.relevant.scores.dtype == torch.float64
    torch.testing.assert_close(result.relevant.logits, flip(score, x, h, 1).relevant.logits, rtol=1e-6, atol=1e-6)


def test_layout_and_empty_batch():
    x, h = images_of()
    score = Linear(x)
    result = flip(score, x, h, 1)
    again = flip(score, x.contiguous(memory_format=torch.channels_last), h.mT.contiguous().mT.float(), 1)
    same(again.relevant, (result.relevant.scores, result.relevant.logits, result.relevant.correct))
    same(again.random, (result.random.scores, result.random.logits, result.random.correct))
    score.calls.clear()
    for target in (None, 1, torch.zeros(0, dtype=torch.int64)):
        empty = flip(score, x[:0], h[:0], target)
        assert empty.relevant.scores.shape == empty.random.correct.shape == (0, 21)
        assert empty.relevant.area.shape == (0,)
    assert score.calls == []


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"target": 1.0}, TypeError, "target must be an int or an integer tensor, got torch.float32"),
        ({"target": 4}, ValueError, "target must be below 4, the number of classes, got 4"),
        ({"target": -1}, ValueError, "target must be zero or positive, got -1"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target must be one int or have shape \[5\]"),
        ({"value": [1.0, 2.0]}, ValueError, r"value must be one number or 3, got \[2\]"),
        ({"fractions": 0}, ValueError, "fractions must be a positive int"),
        ({"fractions": []}, ValueError, r"fractions must be one number in \[0, 1\] or more"),
        ({"fractions": [0.5, 1.5]}, ValueError, r"fractions must be one number in \[0, 1\] or more, got \[0.5, 1.5\]"),
        ({"fractions": [float("nan")]}, ValueError, "fractions must be"),
        ({"seed": -1}, ValueError, r"seed must be an int in \[0, 2\^31\) or two of them, got -1"),
        ({"seed": (1, 2, 3)}, ValueError, "seed must be an int"),
    ],
)
def test_wrong_options(options, kind, message):
    x, h = images_of()
    with pytest.raises(kind, match=message):
        flip(Linear(x), x, h, **options)


def test_wrong_tensors():
    x, h = images_of()
    score = Linear(x)
    with pytest.raises(ValueError, match=r"h must have shape \[5, 6, 7\], got \[5, 3, 6, 7\]"):
        flip(score, x, x)
    with pytest.raises(ValueError, match=r"x must have shape \[N, C, H, W\], got \[5, 6, 7\]"):
        flip(score, h, h)
    with pytest.raises(ValueError, match=r"x must have shape \[N, C, H, W\], got \[5, 0, 6, 7\]"):
        flip(score, x[:, :0], h)
    with pytest.raises(TypeError, match="x must have a floating point dtype"):
        flip(score, x.long(), h)
    with pytest.raises(ValueError, match="h must have no NaN"):
        flip(score, x, torch.full_like(h, torch.nan))
    with pytest.raises(ValueError, match=r"score\(x\) must have shape \[5, K\], got \[5\]"):
        flip(lambda images: images.sum((1, 2, 3)), x, h)
    with pytest.raises(TypeError, match=r"score\(x\) must be a torch\.Tensor, got tuple"):
        flip(lambda images: (images,), x, h)
