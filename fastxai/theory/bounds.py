"""Bounds on the Hessian from the weights alone: [R] theorems 1 and 2, and the constant of [M1]'s theorem.

Both papers speak of fully-connected networks: L layers, each a matrix W and an activation. A convolution is a matrix
too, whose Frobenius norm counts a kernel entry once for every position where it meets the image: ``layer_norms`` gives
it. With Frobenius norms the bounds are on ||H||_F, as printed; with spectral norms the same proofs bound ||H||_2, by
orders of magnitude less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _check
from fastxai.theory._common import count

__all__ = [
    "hessian_bound",
    "loose_softplus_bound",
    "relu_bound",
    "softplus_bound",
    "weight_constant",
]

Norms = Sequence[float] | Tensor


def _numbers(norms: Norms) -> Tensor:
    """Return the norms in float64, [L]."""
    n = _check.given(_check.numbers(norms), "norms", "hold one number per layer", repr(norms), TypeError)
    _check.require(n.dim() == 1 and len(n) > 0, "norms", "hold one number per layer", list(n.shape))
    _check.require(bool((n.isfinite() & (n >= 0)).all()), "norms", "be finite and not negative", n.tolist())
    return n


def _terms(n: Tensor) -> Tensor:
    """Return prod_{l<=m} ||W_l||^2 prod_{l>m} ||W_l|| for m = 1 .. L, [L]."""
    return n.cumprod(0) * n.prod()


def _known(bound: float, n: Tensor) -> float:
    """Return the bound, which may be infinite, unless it is infinity times zero."""
    _check.require(not math.isnan(bound), "norms", "have a bound within float64's range", n.tolist())
    return bound


def weight_constant(norms: Norms) -> float:
    """Return C~ = sum_m prod_{l<=m} ||W_l||_F^2 prod_{l>m} ||W_l||_F ([M1] eq. 18).

    Args:
        norms: of the layers, first to last, [L].

    Raises:
        TypeError: norms are no numbers.
        ValueError: norms are none, not one-dimensional, negative or not finite, or have no bound in float64.

    >>> fastxai.theory.weight_constant([2.0, 3.0])
    48.0
    """
    n = _numbers(norms)
    return _known(_terms(n).sum().item(), n)


def hessian_bound(norms: Norms, slope: float, curvature: float, *, linear_head: bool = False) -> float:
    """Return sum_m prod_{l<=m} ||W_l||^2 prod_{l>m} ||W_l|| S1^{L+m-2} S2 >= ||H|| everywhere ([R] eq. 8).

    Args:
        norms: of the layers, first to last, [L]: Frobenius norms, for a bound on ||H||_F, or spectral, for ||H||_2.
        slope: S1 >= |s'| of every activation.
        curvature: S2 >= |s''|.
        linear_head: no activation follows the last layer, as where scores are explained: its term is left out, and one
            factor S1. ([R] has one.)

    Raises:
        TypeError, ValueError: as for ``weight_constant``; slope or curvature is negative or not finite.

    >>> fastxai.theory.hessian_bound([2.0, 3.0], 1.0, 0.25), fastxai.theory.hessian_bound([2.0], 1.0, 0.25)
    (12.0, 1.0)
    """
    for value, name in ((slope, "slope"), (curvature, "curvature")):
        _check.not_negative(value, name)
    n = _numbers(norms)
    terms = _terms(n)[: -1 if linear_head else None]
    powers = torch.arange(len(terms), dtype=torch.float64) + (len(terms) - 1)
    return _known(curvature * (terms * slope**powers).sum().item(), n)


def softplus_bound(norms: Norms, beta: float, *, linear_head: bool = False) -> float:
    """Return ``hessian_bound`` for softplus_beta: S1 = 1, S2 = beta / 4 ([R] eq. 8 and 10).

    Divided by the smallest ||nabla g|| it bounds every principal curvature too ([M1] eq. 23).

    >>> fastxai.theory.softplus_bound([2.0, 3.0], 10.0)
    120.0
    """
    return hessian_bound(norms, 1.0, _check.positive(beta, "beta") / 4, linear_head=linear_head)


def loose_softplus_bound(norms: Norms, beta: float) -> float:
    """Return beta C~ >= ||H||_F ([M1] eq. 17): four times ``softplus_bound``, as [M1] drops the factor s'' <= beta / 4.

    >>> fastxai.theory.loose_softplus_bound([2.0, 3.0], 10.0)
    480.0
    """
    return _check.positive(beta, "beta") * weight_constant(norms)


def relu_bound(norms: Norms, kinks: int) -> float:
    """Return sqrt(kinks) prod_l ||W_l||_F >= ||h(x) - h(x_adv)|| for a ReLU network ([R] eq. 27).

    Leaky ReLU of a slope in 0 .. 1 and ReLU6 are covered too.
    It says little: without max-pools any two gradients are at most prod_l ||W_l||_F apart, as every path through the
    network is on, off or changed; in spectral norms, or with pools, at most twice that. So from four kinks on the bound
    holds even where more are missed.

    Args:
        norms: of the layers, [L]: Frobenius norms, or spectral, for which it holds too.
        kinks: how often the path from x to x_adv crosses the kink of a unit, and twice how often a max-pool changes its
            winner (``segment_kinks(...).weighted``, ``count_kinks``).

    Raises:
        TypeError, ValueError: as for ``weight_constant``; kinks is no int or negative.

    >>> fastxai.theory.relu_bound([2.0, 3.0], 4)
    12.0
    """
    n = _numbers(norms)
    return _known(math.sqrt(count(kinks, "kinks", 0)) * n.prod().item(), n)
