"""Quadrature rules on [0, 1]: where a path is sampled, and what each sample weighs.

``gausslegendre`` is exact for polynomials of degree 2n - 1, but where the integrand has kinks or jumps (ReLU, max-pool)
or nearly so (softplus with beta >= 10) ``midpoint`` needs as many steps or fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["METHODS", "REFINABLE", "quadrature", "refine"]

Rule = tuple[Tensor, Tensor]


def _grid(n: int, start: float) -> Rule:
    return (torch.arange(n, dtype=torch.float64) + start) / n, torch.full((n,), 1 / n, dtype=torch.float64)


def _trapezoid(n: int) -> Rule:
    w = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
    w[0] = w[-1] = 0.5 / (n - 1)
    return torch.arange(n, dtype=torch.float64) / (n - 1), w


def _legendre(n: int) -> Rule:
    """Newton's method on P_n from Tricomi's guess; w = 1 / ((1 - z^2) P_n'(z)^2) on an interval of length 1."""
    z = -torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.75) / (n + 0.5))
    slope = torch.ones_like(z)
    for _ in range(6):
        before, p = torch.ones_like(z), z
        for k in range(2, n + 1):
            before, p = p, ((2 * k - 1) * z * p - (k - 1) * before) / k
        slope = n * (before - z * p) / (1 - z * z)
        z = z - p / slope
    return (1 + z) / 2, 1 / ((1 - z * z) * slope * slope)


def _clenshaw_curtis(n: int) -> Rule:
    """Nodes (1 - cos(pi j / m)) / 2, m = n - 1: the integral of the interpolating Chebyshev series."""
    m = n - 1
    j, k = torch.arange(n, dtype=torch.float64), torch.arange(1, m // 2 + 1, dtype=torch.float64)
    b = torch.where(2 * k == m, 1.0, 2.0) / (4 * k * k - 1)
    w = (1 - torch.cos(2 * math.pi / m * torch.outer(j, k)) @ b) / m
    w[0], w[-1] = w[0] / 2, w[-1] / 2
    return (1 - torch.cos(math.pi / m * j)) / 2, w


# name: (least n, rule)
_RULES: dict[str, tuple[int, Callable[[int], Rule]]] = {
    "gausslegendre": (1, _legendre),
    "midpoint": (1, lambda n: _grid(n, 0.5)),
    "riemann_left": (1, lambda n: _grid(n, 0.0)),
    "riemann_right": (1, lambda n: _grid(n, 1.0)),
    "riemann_trapezoid": (2, _trapezoid),
    "clenshaw_curtis": (2, _clenshaw_curtis),
}
_SAME = {"riemann_middle": "midpoint"}
METHODS = (*_RULES, *_SAME)

# name: (the next n, which of its points are new, what the sum so far is multiplied by)
_REFINED: dict[str, tuple[Callable[[int], int], Callable[[Tensor], Tensor], float]] = {
    "midpoint": (lambda n: 3 * n, lambda i: i % 3 != 1, 1 / 3),
    "riemann_left": (lambda n: 2 * n, lambda i: i % 2 == 1, 1 / 2),
    "riemann_right": (lambda n: 2 * n, lambda i: i % 2 == 0, 1 / 2),
    "riemann_trapezoid": (lambda n: 2 * n - 1, lambda i: i % 2 == 1, 1 / 2),
}
REFINABLE = tuple(_REFINED)


def quadrature(method: str, n: int) -> tuple[Tensor, Tensor]:
    """Return points t and weights w with int_0^1 f(t) dt = sum_k w_k f(t_k), the weights summing to 1.

    Args:
        method: "gausslegendre", "midpoint" (also "riemann_middle"), "riemann_left", "riemann_right",
            "riemann_trapezoid" or "clenshaw_curtis".
        n: number of points; at least 2 for the last two, which contain both ends.

    Returns:
        (t [n] ascending, w [n]), float64.

    Raises:
        TypeError: n is no integer.
        ValueError: the method is unknown, or n is too small for it.

    >>> fastxai.explainers.quadrature("midpoint", 2)
    (tensor([0.2500, 0.7500], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    _check.one_of(method, "method", METHODS)
    _check.require(isinstance(n, int) and not isinstance(n, bool), "n_steps", "be an integer", n, TypeError)
    least = _RULES[_SAME.get(method, method)][0]
    _check.require(n >= least, "n_steps", f"be at least {least} for {method!r}", n)
    t, w = _cached(_SAME.get(method, method), n)
    return t.clone(), w.clone()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _cached(method: str, n: int) -> Rule:
    return _RULES[method][1](n)


def refine(method: str, n: int) -> tuple[int, Tensor, Tensor, float]:
    """Return the next finer rule of a nested family, which contains every point of the rule with n points.

    Only equal weights (but for the ends) scale as one, so that a weighted sum can be carried on. Clenshaw-Curtis nests
    too, but each of its weights changes by a factor of its own.

    Returns:
        (its number of points, the new points t, their weights w, the factor of the sum so far).

    Raises:
        ValueError: the method has no such rule.
    """
    method = _SAME.get(method, method)
    _check.one_of(method, "method", REFINABLE)
    grow, is_new, factor = _REFINED[method]
    more = grow(n)
    t, w = quadrature(method, more)
    new = is_new(torch.arange(more))
    return more, t[new], w[new], factor
