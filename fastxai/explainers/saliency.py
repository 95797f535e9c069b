"""The Saliency map."""

from __future__ import annotations

from torch import Tensor, nn

from fastxai.engine import Net
from fastxai.explainers._base import Explainer, Target

__all__ = ["Saliency"]


class Saliency(Explainer):
    """h(x) = |nabla g_k(x)|, as Captum's Saliency.

    >>> model = torch.nn.Linear(4, 3)
    >>> torch.equal(fastxai.explainers.Saliency(model).attribute(torch.zeros(1, 4), 2)[0], model.weight[2].abs())
    True
    """

    rows_alike = True

    def __init__(self, net: Net | nn.Module, *, abs: bool = True) -> None:
        """Explain ``net``; ``abs=False`` keeps the sign and is the Gradient map."""
        super().__init__(net)
        self.abs = abs

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (|nabla g_k(x)|, g(x)); arguments as in the base class."""
        h, scores = (self.net if net is None else net).differentiable_gradient(x, target, parameters=parameters)
        return h.abs() if self.abs else h, scores
