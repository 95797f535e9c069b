"""The PatternAttribution map."""

from __future__ import annotations

from torch import nn

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.rules import Patterned
from fastxai.explainers._rule_based import RuleBased
from fastxai.explainers.patterns import Patterns

__all__ = ["PatternAttribution"]


class PatternAttribution(RuleBased):
    """The gradient's way down with W o A in place of every weight W; A are patterns learned from data ([M] section 2).

    Kindermans et al. 2017, "Learning how to explain neural networks: PatternNet and PatternAttribution".

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> patterns = fastxai.explainers.PatternTrainer(model).fit([torch.randn(64, 4)])
    >>> fastxai.explainers.PatternAttribution(model, patterns).attribute(torch.ones(2, 4), 1).shape
    torch.Size([2, 4])
    """

    rows_alike = True

    def __init__(self, net: Net | nn.Module, patterns: Patterns, *, seed: str = "one") -> None:
        """Explain ``net``; a module is compiled first.

        Args:
            net: the network.
            patterns: one for every layer, from ``PatternTrainer`` or ``Patterns.load``.
            seed: "one" starts with relevance 1, "score" with g_k(x).

        Raises:
            TypeError: net is neither a compiled net nor a module, patterns are no ``Patterns``.
            ValueError: a layer has no pattern, or one of another shape (at the first call).
        """
        super().__init__(net, seed)
        kind = type(patterns).__name__
        _check.require(isinstance(patterns, Patterns), "patterns", "be fastxai.explainers.Patterns", kind, TypeError)
        self.composite = Patterned(model=self.net.model, patterns=patterns.tensors)
