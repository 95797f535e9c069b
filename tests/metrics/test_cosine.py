"""Cosine similarity against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cosine_similarity

from fastxai.metrics import cosine


def pair_of(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0)


@pytest.mark.parametrize("shape", [(3, 1), (3, 9), (4, 5, 7), (2, 3, 8, 11)])
def test_it_equals_torch(shape):
    a, b = pair_of(*shape)
    torch.testing.assert_close(cosine(a, b), cosine_similarity(a.flatten(1), b.flatten(1)), rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_it_is_bounded_symmetric_and_blind_to_scale_and_order(seed, scale):
    a, b = pair_of(3, 30, seed=seed)
    value = cosine(a, b)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    assert (value.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(value, cosine(b, a), rtol=0, atol=0)
    torch.testing.assert_close(value, cosine(scale * a, b), rtol=0, atol=1e-13)
    torch.testing.assert_close(-value, cosine(-scale * a, b), rtol=0, atol=1e-13)
    torch.testing.assert_close(value, cosine(a[:, order], b[:, order]), rtol=0, atol=1e-13)


def test_a_sample_of_zeros_scores_zero_with_zero_gradient():
    a, b = pair_of(3, 4, 5)
    a[0], b[1] = 0, 0
    a.requires_grad_(), b.requires_grad_()
    value = cosine(a, b)
    grad_a, grad_b = torch.autograd.grad(value.sum(), (a, b))
    assert value[:2].tolist() == [0, 0] and value[2] != 0
    assert not grad_a[:2].any() and not grad_b[:2].any()
    assert grad_a[2].all() and grad_b[2].all()


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e36])
def test_it_keeps_its_digits_at_extreme_float32_scales(scale):
    a, b = pair_of(4, 3, 16, 16, dtype=torch.float32)
    a = (a * scale).requires_grad_()
    value = cosine(a, b)
    (grad,) = torch.autograd.grad(value.sum() * scale, a)
    torch.testing.assert_close(value.double(), cosine(a.double(), b.double()), rtol=0, atol=1e-6)
    assert grad.isfinite().all() and grad.any()


def test_derivatives():
    a, b = (x.requires_grad_() for x in pair_of(2, 2, 4, 5))
    assert gradcheck(cosine, (a, b))
    assert gradgradcheck(cosine, (a, b))


def test_layout_and_batch_do_not_matter():
    a, b = pair_of(5, 3, 9, 8)
    value = cosine(a, b)
    torch.testing.assert_close(cosine(a.contiguous(memory_format=torch.channels_last), b), value)
    torch.testing.assert_close(cosine(a[1::2], b[1::2]), value[1::2])
    assert cosine(a[:0], b[:0]).shape == (0,)
    assert value.shape == (5,) and value.dtype == torch.float64


def test_nan_stays_with_its_sample():
    a, b = pair_of(3, 8, 8)
    a[1, 4, 4] = torch.nan
    assert cosine(a, b).isnan().tolist() == [False, True, False]


def test_wrong_arguments():
    a, b = pair_of(2, 8, 8)
    with pytest.raises(TypeError, match="b must have a floating point dtype"):
        cosine(a, b.long())
    with pytest.raises(ValueError, match=r"b must have shape \[2, 8, 8\], got \[2, 8, 7\]"):
        cosine(a, b[..., :7])
    with pytest.raises(ValueError, match="at least two axes"):
        cosine(a.flatten(), b.flatten())
