"""Activations along a path: the reference against autograd, the CPU kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from cases import ACTIVATIONS, label
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import PATH_CASES, PathCase, check_path, run_path
from torch import Tensor

import fastxai
from fastxai.kernels import activation, interpolate
from fastxai.kernels.activation import Activation

FLOAT32, FLOAT64 = 2e-6, 1e-13
SOFTPLUS = Activation("softplus", beta=10.0)
SHAPES = [(2, 3, 5, 7), (3, 4)]


def path(shape: tuple[int, ...], points: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return float64 (a, t, bias, a_v, nu_v, nu_0) of [N, C, ...] rows, with positions outside [0, 1] too."""
    n, *rest = shape
    nu_v, nu_0 = torch.randn(2, points * n, *rest, dtype=torch.float64)
    a, a_v = torch.randn(2 * n, *rest, dtype=torch.float64) * 2, torch.randn(shape, dtype=torch.float64)
    return a, torch.rand(points).double() * 1.5 - 0.2, torch.randn(rest[0]).double(), a_v, nu_v, nu_0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", [act for act in ACTIVATIONS if act.second == "own"], ids=label)
def test_reference_matches_autograd(act: Activation, shape: tuple[int, ...]) -> None:
    points = 3
    a, t, bias, a_v, nu_v, nu_0 = path(shape, points)
    start, step = (half.clone().requires_grad_() for half in a.chunk(2))
    channels = bias.view(-1, *[1] * (len(shape) - 2))

    y = torch.cat([activation.value(act, start + channels + tk * step) for tk in t])
    # the derivative along a_v as the transpose of a transpose
    u = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, start, u, create_graph=True)
    (y_v,) = torch.autograd.grad(pulled, u, a_v, create_graph=True)
    (mu,) = torch.autograd.grad((nu_0 * y).sum(), start, retain_graph=True)
    hung = y_v + 0 * (start.sum() + step.sum())  # the identity's tangent depends on neither
    curved = torch.cat(torch.autograd.grad((nu_v * hung).sum(), (start, step), retain_graph=True))
    straight = torch.cat(torch.autograd.grad((nu_0 * y).sum(), (start, step)))
    with fastxai.backend("reference"):
        got_y, kept = interpolate.push(act, a, t, bias)
        got = run_path(act, kept, t, a_v, nu_v, nu_0)
    exact = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(got_y, y.detach(), **exact)
    torch.testing.assert_close(got, (y_v.detach(), mu, straight + curved, curved), **exact)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
def test_a_path_is_its_points_one_by_one(act: Activation, backend: str) -> None:
    """The activation kernels at every materialised point, surrogates included."""
    a, t, bias, a_v, nu_v, nu_0 = path((2, 3, 4, 5), 4)
    ys, kepts, tangents, mu, straight, curved = [], [], [], 0.0, [0.0, 0.0], [0.0, 0.0]
    with fastxai.backend(backend):
        y, kept = interpolate.push(act, a, t, bias)
        got = run_path(act, kept, t, a_v, nu_v, nu_0)
        for tk, nu_vk, nu_0k in zip(t, nu_v.chunk(4), nu_0.chunk(4), strict=True):
            yk, keptk = activation.push(act, a[:2] + bias.view(-1, 1, 1) + tk * a[2:])
            ys.append(yk)
            kepts.append(keptk)
            tangents.append(activation.pull(act, keptk, None, a_v))
            mu = mu + activation.pull(act, keptk, None, nu_0k)
            whole = activation.pull_primal(act, keptk, a_v, nu_vk, nu_0k)
            alone = activation.pull_primal(act, keptk, a_v, nu_vk, None)
            straight = [straight[0] + whole, straight[1] + tk * whole]
            curved = [curved[0] + alone, curved[1] + tk * alone]
    want = torch.cat(tangents), mu, torch.cat(straight), torch.cat(curved)
    exact = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close((y, kept), (torch.cat(ys), torch.cat(kepts)), **exact)
    torch.testing.assert_close(got, want, **exact)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
@pytest.mark.parametrize("case", PATH_CASES, ids=str)
def test_cpu_path(case: PathCase, dtype: torch.dtype, tolerance: float) -> None:
    check_path(case, "cpu", dtype, tolerance)


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-10)], ids=str)
@pytest.mark.parametrize("case", PATH_CASES[:: len(ACTIVATIONS) // 4], ids=str)
def test_reference_in_two_bytes(case: PathCase, dtype: torch.dtype, rounding: float) -> None:
    check_path(case, "reference", dtype, FLOAT32 + rounding)


@settings(max_examples=80, deadline=None)
@given(
    act=st.sampled_from(ACTIVATIONS),
    shape=st.lists(st.integers(0, 9), min_size=2, max_size=5).map(tuple),
    points=st.integers(0, 9),
    last=st.booleans(),
    biased=st.booleans(),
)
def test_cpu_any_shape(act: Activation, shape: tuple[int, ...], points: int, last: bool, biased: bool) -> None:
    check_path(PathCase(act, shape, points, last and len(shape) == 4, biased), "cpu", torch.float32, FLOAT32)


@settings(max_examples=100, deadline=None)
@given(
    act=st.sampled_from(ACTIVATIONS),
    points=st.integers(1, 6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 2**16),
)
def test_properties(act: Activation, points: int, cut: int, seed: int) -> None:
    """Reduce is the adjoint of the tangent; paths cut in chunks add up; M0 and M1 shift with the positions."""
    torch.manual_seed(seed)
    cut = min(cut, points)
    a, t, bias, a_v, nu_v, nu_0 = path((2, 3, 4), points)
    y, kept = interpolate.push(act, a, t, bias)
    y_v, mu, m, _ = run_path(act, kept, t, a_v, nu_v, nu_0)
    near = {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close((nu_0 * y_v).sum(), (mu * a_v).sum(), **near)
    total = torch.zeros_like(m)
    for part, rows in ((t[:cut], slice(2 * cut)), (t[cut:], slice(2 * cut, None))):
        assert torch.equal(interpolate.push(act, a, part, bias)[0], y[rows])
        total += interpolate.reduce_primal(act, kept[rows], a_v, nu_v[rows], nu_0[rows], part)
    torch.testing.assert_close(total, m, **near)
    later = interpolate.reduce_primal(act, kept, a_v, nu_v, nu_0, t + 2)
    torch.testing.assert_close(later, torch.cat([m[:2], m[2:] + 2 * m[:2]]), **near)


def test_gauss_legendre_is_complete() -> None:
    """sum_k w_k s'(a_0 + t_k a_d) a_d = s(a_0 + a_d) - s(a_0)."""
    numpy = pytest.importorskip("numpy")
    nodes, weights = (torch.from_numpy(x) / 2 for x in numpy.polynomial.legendre.leggauss(40))
    act, a = Activation("softplus", beta=1.5), torch.randn(6, 4, 5).double()
    y, kept = interpolate.push(act, a, nodes + 0.5)
    nu = weights.repeat_interleave(3).view(-1, 1, 1).expand_as(y)
    gained = interpolate.reduce(act, kept, nu, 40) * a[3:]
    ends, _ = interpolate.push(act, a, torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(gained, ends[3:] - ends[:3], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_the_start_of_a_path_is_the_activation_itself(act: Activation, dtype: torch.dtype) -> None:
    a = torch.randn(4, 3, 5, 6, dtype=dtype) * 4
    y, kept = interpolate.push(act, a, torch.zeros(1, dtype=dtype))
    want, want_kept = activation.push(act, a[:2])
    assert torch.equal(y, want) and torch.equal(kept, want_kept)


@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=["f32", "f64"])
def test_extreme_values_stay_where_they_are(act: Activation, dtype: torch.dtype, tolerance: float) -> None:
    """Far tails stay finite; NaN and infinities at one point reach no other; all as in the reference."""
    far = torch.tensor([0.0, -0.0, 1e-45, 30.0, -30.0, 87.5, -104.0, 745.0, -1e4, 1e4], dtype=dtype)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    start = torch.cat([far, special, torch.ones(3, dtype=dtype)])
    step = torch.cat([far.flip(0), torch.zeros(3, dtype=dtype), special])
    a, t, one = torch.stack([start, step]), torch.tensor([0.0, 0.5, 1.0], dtype=dtype), torch.ones(3, 16, dtype=dtype)
    results = []
    for backend in ("cpu", "reference"):
        with fastxai.backend(backend):
            y, kept = interpolate.push(act, a, t)
            results.append((y, kept, *run_path(act, kept, t, one[:1], one, one)))
    assert all(bool(x[:, : len(far)].isfinite().all()) for x in results[0])
    # torch.sigmoid is 0 where ours is denormal, and silu multiplies it by a
    bounds = {"rtol": 4 * tolerance, "atol": 128 * torch.finfo(dtype).smallest_normal, "equal_nan": True}
    for name, ours, theirs in zip(("y", "kept", "y_v", "mu", "M", "curved"), *results, strict=True):
        torch.testing.assert_close(ours, theirs, **bounds, msg=name)


def views() -> dict[str, Tensor]:
    """Tensors of 4 rows whose memory is not dense, or overlaps."""
    return {
        "step": torch.randn(4, 3, 6, 10)[..., ::2],
        "transposed": torch.randn(4, 6, 3, 5).transpose(1, 3),
        "channels of channels last": torch.randn(4, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, 2:5],
        "rows": torch.randn(8, 3, 5, 6)[::2],
        "expanded": torch.randn(1, 3, 1, 6).expand(4, 3, 5, 6),
    }


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", list(views()))
def test_any_strides(name: str, backend: str) -> None:
    a = views()[name]
    t, bias = torch.tensor([0.25, 9, 0.75, 9, 1.0, 9])[::2], torch.randn(a.shape[1], 2)[:, 0]
    with fastxai.backend(backend):
        want_y, want_kept = interpolate.push(SOFTPLUS, a.contiguous(), t.contiguous(), bias.contiguous())
        y, kept = interpolate.push(SOFTPLUS, a, t, bias)
        nu_v, nu_0 = (torch.randn(want_y.shape).transpose(2, 3).contiguous().transpose(2, 3) for _ in range(2))
        got = run_path(SOFTPLUS, kept, t, a[:2], nu_v, nu_0)
        want = run_path(SOFTPLUS, want_kept, t.contiguous(), a[:2].contiguous(), nu_v.contiguous(), nu_0.contiguous())
    assert torch.equal(y, want_y) and torch.equal(kept, want_kept)
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_leader_decides_the_order(backend: str) -> None:
    a, t = torch.randn(4, 3, 5, 6), torch.tensor([0.1, 0.6, 0.9])
    with fastxai.backend(backend):
        _, kept = interpolate.push(SOFTPLUS, a, t)
        nu = torch.randn(kept.shape)
        want = run_path(SOFTPLUS, kept, t, a[2:], nu, nu)
        got = run_path(SOFTPLUS, kept.contiguous(memory_format=torch.channels_last), t, a[2:], nu, nu)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in got)


def test_threads_do_not_change_the_bits() -> None:
    a, t = torch.randn(4, 35, 65, 63), torch.rand(3)
    a_v, nu_v, nu_0 = torch.randn(2, 35, 65, 63), *torch.randn(2, 6, 35, 65, 63)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        y, kept = interpolate.push(SOFTPLUS, a, t, torch.zeros(35))
        results.append((y, kept, *run_path(SOFTPLUS, kept, t, a_v, nu_v, nu_0)))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


A, T = torch.zeros(4, 3, 2), torch.zeros(2)
KEPT, V = torch.zeros(4, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: interpolate.push(SOFTPLUS, A[:3], T), ValueError, r"a must have 2N rows.*got \[3, 3, 2\]"),
        (lambda: interpolate.push(SOFTPLUS, A, T[None]), ValueError, r"t must have shape \[K\], got \[1, 2\]"),
        (lambda: interpolate.push(SOFTPLUS, A, [0.5]), TypeError, "t must be a torch.Tensor, got list"),
        (lambda: interpolate.push(SOFTPLUS, A, T.double()), ValueError, "t must have a's dtype torch.float32"),
        (lambda: interpolate.push(SOFTPLUS, A, T.to("meta")), ValueError, "t must be on a's device cpu, got meta"),
        (lambda: interpolate.push(SOFTPLUS, A, T, T), ValueError, r"bias must have shape \[3\], got \[2\]"),
        (lambda: interpolate.push(SOFTPLUS, A, T, V[0].double()), ValueError, "bias must have a's dtype"),
        (lambda: interpolate.push(SOFTPLUS, T, T, T), ValueError, r"a must have shape \[2N, C, ...\] beside a bias"),
        (lambda: interpolate.tangent(SOFTPLUS, KEPT, A[:3, 0]), ValueError, r"a_v must have shape \[3, 3\]"),
        (lambda: interpolate.tangent(SOFTPLUS, KEPT, KEPT[:3]), ValueError, "kept must have rows in multiples of 3"),
        (lambda: interpolate.tangent(SOFTPLUS, KEPT, KEPT[:0]), ValueError, "kept must have rows in multiples of 0"),
        (lambda: interpolate.tangent(SOFTPLUS, KEPT, V.double()), ValueError, "a_v must have kept's dtype"),
        (lambda: interpolate.reduce(SOFTPLUS, KEPT, KEPT, 3), ValueError, "kept must have rows in multiples of 3 p"),
        (lambda: interpolate.reduce(SOFTPLUS, KEPT, KEPT, 0), ValueError, "kept must have rows in multiples of 0 p"),
        (lambda: interpolate.reduce(SOFTPLUS, KEPT, KEPT, -2), ValueError, "kept must have rows in multiples of -2"),
        (lambda: interpolate.reduce(SOFTPLUS, KEPT, V, 2), ValueError, r"nu must have shape \[4, 3\], got \[2, 3\]"),
        (
            lambda: interpolate.reduce_primal(SOFTPLUS, KEPT, KEPT, KEPT, None, T),
            ValueError,
            r"kept must have shape \[8, 3\], got \[4, 3\]",
        ),
        (
            lambda: interpolate.reduce_primal(SOFTPLUS, KEPT, V, V, None, T),
            ValueError,
            r"nu_v must have shape \[4, 3\], got \[2, 3\]",
        ),
        (
            lambda: interpolate.reduce_primal(SOFTPLUS, KEPT, V, KEPT, V, T),
            ValueError,
            r"nu_0 must have shape \[4, 3\], got \[2, 3\]",
        ),
        (lambda: interpolate.reduce_primal(SOFTPLUS, KEPT, V, KEPT, None, V), ValueError, r"t must have shape \[K\]"),
    ],
)
def test_errors_name_the_argument(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
