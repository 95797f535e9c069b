"""Principal curvatures against dense matrices, against surfaces that every textbook knows, and theorem 1 of [M]."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from theory.nets import SHAPE, SIZE, batch, dense, quadratic, smooth
from torch import Tensor

import fastxai
from fastxai import theory

TARGET = torch.tensor([1, 0, 3])


def form(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (P H P / ||grad|| [N, D, D], n [N, D])."""
    gradient, h = dense(x, target)
    length = gradient.norm(dim=1)
    n = gradient / length[:, None]
    p = torch.eye(SIZE, dtype=x.dtype) - n[:, :, None] * n[:, None]
    return p @ h @ p / length[:, None, None], n


def curvatures(x: Tensor, target: Tensor) -> Tensor:
    """Eigenvalues on the tangent space, in a basis of it: [N, D - 1], ascending."""
    rows = []
    for matrix, n in zip(*form(x, target), strict=True):
        basis = scipy.linalg.null_space(n[None].numpy())
        rows.append(scipy.linalg.eigvalsh(basis.T @ matrix.numpy() @ basis))
    return torch.from_numpy(np.stack(rows))


def test_form_and_normal_are_those_of_the_dense_matrices() -> None:
    x = batch()
    matrix, n = form(x, TARGET)
    assert (theory.normal(smooth(), x, TARGET).flatten(1) - n).abs().max() < 1e-12
    u = torch.randn(4, *x.shape, dtype=x.dtype)
    got = theory.second_fundamental_form(smooth(), x, u, TARGET)
    expected = torch.einsum("nij,snj->sni", matrix, u.flatten(2)).reshape(u.shape)
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()
    one = theory.second_fundamental_form(smooth(), x, u[2], TARGET)
    assert (one - got[2]).abs().max() < 1e-13


def test_form_is_the_turn_of_the_normal() -> None:
    """D_u n by central differences, for tangents u."""
    x, net, h = batch(), smooth(), 1e-5
    n = theory.normal(net, x, TARGET)
    u = torch.randn(x.shape, dtype=x.dtype)
    u = u - n * (n * u).sum((1, 2, 3), keepdim=True)
    turn = (theory.normal(net, x + h * u, TARGET) - theory.normal(net, x - h * u, TARGET)) / (2 * h)
    got = theory.second_fundamental_form(net, x, u, TARGET)
    assert (got - turn).abs().max() < 1e-8 * turn.abs().max()


def test_principal_curvatures_are_the_tangent_eigenvalues() -> None:
    x = batch()
    matrix, n = form(x, TARGET)
    values = curvatures(x, TARGET)
    s = theory.principal_curvatures(smooth(), x, TARGET, steps=10**6, pairs=10**6)
    scale = values.abs().max()
    assert s.values.shape == (3, SIZE - 1)
    assert (s.values.sort(1)[0] - values).abs().max() < 1e-12 * scale
    assert (s.lowest - values[:, 0]).abs().max() < 1e-12 * scale
    y = s.vectors.flatten(2)
    assert (y @ n[:, :, None]).abs().max() < 1e-12
    assert (y @ matrix - s.values[:, :, None] * y).abs().max() < 1e-11 * scale
    few = theory.principal_curvatures(smooth(), x, TARGET, steps=14, pairs=2)
    y = few.vectors.flatten(2)
    true = (y @ matrix - few.values[:, :, None] * y).norm(dim=2)
    assert (true - few.residuals).abs().max() < 1e-10 * scale
    assert (few.norm.value - values.abs().amax(1)).abs().max() < 1e-4 * scale


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_a_sphere_has_curvature_one_over_r_with_the_published_sign(radius: float) -> None:
    net = quadratic([1.0] * 5)
    x = torch.randn(3, 5, dtype=torch.float64)
    x = radius * x / x.norm(dim=1, keepdim=True)
    s = theory.principal_curvatures(net, x, 0, pairs=4)
    assert (s.values - 1 / radius).abs().max() < 1e-12
    mean = theory.mean_curvature(net, x, 0, probes=None)
    assert (mean.value - 1 / radius).abs().max() < 1e-12


def test_a_cylinder_is_flat_along_its_axis() -> None:
    net = quadratic([1.0, 1.0, 0.0], rotated=False)
    s = theory.principal_curvatures(net, torch.tensor([[0.0, 2.0, 7.0]], dtype=torch.float64), 0, pairs=2)
    assert (s.values - torch.tensor([[0.5, 0.0]])).abs().max() < 1e-12
    assert (s.vectors[0, 0].abs() - torch.tensor([1.0, 0, 0])).abs().max() < 1e-12


def test_exact_mean_curvature() -> None:
    x = batch()
    got = theory.mean_curvature(smooth(), x, TARGET, probes=None)
    expected = curvatures(x, TARGET).mean(1)
    assert (got.value - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (got.error == 0).all()


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_estimated_mean_curvature_knows_its_error(kind: str) -> None:
    n = 200
    x = batch(1).expand(n, *SHAPE)
    exact = curvatures(x[:1], TARGET[:1]).mean()
    got = theory.mean_curvature(smooth(), x, int(TARGET[0]), probes=24, kind=kind, index=torch.arange(n))
    z = (got.value - exact) / got.error
    assert abs(z.mean()) < 4 / math.sqrt(n) * z.std()
    assert 0.8 < z.std() < 1.4


def test_without_a_gradient_there_is_no_surface() -> None:
    """The centre of the spheres is no level surface: NaN there, and nothing else is disturbed."""
    net = quadratic([1.0] * 4)
    x = torch.tensor([[0.0] * 4, [0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    s = theory.principal_curvatures(net, x, 0)
    assert s.values[0].isnan().all() and s.residuals[0].isnan().all()
    assert abs(s.values[1, 0] - 0.5) < 1e-12
    mean = theory.mean_curvature(net, x, 0).value
    assert mean[0].isnan() and abs(mean[1] - 0.5) < 1e-12
    curve = theory.level_curve(net, x, torch.ones_like(x), 0.1, 0, steps=2)
    assert curve[1:, 0].isnan().all() and curve[:, 1].isfinite().all()


@pytest.mark.parametrize("size", [4, 3072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_need_a_tangent_part_of_their_direction(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = fastxai.compile(torch.nn.Linear(size, 2).to(dtype)), torch.rand(3, size, dtype=dtype)
    n = theory.normal(net, x, 0)
    u = torch.randn_like(x)
    for wrong in (torch.zeros_like(x), n, -3 * n):
        direction = torch.stack([u[0], wrong[1], u[2]])
        with pytest.raises(ValueError, match=r"direction must be neither zero nor .*, got that for samples \[1\]"):
            theory.level_curve(net, x, direction, 1.0, 0, steps=2)
    with pytest.raises(ValueError, match=r"direction must be finite, got inf or nan for samples \[0, 1, 2\]"):
        theory.level_curve(net, x, u / 0, 1.0, 0)
    near = theory.level_curve(net, x, n + 1e-2 * u / u.norm(dim=1, keepdim=True), 1.0, 0, steps=2)
    assert near.isfinite().all()


def test_curve_stays_on_the_level_set_at_unit_speed() -> None:
    net, x = smooth(), batch()
    u = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    curve = theory.level_curve(net, x, u, 1.5, TARGET, steps=40)
    assert curve.shape == (41, *x.shape) and torch.equal(curve[0], x)
    values = torch.stack([net(p).gather(1, TARGET[:, None])[:, 0] for p in curve])
    assert (values - values[0]).abs().max() < 1e-12
    chords = curve.diff(dim=0).flatten(2).norm(dim=2)
    assert (chords / (1.5 / 40) - 1).abs().max() < 1e-3
    assert (curve[-1] - x).flatten(1).norm(dim=1).min() > 0.5


def test_curve_on_a_sphere_is_a_great_circle() -> None:
    net = quadratic([1.0] * 3, rotated=False)
    x, u = (torch.tensor([row], dtype=torch.float64) for row in ([2.0, 0, 0], [0, 1.0, 0]))
    curve = theory.level_curve(net, x, u, 2.0, 0, steps=50)
    assert (curve[-1, 0] - 2 * torch.tensor([math.cos(1), math.sin(1), 0], dtype=x.dtype)).abs().max() < 1e-6
    # On a circle the normal turns by chord / r, and |lambda| d is the arc: 2 sin(1/2) against 1.
    got = theory.level_change(net, curve, 0)
    assert abs(got.change - 2 * math.sin(0.5)) < 1e-6
    assert abs(got.bound - 1) < 1e-4 and got.drift < 1e-12
    assert abs(got.ratio - 2 * math.sin(0.5)) < 1e-4


def test_theorem_1_holds_along_curves() -> None:
    net, x = smooth(), batch()
    u = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    for length in (0.1, 1.5):
        curve = theory.level_curve(net, x, u, length, TARGET)
        got = theory.level_change(net, curve, TARGET, samples=33)
        assert (got.ratio < 1).all() and (got.change > 0).all()
        assert (got.length - length).abs().max() < 1e-3 * length
        ends = theory.normal(net, curve[-1], TARGET) - theory.normal(net, x, TARGET)
        assert (got.change - ends.flatten(1).norm(dim=1)).abs().max() < 1e-13
    # The direction of the largest curvature makes the bound tight for a short curve.
    s = theory.principal_curvatures(net, x, TARGET, steps=SIZE)
    curve = theory.level_curve(net, x, s.vectors[:, 0], 1e-3, TARGET, steps=2)
    assert (theory.level_change(net, curve, TARGET, steps=SIZE).ratio - 1).abs().max() < 1e-2


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int) -> None:
    net, x = smooth(), batch(3)[:n]
    assert theory.normal(net, x).shape == x.shape
    assert theory.second_fundamental_form(net, x, torch.ones(2, *x.shape, dtype=x.dtype)).shape == (2, *x.shape)
    assert theory.principal_curvatures(net, x).vectors.shape == (n, 1, *SHAPE)
    assert theory.mean_curvature(net, x).value.shape == (n,)
    curve = theory.level_curve(net, x, torch.ones_like(x), 0.1, steps=2)
    assert curve.shape == (3, *x.shape)
    assert theory.level_change(net, curve).ratio.shape == (n,)


def test_bad_arguments() -> None:
    net, x = smooth(), batch()
    with pytest.raises(ValueError, match="at least 2 elements a sample"):
        theory.principal_curvatures(quadratic([1.0]), torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"u must have shape \[3, 2, 5, 3\] or \[S, N, ...\]"):
        theory.second_fundamental_form(net, x, x[:2])
    with pytest.raises(ValueError, match="u must have shape"):
        theory.second_fundamental_form(net, x, x[None, None])
    with pytest.raises(ValueError, match="u must have x's dtype"):
        theory.second_fundamental_form(net, x, x.float())
    with pytest.raises(ValueError, match="length must be finite and positive, got 0"):
        theory.level_curve(net, x, x, 0)
    with pytest.raises(ValueError, match="direction must have shape"):
        theory.level_curve(net, x, x[:1], 1.0)
    with pytest.raises(ValueError, match=r"points must have shape \[T \+ 1, N, ...\]"):
        theory.level_change(net, x[:1])
    with pytest.raises(ValueError, match="samples must be an int of at least 2"):
        theory.level_change(net, x[None].expand(2, *x.shape), samples=1)
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got all"):
        theory.level_change(net, x[None].expand(2, *x.shape), steps="all")  # type: ignore[arg-type]
