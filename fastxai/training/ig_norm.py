"""IG-NORM: integrated gradients along the perturbation, [F] eq. 8."""

from __future__ import annotations

from typing import Any

from fastxai.engine.heads import Output
from fastxai.training._ig import from_x
from fastxai.training.far import FAR, zeros

__all__ = ["IGNorm"]


class IGNorm(FAR):
    """mean_i l(x_i, y_i) + lambda max_{|x~ - x_i|_inf <= eps} |IG(x~, x_i)|_1 ([F] eq. 8; Chen et al. 2019).

    ``FAR`` with an IFIA on integrated gradients from the baseline x to x~, d_s = L1, S_T = IG(x, x) = 0. Chen et al.
    integrate the loss, [F] eq. 2 as printed the label's score: ``output``. The L1 norm has no gradient at x~ = x, so
    all starts are random where [F] prints x. As in eq. 4 the class must hold, which Chen et al. do not ask for.

    Attributes:
        attack, lambda_, outer: as for ``FAR``.

    >>> from fastxai.training import IGNorm, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> objective = Objective(fastxai.compile(model), [IGNorm(eps=0.1, n_steps=5, restarts=1)])
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
        """Train with these settings.

        Args:
            eps: radius of the ball, in the space of x.
            lambda_: weight of the norm.
            n_steps: points of the integral, in the attack and in the loss.
            output: what is integrated, as for ``IntegratedGradients``: "cross_entropy", or "logit".
            outer: as for ``FAR``.
            settings: any others of ``IFIA``, such as steps, restarts, beta, bounds and seed.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        fixed: dict[str, Any] = {"dissimilarity": "l1", "random_start": True, **settings}
        super().__init__(
            "eq5", from_x(n_steps, output), eps=eps, lambda_=lambda_, outer=outer, target_map=zeros, **fixed
        )
