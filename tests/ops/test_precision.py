"""The public activations in float32 and shorter, in the tails and at extremes, where other formulas fail."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ops.curves import BACKENDS, CASES, EACH, Map, points, tower

from fastxai import ops


@BACKENDS
@EACH
def test_float32_is_accurate(name: str) -> None:
    """Value and both derivatives against float64, per element where no cancellation is inherent."""
    ours, theirs = CASES[name]
    x = torch.linspace(-4, 4, 1001).requires_grad_()
    wide = x.detach().double().requires_grad_()
    for mine, other in zip(tower(ours, x, 2), tower(theirs, wide, 2), strict=True):
        assert mine.dtype == torch.float32
        # torch's float32 gelu, which is the reference's value, is itself 9e-7 off at -3.5.
        torch.testing.assert_close(mine.double(), other, rtol=2e-6, atol=1e-6 if name == "gelu" else 4e-7)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 30.0])
def test_softplus_has_relative_accuracy_in_the_tails(dtype: torch.dtype, beta: float) -> None:
    x = torch.linspace(-60 / beta, 60 / beta, 2001, dtype=dtype).requires_grad_()
    z = beta * x.detach().double()
    q = torch.exp(-z.abs()) / (1 + torch.exp(-z.abs()))
    wanted = [(z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))) / beta, torch.where(z < 0, q, 1 - q)]
    wanted.append(beta * q * (1 - q))
    # beta x is rounded once, which moves exp(-|beta x|) by up to 60 half-ulps.
    limit = 4e-6 if dtype == torch.float32 else 1e-14
    for mine, other in zip(tower(partial(ops.softplus, beta=beta), x, 2), wanted, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=limit, atol=0)


@BACKENDS
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -200.0, -0.0, 0.0, 200.0, 1e4], dtype=dtype, requires_grad=True)
    # The third derivative of torch's own tanh-gelu, which is the formula behind ours, is NaN beyond 30.
    for level in tower(CASES[name][0], x, 2 if name == "gelu_tanh" else 3):
        assert level.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["softplus", "gelu"])
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    ours, theirs = CASES[name]
    x = points(50).detach().to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    for mine, other in zip(tower(ours, x, 2), tower(theirs, wide, 2), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=2e-2, atol=1e-2)


def second(f: Map, at: float) -> float:
    return tower(f, torch.tensor(at, dtype=torch.float64, requires_grad=True), 2)[2].item()


@BACKENDS
def test_torchs_softplus_has_no_curvature_beyond_its_threshold() -> None:
    p = torch.sigmoid(torch.tensor(25.0, dtype=torch.float64))
    exact = (10 * p * torch.sigmoid(torch.tensor(-25.0, dtype=torch.float64))).item()
    assert second(lambda x: F.softplus(x, beta=10), 2.5) == 0
    assert second(partial(ops.softplus, beta=10), 2.5) == pytest.approx(exact, rel=1e-12)


@BACKENDS
def test_logaddexp_is_nan_in_double_backward_far_out() -> None:
    assert second(lambda x: torch.logaddexp(x, torch.zeros_like(x)), -800.0) != pytest.approx(0, nan_ok=False)
    assert second(lambda x: torch.logaddexp(x, torch.zeros_like(x)), -800.0) != 0
    assert second(ops.softplus, -800.0) == 0


@BACKENDS
def test_kernels_formula_has_no_curvature_at_zero_under_autograd() -> None:
    assert second(lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-(2 * x).abs())) / 2, 0.0) == 0
    assert second(partial(ops.softplus, beta=2), 0.0) == pytest.approx(0.5, rel=1e-12)
