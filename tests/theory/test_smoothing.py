"""[M]'s one-layer theorem by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import logistic

from fastxai import theory


def p(eps: float, beta: float) -> float:
    return theory.density(torch.tensor([eps], dtype=torch.float64), beta).item()


@given(st.floats(0.05, 50))
@settings(max_examples=20, deadline=None)
def test_density_is_a_density_of_known_variance(beta: float) -> None:
    reach = 60 / beta
    assert abs(quad(p, -reach, reach, (beta,), points=[0])[0] - 1) < 1e-9
    variance = quad(lambda e: e * e * p(e, beta), -reach, reach, points=[0])[0]
    assert abs(variance / (math.pi**2 / (3 * beta**2)) - 1) < 1e-8


def test_density_as_printed_and_far_out() -> None:
    eps = torch.linspace(-20, 20, 101, dtype=torch.float64)
    printed = 3.0 / (torch.exp(1.5 * eps) + torch.exp(-1.5 * eps)).square()
    assert (theory.density(eps, 3.0) / printed - 1).abs().max() < 1e-12
    assert np.abs(theory.density(eps, 3.0).numpy() / logistic.pdf(eps.numpy(), scale=1 / 3) - 1).max() < 1e-12
    far = theory.density(torch.tensor([1e30, -1e30, torch.inf]), 1e4)
    assert (far == 0).all()
    near = theory.density(torch.tensor([0.0], dtype=torch.float64), 1e-300)
    assert near.item() == 1e-300 / 4


def test_density_is_the_second_derivative_of_softplus() -> None:
    a = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    y = -torch.nn.functional.logsigmoid(-2.5 * a) / 2.5
    (slope,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), a)
    assert (theory.density(a.detach(), 2.5) - bend).abs().max() < 1e-14


@given(
    st.floats(0.1, 30),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3).filter(lambda w: np.linalg.norm(w) > 1e-2),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_theorem_by_quadrature(beta: float, weights: list[float], point: list[float]) -> None:
    """E over the noise along w of w Theta(w (x - eps)), by SciPy, is the gradient of softplus_{beta / ||w||}."""
    w, x = (torch.tensor(v, dtype=torch.float64) for v in (weights, point))
    kink = (w @ x / w.norm()).item()
    reach = 60 / beta
    # relu' is 1 where eps < kink, eps the noise along w; its density is even and peaks where the integral begins.
    share = 0.5 + math.copysign(quad(p, 0, min(abs(kink), reach), (beta,))[0], kink)
    z = x.clone().requires_grad_()
    sharp = beta / w.norm()
    (gradient,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(-sharp * (w @ z)) / sharp, z)
    assert (share * w - gradient).abs().max() < 1e-8 * w.norm()
    assert (theory.smoothed_gradient(x[None], w, beta)[0] - gradient).abs().max() < 1e-12 * w.norm()


def test_theorem_needs_the_logistic_noise_along_w() -> None:
    """Independent noise per pixel only comes near: for w along the diagonal its projection is no logistic variable."""
    beta, w = 2.0, torch.ones(2, dtype=torch.float64)
    kink = 0.6
    exact = theory.smoothed_gradient(kink * w[None] / w.norm(), w, beta)[0, 0].item()
    # eps_1 + eps_2 < t, both logistic: the share is int p(e) F(t - e) de.
    t = kink * math.sqrt(2)
    share = quad(lambda e: p(e, beta) * logistic.cdf(t - e, scale=1 / beta), -30, 30, points=[0, t])[0]
    assert 1e-3 < abs(share - exact) < 2e-2


def test_sigma_gives_the_same_value_at_the_kink() -> None:
    """E relu(-eps) = sigma / sqrt(2 pi) for a Gaussian, log(2) / beta for softplus."""
    for beta in (0.3, 1.0, 10.0):
        sigma = theory.equivalent_sigma(beta)
        gauss = quad(lambda e, s=sigma: e * math.exp(-((e / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)), 0, 20 * sigma)
        assert abs(gauss[0] - math.log(2) / beta) < 1e-9
        assert abs(sigma * beta - math.log(2) * math.sqrt(2 * math.pi)) < 1e-14
        assert abs(theory.equivalent_beta(sigma) / beta - 1) < 1e-14
        assert 0.95 < sigma / (math.pi / (math.sqrt(3) * beta)) < 0.97


def test_densities_are_alike() -> None:
    sigma = theory.equivalent_sigma(1.0)
    eps = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    gauss = torch.exp(-((eps / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    distance = (theory.density(eps, 1.0) - gauss).abs().mean() * 24 / 2
    assert distance < 0.05


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_only_the_direction_of_w_is_in_the_share(scale: float) -> None:
    """Squares of these weights leave float32."""
    x, w = torch.randn(3, 4), torch.randn(4)
    got = theory.smoothed_gradient(x, scale * w, 2.0) / scale
    torch.testing.assert_close(got, theory.smoothed_gradient(x, w, 2.0))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_batches(n: int) -> None:
    assert theory.smoothed_gradient(torch.randn(n, 4), torch.randn(4), 1.0).shape == (n, 4)


def test_bad_arguments() -> None:
    for call in (theory.equivalent_sigma, theory.equivalent_beta):
        for bad in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="must be finite and positive"):
                call(bad)
    with pytest.raises(ValueError, match="beta must be finite and positive"):
        theory.density(torch.zeros(1), 0.0)
    with pytest.raises(TypeError, match=r"eps must be a torch\.Tensor"):
        theory.density(0.0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have shape \[N, D\]"):
        theory.smoothed_gradient(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"w must have shape \[3\]"):
        theory.smoothed_gradient(torch.zeros(2, 3), torch.zeros(2), 1.0)
    for value in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"w must be finite and not all zero, got a norm of {value:g}"):
            theory.smoothed_gradient(torch.rand(2, 3), torch.full((3,), value), 1.0)
    with pytest.raises(ValueError, match="w must have x's dtype"):
        theory.smoothed_gradient(torch.zeros(2, 3), torch.zeros(3).double(), 1.0)
