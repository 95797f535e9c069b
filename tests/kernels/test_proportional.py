"""Proportional shares: the reference against autograd, the CPU kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from share_cases import SHARE_CASES, ShareCase, check_share
from torch import Tensor

import fastxai
from fastxai.kernels import proportional
from fastxai.kernels.proportional import Shares

FLOAT32, FLOAT64 = 2e-6, 1e-15
SIGNS = (0, 1, -1)


def operands(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return (r, z, y, d)."""
    return list(torch.randn(4, *shape, dtype=dtype))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("epsilon, kappa", [(1e-6, 1.0), (0.25, 2.0), (1e-9, -1.5)])
def test_reference_matches_autograd(epsilon: float, kappa: float, sign: int) -> None:
    r, z, y, d = operands((40, 7))
    r.requires_grad_()
    z.requires_grad_()
    stable = z + epsilon * torch.where(z >= 0, 1.0, -1.0).double()
    want = kappa * r / stable * ((y * sign > 0) | (sign == 0))
    want_t, want_dz = torch.autograd.grad(want, (r, z), d)
    with fastxai.backend("reference"):
        shares = proportional.share(r.detach(), z.detach(), Shares(epsilon, kappa, sign), y)
        t, dz = proportional.adjoint(d, z.detach(), shares, Shares(epsilon, kappa, sign), y)
    torch.testing.assert_close((shares, t, dz), (want.detach(), want_t, want_dz), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
@pytest.mark.parametrize("case", SHARE_CASES, ids=str)
def test_cpu_share(case: ShareCase, dtype: torch.dtype, tolerance: float) -> None:
    check_share(case, "cpu", dtype, tolerance)


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-10)], ids=str)
def test_reference_in_two_bytes(dtype: torch.dtype, rounding: float) -> None:
    for sign in SIGNS:
        check_share(ShareCase((2, 3, 5, 7), sign, 2.0, 0.25), "reference", dtype, FLOAT32 + rounding)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
    sign=st.sampled_from(SIGNS),
    kappa=st.floats(-3, 3, width=32),
    epsilon=st.floats(1e-9, 1),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_cpu_any_shape(
    shape: tuple[int, ...], sign: int, kappa: float, epsilon: float, last: bool, dtype: torch.dtype
) -> None:
    check_share(ShareCase(shape, sign, kappa, epsilon, last and len(shape) == 4), "cpu", dtype, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("sign", SIGNS)
def test_every_pair_of_extreme_values_bit_for_bit(dtype: torch.dtype, sign: int, alone: bool) -> None:
    info = torch.finfo(dtype)
    ends = [0.0, info.smallest_normal / 4, 1e-6, 1.0, info.max, math.inf]
    values = torch.tensor([*ends, *(-v for v in ends), math.nan], dtype=dtype)
    r, z = (x.contiguous() for x in torch.meshgrid(values, values, indexing="ij"))
    y, d, results = r.t().contiguous(), r.flip(0), []
    for backend in ("cpu", "reference"):
        with fastxai.backend(backend):
            how = Shares(1e-6, 0.5, sign, alone)
            shares = proportional.share(r, z, how, y)
            results.append((shares, *proportional.adjoint(d.clone(), z, shares, how, y)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_zero_counts_as_positive_in_z_and_as_neither_in_y(backend: str) -> None:
    one, zeros = torch.ones(2), torch.tensor([0.0, -0.0])
    with fastxai.backend(backend):
        assert proportional.share(one, zeros, Shares(0.25)).tolist() == [4.0, 4.0]
        for sign in (1, -1):
            shares = proportional.share(one, zeros, Shares(0.25, sign=sign), zeros)
            t, dz = proportional.adjoint(one.clone(), zeros, shares, Shares(0.25, sign=sign), zeros)
            assert shares.tolist() == t.tolist() == dz.tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(kappa=st.floats(0.1, 3), epsilon=st.floats(1e-9, 1), seed=st.integers(0, 2**16))
def test_properties(kappa: float, epsilon: float, seed: int) -> None:
    """The two signs make up the whole; t is the transpose of S in r; a larger stabiliser never gives more."""
    torch.manual_seed(seed)
    r, z, y, d = operands((5, 13))
    whole = proportional.share(r, z, Shares(epsilon, kappa))
    halves = [proportional.share(r, z, Shares(epsilon, kappa, sign), y) for sign in (1, -1)]
    assert torch.equal(halves[0] + halves[1], whole)
    for shares, sign in ((whole, 0), (halves[0], 1), (halves[1], -1)):
        t, dz = proportional.adjoint(d.clone(), z, shares, Shares(epsilon, kappa, sign), y)
        torch.testing.assert_close((d * shares).sum(), (t * r).sum(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(kappa * dz, -shares * proportional.share(d, z, Shares(epsilon, kappa)))
    assert bool((proportional.share(r, z, Shares(2 * epsilon, kappa)).abs() <= whole.abs()).all())


def test_the_cotangent_gives_its_memory() -> None:
    r, z, _, d = operands((3, 4))
    with fastxai.backend("cpu"):
        t, dz = proportional.adjoint(d, z, r, Shares(1e-6))
    assert t.data_ptr() == d.data_ptr() != dz.data_ptr()


def views() -> dict[str, Tensor]:
    """Tensors [4, ...] whose memory is not dense, or overlaps."""
    return {
        "step": torch.randn(4, 3, 6, 10)[..., ::2],
        "transposed": torch.randn(4, 6, 3, 5).transpose(1, 3),
        "channels of channels last": torch.randn(4, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, 2:5],
        "expanded": torch.randn(1, 3, 1, 6).expand(4, 3, 5, 6),
    }


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", list(views()))
def test_any_strides(name: str, backend: str) -> None:
    z = views()[name]
    r, y, d = (torch.randn(z.shape).transpose(1, 2).contiguous().transpose(1, 2) for _ in range(3))
    old = [x.clone() for x in (r, z, y, d)]
    with fastxai.backend(backend):
        shares = proportional.share(r, z, Shares(1e-6, sign=1), y)
        want = proportional.share(*(x.contiguous() for x in (r, z)), Shares(1e-6, sign=1), y.contiguous())
        got = proportional.adjoint(z, r, d, Shares(1e-6, 2.0, -1), y)
        exact = proportional.adjoint(
            *(x.clone().contiguous() for x in (z, r, d)), Shares(1e-6, 2.0, -1), y.contiguous()
        )
    assert torch.equal(shares, want) and all(torch.equal(a, b) for a, b in zip(got, exact, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((r, z, y, d), old, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_z_decides_the_order(backend: str) -> None:
    r, z, y, d = operands((2, 3, 4, 5))
    z = z.contiguous(memory_format=torch.channels_last)
    with fastxai.backend(backend):
        shares = proportional.share(r, z, Shares(1e-6, sign=1), y)
        results = (shares, *proportional.adjoint(d, z, shares, Shares(1e-6, sign=1), y))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in results)


def test_threads_do_not_change_the_bits() -> None:
    r, z, y, d = operands((4, 35, 65, 63), torch.float32)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        shares = proportional.share(r, z, Shares(1e-6, sign=1), y)
        results.append((shares, *proportional.adjoint(d.clone(), z, shares, Shares(1e-6, sign=1), y)))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: proportional.share(X[:3], X, Shares(1e-6)), r"r must have shape \[4, 3\], got \[3, 3\]"),
        (
            lambda: proportional.share(X.double(), X, Shares(1e-6)),
            "r must have z's dtype torch.float32, got torch.float64",
        ),
        (lambda: proportional.share(X.to("meta"), X, Shares(1e-6)), "r must be on z's device cpu, got meta"),
        (lambda: proportional.share(X, X, Shares(1e-6, sign=1)), "y must be given for sign 1, got None"),
        (lambda: proportional.share(X, X, Shares(1e-6, sign=1), X[0]), r"y must have shape \[4, 3\], got \[3\]"),
        (lambda: proportional.share(X, X, Shares(1e-6, sign=2), X), "sign must be one of 1, 0, -1, got 2"),
        (lambda: proportional.adjoint(X[:3], X, X, Shares(1e-6)), r"d must have shape \[4, 3\], got \[3, 3\]"),
        (lambda: proportional.adjoint(X, X, X.double(), Shares(1e-6)), "shares must have z's dtype"),
        (lambda: proportional.adjoint(X, X, X, Shares(1e-6, sign=-1)), "y must be given for sign -1, got None"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
