"""Checks of what every method of a net takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastxai import _check

__all__ = ["Target", "classes", "directions", "in_range", "inputs", "sharpness"]

Target = int | Tensor | None


def inputs(x: Any, model: nn.Module) -> Tensor:
    """Return x [N, ...] if it has the model's dtype and device.

    Raises:
        TypeError: x is no floating point tensor.
        ValueError: it has no batch dimension, or another dtype or device.
    """
    _check.tensor(x, "x")
    _check.require(x.dim() >= 2, "x", "have shape [N, ...]", list(x.shape))
    first = next(model.parameters(), None)
    if first is not None:
        _check.require(x.dtype == first.dtype, "x", f"have the model's dtype {first.dtype}", x.dtype)
        _check.require(x.device == first.device, "x", f"be on the model's device {first.device}", x.device)
    return x


def classes(target: int | Tensor, x: Tensor, name: str = "target") -> Tensor:
    """Return classes of the rows of x [N, ...] as a LongTensor [N].

    Raises:
        TypeError: target holds no integers.
        ValueError: it has another shape.
    """
    if isinstance(target, Tensor):
        whole = not (target.is_floating_point() or target.dtype == torch.bool)
        _check.require(whole, name, "hold integers", target.dtype, TypeError)
        if target.dim() == 0:
            target = target.expand(x.shape[0])
        _check.shape(target, name, (x.shape[0],))
        return target.to(x.device, torch.long)
    whole = isinstance(target, int) and not isinstance(target, bool)
    _check.require(whole, name, "be an int, a LongTensor [N] or None", target, TypeError)
    return torch.full((x.shape[0],), target, dtype=torch.long, device=x.device)


def in_range(target: Tensor, classes: int, name: str = "target") -> None:
    """Check classes [N], N > 0, against their number.

    Raises:
        ValueError: one lies outside 0 .. classes - 1.
    """
    low, high = torch.stack([target.min(), target.max()]).tolist()
    _check.require(low >= 0 and high < classes, name, f"lie in 0 .. {classes - 1}", f"{low} .. {high}")


def directions(v: Tensor, x: Tensor) -> Tensor:
    """Return directions v, of x's shape or [S, N, ...], as [S, N, ...].

    Raises:
        TypeError: v is no floating point tensor.
        ValueError: its shape does not fit, or it has another dtype or device than x.
    """
    _check.same_place(_check.tensor(v, "v"), "v", x, "x")
    several = v.dim() == x.dim() + 1
    fits = v.shape[several:] == x.shape
    _check.require(fits, "v", f"have shape {list(x.shape)} or [S, N, ...]", list(v.shape))
    return v if several else v[None]


def sharpness(activation: str | None, beta: float | None, surrogate: str | None) -> float | None:
    """Return the beta of a view with these settings (a tensor as it came), None where it has none.

    Raises:
        ValueError: a setting is unknown, or two contradict each other.
    """
    if activation is not None:
        _check.one_of(activation, "activation", ("softplus",))
        _check.require(surrogate is None, "surrogate", "be None beside activation=", surrogate)
    if surrogate is not None:
        _check.one_of(surrogate, "surrogate", ("curvature", "none"))
    needed = activation == "softplus" or surrogate == "curvature"
    alone = beta is not None and not needed
    _check.require(not alone, "beta", "come with activation='softplus' or surrogate='curvature'", beta)
    _check.require(not needed or beta is not None, "beta", "be given with this activation or surrogate", beta)
    return beta if beta is None or isinstance(beta, Tensor) else _check.positive(beta, "beta")
