"""PCC, SSIM and MSE against NumPy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch.autograd import gradcheck, gradgradcheck

from fastxai.metrics import mse, pcc, ssim

METRICS = (pcc, ssim, mse)


def pair_of(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0)


@pytest.mark.parametrize("shape", [(3, 9), (4, 5, 7), (2, 3, 8, 11)])
def test_pcc_equals_numpy(shape):
    a, b = pair_of(*shape)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(pcc(a, b), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_pcc_is_bounded_symmetric_and_blind_to_scale_and_shift(seed, scale, shift):
    a, b = pair_of(3, 5, 6, seed=seed)
    value = pcc(a, b)
    assert (value.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(value, pcc(b, a), rtol=0, atol=1e-14)
    torch.testing.assert_close(value, pcc(scale * a + shift, b), rtol=0, atol=1e-9)
    torch.testing.assert_close(-value, pcc(-scale * a, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pcc_of_a_constant_is_zero_with_zero_gradient(constant, dtype):
    a = torch.full((2, 3, 11), constant, dtype=dtype)
    a[1] = torch.linspace(-1, 2, 33, dtype=dtype).view(3, 11)
    a.requires_grad_()
    b = torch.linspace(0, 1, 66, dtype=dtype).square().view(2, 3, 11).requires_grad_()
    value = pcc(a, b)
    grad_a, grad_b = torch.autograd.grad(value.sum(), (a, b))
    assert value[0] == 0 and value[1] > 0.9
    assert not grad_a[0].any() and not grad_b[0].any()
    assert grad_a[1].any() and grad_a.isfinite().all() and grad_b.isfinite().all()


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e36])
def test_pcc_keeps_its_digits_at_extreme_float32_scales(scale):
    a, b = pair_of(4, 3, 16, 16, dtype=torch.float32)
    a = (a * scale).requires_grad_()
    value = pcc(a, b)
    (grad,) = torch.autograd.grad(value.sum() * scale, a)
    torch.testing.assert_close(value.double(), pcc(a.double(), b.double()), rtol=0, atol=1e-6)
    assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("window", [3, 7, 11])
@pytest.mark.parametrize("data_range", [None, 1.0, 3.7])
def test_ssim_equals_scikit_image(window, data_range):
    a, b = pair_of(3, 13, 18)
    b = a + 0.3 * b + 0.5
    expected = [
        structural_similarity(
            x, y, win_size=window, data_range=data_range or max(x.max(), y.max()) - min(x.min(), y.min())
        )
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    torch.testing.assert_close(
        ssim(a, b, data_range, window), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )


def test_ssim_of_images_equals_scikit_image():
    a, b = pair_of(3, 3, 12, 9)
    a, b = a.sigmoid(), (a + 0.2 * b).sigmoid()
    expected = [
        structural_similarity(x, y, data_range=1.0, channel_axis=0, K1=0.02, K2=0.05)
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    torch.testing.assert_close(
        ssim(a, b, 1.0, k1=0.02, k2=0.05), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_ssim_of_maps_is_bounded_symmetric_and_blind_to_scale(seed, scale):
    a, b = (x.abs() for x in pair_of(2, 9, 10, seed=seed))
    value = ssim(a, b)
    assert (value.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(value, ssim(b, a), rtol=0, atol=1e-13)
    torch.testing.assert_close(value, ssim(scale * a, scale * b), rtol=0, atol=1e-9)


def test_ssim_tells_unrelated_maps_from_identical_ones():
    a, b = (x.abs() for x in pair_of(8, 32, 32))
    assert (ssim(a, b) < 0.2).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_ssim_of_equal_constants_is_one_with_finite_gradient(constant):
    a = torch.full((2, 8, 8), constant, requires_grad=True)
    value = ssim(a, a.detach())
    torch.testing.assert_close(value, torch.ones(2), rtol=0, atol=1e-6)
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()


def test_ssim_in_float32_survives_an_offset():
    a, b = pair_of(4, 3, 16, 16)
    a, b = (100 + x for x in (a, a + 0.5 * b))
    a, b = a.float(), b.float()
    torch.testing.assert_close(ssim(a, b).double(), ssim(a.double(), b.double()), rtol=0, atol=1e-5)


def test_mse_is_the_mean_square_of_each_sample():
    a, b = pair_of(3, 2, 4, 5)
    torch.testing.assert_close(mse(a, b), torch.stack([((x - y) ** 2).mean() for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives(metric):
    a, b = (x.requires_grad_() for x in pair_of(2, 2, 4, 5))
    call = (lambda a, b: ssim(a, b, window=3)) if metric is ssim else metric
    assert gradcheck(call, (a, b))
    assert gradgradcheck(call, (a, b))


def test_ssim_derivative_with_a_given_range():
    a, b = (x.requires_grad_() for x in pair_of(2, 7, 8))
    assert gradcheck(lambda a, b: ssim(a, b, 1.5), (a, b))


@pytest.mark.parametrize("metric", METRICS)
def test_layout_and_batch_do_not_matter(metric):
    a, b = pair_of(5, 3, 9, 8)
    value = metric(a, b)
    torch.testing.assert_close(metric(a.contiguous(memory_format=torch.channels_last), b), value)
    torch.testing.assert_close(metric(a.mT.contiguous().mT, b), value)
    torch.testing.assert_close(metric(a[1::2], b[1::2]), value[1::2])
    assert metric(a[:0], b[:0]).shape == (0,)
    assert value.shape == (5,) and value.dtype == torch.float64


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_with_its_sample(metric):
    a, b = pair_of(3, 8, 8)
    a[1, 4, 4] = torch.nan
    assert metric(a, b).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_arguments(metric):
    a, b = pair_of(2, 8, 8)
    with pytest.raises(TypeError, match=r"a must be a torch\.Tensor, got ndarray"):
        metric(a.numpy(), b)
    with pytest.raises(TypeError, match="b must have a floating point dtype"):
        metric(a, b.long())
    with pytest.raises(ValueError, match=r"b must have shape \[2, 8, 8\], got \[2, 8, 7\]"):
        metric(a, b[..., :7])
    with pytest.raises(ValueError, match="dtype"):
        metric(a, b.float())
    with pytest.raises(ValueError, match="at least two axes"):
        metric(a.flatten(), b.flatten())
    with pytest.raises(ValueError, match="at least one element"):
        metric(a[:, :0], b[:, :0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 9}, "window must fit into the 8x8 image, got 9"),
        ({"window": 4}, "window must be odd"),
        ({"window": 1}, "window must be odd"),
        ({"data_range": 0.0}, "data_range must be finite and positive"),
        ({"k1": -1.0}, "k1 must be finite and positive"),
    ],
)
def test_wrong_ssim_options(options, message):
    with pytest.raises(ValueError, match=message):
        ssim(*pair_of(2, 8, 8), **options)


def test_ssim_wants_images():
    with pytest.raises(ValueError, match=r"a must have shape \[N, H, W\]"):
        ssim(*pair_of(2, 64))
