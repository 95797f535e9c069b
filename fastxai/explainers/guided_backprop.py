"""The Guided Backprop map."""

from __future__ import annotations

from torch import Tensor, nn

from fastxai import _check
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
        super().__init__(net)
        self.seed = _check.one_of(seed, "seed", ("one", "score"))
        self.composite = Composite(activation=Rule(mode))

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)); arguments as in the base class."""
        view = self.net if net is None else net
        return view.relevance(x, self.composite, target, seed=self.seed, parameters=parameters)
