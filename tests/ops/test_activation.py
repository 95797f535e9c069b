"""The public activations: values, derivatives, layouts, what they save, and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.curves import BACKENDS, CASES, CURVED, EACH, EACH_CURVED, loss, points, steep, tower
from torch import Tensor

from fastxai import ops


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
