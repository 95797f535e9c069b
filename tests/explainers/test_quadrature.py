"""Quadrature rules: against numpy, by exactness for polynomials, and what Captum's trapezoid does instead."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor, nn

from fastxai.explainers.quadrature import METHODS, REFINABLE, quadrature, refine

SIZES = (2, 3, 4, 5, 10, 31, 50, 128)
CAPTUM = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle")


def moment(t: Tensor, w: Tensor, degree: int) -> float:
    """The rule's error on t^degree."""
    return abs(float(w @ t**degree) - 1 / (degree + 1))


@given(method=st.sampled_from(METHODS), n=st.integers(2, 300))
def test_every_rule(method, n):
    t, w = quadrature(method, n)
    assert t.dtype == w.dtype == torch.float64 and t.shape == w.shape == (n,)
    assert bool((t.diff() > 0).all()) and t[0] >= 0 and t[-1] <= 1 and bool((w > 0).all())
    assert float(w.sum()) == pytest.approx(1, abs=1e-14)
    if method not in ("riemann_left", "riemann_right"):
        torch.testing.assert_close(t + t.flip(0), torch.ones_like(t), rtol=0, atol=1e-15)
        torch.testing.assert_close(w, w.flip(0), rtol=1e-9, atol=1e-15)
        assert moment(t, w, 1) < 1e-14


@pytest.mark.parametrize("n", [1, *SIZES])
def test_gauss_legendre(n):
    t, w = quadrature("gausslegendre", n)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    np.testing.assert_allclose(t, (nodes + 1) / 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(w, weights / 2, rtol=0, atol=1e-14)
    assert max(moment(t, w, degree) for degree in range(2 * n)) < 1e-14


@pytest.mark.parametrize("n", SIZES)
def test_clenshaw_curtis(n):
    t, w = quadrature("clenshaw_curtis", n)
    assert t[0] == 0 and t[-1] == 1
    # Exact up to degree n - 1, the definition of an interpolatory rule on these nodes.
    legendre = np.polynomial.legendre.legvander(2 * t.numpy() - 1, n - 1)
    np.testing.assert_allclose(w.numpy() @ legendre, np.eye(n)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", SIZES)
def test_trapezoid(n):
    t, w = quadrature("riemann_trapezoid", n)
    f = np.exp(t.numpy())
    assert float(w.numpy() @ f) == pytest.approx(integrate.trapezoid(f, t.numpy()), rel=1e-14)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("method", CAPTUM)
def test_equals_captum(method, n):
    weights, nodes = (f(n) for f in approximation_parameters(method))
    t, w = quadrature(method, n)
    np.testing.assert_allclose(t, nodes, rtol=0, atol=1e-6)  # Captum's come from float32
    np.testing.assert_allclose(w, weights, rtol=0, atol=1e-14)


def test_captums_trapezoid_misses_a_linear_model_and_ours_does_not():
    """Captum spaces n points 1 / (n - 1) apart and weighs them 1 / n."""
    import fastxai

    model, x = nn.Linear(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    exact = x * model.weight[1].detach()
    for n in (5, 10, 50):
        assert sum(approximation_parameters("riemann_trapezoid")[0](n)) == pytest.approx((n - 1) / n)
        arguments = {"target": 1, "n_steps": n, "method": "riemann_trapezoid"}
        theirs = captum.attr.IntegratedGradients(model).attribute(x, **arguments)
        torch.testing.assert_close(theirs, (n - 1) / n * exact, rtol=1e-6, atol=1e-9)
        ours = fastxai.IntegratedGradients(model).attribute(x, **arguments)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@given(method=st.sampled_from((*REFINABLE, "riemann_middle")), n=st.integers(2, 40))
def test_refinement_reuses_every_point(method, n):
    t, w = quadrature(method, n)
    more, t_new, w_new, factor = refine(method, n)
    t_all, w_all = quadrature(method, more)
    together, order = torch.cat([t, t_new]).sort()
    torch.testing.assert_close(together, t_all, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.cat([factor * w, w_new])[order], w_all, rtol=1e-13, atol=0)


def test_results_belong_to_the_caller():
    quadrature("midpoint", 7)[0].zero_()
    assert quadrature("midpoint", 7)[0][0] == pytest.approx(0.5 / 7)


def test_errors():
    with pytest.raises(ValueError, match="method must be one of 'gausslegendre', 'midpoint'"):
        quadrature("simpson", 5)
    with pytest.raises(ValueError, match="n_steps must be at least 2 for 'clenshaw_curtis', got 1"):
        quadrature("clenshaw_curtis", 1)
    with pytest.raises(ValueError, match="n_steps must be at least 1 for 'riemann_middle', got 0"):
        quadrature("riemann_middle", 0)
    with pytest.raises(TypeError, match=r"n_steps must be an integer, got 2\.5"):
        quadrature("midpoint", 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"method must be one of 'midpoint', 'riemann_left', .* got 'gausslegendre'"):
        refine("gausslegendre", 5)
