"""What every rule is: how relevance goes down through one node, and the exact adjoint of that step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastxai.engine.jets import Layer, Node, Sweep
from fastxai.engine.weights import Expr
from fastxai.kernels.activation import Activation

__all__ = ["Rule", "Site", "Sources"]


@dataclass(frozen=True)
class Sources:
    """What the adjoint of one step gives.

    Attributes:
        t_out: cotangent of the relevance that came in from above.
        x: cotangents of the node's inputs, None for zero; () for none at all.
        y: cotangent of the node's output, or None.
        grads: cotangents of the node's parameters, by position (those that the rule added included).
        box: cotangents of the ends of the node's box, where ``Site.box_moves``.
    """

    t_out: Tensor
    x: Sequence[Tensor | None] = ()
    y: Tensor | None = None
    grads: dict[int, Tensor] = field(default_factory=dict)
    box: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Site:
    """One node in one sweep: its weights, its activation and its own sweeps.

    Attributes:
        node: the node; for ``Linear`` ones ``apply``, ``transpose`` and ``weight_grad`` take any of ``weights``.
        sweep: the sweep that computed the values.
        wanted: positions of the parameters whose gradient is asked for.
        box: lowest and highest input of the node [1, ...], for rules with a ``box``.
        box_moves: parameters whose gradient is asked for lie between the network's input and the node.
        closed: relevance of the output is zero where that is not positive, and its cotangent counts for nothing there.
    """

    node: Any
    sweep: Sweep
    wanted: frozenset[int] = frozenset()
    box: tuple[Tensor, Tensor] | None = None
    box_moves: bool = False
    closed: bool = False

    @property
    def weights(self) -> Sequence[Any]:
        """The packed parameters: the node's own (W, perhaps b), then the rule's."""
        return self.sweep.prepared[self.node.index]

    @property
    def activation(self) -> Activation:
        """The function of an activation node in the view that is explained."""
        return self.sweep.activations[self.node.activation_slot]

    @property
    def weight(self) -> Any:
        """The node's own packed weight, or None."""
        return self.node.weight(self.sweep)

    def pull(self, r: Tensor) -> Sequence[Tensor]:
        """Return J^T r per input, J the node's derivative; r is remembered for ``bend``."""
        return self.node.pull(self.sweep, r)

    def push(self, *ts: Tensor) -> Tensor:
        """Return J t; t is remembered for ``bend``."""
        return self.node.push(replace(self.sweep, extend=True), *ts)

    def bend(self) -> Sequence[Tensor | None]:
        """Return the cotangents (D_t J)^T r of the inputs; collect those of the parameters."""
        return self.node.pull(replace(self.sweep, extend=True), None)


class Rule:
    """The ordinary derivative: relevance goes down by J^T. Every other rule overrides ``explain`` and ``adjoint``.

    Rules are immutable and comparable: explainers with equal rules share their compiled graphs.

    Attributes:
        box: (lowest, highest) value of the network's input, a number or one a channel, for rules that need the range
            of a node's input; else None.
    """

    box: tuple[Any, Any] | None = None

    @property
    def proportional(self) -> bool:
        """True if the relevance of every input is that input times something."""
        return False

    def params(self, node: Node) -> list[Expr]:
        """Return the weights that the rule needs beside the node's own, as expressions of ``node.params``."""
        return []

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return the relevance of every input, and what ``adjoint`` will need.

        Args:
            site: the node at this call site.
            xs: its inputs [N, ...].
            y: its output [N, ...].
            r: relevance of the output, of y's shape.
        """
        return site.pull(r), None

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return the cotangents of everything that ``explain`` read, given those of its results.

        Args:
            site: as for ``explain``.
            xs: as for ``explain``.
            y: as for ``explain``.
            saved: what ``explain`` returned beside the relevance.
            ts: cotangents of the inputs' relevance.
        """
        return Sources(site.push(*ts), site.bend())


def is_layer(node: Node) -> bool:
    """True for nodes with a weight that mixes features: convolutions and dense layers."""
    return isinstance(node, Layer)
