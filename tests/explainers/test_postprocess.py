"""reduce_map: values, invariants, the sample whose sum is zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastxai.explainers import reduce_map


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 3),
    c=st.integers(1, 4),
    side=st.integers(1, 5),
    power=st.integers(-30, 30),
)
def test_sums_to_one_and_forgets_sign_and_scale(seed, n, c, side, power):
    h = draw(seed, n, c, side, side + 1)
    r = reduce_map(h)
    assert r.shape == (n, side, side + 1) and bool((r >= 0).all())
    torch.testing.assert_close(r.sum((1, 2)), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(reduce_map(-(2.0**power) * h), r, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduce", ["abs_sum", "sum", None])
@pytest.mark.parametrize("normalize", ["sum", None])
def test_values_and_derivatives(reduce, normalize):
    h = draw(1, 2, 3, 4, 5).add(0.7).requires_grad_()
    expected = {"abs_sum": h.abs().sum(1), "sum": h.sum(1), None: h}[reduce]
    if normalize:
        expected = torch.stack([sample / sample.sum() for sample in expected])
    torch.testing.assert_close(reduce_map(h, reduce, normalize), expected)
    assert gradcheck(lambda h: reduce_map(h, reduce, normalize), (h,))
    assert gradgradcheck(lambda h: reduce_map(h, reduce, normalize), (h,))


@pytest.mark.parametrize("reduce", ["abs_sum", "sum", None])
def test_zero_sum_is_zeros_with_zero_gradient(reduce):
    h = draw(2, 3, 2, 4, 4)
    h[1] = 0
    if reduce != "abs_sum":
        h[1, :, 0, 0], h[1, :, 0, 1] = 1.0, -1.0
    h.requires_grad_()
    r = reduce_map(h, reduce)
    assert bool((r[1] == 0).all()) and bool(r.isfinite().all())
    (gradient,) = torch.autograd.grad(r.square().sum(), h)
    assert bool((gradient[1] == 0).all()) and bool(gradient.isfinite().all()) and bool((gradient[0] != 0).any())


def test_extreme_scales_in_float32():
    h = draw(3, 2, 3, 8, 8).float()
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(reduce_map(scale * h), reduce_map(h), rtol=1e-5, atol=0)


def test_errors():
    with pytest.raises(TypeError, match="h must have a floating point dtype"):
        reduce_map(torch.zeros(1, 2, 3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="reduce must be one of 'abs_sum', 'sum', None, got 'max'"):
        reduce_map(torch.zeros(1, 2, 3, 3), "max")
    with pytest.raises(ValueError, match="normalize must be one of"):
        reduce_map(torch.zeros(1, 2, 3, 3), normalize="max")
    with pytest.raises(ValueError, match="h must have shape"):
        reduce_map(torch.zeros(4, 3))
