"""Composites: which rule explains which node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastxai import _check
from fastxai.engine.jets import Curved, Layer, Node
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.add import Add
from fastxai.engine.nodes.avg_pool import AdaptiveAvgPool, AvgPool, Mean
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.conv2d import Conv2d
from fastxai.engine.nodes.scale import Scale
from fastxai.engine.rules._rule import Rule
from fastxai.engine.rules.alpha_beta import AlphaBeta
from fastxai.engine.rules.epsilon import Epsilon
from fastxai.engine.rules.gamma import Gamma
from fastxai.engine.rules.pass_through import PassThrough
from fastxai.engine.rules.z_box import ZBox
from fastxai.engine.rules.z_plus import ZPlus
from fastxai.engine.trace import Unsupported

__all__ = ["COMPOSITES", "Composite", "lrp"]

# One instance, so that composites which leave it in place are equal.
_ORDINARY = Rule()
_RULED = (Layer, Activate, Add, AvgPool, AdaptiveAvgPool, Mean, Scale, Bias, Curved)


@dataclass(frozen=True)
class Composite:
    """A rule for every kind of node; what has no rule here goes down by its ordinary derivative.

    Attributes:
        convolution, dense: the layers with weights, batch norm folded in.
        first: the layers that no other layer precedes, in place of the two above.
        activation: every elementwise activation.
        add: sums of tensors.
        average: average pools and means.
        scale: scales and shifts: a batch norm that cannot be folded, input normalisation.
        product: nonlinear operations of several elements (products of tensors, softmax); None refuses them.
        paths: (module path, rule) pairs that go before everything else. A batch norm that was folded, and modules that
            only move elements (pads, reshapes, max-pools), have no rule of their own to replace.
    """

    convolution: Rule = _ORDINARY
    dense: Rule = _ORDINARY
    first: Rule | None = None
    activation: Rule = _ORDINARY
    add: Rule = _ORDINARY
    average: Rule = _ORDINARY
    scale: Rule = _ORDINARY
    product: Rule | None = _ORDINARY
    paths: tuple[tuple[str, Rule], ...] = ()

    def rule(self, node: Node, *, first: bool) -> Rule:
        """Return the rule of one node.

        Raises:
            Unsupported: the composite refuses such nodes.
        """
        if isinstance(node, _RULED):
            for path, rule in self.paths:
                if node.path == path:
                    return rule
        match node:
            case Layer():
                if first and self.first is not None:
                    return self.first
                return self.convolution if isinstance(node, Conv2d) else self.dense
            case Activate():
                return self.activation
            case Add():
                return self.add
            case AvgPool() | AdaptiveAvgPool() | Mean():
                return self.average
            case Scale() | Bias():
                return self.scale
            case Curved():
                if self.product is None:
                    raise Unsupported(
                        f"{type(node).__name__.lower()} at {node.path!r} has no rule; explain the scores before it, or "
                        "give the composite a rule for it (product= or paths=)"
                    )
                return self.product
            case _:
                return _ORDINARY

    def assign(self, nodes: Sequence[Node]) -> list[Rule]:
        """Give every node its rule, and what the rule needs to its parameters; ``nodes`` in topological order.

        Raises:
            TypeError: a rule does not fit its node.
            ValueError: ``paths`` names something that has no rule to replace.
            Unsupported: the composite refuses a node.
        """
        ruled = {node.path for node in nodes if isinstance(node, _RULED)}
        lost = [path for path, _ in self.paths if path not in ruled]
        _check.require(not lost, "paths", f"name modules among {sorted(ruled)}", lost)
        behind_layer: dict[Node, bool] = {}
        known: dict[Node, bool] = {}
        rules = []
        for node in nodes:
            first = not any(behind_layer[parent] for parent in node.inputs)
            behind_layer[node] = isinstance(node, Layer) or not first
            node.signed = not all(known[parent] for parent in node.inputs)
            known[node] = node.nonnegative(signed=node.signed or not node.inputs)
            rule = self.rule(node, first=first) if node.inputs else _ORDINARY
            if rule.box is not None and not first:
                raise Unsupported(f"{type(rule).__name__} is a rule for first layers, {node.path!r} is behind another")
            node.own_params = len(node.params)
            node.params = [*node.params, *rule.params(node)]
            rules.append(rule)
        return rules


def lrp(
    convolution: Rule,
    dense: Rule,
    first: Rule | None = None,
    *,
    stabilizer: float = 1e-6,
    scale: Rule | None = None,
    paths: Sequence[tuple[str, Rule]] = (),
) -> Composite:
    """Return a composite of layer-wise relevance propagation: the given rules at the layers, LRP's own elsewhere.

    Relevance passes activations, scales and shifts, splits at sums and averages in proportion to the summands, and goes
    to the winner of a max-pool.

    Args:
        convolution: rule of convolutions.
        dense: rule of dense layers.
        first: rule of the layers that no other precedes, if it is another.
        stabilizer: of the split at sums and averages.
        scale: rule of batch norms that cannot be folded; by default relevance passes.
        paths: (module path, rule) pairs that go before everything else.
    """
    split = Epsilon(stabilizer)
    through = PassThrough() if scale is None else scale
    return Composite(convolution, dense, first, PassThrough(), split, split, through, None, tuple(paths))


def epsilon_plus(low: Any, high: Any) -> Composite:
    """Epsilon at dense layers, z+ with its bias at convolutions: zennit's EpsilonPlus."""
    return lrp(ZPlus(bias=True), Epsilon())


def epsilon_alpha2_beta1(low: Any, high: Any) -> Composite:
    """Epsilon at dense layers, alpha 2, beta 1 at convolutions: zennit's EpsilonAlpha2Beta1."""
    return lrp(AlphaBeta(), Epsilon())


def epsilon_gamma_box(low: Any, high: Any) -> Composite:
    """Epsilon at dense layers, gamma at convolutions, zB at the first layer: zennit's EpsilonGammaBox."""
    return lrp(Gamma(), Epsilon(), ZBox(low, high))


def zplus_zb(low: Any, high: Any) -> Composite:
    """z+ everywhere, zB at the first layer: [M] eq. 2 and 3."""
    return lrp(ZPlus(1e-9), ZPlus(1e-9), ZBox(low, high, 1e-9))


def epsilon(low: Any, high: Any) -> Composite:
    """Epsilon everywhere: Captum's default."""
    return lrp(Epsilon(), Epsilon())


COMPOSITES = {
    made.__name__: made for made in (epsilon, epsilon_plus, epsilon_alpha2_beta1, epsilon_gamma_box, zplus_zb)
}
