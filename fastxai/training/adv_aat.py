"""AdvAAT: the robust training loss of [F], eq. 11."""

from __future__ import annotations

from typing import Any

from fastxai.training._ig import from_zero
from fastxai.training.far import FAR, TargetMaps

__all__ = ["AdvAAT"]


class AdvAAT(FAR):
    """mean_i max_{|x~ - x_i|_inf <= eps} l(x~, y_i) + lambda PCL[IG(x~, 0), IG(x_i, 0)] ([F] eq. 11).

    ``FAR`` with an AdversarialIFIA; what is said of ``AAT`` holds, but that the first start is x, as printed. Table 3
    has lambda .5, and .2 for GTSRB.

    Attributes:
        attack, lambda_, outer: as for ``FAR``.

    >>> from fastxai.training import AdvAAT, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> objective = Objective(fastxai.compile(model), [AdvAAT(eps=0.1, lambda_=0.5, n_steps=5, restarts=1)])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    def __init__(
        self,
        eps: float,
        lambda_: float = 0.5,
        n_steps: int = 10,
        outer: str = "curvature",
        target_map: TargetMaps | None = None,
        **settings: Any,
    ) -> None:
        """Train with the arguments of ``AAT``, but that ``settings`` are any others of ``AdversarialIFIA``.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        fixed: dict[str, Any] = {"restarts": 3, **settings}
        super().__init__(
            "eq6", from_zero(n_steps), eps=eps, lambda_=lambda_, outer=outer, target_map=target_map, **fixed
        )
