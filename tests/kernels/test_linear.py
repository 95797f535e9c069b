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
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1030, 20, 9), (513, 37, 70), (7, 33, 1100)])
def test_many_rows_are_taken_in_pieces(registers: int, rows: int, inputs: int, outputs: int) -> None:
    operands = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(rows, outputs)
    wide = [t.double() for t in operands]
    for got, want in zip(products(*operands, registers), exact(*wide), strict=True):  # type: ignore[arg-type]
        assert torch.allclose(got.double(), want, atol=2e-4)


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
    x, weight, nu = torch.randn(31, 300), torch.randn(137, 300), torch.randn(31, 137)
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


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (2, 3, 4), (2, 3, 260), (0, 260), (260,)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(129, shape[-1]) / 16, torch.randn(129)
    y = linear.apply(x, weight, bias)
    assert torch.allclose(y, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    assert torch.allclose(linear.transpose(y, weight), y @ weight, atol=1e-5)
    if len(shape) > 1:
        grad = linear.weight_grad(y, x)
        assert torch.allclose(grad, torch.einsum("...n,...k->nk", y, x), atol=1e-4)


def test_strided_operands() -> None:
    x, weight, nu = torch.randn(270, 6).T, torch.randn(270, 140).T, torch.randn(6, 280)[:, ::2]
    calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = [
        (linear.apply, x, weight, x @ weight.T),
        (linear.transpose, nu, weight, nu @ weight),
        (linear.weight_grad, nu, x, nu.T @ x),
    ]
    for product, a, b, want in calls:
        assert torch.allclose(product(a, b), want, atol=1e-4)


def test_extreme_values_stay_in_their_rows_and_outputs() -> None:
    x, weight = torch.ones(9, 270), torch.ones(133, 270)
    x[4, 269], weight[7, 0] = float("nan"), float("inf")
    y = linear.apply(x, weight)
    bad = torch.zeros(9, 133, dtype=torch.bool)
    bad[4] = bad[:, 7] = True
    assert torch.equal(~y.isfinite(), bad)


def test_where_it_serves() -> None:
    x = torch.empty(2, 3)
    assert linear.serves(x) and not linear.serves(x.double()) and not linear.serves(x[:0])
    with fastxai.backend("reference"):
        assert not linear.serves(x)


@pytest.mark.parametrize(("outputs", "inputs", "pays"), [(128, 256, True), (127, 256, False), (9999, 255, False)])
def test_small_weights_are_the_vendor_s(outputs: int, inputs: int, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    monkeypatch.setattr(linear._native, "launch", lambda backend, name, *_: launched.append(name))
    x, weight, nu = torch.randn(3, inputs), torch.randn(outputs, inputs), torch.randn(3, outputs)
    for product, a, b in ((linear.apply, x, weight), (linear.transpose, nu, weight), (linear.weight_grad, nu, x)):
        product(a, b)
    assert launched == (["linear_apply", "linear_transpose", "linear_weight_grad"] if pays else [])


def test_operands_that_do_not_match_are_not_read() -> None:
    x, weight, nu = torch.randn(3, 300), torch.randn(200, 300), torch.randn(3, 200)
    wrong: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (linear.apply, (x, weight.double())),
        (linear.apply, (x, weight.bfloat16())),
        (linear.apply, (x, torch.randn(200, 301))),
        (linear.apply, (x, weight, torch.randn(199))),
        (linear.transpose, (nu, weight.double())),
        (linear.transpose, (nu, weight[1:])),
        (linear.weight_grad, (nu, x.double())),
        (linear.weight_grad, (nu, x[1:])),
    ]
    for product, operands in wrong:
        with pytest.raises(RuntimeError):
            product(*operands)
    assert not linear.serves(x, weight.to("meta"))
