"""The Gradient map."""

from __future__ import annotations

from torch import Tensor

from fastxai.engine import Net
from fastxai.explainers._base import Explainer, Target

__all__ = ["Gradient"]


class Gradient(Explainer):
    """h(x) = nabla g_k(x), signed ([M] section 2).

    >>> model = torch.nn.Linear(4, 3)
    >>> torch.equal(fastxai.explainers.Gradient(model).attribute(torch.zeros(1, 4), 2)[0], model.weight[2])
    True
    """

    rows_alike = True

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)); arguments as in the base class."""
        return (self.net if net is None else net).differentiable_gradient(x, target, parameters=parameters)
