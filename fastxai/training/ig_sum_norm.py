"""IG-SUM-NORM: [F] eq. 6 with integrated gradients along the perturbation."""

from __future__ import annotations

from typing import Any

from fastxai.engine.heads import Output
from fastxai.training._ig import from_x
from fastxai.training.far import FAR, zeros

__all__ = ["IGSumNorm"]


class IGSumNorm(FAR):
    """mean_i max_{|x~ - x_i|_inf <= eps} l(x~, y_i) + lambda |IG(x~, x_i)|_1 ([F] appendix A.1.2; Chen et al. 2019).

    ``FAR`` with an AdversarialIFIA; the map is that of ``IGNorm``. Chen et al. write l(x_i, y_i) + sum IG + lambda
    |IG|_1: of the loss, sum IG = l(x~, y_i) - l(x_i, y_i) by completeness. Here, as in eq. 6, l(x~, y_i) is exact and
    no sum of points.

    Attributes:
        attack, lambda_, outer: as for ``FAR``.

    >>> from fastxai.training import IGSumNorm, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> objective = Objective(fastxai.compile(model), [IGSumNorm(eps=0.1, n_steps=5, restarts=1)])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    def __init__(
        self,
        eps: float,
        lambda_: float = 1.0,
        n_steps: int = 10,
        output: Output = "cross_entropy",
        outer: str = "curvature",
        **settings: Any,
    ) -> None:
        """Train with the arguments of ``IGNorm``, but that ``settings`` are any others of ``AdversarialIFIA``.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        fixed: dict[str, Any] = {"dissimilarity": "l1", **settings}
        super().__init__(
            "eq6", from_x(n_steps, output), eps=eps, lambda_=lambda_, outer=outer, target_map=zeros, **fixed
        )
