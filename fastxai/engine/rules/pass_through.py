"""Relevance that passes unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastxai.engine.rules._rule import Rule, Site, Sources

__all__ = ["PassThrough"]


@dataclass(frozen=True)
class PassThrough(Rule):
    """r_in = r: what LRP does at activations, whatever they are, and at operations that scale or shift a channel."""

    def explain(self, site: Site, xs: Sequence[Tensor], y: Tensor, r: Tensor) -> tuple[Sequence[Tensor], Any]:
        """Return r; arguments as in the base class."""
        return [r], None

    def adjoint(self, site: Site, xs: Sequence[Tensor], y: Tensor, saved: Any, ts: Sequence[Tensor]) -> Sources:
        """Return t; arguments as in the base class."""
        return Sources(ts[0])
