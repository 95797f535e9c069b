"""Lanczos and Hutchinson against dense Hessians in float64, breakdowns included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory.nets import SHAPE, SIZE, batch, dense, quadratic, smooth
from torch import Tensor

import fastxai
from fastxai import theory
from fastxai._random import probes
from fastxai.theory._lanczos import lanczos

TARGET = torch.tensor([1, 0, 3])


def eigenvalues(h: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([scipy.linalg.eigvalsh(m.numpy()) for m in h]))


def test_hessian_is_that_of_torch_func() -> None:
    x = batch()
    h = dense(x, TARGET)[1]
    got = theory.hessian(smooth(), x, TARGET)
    assert (got - h).abs().max() < 1e-12 * h.abs().max()


def test_as_many_steps_as_dimensions_give_the_whole_spectrum() -> None:
    x = batch()
    values = eigenvalues(dense(x, TARGET)[1])
    s = theory.spectrum(smooth(), x, TARGET, steps=10**6, pairs=10**6)
    scale = values.abs().max()
    assert s.values.shape == (3, SIZE)
    assert (s.values.sort(1)[0] - values).abs().max() < 1e-12 * scale
    assert s.residuals.max() < 1e-12 * scale
    assert (s.lowest - values[:, 0]).abs().max() < 1e-12 * scale
    assert (s.highest - values[:, -1]).abs().max() < 1e-12 * scale
    y = s.vectors.flatten(2)
    assert (y @ y.mT - torch.eye(SIZE, dtype=y.dtype)).abs().max() < 1e-12


def test_pairs_are_eigenpairs_within_their_residuals() -> None:
    x = batch()
    h = dense(x, TARGET)[1]
    values = eigenvalues(h)
    s = theory.spectrum(smooth(), x, TARGET, steps=12, pairs=4)
    y = s.vectors.flatten(2)
    true = (y @ h - s.values[:, :, None] * y).norm(dim=2)
    assert (true - s.residuals).abs().max() < 1e-10 * values.abs().max()
    nearest = (s.values[:, :, None] - values[:, None]).abs().amin(2)
    assert (nearest <= s.residuals + 1e-12).all()
    assert (s.values.abs().diff(dim=1) <= 0).all()
    assert (s.vectors.flatten(2).norm(dim=2) - 1).abs().max() < 1e-12
    assert (s.lowest >= values[:, 0] - 1e-12).all() and (s.highest <= values[:, -1] + 1e-12).all()
    # The ends converge first: far below the residuals, whose square over the gap is their error.
    assert (s.highest - values[:, -1]).abs().max() < 1e-4 * values.abs().max()


def test_norm_is_that_of_the_dense_matrix() -> None:
    x = batch()
    norms = torch.linalg.matrix_norm(dense(x, TARGET)[1], 2)
    got = theory.spectral_norm(smooth(), x, TARGET, steps=20)
    assert ((got.value - norms).abs() < 1e-6 * norms).all()
    assert (got.value <= norms * (1 + 1e-12)).all()
    assert (got.error < 1e-2 * norms).all()


@pytest.mark.parametrize("values", [[0.0] * 6, [2.0] * 6, [-3.0, 0, 0, 0, 0, 0], [1.0, 1, -1, -1, 0, 0]])
def test_krylov_spaces_that_end_early(values: list[float]) -> None:
    net = quadratic(values)
    s = theory.spectrum(net, torch.randn(2, 6, dtype=torch.float64), 0, steps=6, pairs=6)
    expected = torch.tensor(values, dtype=torch.float64).sort()[0].expand(2, 6)
    assert (s.values.sort(1)[0] - expected).abs().max() < 1e-12
    assert s.residuals.max() < 1e-12
    y = s.vectors
    assert (y @ y.mT - torch.eye(6, dtype=torch.float64)).abs().max() < 1e-12


def test_a_breakdown_of_one_sample_leaves_the_others_alone() -> None:
    """Three operators in one call: zero, of rank one, of full rank."""
    g = torch.Generator().manual_seed(0)
    full = torch.randn(9, 9, generator=g, dtype=torch.float64)
    u = torch.randn(9, 1, generator=g, dtype=torch.float64)
    a = torch.stack([torch.zeros(9, 9, dtype=torch.float64), u @ u.T, full + full.T])
    x = torch.zeros(3, 9, dtype=torch.float64)

    def starts(j: int) -> Tensor:
        return probes("gaussian", x, (0,), None, range(j, j + 1))[0]

    together = lanczos(lambda v: (a @ v[:, :, None])[:, :, 0], starts, 5)
    alone = lanczos(lambda v: v @ a[2], lambda j: starts(j)[:1], 5)
    assert (together.values[2] - alone.values[0]).abs().max() < 1e-12
    assert together.values[0].abs().max() == 0 and together.residuals[0].max() == 0
    assert (together.values[1] - torch.tensor([0, 0, 0, 0, u.square().sum()])).abs().max() < 1e-12
    assert together.residuals[1].max() < 1e-12


def test_locked_vectors_are_never_touched() -> None:
    a = torch.diag(torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64))[None]
    locked = torch.eye(5, dtype=torch.float64)[None, :2]
    x = torch.zeros(1, 5, dtype=torch.float64)
    ritz = lanczos(lambda v: v @ a[0], lambda j: probes("gaussian", x, (1,), None, range(j, j + 1))[0], 3, locked)
    assert (ritz.values[0] - torch.tensor([1.0, 2, 3])).abs().max() < 1e-12
    assert (ritz.basis @ locked.mT).abs().max() < 1e-12


def test_a_sample_that_is_not_finite_is_nan_and_alone_in_it() -> None:
    a = torch.diag(torch.tensor([3.0, 2, 1]))
    x = torch.zeros(2, 3)
    factor = torch.tensor([[1.0], [torch.inf]])
    ritz = lanczos(lambda v: factor * (v @ a), lambda j: probes("gaussian", x, (1,), None, range(j, j + 1))[0], 3)
    assert ritz.values[1].isnan().all() and ritz.residuals[1].isnan().all()
    assert (ritz.values[0] - torch.tensor([1.0, 2, 3])).abs().max() < 1e-5


def test_results_do_not_depend_on_the_batch() -> None:
    net, x, index = smooth(), batch(5), torch.tensor([7, 1, 4, 4, 0])
    target = torch.tensor([0, 1, 2, 3, 0])
    for keys in (None, index):
        whole = theory.spectrum(net, x, target, steps=6, pairs=2, index=keys)
        norms = theory.frobenius_norm(net, x, target, probes=3, index=keys)
        for rows in (slice(0, 2), slice(2, 5), slice(4, 5)):
            part = None if keys is None else keys[rows]
            s = theory.spectrum(net, x[rows], target[rows], steps=6, pairs=2, index=part)
            assert (s.values - whole.values[rows]).abs().max() < 1e-12
            f = theory.frobenius_norm(net, x[rows], target[rows], probes=3, index=part)
            assert (f.value - norms.value[rows]).abs().max() < 1e-12


def test_seed_and_index_choose_the_draw() -> None:
    net, x = smooth(), batch(1).expand(3, *SHAPE)
    value = theory.frobenius_norm(net, x, 0, probes=2).value
    assert (value - value[0]).abs().max() < 1e-12
    keyed = theory.frobenius_norm(net, x, 0, probes=2, index=torch.arange(3)).value
    assert keyed.unique().numel() == 3
    assert theory.frobenius_norm(net, x, 0, probes=2, seed=1).value[0] != value[0]


def test_float32_is_as_close_as_its_rounding() -> None:
    x = batch()
    norms = torch.linalg.matrix_norm(dense(x, TARGET)[1], 2)
    got = theory.spectral_norm(smooth(torch.float32), x.float(), TARGET)
    assert got.value.dtype == torch.float32
    assert ((got.value - norms).abs() < 1e-5 * norms).all()


def test_layouts_and_defaults() -> None:
    net, x = smooth(), batch()
    strided = torch.randn(3, 3, 5, 2, dtype=torch.float64).permute(0, 3, 2, 1)
    assert not strided.is_contiguous()
    a, b = (theory.spectrum(net, view, 1, pairs=2) for view in (strided, strided.contiguous()))
    assert (a.values - b.values).abs().max() < 1e-12
    a, b = theory.spectral_norm(net, x), theory.spectral_norm(net, x, net.base(x).argmax(1))
    assert torch.equal(a.value, b.value)
    assert torch.equal(theory.spectral_norm(net, x, 2).value, theory.spectral_norm(net, x, torch.tensor(2)).value)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int) -> None:
    net, x = smooth(), batch(3)[:n]
    s = theory.spectrum(net, x, pairs=2, index=torch.arange(n))
    assert s.values.shape == (n, 2) and s.vectors.shape == (n, 2, *SHAPE)
    assert theory.frobenius_norm(net, x).error.shape == (n,)
    assert theory.hessian(net, x).shape == (n, SIZE, SIZE)


def test_exact_frobenius_norm() -> None:
    x = batch()
    norms = dense(x, TARGET)[1].flatten(1).norm(dim=1)
    got = theory.frobenius_norm(smooth(), x, TARGET, probes=None)
    assert ((got.value - norms).abs() < 1e-12 * norms).all()
    assert (got.error == 0).all()


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_knows_its_error(kind: str) -> None:
    """The estimates of 200 keys scatter around the norm as much as each says it does."""
    n, probes = 200, 24
    x = batch(1).expand(n, *SHAPE)
    norm = dense(x[:1], TARGET[:1])[1].norm()
    got = theory.frobenius_norm(smooth(), x, int(TARGET[0]), probes=probes, kind=kind, index=torch.arange(n))
    z = (got.value.square() - norm.square()) / (2 * got.value * got.error)
    # The mean of ||Hv||^2 is unbiased; z is Student-like with heavy tails, its spread near one.
    pooled = got.value.square().mean() - norm.square()
    assert pooled.abs() < 4 * got.value.square().std() / math.sqrt(n)
    assert 0.8 < z.std() < 1.5
    assert ((got.value - norm).abs() < 2 * got.error).double().mean() > 0.85


def test_one_probe_does_not_know_its_error() -> None:
    got = theory.frobenius_norm(smooth(), batch(), 0, probes=1)
    assert got.error.isnan().all() and got.value.isfinite().all()
    zero = theory.frobenius_norm(quadratic([0.0, 0.0]), torch.zeros(1, 2, dtype=torch.float64), 0, probes=3)
    assert zero.value.item() == 0 and zero.error.item() == 0


@given(st.integers(-(2**70), 2**70), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_draws_are_keyed(seed: int, rows: int, n: int) -> None:
    x = torch.zeros(n, 7, dtype=torch.float64)
    index = torch.arange(n) * 11 - 5
    for kind in ("rademacher", "gaussian"):
        v = probes(kind, x, (seed,), index, range(rows + 2))
        assert v.shape == (rows + 2, n, 7) and v.isfinite().all()
        assert torch.equal(probes(kind, x, (seed,), index, range(2, rows + 2)), v[2:])
        assert torch.equal(probes(kind, x[:1], (seed,), index[:1], range(rows + 2)), v[:, :1])
        assert torch.allclose(probes(kind, x.float(), (seed,), index, range(rows + 2)).double(), v, atol=1e-6)


def test_draws_are_white() -> None:
    x = torch.zeros(50, 400, dtype=torch.float64)
    for kind, fourth in (("rademacher", 1.0), ("gaussian", 3.0)):
        v = probes(kind, x, (4,), torch.arange(50), range(10)).reshape(500, 400)
        assert v.mean().abs() < 4 / math.sqrt(v.numel())
        assert abs(v.pow(4).mean() - fourth) < 4 * math.sqrt(96 / v.numel())
        for w in (v, v.T):
            c = w @ w.T / w.shape[1] - torch.diag(w.square().mean(1))
            assert c.abs().max() < 6 / math.sqrt(w.shape[1])
            assert abs(c.square().mean() * w.shape[1] - 1) < 0.05


def test_bad_arguments() -> None:
    net, x = smooth(), batch()
    with pytest.raises(TypeError, match=r"net must come from fastxai\.compile, got Linear"):
        theory.spectrum(torch.nn.Linear(2, 2), x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        theory.spectrum(net, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have shape \[N, ...\]"):
        theory.hessian(net, x[0, 0, 0])
    with pytest.raises(ValueError, match="at least 1 elements a sample"):
        theory.hessian(net, x[:, :, :0])
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        theory.spectrum(net, x, steps=0)
    with pytest.raises(ValueError, match=r"pairs must be an int of at least 1, got 1\.5"):
        theory.spectrum(net, x, pairs=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes must be a positive int, or None for all basis vectors, got True"):
        theory.frobenius_norm(net, x, probes=True)
    with pytest.raises(ValueError, match="kind must be one of 'rademacher', 'gaussian', got 'cauchy'"):
        theory.frobenius_norm(net, x, kind="cauchy")
    with pytest.raises(ValueError, match=r"index must have shape \[3\], got \[2\]"):
        theory.spectrum(net, x, index=torch.arange(2))
    with pytest.raises(TypeError, match="index must hold integers"):
        theory.spectrum(net, x, index=torch.rand(3))
    with pytest.raises(TypeError, match="seed must be an int"):
        theory.spectrum(net, x, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target must have shape \[3\]"):
        theory.spectrum(net, x, torch.arange(2))
    with pytest.raises(TypeError, match="target must hold integers"):
        theory.spectrum(net, x, torch.rand(3))
    with pytest.raises(TypeError, match="target must be an int"):
        theory.spectrum(net, x, "cat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 3"):
        theory.spectrum(net, x, 4)
    with pytest.raises(ValueError, match="x must have the model's dtype"):
        theory.spectrum(net, x.float())


def test_theory_is_imported_at_first_use() -> None:
    assert fastxai.theory is theory
