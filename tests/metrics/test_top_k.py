"""Top-k intersection against sets of indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastxai.metrics import top_k_intersection


def pair_of(*shape, seed=0, levels=None):
    """Two random maps; with ``levels`` heavily tied ones."""
    values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values if levels is None else (values * levels).round()).unbind(0)


def by_sets(a, b, k):
    """The definition: stable order, lowest index first."""
    chosen = [[set(np.argsort(-row, kind="stable")[:k]) for row in x.flatten(1).numpy()] for x in (a, b)]
    return torch.tensor([len(p & q) / k for p, q in zip(*chosen, strict=True)], dtype=a.dtype)


@pytest.mark.parametrize("levels", [None, 0.5, 2])
@pytest.mark.parametrize("k", [1, 2, 7, 49, 50])
def test_it_equals_the_intersection_of_sets(k, levels):
    a, b = pair_of(20, 5, 10, levels=levels)
    torch.testing.assert_close(top_k_intersection(a, b, k), by_sets(a, b, k), rtol=0, atol=1e-15)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 24), st.sampled_from([None, 0.7, 3]))
def test_properties(seed, k, levels):
    a, b = pair_of(3, 4, 6, seed=seed, levels=levels)
    value = top_k_intersection(a, b, k)
    assert ((value >= 0) & (value <= 1)).all()
    assert torch.equal(value, top_k_intersection(b, a, k))
    assert torch.equal(value, top_k_intersection(3 * a - 1, b.exp(), k))
    assert (top_k_intersection(a, a, k) == 1).all() and (top_k_intersection(a, b, 24) == 1).all()
    if levels is None:  # with ties the order of the elements counts
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(value, top_k_intersection(a.flatten(1)[:, order], b.flatten(1)[:, order], k))


def test_ties_go_to_the_lowest_index():
    constant, rising, falling = torch.zeros(1, 6), torch.arange(6.0)[None], -torch.arange(6.0)[None]
    assert top_k_intersection(constant, falling, 3).item() == 1
    assert top_k_intersection(constant, rising, 3).item() == 0
    signed_zeros = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0, -1.0]])
    assert top_k_intersection(constant, signed_zeros, 3).item() == 1


def test_infinities_are_values():
    a = torch.tensor([[torch.inf, 1, 2, -torch.inf]])
    assert top_k_intersection(a, torch.tensor([[9.0, 1, 3, 0]]), 3).item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_layout_and_batch_do_not_matter(dtype):
    a, b = (x.to(dtype) for x in pair_of(5, 3, 9, 8, levels=2))
    value = top_k_intersection(a, b, 20)
    assert value.dtype == dtype and value.shape == (5,) and not value.requires_grad
    torch.testing.assert_close(value, by_sets(a.float(), b.float(), 20).to(dtype))
    assert torch.equal(top_k_intersection(a.contiguous(memory_format=torch.channels_last), b, 20), value)
    assert torch.equal(top_k_intersection(a[1::2].requires_grad_(), b[1::2], 20), value[1::2])
    assert top_k_intersection(a[:0], b[:0], 20).shape == (0,)


def test_nan_stays_with_its_sample():
    a, b = pair_of(3, 8, 8)
    a[1, 4, 4] = torch.nan
    assert top_k_intersection(a, b, 5).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("k", [0, -1, 65])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to 64, the number of elements a sample, got {k}"):
        top_k_intersection(*pair_of(2, 8, 8), k)


@pytest.mark.parametrize("k", [5.0, True, "5"])
def test_k_of_the_wrong_kind(k):
    with pytest.raises(TypeError, match="k must be an int"):
        top_k_intersection(*pair_of(2, 8, 8), k)


def test_wrong_maps():
    a, b = pair_of(2, 8, 8)
    with pytest.raises(ValueError, match=r"b must have shape \[2, 8, 8\], got \[2, 8, 7\]"):
        top_k_intersection(a, b[..., :7], 3)
    with pytest.raises(TypeError, match="a must have a floating point dtype"):
        top_k_intersection(a.long(), b, 3)
