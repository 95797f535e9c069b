"""Winograd's convolution and its weight gradient against float64, and against the vendor's rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


SCHEMES = [winograd.Scheme(3, 2), winograd.Scheme(3, 4), winograd.Scheme(5, 2)]


def weight_grad(x: Tensor, nu: Tensor, padding: tuple[int, int], kernel: int) -> Tensor:
    weight = torch.zeros(nu.shape[1], x.shape[1], kernel, kernel, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x, weight, padding=padding), weight, nu)[0]


SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "scheme": st.sampled_from(SCHEMES),
    "rows": st.integers(0, 3),
    "channels": st.sampled_from([16, 32, 80]),
    "outputs": st.sampled_from([16, 32, 48, 96]),
    "size": st.tuples(st.integers(5, 13), st.integers(5, 19)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 4)),
}


@settings(max_examples=80, deadline=None)
@given(
    **SHAPES,
    registers=st.sampled_from(WIDTHS or [0]),
    last=st.booleans(),
)
def test_equals_float64(
    scheme: winograd.Scheme,
    rows: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    padding: tuple[int, int],
    registers: int,
    last: bool,
) -> None:
    x, weight = torch.randn(rows, channels, *size), torch.randn(outputs, channels, scheme.kernel, scheme.kernel)
    bias = torch.randn(outputs)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = winograd._run(x, winograd.pack(weight, scheme), bias, padding, None, registers)
    want = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    # The transforms add up to 9 pixels, or taps, of which the direct sum uses one at a time.
    terms = F.conv2d(x.abs().double(), weight.abs().double(), bias.abs().double(), padding=padding)
    scale = terms.amax() if terms.numel() else 0
    assert got.shape == want.shape and got.is_contiguous(memory_format=torch.channels_last)
    assert bool(((got - want).abs() <= 2e-6 * scale).all())
    nu = torch.randn_like(got)
    got = winograd._sum(x, nu, padding, scheme, registers)
    want = weight_grad(x.double(), nu.double(), padding, scheme.kernel)
    scale = weight_grad(x.abs().double(), nu.abs().double(), padding, scheme.kernel).amax()
    assert got.shape == weight.shape
    assert bool(((got - want).abs() <= 2e-6 * scale).all())


@pytest.mark.parametrize("registers", WIDTHS)
@pytest.mark.parametrize("channels", [32, 256])
# Transforms of 6x6 pixels have larger numbers than those of 4x4.
@pytest.mark.parametrize(("scheme", "most"), list(zip(SCHEMES, (1.25, 3.5, 3.5), strict=True)))
def test_errs_by_a_few_times_the_vendors_rounding_at_most(
    registers: int, channels: int, scheme: winograd.Scheme, most: float
) -> None:
    kernel = scheme.kernel
    generator = torch.Generator().manual_seed(0)
    shapes = (2, channels, 14, 14), (64, channels, kernel, kernel), (2, 64, 14, 14)
    x, weight, nu = (torch.randn(*shape, generator=generator) for shape in shapes)
    padding = (kernel // 2, kernel // 2)
    both: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (
            lambda t: F.conv2d(t, weight.to(t.dtype), padding=padding),
            winograd._run(x, winograd.pack(weight, scheme), None, padding, None, registers),
        ),
        (
            lambda t: weight_grad(t, nu.to(t.dtype), padding, kernel),
            winograd._sum(x, nu, padding, scheme, registers),
        ),
    ]
    for vendor, got in both:
        want = vendor(x.double())
        assert (got - want).norm() <= most * (vendor(x) - want).norm()


@settings(max_examples=60, deadline=None)
@given(
    **SHAPES,
    kept=st.sampled_from([0.0, 0.01, 0.3]),
    dead=st.booleans(),
    bias=st.booleans(),
)
def test_small_outputs_are_summed_directly(
    scheme: winograd.Scheme,
    rows: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    padding: tuple[int, int],
    kept: float,
    dead: bool,
    bias: bool,
) -> None:
    """Where every term is positive, digits of small outputs are their own, beside whatever large ones."""
    x = torch.rand(rows, channels, *size) * (torch.rand(rows, channels, *size) < kept)
    x[:, :, : size[0] // 2] *= 1e-6
    weight = torch.randn(outputs, channels, scheme.kernel, scheme.kernel).clamp(min=0)
    weight[::5] *= 1e-8
    b = torch.full((outputs,), 1e-4) if bias else None
    if dead:
        weight[1] = 0
    direct = weight.contiguous(memory_format=torch.channels_last)
    packed = winograd.pack(weight, scheme)
    got = winograd.conv(x, packed, b, padding, winograd.Refined(direct))
    want = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=padding)
    assert torch.equal(got == 0, want == 0)
    assert bool(((got - want).abs() <= 1e-3 * want).all())
    assert (got - want).norm() <= 2e-6 * want.norm()

    # Where these are small, those of another image are summed directly.
    other = torch.randn(rows, channels, *size).transpose(2, 3).contiguous().transpose(2, 3)
    alike = winograd.conv(other, packed, b, padding, winograd.Refined(direct, (x.contiguous(), got.contiguous())))
    wanted = F.conv2d(other.double(), weight.double(), None if b is None else b.double(), padding=padding)
    terms = F.conv2d(other.abs().double(), weight.double(), None if b is None else b.double(), padding=padding)
    sides = (padding[1], padding[1], padding[0], padding[0])
    around = F.max_pool2d(F.pad(x.amax(1, keepdim=True), sides), scheme.kernel, stride=1)
    small = got < packed.least[:, None, None] * around
    assert bool(((alike - wanted).abs() <= torch.where(small, 1e-6 * terms, 2e-6 * terms.sum())).all())


def packed_noise(outputs: int, channels: int, scheme: winograd.Scheme) -> winograd.Packed:
    return winograd.pack(torch.randn(outputs, channels, scheme.kernel, scheme.kernel), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_computed_alone(scheme: winograd.Scheme) -> None:
    x, packed = torch.randn(7, 16, 9, 11), packed_noise(32, 16, scheme)
    whole = winograd.conv(x, packed, None, (1, 1))
    assert torch.equal(torch.cat([winograd.conv(row, packed, None, (1, 1)) for row in x.split(2)]), whole)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_bits(threads: int, scheme: winograd.Scheme) -> None:
    x, packed = torch.randn(8, 32, 33, 31), packed_noise(32, 32, scheme)
    want = winograd.conv(x, packed, None, (1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(winograd.conv(x, packed, None, (1, 1)), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("scheme", "first", "last"), list(zip(SCHEMES, (4, 4, 2), (7, 7, 7), strict=True)))
def test_extreme_values_stay_in_their_pixels(scheme: winograd.Scheme, first: int, last: int) -> None:
    kernel = scheme.kernel
    x, packed = torch.zeros(1, 16, 12, 12), winograd.pack(torch.ones(16, 16, kernel, kernel), scheme)
    x[0, 0, 5, 5] = float("nan")
    bad = winograd.conv(x, packed, None, (kernel // 2, kernel // 2)).isnan()[0, 0].nonzero()
    # A tile shares its pixels: a NaN may reach the neighbours in the tiles that read it, and no further.
    assert len(bad) and int(bad.min()) >= first and int(bad.max()) <= last


@pytest.mark.parametrize("scheme", SCHEMES)
def test_unpack_is_the_adjoint_of_pack(scheme: winograd.Scheme) -> None:
    weight, u = torch.randn(48, 16, scheme.kernel, scheme.kernel), torch.randn(scheme.positions * 48 * 16)
    packed = winograd.pack(weight, scheme).u
    assert torch.isclose((packed * u).sum(), (weight * winograd.unpack(u, 16, scheme)).sum(), rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 200])
def test_small_and_large_sums_give_one_weight_gradient(rows: int) -> None:
    x, nu = torch.randn(rows, 32, 9, 9), torch.randn(rows, 32, 9, 9)
    want = weight_grad(x.double(), nu.double(), (1, 1), 3)
    assert (winograd.weight_grad(x, nu, (1, 1), 3) - want).norm() <= 2e-6 * want.norm()


def test_where_it_fits_and_serves() -> None:
    small, large, five = SCHEMES
    kernel, wide, scheme = torch.empty(32, 16, 3, 3), torch.empty(32, 32, 5, 5), winograd.scheme
    assert scheme(kernel, (8, 8)) == scheme(kernel, (7, 7)) == large and scheme(wide, (7, 7)) == five
    # Tiles of the same work: those that round less.
    assert scheme(kernel, (6, 6)) == scheme(kernel, (2, 2)) == scheme(kernel, (5, 6)) == small
    # One pixel of four in a tile is no gain.
    assert not scheme(kernel, (1, 1)) and not scheme(kernel, (1, 9)) and not scheme(wide, (1, 1))
    assert not scheme(kernel.double(), (8, 8)) and not scheme(torch.empty(32, 16, 5, 5), (8, 8))
    assert not scheme(torch.empty(32, 32, 3, 5), (8, 8)) and not scheme(torch.empty(32, 32, 7, 7), (8, 8))
    assert not scheme(torch.empty(32, 3, 3, 3), (8, 8)) and not scheme(torch.empty(10, 16, 3, 3), (8, 8))
    assert winograd.serves(torch.empty(1)) and not winograd.serves(torch.empty(1, dtype=torch.float64))
    with fastxai.backend("reference"):
        assert not winograd.serves(torch.empty(1))


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        winograd.conv(torch.randn(1, 8, 4, 4), packed_noise(16, 8, SCHEMES[0]), None, (1, 1))


@pytest.mark.parametrize("scheme", [winograd.Scheme(7, 2), winograd.Scheme(5, 4), winograd.Scheme(3, 3)])
def test_wrong_tiles_are_refused(scheme: winograd.Scheme) -> None:
    packed = winograd.Packed(torch.zeros(scheme.positions * 16 * 16), scheme, torch.zeros(16))
    with pytest.raises(ValueError, match="tiles of 2 or 4"):
        winograd.conv(torch.randn(1, 16, 9, 9), packed, None, (1, 1))


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
