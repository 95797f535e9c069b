"""The Guided Backprop map."""

from __future__ import annotations

from torch import Tensor, nn

from fastxai.engine import Net
from fastxai.engine.rules import Composite
from fastxai.engine.rules import GuidedBackprop as Rule
from fastxai.explainers._base import Explainer, Target

__all__ = ["GuidedBackprop"]


class GuidedBackprop(Explainer):
    """The gradient's way down; only positive relevance passes an activation: r_in = s'(a) relu(r) ([M] section 2).

    On softplus nets the gate is s'(a) = sig(beta a). In mode "reference" the relevance is filtered there by
    softplus_beta, as in [M]'s code, and by relu on ReLU nets; activations that are neither keep their derivative.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> fastxai.explainers.GuidedBackprop(model).attribute(torch.ones(2, 4), 1).shape
    torch.Size([2, 4])
    """

    def __init__(self, net: Net | nn.Module, mode: str = "rectified") -> None:
        """Explain ``net``; a module is compiled first.

        Raises:
            TypeError: net is neither a compiled net nor a module.
            ValueError: the mode is neither "rectified" nor "reference".
        """
        super().__init__(net)
        self.composite = Composite(activation=Rule(mode))

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)); arguments as in the base class."""
        return (self.net if net is None else net).relevance(x, self.composite, target, parameters=parameters)
