"""AAT: the regulariser of [F], eq. 10."""

from __future__ import annotations

from typing import Any

from fastxai.training._ig import from_zero
from fastxai.training.far import FAR, TargetMaps

__all__ = ["AAT"]


class AAT(FAR):
    """mean_i l(x_i, y_i) + lambda max_{|x~ - x_i|_inf <= eps} PCL[IG(x~, 0), IG(x_i, 0)] ([F] eq. 10).

    A whole objective, natural loss included: ``FAR`` with an IFIA on integrated gradients with zero baseline, PCL =
    1 - (PCC + 1) / 2, by default with the settings of table 2: 7 steps of 1.2/7 eps, beta 1, 3 restarts. [F] does not
    say how many IG points it takes, nor which; ours lie in the middle of equal parts. PCL has no gradient at equal
    maps, so all starts are random where [F] prints x. Table 3 has lambda .5 (MNIST, GTSRB), 1 (Fashion-MNIST),
    2 (CIFAR-10) and 1.5 (Restricted ImageNet), Adam with lr 1e-4, and starts from a naturally trained network.

    Attributes:
        attack, lambda_, outer: as for ``FAR``.

    >>> from fastxai.training import AAT, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> objective = Objective(fastxai.compile(model), [AAT(eps=0.1, lambda_=0.5, n_steps=5, restarts=1)])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    def __init__(
        self,
        eps: float,
        lambda_: float = 1.0,
        n_steps: int = 10,
        outer: str = "curvature",
        target_map: TargetMaps | None = None,
        **settings: Any,
    ) -> None:
        """Train with these settings.

        Args:
            eps: radius of the ball, in the space of x.
            lambda_: weight of PCL.
            n_steps: points of the integral, in the attack and in the loss.
            outer: as for ``FAR``.
            target_map: as for ``FAR``: S_T in the place of IG(x, 0).
            settings: any others of ``IFIA``, such as steps, restarts (3 in table 2), beta, bounds and seed.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        fixed: dict[str, Any] = {"restarts": 3, **settings}
        super().__init__(
            "eq5", from_zero(n_steps), eps=eps, lambda_=lambda_, outer=outer, target_map=target_map, **fixed
        )
