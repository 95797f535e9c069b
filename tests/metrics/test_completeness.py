"""The completeness gap of a map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fastxai.metrics import completeness


def test_gradient_times_input_of_a_linear_function_is_complete():
    generator = torch.Generator().manual_seed(0)
    w, x, baseline = torch.randn(3, 5, 2, 4, 4, generator=generator, dtype=torch.float64)
    h = w * (x - baseline)
    difference = (w * x).sum((1, 2, 3)) - (w * baseline).sum((1, 2, 3))
    for relative in (False, True):
        gap = completeness(h, difference, relative=relative)
        torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_the_gap_is_the_sum_less_the_difference(seed):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    difference = torch.randn(4, generator=generator, dtype=torch.float64)
    gap = completeness(h, difference)
    torch.testing.assert_close(gap + difference, torch.stack([sample.sum() for sample in h]))
    torch.testing.assert_close(completeness(h, difference, relative=True), gap / difference.abs())
    torch.testing.assert_close(completeness(h.mT, difference), gap)
    assert completeness(h[:0], difference[:0]).shape == (0,)


def test_relative_to_nothing_is_zero_or_infinite_but_no_nan():
    h = torch.tensor([[1.0, -1.0], [1.0, 2.0], [-1.0, -2.0], [1.0, 1.0]], requires_grad=True)
    difference = torch.tensor([0.0, 0.0, 0.0, 1.0], requires_grad=True)
    gap = completeness(h, difference, relative=True)
    assert gap.tolist() == [0, torch.inf, -torch.inf, 1]
    for grad in torch.autograd.grad(gap[3], (h, difference)):
        assert grad.isfinite().all() and grad[3].any()


def test_derivatives():
    h = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    difference = torch.tensor([0.3, -2.0, 1.5], dtype=torch.float64, requires_grad=True)
    assert gradcheck(completeness, (h, difference))
    assert gradcheck(lambda h, d: completeness(h, d, relative=True), (h, difference))


def test_wrong_arguments():
    h, difference = torch.zeros(2, 3, 4), torch.zeros(2)
    with pytest.raises(TypeError, match="h must have a floating point dtype"):
        completeness(h.long(), difference)
    with pytest.raises(TypeError, match=r"difference must be a torch\.Tensor, got float"):
        completeness(h, 1.0)
    with pytest.raises(ValueError, match=r"difference must have shape \[2\], got \[2, 1\]"):
        completeness(h, difference[:, None])
    with pytest.raises(ValueError, match=r"difference must have h's dtype torch.float32, got torch.float64"):
        completeness(h, difference.double())
    with pytest.raises(ValueError, match="h must have shape"):
        completeness(difference, difference)
