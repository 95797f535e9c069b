"""Align: gradients along the image, [F] eq. 9."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastxai.engine import Net
from fastxai.explainers import Explainer
from fastxai.training.far import FAR, zeros

__all__ = ["Align"]


class Align(FAR):
    """mean_i l(x_i, y_i) + lambda max_{|x~ - x_i|_inf <= eps} log(1 + exp(-sum S(x~))) ([F] eq. 5 and 9).

        S(x) = cos[nabla g_y(x), x] - cos[nabla g_ybar(x), x],     cos[a, b] = a * b / (|a|_2 |b|_2), pixel by pixel

    ``FAR`` with an IFIA on S, d_s = log(1 + exp(-sum (S - S_T))) and S_T = 0. ybar is the highest score's class beside
    y, [F]'s "second largest" wherever y is the highest. S(x~) is eq. 9 at x~, its images both x~; appendix A.1.3 prints
    the unperturbed x in the second place. The code of Singh et al. 2019 has a triplet loss instead. Where a gradient
    or an image is 0, so is its cosine.

    Attributes:
        attack, lambda_, outer: as for ``FAR``.

    >>> from fastxai.training import Align, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> objective = Objective(fastxai.compile(model), [Align(eps=0.1)])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    def __init__(self, eps: float, lambda_: float = 0.5, outer: str = "curvature", **settings: Any) -> None:
        """Train with these settings.

        Args:
            eps: radius of the ball, in the space of x.
            lambda_: weight of d_s; .5 in table 3.
            outer: as for ``FAR``.
            settings: any others of ``IFIA``, such as steps, restarts, beta, bounds and seed.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        fixed: dict[str, Any] = {"dissimilarity": _soft, **settings}
        super().__init__("eq5", _Alignment, eps=eps, lambda_=lambda_, outer=outer, target_map=zeros, **fixed)


class _Alignment(Explainer):
    """S of eq. 9, the target being y."""

    rows_alike = True

    def map_and_scores(
        self, x: Tensor, target: int | Tensor | None = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (S(x), g(x)); arguments as in the base class, target a LongTensor [N]."""
        assert isinstance(target, Tensor)
        net = self.net if net is None else net
        up, scores = net.differentiable_gradient(x, target, parameters=parameters)
        others = scores.detach().scatter(1, target[:, None], -torch.inf)
        down, _ = net.differentiable_gradient(x, others.argmax(1), parameters=parameters)
        return _cosines(up, x) - _cosines(down, x), scores


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return a * b / (|a| |b|), of their shape [N, ...]."""
    a_1, b_1 = (functional.normalize(rows.flatten(1)) for rows in (a, b))
    return (a_1 * b_1).view(a.shape)


def _soft(a: Tensor, b: Tensor) -> Tensor:
    """Return log(1 + exp(-sum(a - b))) [N]."""
    return functional.softplus(-(a - b).flatten(1).sum(1))
