"""The products of a dense layer against float64, and against the vendor's rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastxai
from fastxai.kernels import _native, linear

WIDTHS = [r for r in (32, 16) if r <= _native.vector_registers()]
pytestmark = pytest.mark.skipif(not WIDTHS, reason="no dense products for this processor")

SIZES = {"inputs": st.integers(1, 90) | st.sampled_from([255, 600, 769, 1600]), "outputs": st.integers(1, 300)}


def products(x: Tensor, weight: Tensor, bias: Tensor | None, nu: Tensor, registers: int) -> list[Tensor]:
    """Return y, mu and dW by the kernels."""
    return [
        linear._run("apply", (x, weight, bias), (len(x), len(weight)), weight, registers),
        linear._run("transpose", (nu, weight), x.shape, weight, registers),
        linear._run("weight_grad", (nu, x), weight.shape, weight, registers),
    ]


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, nu: Tensor) -> list[Tensor]:
    """Return the same by torch."""
    return [x @ weight.T + (0 if bias is None else bias), nu @ weight, nu.T @ x]


@settings(max_examples=150, deadline=None)
@given(rows=st.integers(1, 40), **SIZES, biased=st.booleans(), registers=st.sampled_from(WIDTHS or [0]))
def test_equals_float64(rows: int, inputs: int, outputs: int, biased: bool, registers: int) -> None:
    x, weight, nu = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    operands = x, weight, torch.randn(outputs) if biased else None, nu
    wide = [None if t is None else t.double() for t in operands]
    sizes = [None if t is None else t.abs() for t in wide]
    for got, want, scale in zip(products(*operands, registers), exact(*wide), exact(*sizes), strict=True):  # type: ignore[arg-type]
        assert got.shape == want.shape
        assert bool(((got - want).abs() <= 2e-6 * scale).all())


@pytest.mark.parametrize("registers", WIDTHS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(2, 4096, 256), (48, 1024, 700)])
def test_errs_no_more_than_the_vendor(registers: int, rows: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (rows, inputs), (outputs, inputs), (rows, outputs)
    x, weight, nu = (torch.randn(*size, generator=generator) for size in sizes)
    wide = exact(x.double(), weight.double(), None, nu.double())
    for got, vendor, want in zip(
        products(x, weight, None, nu, registers), exact(x, weight, None, nu), wide, strict=True
    ):
        assert (got - want).norm() <= 1.25 * (vendor - want).norm()


def test_rows_are_computed_alone() -> None:
    x, weight, nu = torch.randn(31, 300), torch.randn(77, 300), torch.randn(31, 77)
    for product, of in ((linear.apply, x), (linear.transpose, nu)):
        whole = product(of, weight)
        assert all(torch.equal(torch.cat([product(p, weight) for p in of.split(n)]), whole) for n in (1, 5, 14))


def test_threads_do_not_change_bits() -> None:
    x, weight, nu = torch.randn(19, 1030), torch.randn(513, 1030), torch.randn(19, 513)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.cat([linear.apply(x, weight).flatten(), linear.transpose(nu, weight).flatten()]))
            results[-1] = torch.cat([results[-1], linear.weight_grad(nu, x).flatten()])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (2, 3, 4)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(5, shape[-1]), torch.randn(5)
    y = linear.apply(x, weight, bias)
    assert torch.allclose(y, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    assert torch.allclose(linear.transpose(y, weight), y @ weight, atol=1e-5)
    grad = linear.weight_grad(y, x)
    assert torch.allclose(grad, torch.einsum("...n,...k->nk", y, x), atol=1e-4)


def test_strided_operands() -> None:
    x, weight, nu = torch.randn(24, 6).T, torch.randn(24, 40).T, torch.randn(6, 80)[:, ::2]
    calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = [
        (linear.apply, x, weight, x @ weight.T),
        (linear.transpose, nu, weight, nu @ weight),
        (linear.weight_grad, nu, x, nu.T @ x),
    ]
    for product, a, b, want in calls:
        assert torch.allclose(product(a, b), want, atol=1e-5)


def test_extreme_values_stay_in_their_rows_and_outputs() -> None:
    x, weight = torch.ones(9, 70), torch.ones(33, 70)
    x[4, 69], weight[7, 0] = float("nan"), float("inf")
    y = linear.apply(x, weight)
    bad = torch.zeros(9, 33, dtype=torch.bool)
    bad[4] = bad[:, 7] = True
    assert torch.equal(~y.isfinite(), bad)


def test_where_it_serves() -> None:
    x = torch.empty(2, 3)
    assert linear.serves(x) and not linear.serves(x.double()) and not linear.serves(x[:0])
    with fastxai.backend("reference"):
        assert not linear.serves(x)
