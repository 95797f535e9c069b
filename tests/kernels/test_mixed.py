"""Activation jets of order 2: the reference against autograd, the CPU kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from cases import ACTIVATIONS, MIXED_CASES, JetCase, check_mixed, close, label, third_scale
from hypothesis import given, settings
from hypothesis import strategies as st

import fastxai
from fastxai.kernels import activation, mixed
from fastxai.kernels.activation import NAMES, Activation
from fastxai.kernels.formulas import third

FLOAT32, FLOAT64 = 2e-6, 1e-13
SMOOTH = [act for act in ACTIVATIONS if act.second == "own"]


@pytest.mark.parametrize("act", SMOOTH, ids=label)
def test_third_derivative_matches_autograd(act: Activation) -> None:
    a = torch.cat([torch.linspace(-9, 9, 720), torch.randn(200) * 3]).double().requires_grad_()
    y = activation.value(act, a)
    for _ in range(3):
        y = torch.autograd.grad(y.sum(), a, create_graph=True)[0] if y.requires_grad else torch.zeros_like(a)
    with fastxai.backend("reference"):
        kept = activation.push(act, a.detach())[1]
    # autograd's own sums cancel where ours do not: allow it one unit of the largest factor
    scale = third_scale(act, a.detach())
    close(third(act, kept), y.detach(), scale + scale.max() + act.beta**2, 1e-13, label(act))


@pytest.mark.parametrize("act", SMOOTH, ids=label)
@pytest.mark.parametrize("directions", [1, 3])
def test_reference_matches_autograd(act: Activation, directions: int) -> None:
    """mu is the gradient of <bar, start> + <nu, extension>, whatever the numbers are."""
    n = 2
    a = (torch.randn(n, 3, 5) * 2).double().requires_grad_()
    a_v, a_u, nu_0, bar_v = torch.randn(4, directions, n, 3, 5).double()
    a_w, nu_v, bar_0 = torch.randn(3, n, 3, 5).double()
    a_v.requires_grad_()
    y = activation.value(act, a)
    d1 = torch.autograd.grad(y.sum(), a, create_graph=True)[0]
    d2 = torch.autograd.grad(d1.sum(), a, create_graph=True)[0] if d1.requires_grad else torch.zeros_like(a)
    y_w, y_u = d1 * a_w + d2 * (a_u * a_v).sum(0), d1 * a_u
    paired = (bar_0 * y).sum() + (bar_v * (d1 * a_v)).sum() + (nu_v * y_w).sum() + (nu_0 * y_u).sum()
    mu_0, mu_v = torch.autograd.grad(paired, (a, a_v))
    with fastxai.backend("reference"):
        kept = activation.push(act, a.detach())[1]
        start, added, nu, bar = (
            torch.cat([first[None], rest]).flatten(0, 1).detach()
            for first, rest in ((a, a_v), (a_w, a_u), (nu_v, nu_0), (bar_0, bar_v))
        )
        got_y = mixed.push(act, kept, start[n:], added, directions)
        got_mu = mixed.pull(act, kept, start[n:], added, nu, bar, directions)
    want_y, want_mu = (torch.cat([x[None], xs]).flatten(0, 1).detach() for x, xs in ((y_w, y_u), (mu_0, mu_v)))
    torch.testing.assert_close(got_y, want_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_mu, want_mu, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
@pytest.mark.parametrize("case", MIXED_CASES, ids=str)
def test_cpu(case: JetCase, dtype: torch.dtype, tolerance: float) -> None:
    check_mixed(case, "cpu", dtype, tolerance)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=5).map(tuple),
    directions=st.integers(1, 4),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape(name: str, shape: tuple[int, ...], directions: int, last: bool, dtype: torch.dtype) -> None:
    case = JetCase(Activation(name, beta=2.0, alpha=0.3), shape, directions, last and len(shape) == 4)
    check_mixed(case, "cpu", dtype, FLOAT32 if dtype == torch.float32 else FLOAT64)


def test_extreme_values_stay_finite() -> None:
    a = torch.tensor([[-1e4, -300.0, -0.0, 0.0, 300.0, 1e4]], dtype=torch.float32)
    one = torch.ones_like(a)
    for act in SMOOTH:
        _, kept = activation.push(act, a)
        y = mixed.push(act, kept, one, one.repeat(2, 1))
        mu = mixed.pull(act, kept, one, one.repeat(2, 1), one.repeat(2, 1), one.repeat(2, 1))
        assert y.isfinite().all() and mu.isfinite().all(), act


def test_non_contiguous_input() -> None:
    act = Activation("softplus", beta=3.0)
    a, a_v = torch.randn(2, 4, 3, 6)[..., ::2].double()
    added, nu, bar = torch.randn(3, 8, 3, 6)[..., ::2].double()
    kept = activation.push(act, a)[1]
    got = mixed.pull(act, kept, a_v, added, nu, bar)
    want = mixed.pull(act, kept, *(x.contiguous() for x in (a_v, added, nu, bar)))
    assert torch.equal(got, want)


def test_errors() -> None:
    act, x = Activation("softplus"), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"a must have shape \[4, 3\], got \[2, 3\]"):
        mixed.push(act, x, x, x)
    with pytest.raises(ValueError, match=r"bar must have shape \[4, 3\], got \[3, 3\]"):
        mixed.pull(act, x, x, torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="act must have a third derivative, which the surrogate 'curvature' has not"):
        mixed.push(Activation("relu", second="curvature"), x, x, torch.zeros(4, 3))
