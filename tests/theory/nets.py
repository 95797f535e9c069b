"""Smooth networks of the theory tests, and their dense Hessians from torch.func."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, hessian

import fastxai
from fastxai import Net

SHAPE = (2, 5, 3)
SIZE = 30
BETA = 3.0


class Softplus(nn.Module):
    """softplus_beta as torch differentiates it exactly."""

    def forward(self, a: Tensor) -> Tensor:
        return -nn.functional.logsigmoid(-BETA * a) / BETA


def convolutional(act: type[nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small net without batch norm or pools."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), act(), nn.Conv2d(4, 3, 2, stride=2), act(), nn.Flatten(), nn.Linear(6, 4)
    ).to(dtype)


def smooth(dtype: torch.dtype = torch.float64) -> Net:
    return fastxai.compile(convolutional(nn.ReLU, dtype), activation="softplus", beta=BETA)


def batch(n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def dense(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gradients [N, D], Hessians [N, D, D]) of ``smooth``'s scores."""
    model = convolutional(Softplus)

    def score(k: int, row: Tensor) -> Tensor:
        return model(row.view(1, *SHAPE))[0, k]

    rows = [(partial(score, k), row.reshape(SIZE)) for k, row in zip(target.tolist(), x, strict=True)]
    return tuple(torch.stack([f(g)(row) for g, row in rows]).detach() for f in (grad, hessian))  # type: ignore[return-value]


class Quadratic(nn.Module):
    """g(x) = (x^T A x / 2 + b x, 0) as a graph of layers: sum_i a_i (u_i x)^2 / 2."""

    def __init__(self, values: Tensor, directions: Tensor | None = None, b: Tensor | None = None) -> None:
        super().__init__()
        u = torch.eye(len(values), dtype=values.dtype) if directions is None else directions
        self.directions = nn.Linear(len(values), len(values), bias=False, dtype=values.dtype)
        self.values = nn.Linear(len(values), 2, bias=False, dtype=values.dtype)
        self.offset = nn.Linear(len(values), 2, bias=False, dtype=values.dtype)
        with torch.no_grad():
            self.directions.weight.copy_(u)
            self.values.weight.copy_(torch.stack([values / 2, 0 * values]))
            self.offset.weight.copy_(torch.stack([0 * values if b is None else b, 0 * values]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.directions(x)
        return self.values(h * h) + self.offset(x)


def quadratic(values: list[float] | Tensor, rotated: bool = True, b: Tensor | None = None) -> Net:
    """Compile a net whose Hessian has these eigenvalues everywhere."""
    values = torch.as_tensor(values, dtype=torch.float64)
    torch.manual_seed(1)
    u = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0] if rotated else None
    return fastxai.compile(Quadratic(values, u, b))
