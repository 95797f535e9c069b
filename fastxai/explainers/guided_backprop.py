"""The Guided Backprop map."""

from __future__ import annotations

from torch import nn

from fastxai.engine import Net
from fastxai.engine.rules import Composite
from fastxai.engine.rules import GuidedBackprop as Rule
from fastxai.explainers._rule_based import RuleBased

__all__ = ["GuidedBackprop"]


class GuidedBackprop(RuleBased):
    """The gradient's way down; only positive relevance passes an activation: r_in = s'(a) relu(r) ([M] section 2).

    On softplus nets the gate is s'(a) = sig(beta a). In mode "reference" the relevance is filtered there by
    softplus_beta, as in [M]'s code, and by relu on ReLU nets; activations that are neither keep their derivative.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> fastxai.explainers.GuidedBackprop(model).attribute(torch.ones(2, 4), 1).shape
    torch.Size([2, 4])
    """

    rows_alike = True

    def __init__(self, net: Net | nn.Module, mode: str = "rectified", *, seed: str = "one") -> None:
        """Explain ``net``; a module is compiled first.

        Args:
            net: the network.
            mode: "rectified" or "reference".
            seed: "one" starts with relevance 1, "score" with g_k(x), as [M]'s code: where g_k < 0 the rectified map is
                another one then.

        Raises:
            TypeError: net is neither a compiled net nor a module.
            ValueError: mode or seed is unknown.
        """
        super().__init__(net, seed)
        self.composite = Composite(activation=Rule(mode))
