"""Noise: its distributions against SciPy, exact numbers of pixels, and that no batch changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fastxai import _random
from fastxai.data.noise import KINDS, noisy
from fastxai.evaluation import Space

SPACE = Space((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
BOUNDS: dict[str, Any] = {"low": SPACE.low, "high": SPACE.high}


def inside(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images strictly within (0, 1), so that every flipped pixel shows."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 0.8 + 0.1


@pytest.mark.parametrize(
    ("kind", "law", "moments"),
    [
        ("gaussian", stats.norm(scale=0.1 * 4), (0.4**2, 3 * 0.4**4, 105 * 0.4**8)),
        ("laplace", stats.laplace(scale=0.1 * 4), (2 * 0.4**2, 24 * 0.4**4, 40320 * 0.4**8)),
    ],
)
def test_distribution(kind: str, law: Any, moments: tuple[float, ...]) -> None:
    x = torch.zeros(32, 3, 33, 31, dtype=torch.float64)
    noise = noisy(x, 0.1, kind, low=-1.0, high=3.0, seed=3).flatten()
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 0.01
    # Each within 4 standard errors; the fourth power's variance is the law's eighth moment less its square.
    second, fourth, eighth = moments
    count = noise.numel()
    assert abs(noise.mean()) < 4 * (second / count) ** 0.5
    assert abs(noise.square().mean() - second) < 4 * ((fourth - second**2) / count) ** 0.5
    assert abs(noise.pow(4).mean() - fourth) < 4 * ((eighth - fourth**2) / count) ** 0.5


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_elements_and_samples_are_uncorrelated(kind: str) -> None:
    noise = noisy(torch.zeros(400, 1, 10, 10, dtype=torch.float64), 1.0, kind).flatten(1)
    for rows in (noise, noise.T):
        correlation = torch.corrcoef(rows).fill_diagonal_(0)
        # The largest of so many correlations of independent columns.
        assert correlation.abs().max() < 6 / rows.shape[1] ** 0.5
        assert abs(correlation.square().mean() * rows.shape[1] - 1) < 0.05


@pytest.mark.parametrize(("level", "side", "pixels"), [(0.005, 32, 3), (0.01, 32, 5), (0.025, 32, 13), (2.0, 7, 49)])
def test_salt_and_pepper_flips_whole_pixels(level: float, side: int, pixels: int) -> None:
    images = inside(40, 3, side, side)
    x = SPACE.enter(images)
    y = noisy(x, level, "salt_and_pepper", **BOUNDS)
    low, high = (torch.tensor(bound).view(3, 1, 1) for bound in (SPACE.low, SPACE.high))
    black, white, kept = (y == low).all(1), (y == high).all(1), (y == x).all(1)
    assert ((black | white).sum((1, 2)) == pixels).all()
    assert (black.int() + white.int() + kept.int() == 1).all()
    assert stats.binomtest(int(white.sum()), 40 * pixels).pvalue > 0.01


def test_flipped_pixels_are_uniform() -> None:
    x = inside(3000, 1, 5, 8)
    flipped = (noisy(x, 0.2, "salt_and_pepper") != x)[:, 0]
    assert (flipped.sum((1, 2)) == 4).all()
    assert stats.chisquare(flipped.sum(0).flatten().numpy()).pvalue > 0.01


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 10**12), min_size=1, max_size=7),
    st.integers(-(2**40), 2**40),
    st.sampled_from([(3, 5, 7), (1, 9, 4), (4,), (2, 6)]),
    st.data(),
)
def test_no_batch_changes_a_sample(
    kind: str, numbers: list[int], seed: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    index = torch.tensor(numbers)
    x = inside(len(numbers), *shape, dtype=torch.float64)
    whole = noisy(x, 0.3, kind, seed=seed, index=index)
    cut = data.draw(st.integers(0, len(numbers)))
    parts = [noisy(x[rows], 0.3, kind, seed=seed, index=index[rows]) for rows in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)
    back = torch.arange(len(numbers) - 1, -1, -1)
    assert torch.equal(noisy(x[back], 0.3, kind, seed=seed, index=index[back]), whole[back])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_noise_depends_on(kind: str) -> None:
    x = inside(2, 3, 8, 8)[:1].expand(2, -1, -1, -1)
    y = noisy(x, 0.3, kind, seed=1)
    assert torch.equal(y, noisy(x, 0.3, kind, seed=1, index=torch.arange(2)))
    assert torch.equal(y, noisy(x, 0.3, kind, seed=1, index=torch.arange(2, dtype=torch.int32)))
    assert not torch.equal(y[0], y[1])
    assert not torch.equal(y, noisy(x, 0.3, kind, seed=2))
    others = {other: noisy(x, 0.3, other, seed=1) for other in KINDS}
    assert [other for other in KINDS if torch.equal(others[other], y)] == [kind]


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_higher_level_is_more_of_the_same(kind: str) -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(noisy(x, 0.6, kind), 3 * noisy(x, 0.2, kind))
    assert torch.equal(noisy(x, 0.0, kind), x)


def test_a_higher_level_flips_the_same_pixels_and_more() -> None:
    x = inside(5, 3, 16, 16)
    few, many = noisy(x, 0.02, "salt_and_pepper"), noisy(x, 0.1, "salt_and_pepper")
    assert torch.equal(many[few != x], few[few != x])
    assert ((many != x).sum() / (few != x).sum()).item() == pytest.approx(13 / 3)
    assert torch.equal(noisy(x, 0.0, "salt_and_pepper"), x)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_per_channel_are_the_noise_of_the_image(kind: str) -> None:
    images = inside(3, 3, 9, 9, dtype=torch.float64)
    expected = SPACE.enter(noisy(images, 0.1, kind))
    torch.testing.assert_close(noisy(SPACE.enter(images), 0.1, kind, **BOUNDS), expected)
    low, high = torch.tensor(SPACE.low, dtype=torch.float64), torch.tensor(SPACE.high, dtype=torch.float64)
    torch.testing.assert_close(noisy(SPACE.enter(images), 0.1, kind, low=low, high=high), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_dtype(kind: str) -> None:
    x = inside(4, 3, 6, 10, dtype=torch.float64)
    y = noisy(x, 0.2, kind)
    assert torch.equal(noisy(x.to(memory_format=torch.channels_last), 0.2, kind), y)
    strided = torch.stack([x, -x], -1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(noisy(strided, 0.2, kind), y)
    torch.testing.assert_close(noisy(x.float(), 0.2, kind).double(), y, rtol=0, atol=1e-6)
    assert noisy(x.bfloat16(), 0.2, kind).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 5), (2, 4, 9), (2, 1, 1, 1), (2, 2, 3, 4, 5)])
def test_shapes(kind: str, shape: tuple[int, ...]) -> None:
    x = inside(*shape)
    y = noisy(x, 1.0, kind)
    assert y.shape == x.shape and y.isfinite().all()


def test_a_vector_is_flipped_element_by_element() -> None:
    x = inside(6, 10)
    y = noisy(x, 0.6, "salt_and_pepper", low=[-1.0] * 10, high=[2.0] * 10)
    assert ((y != x).sum(1) == 3).all()
    assert set(y[y != x].tolist()) == {-1.0, 2.0}


@pytest.mark.parametrize("kind", KINDS)
def test_clamp_only_where_asked(kind: str) -> None:
    x = SPACE.enter(inside(4, 3, 8, 8))
    low, high = (torch.tensor(bound).view(3, 1, 1) for bound in (SPACE.low, SPACE.high))
    free, kept = (noisy(x, 0.5, kind, **BOUNDS, clamp=clamp) for clamp in (False, True))
    assert bool(((free < low) | (free > high)).any()) == (kind != "salt_and_pepper")
    assert torch.equal(kept, free.clamp(low, high))


def test_the_gradient_passes() -> None:
    x = inside(2, 3, 8, 8).requires_grad_()
    noisy(x, 0.1).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_it_is_not_the_direction_of_a_hessian_product() -> None:
    x = torch.zeros(2, 3, 8, 8)
    noise = noisy(x, 1.0, seed=5).flatten(1)
    probes = _random.probes("gaussian", x, (5,), torch.arange(2), range(1))[0]
    for a, b in zip(noise, probes, strict=True):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.long)}, TypeError, "x must have a floating point dtype"),
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[N, C, ...\]"),
        ({"level": -0.1}, ValueError, "level must be finite and not negative"),
        ({"level": float("nan")}, ValueError, "level must be finite"),
        ({"level": "much"}, ValueError, "level must be finite"),
        ({"level": 2.5, "kind": "salt_and_pepper"}, ValueError, "level must be at most 2 for salt_and_pepper"),
        ({"kind": "pink"}, ValueError, "kind must be one of 'gaussian', 'laplace', 'salt_and_pepper'"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"low": 1.0}, ValueError, "low, high must be below one another"),
        ({"low": [0.0, 0.0]}, ValueError, "low must be one finite number or 3"),
        ({"high": float("inf")}, ValueError, "high must be one finite number or 3"),
        ({"index": torch.arange(3)}, ValueError, r"index must have shape \[2\], got \[3\]"),
        ({"index": torch.zeros(2)}, TypeError, "index must hold integers"),
    ],
)
def test_errors(changes: dict[str, Any], kind: type[Exception], said: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 3, 4, 4), "level": 0.1, **changes}
    with pytest.raises(kind, match=said):
        noisy(**arguments)
