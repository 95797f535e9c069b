"""Gradient and Hessian-vector product of a class score as everybody writes them in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "gradient",
    "hvp",
    "hvps_batched",
    "hvps_loop",
    "integrated_gradient",
    "jvp_grad",
    "smooth_gradient",
    "smooth_gradient_batched",
]


def gradient(model: nn.Module, x: Tensor, target: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return (leaf copy of x, nabla g_k)."""
    x = x.detach().requires_grad_()
    score = model(x).gather(1, target[:, None]).sum()
    return x, torch.autograd.grad(score, x, create_graph=create_graph)[0]


def hvp(model: nn.Module, x: Tensor, v: Tensor, target: Tensor) -> Tensor:
    """Return H v by double backward."""
    leaf, grad = gradient(model, x, target, create_graph=True)
    return torch.autograd.grad(grad, leaf, v)[0]


def hvps_loop(model: nn.Module, x: Tensor, vs: Tensor, target: Tensor) -> Tensor:
    """Return H v for vs [S, N, ...] through one retained graph."""
    leaf, grad = gradient(model, x, target, create_graph=True)
    return torch.stack([torch.autograd.grad(grad, leaf, v, retain_graph=True)[0] for v in vs])


def hvps_batched(model: nn.Module, x: Tensor, vs: Tensor, target: Tensor) -> Tensor:
    """Return H v for vs [S, N, ...] by ``is_grads_batched``."""
    leaf, grad = gradient(model, x, target, create_graph=True)
    return torch.autograd.grad(grad, leaf, vs, is_grads_batched=True)[0]


def integrated_gradient(
    model: nn.Module, x: Tensor, target: Tensor, points: tuple[Tensor, Tensor], *, create_graph: bool = False
) -> Tensor:
    """Return x * sum_k w_k nabla g_k(t_k x), the points as one batch."""
    t, w = (value.to(x.dtype).view(-1, *[1] * x.dim()) for value in points)
    path = (t * x).flatten(0, 1)
    if x.dim() == 4:
        path = path.contiguous(memory_format=torch.channels_last)
    path = path if path.requires_grad else path.requires_grad_()
    score = model(path).gather(1, target.repeat(len(t))[:, None]).sum()
    (grad,) = torch.autograd.grad(score, path, create_graph=create_graph)
    return x * (w * grad.unflatten(0, (len(t), -1))).sum(0)


def smooth_gradient(
    model: nn.Module, x: Tensor, target: Tensor, noise: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Return the mean over i of nabla g_k(x + noise_i), noise [n, N, ...], one noisy batch at a time."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    total = torch.zeros_like(x)
    for one in noise:
        score = model(x + one).gather(1, target[:, None]).sum()
        total = total + torch.autograd.grad(score, x, create_graph=create_graph)[0]
    return total / len(noise)


def smooth_gradient_batched(
    model: nn.Module, x: Tensor, target: Tensor, noise: Tensor, *, create_graph: bool = False
) -> Tensor:
    """The same, all noisy copies in one batch."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    rows = (x + noise).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    score = model(rows).gather(1, target.repeat(len(noise))[:, None]).sum()
    return torch.autograd.grad(score, x, create_graph=create_graph)[0] / len(noise)


def jvp_grad(model: nn.Module, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (x, v) -> H v as forward over reverse with torch.func, the form that torch.compile takes."""

    def score(x: Tensor) -> Tensor:
        return model(x).gather(1, target[:, None]).sum()

    def product(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(score), (x,), (v,))[1]

    return product
