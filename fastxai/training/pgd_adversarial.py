"""Adversarial training with PGD: [F] eq. 7."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastxai import _check, _random
from fastxai.attacks import IFIA, AdversarialIFIA
from fastxai.explainers import Gradient
from fastxai.training.far import FAR
from fastxai.training.objective import Batch

__all__ = ["PGDAdversarial"]

# Which samples are attacked: a stream beside that of the starts, whose key ends with the step.
_SHARE = 1


class PGDAdversarial(FAR):
    """mean_i max_{|x~ - x_i|_inf <= eps} l(x~, y_i) on a share of the batch, l(x_i, y_i) on the rest ([F] eq. 7).

    ``FAR`` with lambda 0 (Madry et al. 2018). ``ratio=1`` is eq. 7. [F] table 3 has an "adversarial ratio" of .7 and
    does not say of what; here it is the share of every batch, rounded up, that is replaced by its adversarial images
    (as in the Adversarial Robustness Toolbox), drawn anew at every step. One pass gives the loss of both parts, so
    that batch norm sees them together.

    Attributes:
        attack: an AdversarialIFIA with lambda 0, which runs as ``PGD``.
        ratio: the share.

    >>> from fastxai.training import Objective, PGDAdversarial
    >>> objective = Objective(fastxai.compile(torch.nn.Linear(4, 3)), [PGDAdversarial(eps=0.1, steps=5)])
    >>> objective(torch.rand(4, 4), torch.tensor([0, 1, 2, 0])).backward()
    """

    def __init__(self, eps: float, ratio: float = 0.7, steps: int = 40, **settings: Any) -> None:
        """Train with these settings.

        Args:
            eps: radius of the ball, in the space of x.
            ratio: the share of adversarial images, above 0 and at most 1.
            steps: of the attack; 40 in table 2.
            settings: any others of ``PGD``, such as rel_stepsize (.03 in table 2), restarts, bounds and seed.

        Raises:
            TypeError, ValueError: a setting is unknown or wrong.
        """
        _check.require(_check.positive(ratio, "ratio") <= 1, "ratio", "be at most 1", ratio)
        super().__init__("eq6", Gradient, eps=eps, lambda_=0, steps=steps, **settings)
        self.ratio = ratio

    def _attacked(self, samples: int) -> int:
        # A product that ought to be whole may lie a rounding above.
        return math.ceil(self.ratio * samples * (1 - 1e-12))

    def perturbed(
        self, attack: IFIA | AdversarialIFIA, batch: Batch, target: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """Return the batch with a share of it attacked."""
        assert isinstance(attack.seed, tuple)
        numbers = _random.uniform((*attack.seed, _SHARE), batch.index, range(1), 1)[0, :, 0]
        rows = numbers.argsort()[: self._attacked(len(batch.x))]
        part = Batch(batch.net, batch.x[rows], batch.y[rows], batch.index[rows], batch.step)
        return batch.x.detach().index_copy(0, rows, super().perturbed(attack, part))
