"""The Gradient x Input map."""

from __future__ import annotations

from torch import Tensor

from fastxai.engine import Net
from fastxai.explainers._base import Explainer, Target

__all__ = ["InputXGradient"]


class InputXGradient(Explainer):
    """h(x) = x * nabla g_k(x) ([M] section 2); its gradient holds both terms, dL/dx = v * nabla g_k + H (v * x).

    x is the input that the net takes: with ``mean`` and ``std`` the image, else the normalised input.

    >>> model = torch.nn.Linear(4, 3)
    >>> torch.equal(fastxai.explainers.InputXGradient(model).attribute(2 * torch.ones(1, 4), 1)[0], 2 * model.weight[1])
    True
    """

    rows_alike = True

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (x * nabla g_k(x), g(x)); arguments as in the base class."""
        h, scores = (self.net if net is None else net).differentiable_gradient(x, target, parameters=parameters)
        return x * h, scores
