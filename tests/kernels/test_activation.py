"""Activation jets: the reference against autograd, the CPU kernels against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from cases import ACTIVATIONS, JET_CASES, JetCase, check_jet, close, label, scales
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import device_checks as checks
from torch import Tensor

import fastxai
from fastxai.kernels import activation
from fastxai.kernels.activation import Activation

FLOAT32, FLOAT64 = 2e-6, 1e-13
SOFTPLUS = Activation("softplus", beta=10.0)


def probe(act: Activation, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s, kept, s', s'' at a, through the kernels of the current backend."""
    y, kept = activation.push(act, a)
    one = torch.ones_like(a)
    return y, kept, activation.pull(act, kept, None, one), activation.pull_primal(act, kept, one, one, None)


def gate(act: Activation, a: Tensor) -> Tensor:
    """The smooth gate whose derivative the curvature surrogate is."""
    rise = torch.sigmoid(act.beta * a)
    match act.name:
        case "relu6":
            return rise - torch.sigmoid(act.beta * (a - 6))
        case "leaky_relu":
            return act.alpha + (1 - act.alpha) * rise
    return rise


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
def test_reference_matches_autograd(act: Activation) -> None:
    a = torch.cat([torch.linspace(-9, 9, 720), torch.randn(200) * 3]).double().requires_grad_()
    y = activation.value(act, a)
    (d1,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    if act.second == "curvature":
        (d2,) = torch.autograd.grad(gate(act, a).sum(), a)
    else:
        d2 = torch.autograd.grad(d1.sum(), a)[0] if d1.requires_grad else torch.zeros_like(a)
    with fastxai.backend("reference"):
        got = probe(act, a.detach())
    scale = scales(act, a.detach())
    # autograd's own sums cancel where ours do not: allow it one unit of the largest factor
    for ours, oracle, size in zip((got[0], got[2], got[3]), (y, d1, d2), scale, strict=True):
        close(ours, oracle.detach(), size + act.beta, 1e-13, label(act))


@pytest.mark.parametrize("act", [act for act in ACTIVATIONS if act.second == "own"], ids=label)
def test_reference_jet_matches_autograd(act: Activation) -> None:
    a = (torch.randn(2, 3, 5) * 2).double()
    a_v, nu_v, nu_0 = torch.randn(3, 2, 3, 5).double()
    leaf, tangent = a.clone().requires_grad_(), a_v.clone().requires_grad_()
    y = activation.value(act, leaf)
    (d1,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    y_v = d1 * tangent
    mu_0, mu_v = torch.autograd.grad((nu_0 * y + nu_v * y_v).sum(), (leaf, tangent))
    with fastxai.backend("reference"):
        got_y, kept = activation.push(act, torch.cat([a, a_v]), 1)
        got_mu = activation.pull(act, kept, a_v, torch.cat([nu_v, nu_0]), 1)
    torch.testing.assert_close(got_y, torch.cat([y, y_v]).detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got_mu, torch.cat([mu_v, mu_0]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
@pytest.mark.parametrize("case", JET_CASES, ids=str)
def test_cpu_jet(case: JetCase, dtype: torch.dtype, tolerance: float) -> None:
    check_jet(case, "cpu", dtype, tolerance)


def everywhere(beta: float, dtype: torch.dtype) -> Tensor:
    """Arguments up to |beta a| = 1e6: dense around 0, over the range of exp, and far out."""
    z = torch.cat([torch.linspace(-110, 110, 20011), torch.logspace(-40, 6, 2001), -torch.logspace(-40, 6, 2001)])
    return (z.double() / beta).to(dtype)


@pytest.mark.parametrize("beta", [1e-3, 0.3, 1.0, 10.0, 123.4, 1e4])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
def test_cpu_softplus_everywhere(beta: float, dtype: torch.dtype, tolerance: float) -> None:
    act, a = Activation("softplus", beta=beta), everywhere(beta, dtype)
    with fastxai.backend("cpu"):
        got = probe(act, a)
    with fastxai.backend("reference"):
        want = probe(act, a.double())
    # one subnormal number of q is beta of them in s'', 1 / beta in s
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for name, ours, exact, unit in zip(("y", "kept", "s'", "s''"), got, want, (1 / beta, 1, 1, beta), strict=True):
        error = (ours.double() - exact).abs()
        assert bool((error <= tolerance * exact.abs() + least * (1 + unit)).all()), name
    assert torch.equal(torch.signbit(got[1]), torch.signbit(a))


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
def test_cpu_derivatives_everywhere(act: Activation, dtype: torch.dtype, tolerance: float) -> None:
    a = everywhere(1.0, dtype)
    with fastxai.backend("cpu"):
        got = probe(act, a)
    with fastxai.backend("reference"):
        want = probe(act, a.double())
    scale = scales(act, a.double())
    for name, ours, exact, size in zip(
        ("y", "s'", "s''"), (got[0], *got[2:]), (want[0], *want[2:]), scale, strict=True
    ):
        close(ours, exact, size, tolerance, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_exp_and_log1p_are_within_two_ulp(dtype: torch.dtype) -> None:
    """exp shows as the slope of elu, log1p(exp(a)) as softplus of a < 0; mpmath is the oracle for both."""
    mpmath = pytest.importorskip("mpmath")
    low = -104.0 if dtype == torch.float32 else -746.0
    a = torch.cat([torch.linspace(low, -1e-3, 1500), -torch.logspace(-30, 0, 200)]).double().to(dtype)
    with fastxai.backend("cpu"):
        slope = probe(Activation("elu", alpha=1.0), a)[2]
        value = probe(Activation("softplus"), a)[0]
    eps, least = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    with mpmath.workprec(120):
        for x, e, y in zip(a.tolist(), slope.tolist(), value.tolist(), strict=True):
            exact = mpmath.exp(mpmath.mpf(x))
            for got, want, ulps in ((e, exact, 2), (y, mpmath.log1p(exact), 4)):
                ulp = max(2.0 ** math.floor(mpmath.log(want, 2)) * eps, least)
                assert abs(got - want) <= ulps * ulp, (x, got, want)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_cpu_special_values_follow_the_reference(act: Activation, dtype: torch.dtype) -> None:
    a = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 6.0, 1e-45, -1e-45], dtype=dtype)
    with fastxai.backend("cpu"):
        got = probe(act, a)
    with fastxai.backend("reference"):
        want = probe(act, a)
    tolerance = FLOAT32 if dtype == torch.float32 else FLOAT64
    for name, ours, theirs in zip(("y", "kept", "s'", "s''"), got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4 * tolerance, atol=0.0, equal_nan=True, msg=f"{name}: {ours}")


@settings(max_examples=200, deadline=None)
@given(
    z=st.floats(-1e4, 1e4, width=32),
    beta=st.floats(1e-3, 1e3),
)
def test_softplus_properties(z: float, beta: float) -> None:
    """s(a) - s(-a) = a, s'(a) + s'(-a) = 1, s'' is even, and all are finite."""
    a = torch.tensor([z / beta, -z / beta])
    y, kept, d1, d2 = probe(Activation("softplus", beta=beta), a)
    assert bool(torch.isfinite(torch.stack([y, kept, d1, d2])).all())
    assert float(y.min()) >= 0 and float(d1.min()) >= 0 and float(d2.min()) >= 0
    assert abs(float(y[0] - y[1] - a[0])) <= 3e-7 * float(y.max())
    assert abs(float(d1.sum()) - 1) <= 2e-7
    assert d2[0] == d2[1]


@settings(max_examples=60, deadline=None)
@given(
    act=st.sampled_from(ACTIVATIONS),
    shape=st.lists(st.integers(0, 9), min_size=2, max_size=5).map(tuple),
    directions=st.integers(0, 4),
    last=st.booleans(),
    biased=st.booleans(),
)
def test_cpu_any_shape(act: Activation, shape: tuple[int, ...], directions: int, last: bool, biased: bool) -> None:
    check_jet(JetCase(act, shape, directions, last and len(shape) == 4, biased), "cpu", torch.float32, FLOAT32)


def views() -> dict[str, Tensor]:
    """Tensors of 4 rows whose memory is not dense, or overlaps."""
    return {
        "step": torch.randn(4, 3, 6, 10)[..., ::2],
        "transposed": torch.randn(4, 6, 3, 5).transpose(1, 3),
        "channels of channels last": torch.randn(4, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, 2:5],
        "rows": torch.randn(8, 3, 5, 6)[::2],
        "expanded": torch.randn(1, 3, 1, 6).expand(4, 3, 5, 6),
    }


@pytest.mark.parametrize("name", list(views()))
@pytest.mark.parametrize("overwrite", [False, True])
def test_cpu_takes_any_strides(name: str, overwrite: bool) -> None:
    view = views()[name]
    bias, nu, a = torch.randn(view.shape[1]), torch.randn(view.shape).transpose(2, 3).contiguous().transpose(2, 3), view
    dense = a.contiguous()
    want_y, want_kept = activation.push(SOFTPLUS, dense, 1, bias)
    want = activation.pull(SOFTPLUS, want_kept, dense[2:], nu.contiguous(), 1)
    before = a.clone()
    y, kept = activation.push(SOFTPLUS, a, 1, bias, overwrite=overwrite)
    got = activation.pull(SOFTPLUS, kept, a[2:], nu, 1, overwrite=overwrite)
    assert torch.equal(y, want_y) and torch.equal(kept, want_kept) and torch.equal(got, want)
    assert torch.equal(a, before)


def test_a_single_channel_may_have_any_stride() -> None:
    a = torch.randn(4, 9).as_strided((4, 1, 9, 1), (9, 0, 1, 1))
    assert a.is_contiguous()
    bias = torch.randn(1)
    got, want = (activation.push(SOFTPLUS, x, 1, bias) for x in (a, a.clone(memory_format=torch.contiguous_format)))
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


def test_operands_in_different_orders() -> None:
    a, nu = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    _, kept = activation.push(SOFTPLUS, a, 1)
    want = activation.pull(SOFTPLUS, kept, a[2:], nu, 1)
    last = nu.contiguous(memory_format=torch.channels_last)
    before = last.clone()
    got = activation.pull(SOFTPLUS, kept.contiguous(memory_format=torch.channels_last), a[2:], last, 1)
    assert torch.equal(got, want) and torch.equal(last, before)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("directions", [0, 1, 3])
def test_overwrite_reuses_memory(act: Activation, directions: int) -> None:
    a, nu = torch.randn(2, 2 * (1 + directions), 5, 7, 9).contiguous()
    bias = torch.randn(5)
    y, kept = activation.push(act, a, directions, bias)
    mu = activation.pull(act, kept, a[2:], nu, directions)
    memory = a.clone()
    y_same, kept_same = activation.push(act, memory, directions, bias, overwrite=True)
    assert kept_same.data_ptr() == memory.data_ptr() and torch.equal(memory[2:], a[2:])
    assert torch.equal(y_same, y) and torch.equal(kept_same, kept)
    if directions:
        nu_0 = nu[2:].clone()
        primal = activation.pull_primal(act, kept, a[2:], nu[:2], nu_0, directions, overwrite=True)
        assert primal.data_ptr() == nu_0.data_ptr() and torch.equal(primal, mu[2:])
    mu_same = activation.pull(act, kept, a[2:], nu, directions, overwrite=True)
    assert mu_same.data_ptr() == nu.data_ptr() and torch.equal(mu_same, mu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("act", checks.SHARP, ids=label)
def test_beta_in_memory(act: Activation, backend: str, dtype: torch.dtype) -> None:
    checks.check_beta_in_memory(backend, "cpu", act, dtype)


def test_beta_in_a_gpu_s_memory_is_for_triton_alone() -> None:
    act = Activation("softplus", beta=torch.ones(3, dtype=torch.float64, device="meta"))
    with pytest.raises(TypeError, match="beta must be a number for the kernels of 'cuda', got a tensor"):
        act.scalars  # noqa: B018


def test_threads_do_not_change_the_bits() -> None:
    a, nu = torch.randn(2, 4, 67, 65, 63).contiguous()
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        y, kept = activation.push(SOFTPLUS, a, 1, torch.zeros(67))
        results.append((y, kept, activation.pull(SOFTPLUS, kept, a[2:], nu, 1)))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_the_pull_is_the_adjoint_of_the_push() -> None:
    a, nu = torch.randn(2, 6, 4, 5).double()
    y, kept = activation.push(SOFTPLUS, a, 1)
    mu = activation.pull(SOFTPLUS, kept, a[3:], nu, 1)
    torch.testing.assert_close((nu[:3] * y[3:]).sum(), (mu[:3] * a[3:]).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Activation("swish"), "activation must be one of"),
        (lambda: Activation("softplus", beta=0.0), "beta must be finite and positive, got 0.0"),
        (lambda: Activation("softplus", beta=math.nan), "beta must be finite and positive"),
        (lambda: Activation("softplus", beta=torch.ones(2)), r"beta must have shape \[3\], got \[2\]"),
        (lambda: Activation("softplus", beta=torch.ones(3)), "beta must be float64 where it is a tensor"),
        (lambda: Activation("elu", alpha=math.inf), "alpha must be finite"),
        (lambda: Activation("tanh", second="curvature"), "second must be 'own' for tanh"),
        (lambda: activation.push(SOFTPLUS, torch.zeros(3, 2), 1), "a must have a multiple of 1 \\+ 1 rows"),
        (lambda: activation.push(SOFTPLUS, torch.zeros(2, 3), 0, torch.zeros(2)), "bias must have shape \\[3\\]"),
        (lambda: activation.push(SOFTPLUS, torch.zeros(2, 3), 0, torch.zeros(3).double()), "bias must have a's dtype"),
        (lambda: activation.pull(SOFTPLUS, torch.zeros(2, 3), None, torch.zeros(4, 3), 1), "a_v must be given"),
        (
            lambda: activation.pull(SOFTPLUS, torch.zeros(2, 3), None, torch.zeros(2, 4)),
            "nu must have shape \\[2, 3\\]",
        ),
        (
            lambda: activation.pull(SOFTPLUS, torch.zeros(2, 3), None, torch.zeros(2, 3).double()),
            "nu must have kept's dtype torch.float32, got torch.float64",
        ),
        (
            lambda: activation.pull_primal(SOFTPLUS, *torch.zeros(2, 2, 3), torch.zeros(1, 3), None),
            "nu_v must have shape \\[2, 3\\]",
        ),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
