"""Guided Backprop: only positive relevance goes through an activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastxai import _check
from fastxai.engine.jets import Node
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.rules._rule import Rule, Site, Sources
from fastxai.engine.weights import Expr
from fastxai.kernels import activation as kernel
from fastxai.kernels.activation import RELU_LIKE, Activation

__all__ = ["MODES", "GuidedBackprop"]

MODES = ("rectified", "reference")
_GUIDED = (*RELU_LIKE, "softplus", "softplus6", "leaky_softplus")


@dataclass(frozen=True)
class GuidedBackprop(Rule):
    """r_in = s'(a) f(r), at ReLU-like activations and their softplus forms; others keep the ordinary derivative.

    f is relu, or, in mode "reference" on a softplus_beta net, softplus_beta, as in the code of [M]: there f(0) =
    log(2)/beta, so that every unit gets some relevance.

    Raises:
        ValueError: the mode is unknown.
    """

    mode: str = "rectified"

    def __post_init__(self) -> None:
        _check.one_of(self.mode, "mode", MODES)

    def params(self, node: Node) -> list[Expr]:
        """Return nothing, after a look at what the node is."""
        if not isinstance(node, Activate):
            raise TypeError(f"GuidedBackprop is for activations, {type(node).__name__} at {node.path!r} is none")
        return []

    def _filter(self, act: Activation) -> Activation | None:
        if act.name not in _GUIDED:
            return None
        soft = self.mode == "reference" and act.name not in RELU_LIKE
        return Activation("softplus", beta=act.beta) if soft else Activation("relu")

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return s'(a) f(r); arguments as in the base class."""
        through = self._filter(site.activation)
        if through is None:
            return site.pull(r), None
        if through.name == "relu":
            kept, passed = r, r.clamp(min=0)
        else:
            passed, kept = kernel.push(through, r)
        return site.pull(passed), (through, kept)

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return f'(r) s'(a) t and the source s''(a) f(r) t; arguments as in the base class."""
        t_out = site.push(*ts)
        if saved is not None:
            through, kept = saved
            t_out = kernel.pull(through, kept, None, t_out, overwrite=True)
        return Sources(t_out, site.bend())
