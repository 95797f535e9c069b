"""What every map made by rules is."""

from __future__ import annotations

from torch import Tensor, nn

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.rules import Composite
from fastxai.explainers._base import Explainer, Target

__all__ = ["RuleBased"]


class RuleBased(Explainer):
    """Relevance of 1 (or g_k) at the explained score, handed down by the rules of a composite.

    Attributes:
        composite: which rule explains which node; subclasses give it.
        seed: "one" or "score".
    """

    composite: Composite

    def __init__(self, net: Net | nn.Module, seed: str) -> None:
        """Explain ``net``; a module is compiled first.

        Raises:
            TypeError: net is neither a compiled net nor a module.
            ValueError: seed is unknown.
        """
        super().__init__(net)
        self.seed = _check.one_of(seed, "seed", ("one", "score"))

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)); arguments as in the base class."""
        view = self.net if net is None else net
        return view.relevance(x, self.composite, target, seed=self.seed, parameters=parameters)
