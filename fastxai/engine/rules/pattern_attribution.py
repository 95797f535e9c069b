"""PatternAttribution: the gradient's way down, with every weight multiplied by the layer's pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai.engine.jets import Layer, Node
from fastxai.engine.rules._rule import Rule, Site, Sources
from fastxai.engine.rules.composite import Composite
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Apply, Constant, Expr, Source, shape_of, sources

__all__ = ["PatternAttribution", "Patterned", "weight_name"]


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


@dataclass(frozen=True, eq=False)
class Patterned(Composite):
    """PatternAttribution at every layer, the ordinary derivative elsewhere.

    Attributes:
        model: the model whose parameters give the layers their names.
        patterns: parameter name of a layer's weight -> pattern.
    """

    model: nn.Module = field(default_factory=nn.Module)
    patterns: Mapping[str, Tensor] = field(default_factory=dict)

    # By identity: the base class compares the rules alone, and other patterns are another composite.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def rule(self, node: Node, *, first: bool) -> Rule:
        """Return the layer's rule.

        Raises:
            ValueError: the layer has no pattern, or one of another shape than its weight.
        """
        if not isinstance(node, Layer):
            return super().rule(node, first=first)
        name, shape = weight_name(node, self.model), list(shape_of(node.params[0]))
        pattern = self.patterns.get(name)
        contract = f"hold a pattern of shape {shape} for {name!r}"
        _check.require(pattern is not None, "patterns", contract, sorted(self.patterns))
        assert pattern is not None
        _check.require(list(pattern.shape) == shape, "patterns", contract, list(pattern.shape))
        return PatternAttribution(pattern)


def weight_name(node: Node, model: nn.Module) -> str:
    """Return the parameter name of a layer's weight; of the first parameter that the weight is computed from."""
    names = {
        (id(module._parameters), name): f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name in module._parameters
    }
    for leaf in sources(node.params[:1]):
        if isinstance(leaf, Source) and (id(leaf.table), leaf.name) in names:
            return names[id(leaf.table), leaf.name]
    raise Unsupported(f"the weight at {node.path!r} is no parameter of the model")
