"""LRP-zB: the first layer's rule, for inputs from a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastxai import _check
from fastxai.engine.jets import Node
from fastxai.engine.rules._rule import Rule, Site, Sources, is_layer
from fastxai.engine.rules.proportional import negative, positive
from fastxai.engine.weights import Apply, Expr
from fastxai.kernels import proportional as kernel

__all__ = ["ZBox"]

Bound = float | Sequence[float] | Tensor


def _numbers(bound: Any, name: str) -> tuple[float, ...]:
    numbers = _check.given(_check.numbers(bound), name, "be a number or one a channel", repr(bound), TypeError)
    return tuple(numbers.flatten().tolist())


@dataclass(frozen=True)
class ZBox(Rule):
    """r_in = (x - l) c+ + (x - h) c-,  c+- = (W+-)^T (r / stab(W x - W+ l - W- h))  ([M] eq. 3).

    W x is the layer's output without its bias, which costs nothing; W+ l + W- h is one image, the same for all x.

    Attributes:
        low, high: the box [l, h], a number or one a channel, in the space of the network's input: what lies between
            that input and the layer (normalisation, a permutation of channels) is applied to the box too.
        stabilizer: epsilon of stab(z) = z + epsilon sign(z); > 0.

    Raises:
        TypeError: a bound is neither a number nor a sequence of them.
        ValueError: low is not below high, or the stabilizer is not positive.
    """

    low: Bound = 0.0
    high: Bound = 1.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _check.positive(self.stabilizer, "stabilizer")
        # Tuples compare and hash, so that equal rules share a compiled graph.
        lows, highs = _numbers(self.low, "low"), _numbers(self.high, "high")
        fits = 1 in (len(lows), len(highs)) or len(lows) == len(highs)
        below = fits and all(lo < hi for lo, hi in zip(lows * len(highs), highs * len(lows), strict=False))
        _check.require(below, "low, high", "be numbers or one a channel, low below high", (self.low, self.high))
        object.__setattr__(self, "low", lows)
        object.__setattr__(self, "high", highs)

    @property
    def box(self) -> tuple[Bound, Bound]:
        """The box of the network's input."""
        return self.low, self.high

    def params(self, node: Node) -> list[Expr]:
        """Return W+ and W-."""
        if not is_layer(node):
            raise TypeError(f"ZBox needs a weight, {type(node).__name__} at {node.path!r} has none")
        return [Apply(positive, (node.params[0],), {}), Apply(negative, (node.params[0],), {})]

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return the formula; arguments as in the base class."""
        node, (plus, minus), (low, high) = site.node, site.weights[-2:], self._bounds(site)
        shift = node.apply(plus, low) + node.apply(minus, high)
        if node.own_params > 1:
            shift = shift + node.spread(site.weights[1])
        z = y - shift
        shares = kernel.share(r, z, kernel.Shares(self.stabilizer))
        (up,), (down,) = node.transpose(plus, shares), node.transpose(minus, shares)
        return [(xs[0] - low) * up + (xs[0] - high) * down], (z, shares, up, down)

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return the adjoint; arguments as in the base class."""
        node, (plus, minus), (low, high) = site.node, site.weights[-2:], self._bounds(site)
        z, shares, up, down = saved
        above, below = ts[0] * (xs[0] - low), ts[0] * (xs[0] - high)
        d_shares = node.apply(plus, above).add_(node.apply(minus, below))
        t_out, dz = kernel.adjoint(d_shares, z, shares, kernel.Shares(self.stabilizer))
        grads, ends, last = {}, None, len(site.weights) - 1
        if site.wanted or site.box_moves:
            summed = dz.sum(0, keepdim=True)
            for position, weight, e, bound in ((last - 1, plus, above, low), (last, minus, below, high)):
                if position in site.wanted:
                    grads[position] = node.weight_grad(weight, shares, e) - node.weight_grad(weight, summed, bound)
            if node.own_params > 1 and 1 in site.wanted:
                grads[1] = -node.bias_grad(summed)
            if site.box_moves:
                (on_low,), (on_high,) = node.transpose(plus, summed), node.transpose(minus, summed)
                ends = (-on_low - (ts[0] * up).sum(0, keepdim=True), -on_high - (ts[0] * down).sum(0, keepdim=True))
        return Sources(t_out, [ts[0] * (up + down)], dz, grads, ends)

    @staticmethod
    def _bounds(site: Site) -> tuple[Tensor, Tensor]:
        assert site.box is not None
        return site.box
