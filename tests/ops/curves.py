"""The public activations beside torch's, and their derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import ops

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
