"""The public activations: values, every kind of derivative, layouts, dtypes, extremes and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd import functional as AF

from fastxai import _backend, ops
from fastxai.ops._formula import needs_formula

Map = Callable[[Tensor], Tensor]


def steep(x: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(-beta * x) / beta


# Ours, and a torch expression that autograd may differentiate any number of times.
SMOOTH: dict[str, tuple[Map, Map]] = {
    "softplus": (partial(ops.softplus, beta=0.7), partial(steep, beta=0.7)),
    "softplus-10": (partial(ops.softplus, beta=10), partial(steep, beta=10)),
    "sigmoid": (ops.sigmoid, torch.sigmoid),
    "tanh": (ops.tanh, torch.tanh),
    "silu": (ops.silu, lambda x: x * torch.sigmoid(x)),
    "gelu": (ops.gelu, F.gelu),
    "gelu_tanh": (partial(ops.gelu, approximate="tanh"), partial(F.gelu, approximate="tanh")),
    "elu": (partial(ops.elu, alpha=0.7), partial(F.elu, alpha=0.7)),
}
KINKED: dict[str, tuple[Map, Map]] = {
    "relu": (ops.relu, F.relu),
    "relu-none": (partial(ops.relu, surrogate="none"), F.relu),
    "relu6": (ops.relu6, F.relu6),
    "leaky_relu": (partial(ops.leaky_relu, negative_slope=0.2), partial(F.leaky_relu, negative_slope=0.2)),
}
CASES = SMOOTH | KINKED


def c(x: Tensor, beta: float) -> Tensor:
    return beta * torch.sigmoid(beta * x) * torch.sigmoid(-beta * x)


# Ours with the curvature surrogate, torch's, and the decreed second derivative.
CURVED: dict[str, tuple[Map, Map, Map]] = {
    "relu": (partial(ops.relu, surrogate="curvature", beta=3), F.relu, partial(c, beta=3)),
    "relu6": (
        partial(ops.relu6, surrogate="curvature", beta=3),
        F.relu6,
        lambda x: c(x, 3.0) - c(x - 6, 3.0),
    ),
    "leaky_relu": (
        partial(ops.leaky_relu, negative_slope=0.2, surrogate="curvature", beta=3),
        partial(F.leaky_relu, negative_slope=0.2),
        lambda x: 0.8 * c(x, 3.0),
    ),
}
EACH = pytest.mark.parametrize("name", CASES)
BACKENDS = pytest.mark.usefixtures("backend")
EACH_CURVED = pytest.mark.parametrize("name", CURVED)


@pytest.fixture(params=["default", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if request.param == "default" else _backend.backend("reference"):
        yield


def points(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal points moved away from the kinks at 0 and 6."""
    x = 2 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    return (x + 0.1 * x.sign()).requires_grad_()


def tower(f: Map, x: Tensor, order: int) -> list[Tensor]:
    """s, s', .. s^(order) at each element."""
    out = [f(x)]
    for _ in range(order):
        last = out[-1].sum()
        (slope,) = (
            torch.autograd.grad(last, x, create_graph=True, materialize_grads=True) if last.requires_grad else (x * 0,)
        )
        out.append(slope)
    return out


def loss(f: Map, x: Tensor) -> Tensor:
    """A scalar whose Hessian has off-diagonal terms."""
    return (f(x).sum() ** 2 + (f(x) * torch.arange(x.numel(), dtype=x.dtype).cos().view_as(x)).sum()) / 3


@BACKENDS
@EACH
def test_tower_is_torchs(name: str) -> None:
    ours, theirs = CASES[name]
    x = points(5, 7)
    for mine, other in zip(tower(ours, x, 4), tower(theirs, x, 4), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@BACKENDS
@EACH
def test_gradcheck(name: str) -> None:
    f, x = CASES[name][0], points(2, 3)
    both = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, x, **both)
    assert torch.autograd.gradgradcheck(f, x, check_batched_grad=True, check_fwd_over_rev=True)


@BACKENDS
@EACH
def test_gradgradcheck_of_the_second_derivative(name: str) -> None:
    f, x = CASES[name][0], points(2)

    def second(x: Tensor, v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(loss(f, x), x, create_graph=True)
        return torch.autograd.grad((g * v).sum(), x, create_graph=True, materialize_grads=True)[0]

    assert torch.autograd.gradgradcheck(second, (x, points(2)), check_batched_grad=True)


@EACH
def test_torch_func(name: str) -> None:
    ours, theirs = (partial(loss, f) for f in CASES[name])
    x, v = points(4).detach(), points(4).detach().flip(0)
    compare = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    compare(torch.func.grad(ours)(x), torch.func.grad(theirs)(x))
    compare(torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,)))
    compare(torch.func.hessian(ours)(x), torch.func.hessian(theirs)(x))
    compare(torch.func.jacrev(torch.func.jacrev(ours))(x), torch.func.hessian(theirs)(x))
    compare(torch.func.jvp(torch.func.grad(ours), (x,), (v,)), torch.func.jvp(torch.func.grad(theirs), (x,), (v,)))
    stacked = torch.stack([x, v, x + v])
    compare(torch.vmap(torch.func.grad(ours))(stacked), torch.vmap(torch.func.grad(theirs))(stacked))
    compare(torch.vmap(ours, in_dims=1)(stacked), torch.vmap(theirs, in_dims=1)(stacked))


@BACKENDS
@EACH
def test_torch_autograd_functional(name: str) -> None:
    ours, theirs = (partial(loss, f) for f in CASES[name])
    x, v = points(4).detach(), points(4).detach().flip(0)
    compare = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    wanted = torch.func.hessian(theirs)(x)
    compare(AF.hvp(ours, x, v)[1], wanted @ v)
    compare(AF.vhp(ours, x, v)[1], v @ wanted)
    compare(AF.hessian(ours, x), wanted)
    compare(AF.hessian(ours, x, vectorize=True), wanted)
    compare(AF.hessian(ours, x, vectorize=True, outer_jacobian_strategy="forward-mode"), wanted)
    compare(AF.jacobian(CASES[name][0], x, vectorize=True), AF.jacobian(CASES[name][1], x))


@BACKENDS
def test_hvp_is_not_zero() -> None:
    """An op without a backward of its own only warns and gives zeros; hvp differentiates once more than it returns."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    _, got = AF.hvp(lambda x: ops.softplus(x, 2.0).sum(), x, torch.ones_like(x))
    torch.testing.assert_close(got, c(x, 2.0), rtol=1e-12, atol=0)


def test_forward_mode_is_not_zero() -> None:
    """An op with only a backward strips tangents without a word."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    with forward_ad.dual_level():
        y = ops.softplus(forward_ad.make_dual(x, torch.ones_like(x)), 2.0)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, torch.sigmoid(2 * x), rtol=1e-12, atol=0)


@BACKENDS
def test_tangent_that_enters_through_the_cotangent() -> None:
    """The op has run already; the dual number meets its backward only, or its backward's backward."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    gy = torch.full_like(x, 3.0, requires_grad=True)
    y, t, s1 = ops.softplus(x, 2.0), torch.arange(5, dtype=torch.float64), torch.sigmoid(2 * x)
    (gx,) = torch.autograd.grad(y, x, gy, create_graph=True)

    def pull(gy: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, gy, retain_graph=True)[0]

    def pull_twice(ggx: Tensor) -> Tensor:
        return torch.stack(torch.autograd.grad(gx, (x, gy), ggx, retain_graph=True))

    second = torch.stack([c(x, 2.0) * 3 * t, s1 * t])
    for f, wanted in ((pull, s1 * t), (pull_twice, second)):
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(torch.ones_like(x), t))).tangent
        torch.testing.assert_close(tangent, wanted, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.func.jvp(f, (torch.ones_like(x),), (t,))[1], wanted, rtol=1e-12, atol=0)
        both = torch.vmap(lambda u, f=f: torch.func.jvp(f, (torch.ones_like(x),), (u,))[1])(torch.stack([t, -t]))
        torch.testing.assert_close(both, torch.stack([wanted, -wanted]), rtol=1e-12, atol=0)


def test_needs_formula_sees_every_transform() -> None:
    x, seen = torch.zeros(3), []

    def probe(t: Tensor) -> Tensor:
        seen.append((needs_formula(t), needs_formula(x)))
        return t.sum()

    torch.func.grad(probe)(x)
    torch.vmap(probe)(x)
    torch.func.jvp(probe, (x,), (x,))
    assert seen == [(True, True)] * 3
    assert not needs_formula(x)
    with forward_ad.dual_level():
        assert needs_formula(forward_ad.make_dual(x, x)) and not needs_formula(x)


def test_closed_over_by_a_transform() -> None:
    """A tensor that requires grad and is not the transform's own argument keeps its graph."""
    x = points(4)
    out = torch.func.grad(lambda w: (w * ops.softplus(x)).sum())(torch.ones(4, dtype=torch.float64))
    (g,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(g, torch.sigmoid(x), rtol=1e-12, atol=0)


@BACKENDS
@EACH_CURVED
def test_surrogate_leaves_value_and_gradient_alone(name: str) -> None:
    ours, theirs, _ = CURVED[name]
    x = torch.cat([points(200).detach(), torch.tensor([-0.0, 0.0, 6.0, -1e4, 1e4])]).requires_grad_()
    for mine, other in zip(tower(ours, x, 1), tower(theirs, x, 1), strict=True):
        assert torch.equal(mine, other)
    formula, wanted = (torch.vmap(torch.func.grad_and_value(f)) for f in (ours, theirs))
    for mine, other in zip(formula(x.detach()), wanted(x.detach()), strict=True):
        assert torch.equal(mine, other)


@BACKENDS
@EACH_CURVED
def test_surrogate_tower_on_every_route(name: str) -> None:
    """s'' and its own derivatives, by backward over backward and by forward over backward."""
    ours, theirs, second = CURVED[name]
    x = torch.cat([points(9).detach(), torch.tensor([0.0, 6.0])]).requires_grad_()
    wanted = [*tower(theirs, x, 1), *tower(second, x, 2)]
    nested, by_func = ours, []
    for _ in range(4):
        nested = torch.func.grad(lambda t, f=nested: f(t).sum())
        by_func.append(nested(x.detach()))
    compare = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-13)
    for mine, other in zip(tower(ours, x, 4), wanted, strict=True):
        compare(mine, other)
    for mine, other in zip(by_func, wanted[1:], strict=True):
        compare(mine, other)
    flat = x.detach()
    gradient = torch.func.grad(lambda t: ours(t).sum())
    compare(torch.func.jvp(gradient, (flat,), (flat.cos(),))[1], wanted[2] * flat.cos())
    compare(torch.func.hessian(lambda t: ours(t).sum())(flat), torch.diag(wanted[2]))
    compare(torch.func.jacrev(gradient)(flat), torch.diag(wanted[2]))
    compare(AF.hvp(lambda t: ours(t).sum(), flat, flat.cos())[1], wanted[2] * flat.cos())


def layouts() -> dict[str, Tensor]:
    x = points(2, 3, 4, 5).detach()
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "permuted": x.permute(3, 0, 2, 1),
        "sliced": x[:, ::2, 1:, ::3],
        "expanded": x[:1].expand(4, 3, 4, 5),
        "scalar": x[0, 0, 0, 0],
        "vector": x[0, 0, 0],
        "empty": x[:0],
        "hollow": x[:, :0],
        "nothing": x.new_empty(0),
    }


@BACKENDS
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", ["softplus", "silu", "relu-none"])
def test_layouts(name: str, layout: str) -> None:
    ours, theirs = CASES[name]
    x = layouts()[layout].requires_grad_()
    assert ours(x).stride() == torch.empty_like(x).stride()
    for mine, other in zip(tower(ours, x, 3), tower(theirs, x, 3), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@BACKENDS
def test_cotangents_of_another_layout() -> None:
    x = points(2, 3, 4, 5).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    gy = points(5, 4, 3, 2).permute(3, 2, 1, 0)
    for f in CASES["silu"], CASES["softplus"]:
        mine, other = (torch.autograd.grad(s(x), x, gy, create_graph=True)[0] for s in f)
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
        assert mine.is_contiguous(memory_format=torch.channels_last)
        second = [torch.autograd.grad(g, (x, gy), x.detach().cos().contiguous()) for g in (mine, other)]
        torch.testing.assert_close(*second, rtol=1e-10, atol=1e-12)


@BACKENDS
@given(
    sizes=st.lists(st.integers(0, 4), max_size=4),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 3),
    beta=st.floats(0.05, 50),
)
def test_softplus_for_any_shape_and_stride(sizes: list[int], order: object, step: int, beta: float) -> None:
    base = points(*[step * n for n in sizes]).detach()
    axes = list(range(len(sizes)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    x = base.permute(axes)[tuple(slice(None, None, step) for _ in sizes)].requires_grad_()
    mine, other = (tower(f, x, 2) for f in (partial(ops.softplus, beta=beta), partial(steep, beta=beta)))
    for left, right in zip(mine, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


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


@BACKENDS
def test_softplus_saves_one_tensor() -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.softplus(points(8))
    assert [t.shape for t in saved] == [(8,)]


@BACKENDS
def test_only_the_gradients_asked_for() -> None:
    x, gy = points(6), points(6).detach().requires_grad_()
    for f, oracle in CASES["softplus"], CASES["relu"]:
        for wanted in (x,), (gy,), (x, gy):
            got, other = (
                torch.autograd.grad(torch.autograd.grad(s(x), x, gy, create_graph=True)[0].sin().sum(), wanted)
                for s in (f, oracle)
            )
            torch.testing.assert_close(got, other, rtol=1e-10, atol=1e-12)


def test_module_replaces_relu() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), ops.Softplus(beta=5), torch.nn.Linear(4, 2))
    assert repr(net[1]) == "Softplus(beta=5.0)" and not net[1].state_dict()
    x = torch.randn(6, 3)
    wanted = net[2](steep(net[0](x), 5.0))
    torch.testing.assert_close(copy.deepcopy(net)(x), wanted)
    net(x).square().sum().backward()
    assert net[0].weight.grad is not None and net[0].weight.grad.abs().sum() > 0


def test_inference_modes() -> None:
    x = points(5)
    with torch.no_grad():
        assert not ops.softplus(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(ops.softplus(x), steep(x, 1.0))


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, float("nan"), float("inf"), "1"])
@pytest.mark.parametrize("f", [ops.softplus, ops.relu, ops.relu6, ops.leaky_relu])
def test_beta_must_be_positive(f: Callable[..., Tensor], beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be finite and positive"):
        f(torch.zeros(2), beta=beta)
    if f is ops.softplus:
        with pytest.raises(ValueError, match="beta must be finite and positive"):
            ops.Softplus(beta)


@EACH
def test_x_must_be_a_floating_point_tensor(name: str) -> None:
    f = CASES[name][0]
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        f([1.0])  # type: ignore[arg-type]
    for bad in torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64):
        with pytest.raises(TypeError, match="x must have a floating point dtype"):
            f(bad)


def test_other_arguments_are_checked() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="surrogate must be one of 'curvature', 'none', got 'gate'"):
        ops.relu(x, surrogate="gate")
    with pytest.raises(ValueError, match="approximate must be one of 'none', 'tanh', got 'erf'"):
        ops.gelu(x, approximate="erf")
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        ops.elu(x, alpha=float("nan"))
    with pytest.raises(TypeError, match="negative_slope must be a number, got str"):
        ops.leaky_relu(x, negative_slope="0.1")  # type: ignore[arg-type]
