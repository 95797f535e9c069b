"""How far an attack may go, and from where it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai import _check
from fastxai.attacks import _random
from fastxai.attacks._optimizer import Box
from fastxai.kernels import attack_step

__all__ = ["Ball", "Restarts"]


@dataclass(frozen=True)
class Ball:
    """The images within ``eps`` of the original: |x_adv - x|_norm <= eps, in the space of x.

    Attributes:
        eps: the radius.
        norm: "linf" or "l2", over all values of one image.

    Raises:
        ValueError: eps is not finite and positive, or the norm is unknown.

    >>> fastxai.attacks.Ball(8 / 255).norm
    'linf'
    """

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        """Check the settings."""
        _check.positive(self.eps, "eps")
        _check.one_of(self.norm, "norm", ("linf", "l2"))

    def project(self, x: Tensor, origin: Tensor, box: Box) -> Tensor:
        """Return the nearest point of the ball around ``origin``, clamped to the box; x and origin [N, C, ...]."""
        step = attack_step.sign_project_clip if self.norm == "linf" else attack_step.l2_project_clip
        return step(x, None, origin, 0.0, self.eps, box)

    def draw(self, count: int, sample: Tensor, *keys: int) -> Tensor:
        """Return uniform points of the ball around 0, float64 [N, count]; arguments as in ``_random.uniform``."""
        if self.norm == "linf":
            return self.eps * (2 * _random.uniform(count, sample, *keys) - 1)
        direction = _random.normal(count, sample, *keys)
        # One more key, one more stream.
        radius = self.eps * _random.uniform(1, sample, *keys, 1) ** (1 / count)
        return direction * (radius / direction.norm(dim=1, keepdim=True))


@dataclass(frozen=True)
class Restarts:
    """Attack every image several times, from different starts, and keep the best.

    The first start is the original, so that more restarts never make a result worse. The noise of the others is a
    function of (seed, number of the sample, number of the restart): it does not change with the batch.

    Attributes:
        count: R; the attack costs R times as much.
        sigma: standard deviation of Gaussian noise, in the space of x; None is uniform noise from the attack's ball.
        seed: of the noise.

    Raises:
        ValueError: a setting is out of range.

    >>> fastxai.attacks.Restarts(3, sigma=0.01).count
    3
    """

    count: int
    sigma: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        _check.require(isinstance(self.count, int) and self.count > 0, "count", "be a positive int", self.count)
        if self.sigma is not None:
            _check.positive(self.sigma, "sigma")
        _check.require(isinstance(self.seed, int), "seed", "be an int", self.seed)

    def starts(self, x: Tensor, ball: Ball | None, box: Box, index: Tensor) -> Tensor:
        """Return the starts [R N, ...], restart by restart, all of them valid.

        Args:
            x: originals [N, C, H, W].
            ball: the attack's; needed where sigma is None.
            box: the lowest and the highest valid value, [C] each.
            index: numbers of the samples, LongTensor [N].
        """
        starts = [x]
        for restart in range(1, self.count):
            keys = x[0].numel() if len(x) else 0, index, self.seed, restart
            if self.sigma is not None:
                noise = self.sigma * _random.normal(*keys)
            else:
                assert ball is not None
                noise = ball.draw(*keys)
            moved = x + noise.view(x.shape).to(x.dtype)
            if ball is None:
                low, high = (bound.view(-1, 1, 1) for bound in box)
                starts.append(moved.clamp(low, high))
            else:
                starts.append(ball.project(moved, x, box))
        return torch.cat(starts)
