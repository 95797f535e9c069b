"""Dissimilarities: their formulas, their gradients, and what they say of maps that have none."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.nets import REPOSITORY, load
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastxai.attacks.dissimilarities import DISSIMILARITIES, mass_centre, top_k
from fastxai.explainers import reduce_map
from fastxai.metrics import top_k_intersection

NAMES = sorted(DISSIMILARITIES)
# Of two equal constant maps, and of two maps of zeros.
CONSTANT = {"pcl": (0.5, 0.5), "cosine": (0.0, 1.0)}


def d(name: str, a: Tensor, b: Tensor) -> Tensor:
    return top_k(a, b, 5) if name == "top_k" else DISSIMILARITIES[name](a, b)


def maps(n: int = 4, shape: tuple[int, ...] = (9, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, n, *shape, dtype=torch.float64, generator=generator)
    return a, b


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(9, 8), (3, 7, 11)])
def test_equal_maps_do_not_differ_and_others_do(name, shape):
    a, b = maps(shape=shape)
    values = d(name, a, b)
    assert values.shape == (4,) and bool((values > 1e-3).all())
    torch.testing.assert_close(d(name, a, a.clone()), torch.zeros(4, dtype=a.dtype), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.cat([d(name, a[i : i + 1], b[i : i + 1]) for i in range(4)]), values)
    assert d(name, a[:0], b[:0]).shape == (0,)
    strided = torch.stack([a, b], -1)
    torch.testing.assert_close(d(name, strided[..., 0], strided[..., 1]), values)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    a, b = maps(2, (8, 7))
    assert torch.autograd.gradcheck(lambda a, b: d(name, a, b), (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_at_equal_maps_is_zero_but_for_top_k(name):
    a, _ = maps(2)
    b = a.clone()
    (g,) = torch.autograd.grad(d(name, a.requires_grad_(), b).sum(), a)
    if name == "top_k":
        assert (g == -1).sum() == 10 and (g == 0).sum() == 2 * 72 - 10
    else:
        assert g.abs().max() < 1e-13


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 1.0, -2.0])
def test_constant_maps_have_values_and_gradients(name, level):
    a = torch.full((1, 8, 8), level, dtype=torch.float64, requires_grad=True)
    for other in (a.detach().clone(), maps(1, (8, 8))[0], torch.zeros(1, 8, 8, dtype=torch.float64)):
        value = d(name, a, other)
        (g,) = torch.autograd.grad(value.sum(), a)
        assert bool(value.isfinite().all()) and bool(g.isfinite().all())
    same = d(name, a, a.detach()).item()
    assert same == pytest.approx(CONSTANT.get(name, (0.0, 0.0))[level == 0], abs=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ssim"])
def test_sizes_of_attribution_maps(name, scale):
    """In float32 the squares of such values do not exist; SSIM, which squares, takes maps that are scaled."""
    a, b = (m.float() for m in maps())
    got, want = d(name, a * scale, b * scale), d(name, a.double(), b.double())
    if name in ("l1", "l2", "top_k"):
        want = want * scale
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(["pcl", "l1", "cosine", "top_k", "mass_centre"]))
def test_against_plain_formulas(seed, name):
    plain = load(REPOSITORY / "bench" / "references" / "ifia.py")
    a, b = (m - 0.3 for m in maps(3, (2, 5, 6), seed))
    function = plain.top_k(5) if name == "top_k" else getattr(plain, name)
    reduced = name in ("top_k", "mass_centre")
    got = d(name, *(reduce_map(m) if reduced else m for m in (a, b)))
    want = torch.stack([function(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_top_k_is_the_mass_that_left():
    a, b = (reduce_map(m, None) for m in maps())
    values = torch.stack([top_k(a, b, k) for k in range(1, 73)])
    # Of all values it is none; k values lose at most what they had.
    assert values[-1].abs().max() < 1e-14
    held = b.flatten(1).sort(1, descending=True).values.cumsum(1).T
    assert bool((values <= held + 1e-14).all())
    disjoint = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    disjoint[0][0, 0], disjoint[1][0, 1] = 0.25, 0.25
    assert top_k(*disjoint, 4).item() == 1 and top_k_intersection(*disjoint, 4).item() == 0
    # Ties: the places with the lowest index, in whatever batch.
    flat = torch.ones(1, 6)
    assert top_k(torch.tensor([[0.0, 0, 5, 5, 5, 5]]), flat, 2).item() == 2


def test_mass_centre_is_a_distance_in_pixels():
    a = torch.zeros(3, 10, 12)
    a[0, 2, 3], a[1, 5, 7], a[2] = 4.0, 0.1, 1.0
    centre = mass_centre(a, a[[0, 0, 0]])
    torch.testing.assert_close(centre, torch.tensor([0.0, 5.0, math.hypot(2.5, 2.5)]))
    # No mass: the middle of the image, as of a constant map.
    assert mass_centre(torch.zeros(1, 10, 12), a[2:]).item() == 0


def test_errors():
    a, b = maps()
    for name in NAMES:
        with pytest.raises(ValueError, match="shape"):
            d(name, a, b[:2])
        with pytest.raises(TypeError, match="floating point"):
            d(name, a, b.long())
    with pytest.raises(ValueError, match="k must be from 1 to 72"):
        top_k(a, b, 73)
    with pytest.raises(TypeError, match="k must be an int, got float"):
        top_k(a, b, 2.0)  # type: ignore[arg-type]
