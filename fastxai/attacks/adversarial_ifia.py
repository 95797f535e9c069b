"""Adversarial IFIA: the attack on prediction and explanation together ([F] algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fastxai import _check
from fastxai.attacks._ascent import Label
from fastxai.attacks._map_ascent import MapAscent
from fastxai.attacks._result import MapAscentResult

__all__ = ["AdversarialIFIA"]


@dataclass(frozen=True)
class AdversarialIFIA(MapAscent):
    """Ascend l(x_adv, y) + lambda d_s[S(x_adv), S_T] in the ball around x, whatever the class ([F] eq. 6, algorithm 2).

    l is the cross-entropy of the model as given at label y, which is also the explained class; S_T is S(x), or a target
    map. The algorithm as printed returns the last iterate; here it is the one with the highest objective, over all
    restarts. With ``lambda_=0`` it is ``PGD``, which needs no maps and costs less.

    Attributes:
        explainer: S, the map under attack.
        lambda_: weight of the dissimilarity; 0 or more.
        eps, steps, alpha, rel_stepsize, norm, restarts, bounds, seed: as for ``PGD``.
        dissimilarity, k, reduce, beta: as for ``IFIA``.
        random_start: as for ``IFIA``, but None is False: the loss has a gradient at x.

    Raises:
        TypeError: explainer is no explainer.
        ValueError: a setting is out of range or unknown.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> attack = fastxai.AdversarialIFIA(fastxai.Gradient(model), eps=0.1, lambda_=0.5)
    >>> sorted(attack.perturb(torch.rand(2, 1, 8, 8), torch.tensor([0, 2])).terms)
    ['dissimilarity', 'loss']
    """

    lambda_: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        self.check_map_settings()
        _check.not_negative(self.lambda_, "lambda_")

    def perturb(
        self,
        x: Tensor,
        y: Label = None,
        target_map: Tensor | None = None,
        *,
        index: Tensor | None = None,
        original_map: Tensor | None = None,
    ) -> MapAscentResult:
        """Attack a batch.

        Args:
            x: inputs [N, C, ...].
            y: the label as an int, a LongTensor [N], or None for the model's prediction on x.
            target_map: as for ``IFIA.perturb``.
            index: likewise.
            original_map: likewise.

        Raises:
            TypeError: x or a map is no floating point tensor, y or index hold no integers.
            ValueError: a shape, dtype, device or range is wrong: x outside the bounds; a map, a score or a target map
                is not finite, nor d_s at x or the gradient where the attack starts; or a target map says nothing.
            RuntimeError: within ``torch.inference_mode()``.
        """
        return self.run(x, y, target_map, index, original_map, weight=self.lambda_, freeze=False)
