"""Relevance that passes unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastxai.engine.jets import Node
from fastxai.engine.rules._rule import Rule, Site, Sources
from fastxai.engine.weights import Expr

__all__ = ["PassThrough"]


@dataclass(frozen=True)
class PassThrough(Rule):
    """r_in = r: what LRP does at activations, whatever they are, and at operations that scale or shift a channel."""

    def params(self, node: Node) -> list[Expr]:
        """Return nothing, after a look at the shapes."""
        if [parent.shape for parent in node.inputs] != [node.shape]:
            raise TypeError(f"PassThrough needs one input of the output's shape, unlike {node.path!r}")
        return []

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return r; arguments as in the base class."""
        return [r], None

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return t; arguments as in the base class."""
        return Sources(ts[0])
