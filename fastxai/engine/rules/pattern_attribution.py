"""PatternAttribution: the gradient's way down, with every weight multiplied by the layer's pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.jets import Node
from fastxai.engine.rules._rule import Rule, Site, Sources
from fastxai.engine.weights import Apply, Constant, Expr

__all__ = ["PatternAttribution"]


@dataclass(frozen=True, eq=False)
class PatternAttribution(Rule):
    """r_in = (W o A)^T r, A being the pattern of this layer, of W's shape.

    Attributes:
        pattern: A, a constant: no gradient is taken for it.
    """

    pattern: Tensor

    def params(self, node: Node) -> list[Expr]:
        """Return W o A."""
        return [Apply(torch.mul, (node.params[0], Constant(self.pattern)), {})]

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return (W o A)^T r; arguments as in the base class."""
        return site.node.transpose(site.weights[-1], r), r

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return (W o A) t and the weight's cotangent r (x) t; arguments as in the base class."""
        weight, last = site.weights[-1], len(site.weights) - 1
        grads = {last: site.node.weight_grad(weight, saved, ts[0])} if last in site.wanted else {}
        return Sources(site.node.apply(weight, ts[0]), grads=grads)
