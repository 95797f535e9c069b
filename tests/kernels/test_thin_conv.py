"""The convolution from few channels against float64, and its transpose against float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastxai
from fastxai.kernels import thin_conv


def truth(nu: Tensor, weight: Tensor, padding: tuple[int, int], size: tuple[int, int]) -> Tensor:
    x = torch.zeros(nu.shape[0], weight.shape[1], *size, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight.double(), padding=padding)
    return torch.autograd.grad(y, x, nu.double())[0]


SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "rows": st.integers(0, 3),
    "thin": st.integers(1, 4),
    "wide": st.sampled_from([16, 32, 80]),
    "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "size": st.tuples(st.integers(5, 13), st.integers(5, 19)),
    "data": st.data(),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_equals_autograd(
    rows: int, thin: int, wide: int, kernel: tuple[int, int], size: tuple[int, int], data: st.DataObject
) -> None:
    padding = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)
    weight = torch.randn(wide, thin, *kernel)
    out = [n + 2 * p - k + 1 for n, p, k in zip(size, padding, kernel, strict=True)]
    nu = torch.randn(rows, wide, *out)
    if data.draw(st.booleans()):
        nu = nu.contiguous(memory_format=torch.channels_last)
    got = thin_conv.transpose(nu, thin_conv.pack(weight), kernel, (padding[0], padding[1]))
    want = truth(nu, weight, (padding[0], padding[1]), size)
    terms = truth(nu.abs(), weight.abs(), (padding[0], padding[1]), size)
    assert got.shape == want.shape
    assert bool(((got - want).abs() <= 2e-6 * terms + 1e-30).all())
    reference = thin_conv.transpose_reference(nu.double(), weight.double(), (padding[0], padding[1]))
    torch.testing.assert_close(reference, want, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_forward_equals_float64(
    rows: int, thin: int, wide: int, kernel: tuple[int, int], size: tuple[int, int], data: st.DataObject
) -> None:
    padding = data.draw(st.integers(0, kernel[0] + 2)), data.draw(st.integers(0, kernel[1] + 2))
    x, weight = torch.randn(rows, thin, *size), torch.randn(wide, thin, *kernel)
    bias = torch.randn(wide) if data.draw(st.booleans()) else None
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    got = thin_conv.apply(x, thin_conv.pack(weight), bias, kernel, padding)
    want = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    terms = F.conv2d(x.abs().double(), weight.abs().double(), None if bias is None else bias.abs().double(), 1, padding)
    assert got.shape == want.shape and got.is_contiguous(memory_format=torch.channels_last)
    assert bool(((got - want).abs() <= 2e-6 * terms + 1e-30).all())


def test_input_is_untouched_and_output_dense() -> None:
    nu, weight = torch.randn(2, 32, 8, 8), torch.randn(32, 3, 3, 3)
    before = nu.clone()
    mu = thin_conv.transpose(nu, thin_conv.pack(weight), (3, 3), (1, 1))
    assert torch.equal(nu, before)
    assert mu.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_bits(threads: int) -> None:
    nu, x, weight = torch.randn(3, 16, 40, 37), torch.randn(3, 3, 40, 37), torch.randn(16, 3, 3, 3)
    packed = thin_conv.pack(weight)
    want = thin_conv.transpose(nu, packed, (3, 3), (1, 1))
    value = thin_conv.apply(x, packed, None, (3, 3), (1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(thin_conv.transpose(nu, packed, (3, 3), (1, 1)), want)
        assert torch.equal(thin_conv.apply(x, packed, None, (3, 3), (1, 1)), value)
    finally:
        torch.set_num_threads(before)


def test_where_it_serves() -> None:
    assert thin_conv.fits(torch.empty(32, 3, 3, 3)) and not thin_conv.fits(torch.empty(24, 3, 3, 3))
    assert not thin_conv.fits(torch.empty(32, 8, 3, 3))
    assert thin_conv.serves(torch.empty(1)) and not thin_conv.serves(torch.empty(1, dtype=torch.float64))
    with fastxai.backend("reference"):
        assert not thin_conv.serves(torch.empty(1))


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        thin_conv.transpose(torch.randn(1, 8, 4, 4), thin_conv.pack(torch.randn(8, 3, 3, 3)), (3, 3), (1, 1))
    with pytest.raises(ValueError, match="1 to 4 thin channels"):
        thin_conv.apply(torch.randn(1, 5, 4, 4), thin_conv.pack(torch.randn(16, 5, 3, 3)), None, (3, 3), (1, 1))


def test_engine_uses_it_for_the_first_convolution() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 4)
    )
    net, x, v = fastxai.compile(model), torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    got = net.hvp(x, v, 1)
    with fastxai.backend("reference"):
        want = fastxai.compile(model.double()).hvp(x.double(), v.double(), 1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
