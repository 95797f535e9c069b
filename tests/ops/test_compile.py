"""The activations inside torch.compile: one graph, forward, backward, and a Hessian-vector product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import ops

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": partial(ops.softplus, beta=4.0),
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "silu": ops.silu,
    "gelu": ops.gelu,
    "gelu_tanh": partial(ops.gelu, approximate="tanh"),
    "elu": ops.elu,
    "relu": ops.relu,
    "relu6": ops.relu6,
    "leaky_relu": ops.leaky_relu,
    "relu-curvature": partial(ops.relu, surrogate="curvature", beta=4.0),
    "relu6-curvature": partial(ops.relu6, surrogate="curvature", beta=4.0),
    "leaky_relu-curvature": partial(ops.leaky_relu, surrogate="curvature", beta=4.0),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, v = (2 * torch.randn(3, 4, dtype=dtype, generator=generator) for _ in range(2))
    return x, v


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = f(x)
    return y, torch.autograd.grad(y.sin().sum(), x)[0]


def hvp(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.func.jvp(torch.func.grad(lambda t: f(t).sin().sum()), (x,), (v,))[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_graph(name: str) -> None:
    f, (x, _) = ACTIVATIONS[name], inputs()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, x), gradient(f, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["softplus", "gelu", "relu6-curvature"])
def test_hvp_in_one_graph(name: str) -> None:
    f, (x, v) = ACTIVATIONS[name], inputs()
    compiled_hvp = torch.compile(partial(hvp, f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_hvp(x, v), hvp(f, x, v), rtol=1e-12, atol=1e-13)


def test_surrogate_in_a_compiled_hvp() -> None:
    """relu's own product is cos(y) s' v terms only: the surrogate must show up, at its exact size."""
    x, v = inputs()
    f = ACTIVATIONS["relu-curvature"]
    got = torch.compile(partial(hvp, f), fullgraph=True, backend="aot_eager")(x, v)
    p = torch.sigmoid(4 * x)
    step, y = (x > 0).to(x.dtype), F.relu(x)
    torch.testing.assert_close(got, (4 * p * (1 - p) * y.cos() - step * y.sin()) * v, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_inductor_forward_backward_and_hvp() -> None:
    x, v = inputs(torch.float32)

    def network(x: Tensor, beta: float = 4.0) -> Tensor:
        return ops.relu(ops.gelu(ops.softplus(x, beta)) - 1, surrogate="curvature", beta=beta)

    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(gradient(compiled, x), gradient(network, x), rtol=1e-5, atol=1e-6)
    got = torch.compile(partial(hvp, network), fullgraph=True)(x, v)
    torch.testing.assert_close(got, hvp(network, x, v), rtol=1e-5, atol=1e-6)


def test_beta_and_shape_may_change() -> None:
    compiled = torch.compile(ops.softplus, backend="aot_eager", fullgraph=True)
    for n, beta in ((3, 1.0), (5, 2.0), (7, 3.5), (7, 10.0)):
        x = torch.linspace(-2, 2, n, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, beta), ops.softplus(x, beta), rtol=1e-12, atol=0)


def test_bad_beta_is_still_an_error() -> None:
    compiled = torch.compile(ops.softplus, backend="aot_eager")
    with pytest.raises(ValueError, match="beta must be finite and positive"):
        compiled(torch.zeros(2), -1.0)


def test_registered_ops_compile_too() -> None:
    x, _ = inputs()

    def raw(x: Tensor) -> Tensor:
        return torch.ops.fastxai.softplus(x, 4.0)[0] + torch.ops.fastxai.activation(x, "silu", 1.0, 0.0, "own")

    compiled = torch.compile(raw, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, x), gradient(raw, x), rtol=1e-12, atol=1e-13)


def test_module_and_export() -> None:
    x, _ = inputs()
    exported = torch.export.export(ops.Softplus(beta=4.0), (x,))
    torch.testing.assert_close(exported.module()(x), ops.softplus(x, 4.0), rtol=1e-12, atol=0)
