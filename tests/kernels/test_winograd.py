"""Winograd's convolution and its weight gradient against float64, and against the vendor's rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastxai
from fastxai.kernels import _native, winograd

WIDTHS = [r for r in (32, 16) if r <= _native.vector_registers()]
pytestmark = pytest.mark.skipif(not WIDTHS, reason="no Winograd kernel for this processor")


KERNELS = [3, 5]


def weight_grad(x: Tensor, nu: Tensor, padding: tuple[int, int], kernel: int) -> Tensor:
    weight = torch.zeros(nu.shape[1], x.shape[1], kernel, kernel, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x, weight, padding=padding), weight, nu)[0]


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    rows=st.integers(0, 3),
    channels=st.sampled_from([16, 32, 80]),
    outputs=st.sampled_from([16, 32, 48, 96]),
    size=st.tuples(st.integers(5, 13), st.integers(5, 19)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 4)),
    registers=st.sampled_from(WIDTHS or [0]),
    last=st.booleans(),
)
def test_equals_float64(
    kernel: int,
    rows: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    padding: tuple[int, int],
    registers: int,
    last: bool,
) -> None:
    x, weight = torch.randn(rows, channels, *size), torch.randn(outputs, channels, kernel, kernel)
    bias = torch.randn(outputs)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = winograd._run(x, winograd.pack(weight), bias, padding, kernel, registers)
    want = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    # The transforms add up to 9 pixels, or taps, of which the direct sum uses one at a time.
    terms = F.conv2d(x.abs().double(), weight.abs().double(), bias.abs().double(), padding=padding)
    scale = terms.amax() if terms.numel() else 0
    assert got.shape == want.shape and got.is_contiguous(memory_format=torch.channels_last)
    assert bool(((got - want).abs() <= 2e-6 * scale).all())
    nu = torch.randn_like(got)
    got = winograd._sum(x, nu, padding, kernel, registers)
    want = weight_grad(x.double(), nu.double(), padding, kernel)
    scale = weight_grad(x.abs().double(), nu.abs().double(), padding, kernel).amax()
    assert got.shape == weight.shape
    assert bool(((got - want).abs() <= 2e-6 * scale).all())


@pytest.mark.parametrize("registers", WIDTHS)
@pytest.mark.parametrize("channels", [32, 256])
# Tiles of 5x5 kernels have larger numbers in their transforms.
@pytest.mark.parametrize(("kernel", "most"), [(3, 1.25), (5, 2.5)])
def test_errs_by_a_few_times_the_vendors_rounding_at_most(
    registers: int, channels: int, kernel: int, most: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, channels, 14, 14), (64, channels, kernel, kernel), (2, 64, 14, 14)
    x, weight, nu = (torch.randn(*shape, generator=generator) for shape in shapes)
    padding = (kernel // 2, kernel // 2)
    both: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (
            lambda t: F.conv2d(t, weight.to(t.dtype), padding=padding),
            winograd._run(x, winograd.pack(weight), None, padding, kernel, registers),
        ),
        (
            lambda t: weight_grad(t, nu.to(t.dtype), padding, kernel),
            winograd._sum(x, nu, padding, kernel, registers),
        ),
    ]
    for vendor, got in both:
        want = vendor(x.double())
        assert (got - want).norm() <= most * (vendor(x) - want).norm()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_computed_alone(kernel: int) -> None:
    x, packed = torch.randn(7, 16, 9, 11), winograd.pack(torch.randn(32, 16, kernel, kernel))
    whole = winograd.conv(x, packed, None, (1, 1), kernel)
    assert torch.equal(torch.cat([winograd.conv(row, packed, None, (1, 1), kernel) for row in x.split(2)]), whole)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_bits(threads: int, kernel: int) -> None:
    x, packed = torch.randn(8, 32, 33, 31), winograd.pack(torch.randn(32, 32, kernel, kernel))
    want = winograd.conv(x, packed, None, (1, 1), kernel)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(winograd.conv(x, packed, None, (1, 1), kernel), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("kernel", "first", "last"), [(3, 4, 7), (5, 2, 7)])
def test_extreme_values_stay_in_their_pixels(kernel: int, first: int, last: int) -> None:
    x, packed = torch.zeros(1, 16, 12, 12), winograd.pack(torch.ones(16, 16, kernel, kernel))
    x[0, 0, 5, 5] = float("nan")
    bad = winograd.conv(x, packed, None, (kernel // 2, kernel // 2), kernel).isnan()[0, 0].nonzero()
    # A tile shares its pixels: a NaN may reach the neighbours in the tiles that read it, and no further.
    assert len(bad) and int(bad.min()) >= first and int(bad.max()) <= last


@pytest.mark.parametrize("kernel", KERNELS)
def test_unpack_is_the_adjoint_of_pack(kernel: int) -> None:
    weight, u = torch.randn(48, 16, kernel, kernel), torch.randn((kernel + 1) ** 2 * 48 * 16)
    assert torch.isclose((winograd.pack(weight) * u).sum(), (weight * winograd.unpack(u, 16, kernel)).sum(), rtol=1e-3)


def test_where_it_fits_and_serves() -> None:
    kernel, wide = torch.empty(32, 16, 3, 3), torch.empty(32, 32, 5, 5)
    assert winograd.fits(kernel, (8, 8)) and winograd.fits(kernel, (7, 7)) and winograd.fits(wide, (7, 7))
    # One pixel of four in a tile is no gain.
    assert not winograd.fits(kernel, (1, 1)) and not winograd.fits(kernel, (1, 9)) and not winograd.fits(wide, (1, 1))
    assert not winograd.fits(kernel.double(), (8, 8)) and not winograd.fits(torch.empty(32, 16, 5, 5), (8, 8))
    assert not winograd.fits(torch.empty(32, 32, 3, 5), (8, 8)) and not winograd.fits(torch.empty(32, 32, 7, 7), (8, 8))
    assert not winograd.fits(torch.empty(32, 3, 3, 3), (8, 8)) and not winograd.fits(torch.empty(10, 16, 3, 3), (8, 8))
    assert winograd.serves(torch.empty(1)) and not winograd.serves(torch.empty(1, dtype=torch.float64))
    with fastxai.backend("reference"):
        assert not winograd.serves(torch.empty(1))


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        winograd.conv(torch.randn(1, 8, 4, 4), winograd.pack(torch.randn(16, 8, 3, 3)), None, (1, 1), 3)


def test_wrong_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 or 5 pixels"):
        winograd.conv(torch.randn(1, 16, 9, 9), torch.zeros(64 * 16 * 16), None, (1, 1), 7)


def test_engine_uses_it_and_agrees_without_it() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.Softplus(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.Softplus(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.Softplus(),
        torch.nn.Conv2d(32, 48, 5, padding=2),
        torch.nn.Softplus(),
        torch.nn.Flatten(),
        torch.nn.Linear(48 * 36, 4),
    )
    net, x = fastxai.compile(model), torch.randn(2, 3, 8, 8)

    def slopes(x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        loss = fastxai.Gradient(net).attribute(leaf, 1).square().sum()
        return list(torch.autograd.grad(loss, [leaf, *model.parameters()], allow_unused=True))

    got = slopes(x)
    with fastxai.backend("reference"):
        plain = slopes(x)
        model.double()
        want = slopes(x.double())
    for ours, direct, exact in zip(got, plain, want, strict=True):
        if exact is not None:
            assert (ours - exact).norm() <= 1e-5 * exact.norm() + 1e-7
            assert (direct - exact).norm() <= 1e-5 * exact.norm() + 1e-7
