"""How far an attack may go, and from where it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai import _check, _random
from fastxai.attacks._optimizer import Box
from fastxai.kernels import attack_step

__all__ = ["Ball", "Bound", "Restarts", "box_of"]

Bound = float | Sequence[float] | Tensor

# Bounds are often written as (0 - mean) / std, which an image prepared in float32 can miss by some roundings.
_SLACK = 1e-5


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

    def draw(self, key: Sequence[int], index: Tensor, rows: range, count: int) -> Tensor:
        """Return uniform points of the ball around 0, float32 [rows, N, count]; arguments as ``_random.uniform``."""
        if self.norm == "linf":
            return self.eps * (2 * _random.uniform(key, index, rows, count) - 1)
        direction = _random.normal(key, index, rows, count)
        # One more number in the key, another stream.
        radius = self.eps * _random.uniform((*key, 1), index, rows, 1) ** (1 / max(1, count))
        return direction * (radius / direction.norm(dim=2, keepdim=True))

    def signs(self, key: Sequence[int], index: Tensor, rows: range, count: int) -> Tensor:
        """Return points of the ball's surface whose values have one size, float32 [rows, N, count]."""
        size = self.eps if self.norm == "linf" else self.eps * max(1, count) ** -0.5
        return size * _random.signs(key, index, rows, count)


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
        if self.count == 1:
            return x
        key = (self.seed,), index, range(1, self.count), x[:1].numel()
        origin = x.repeat(self.count - 1, *[1] * (x.dim() - 1))
        if self.sigma is not None:
            noise = self.sigma * _random.normal(*key)
        else:
            assert ball is not None
            noise = ball.draw(*key)
        moved = origin + noise.to(x.dtype).view(origin.shape)
        if ball is None:
            low, high = (bound.view(-1, *[1] * (x.dim() - 2)) for bound in box)
            return torch.cat([x, moved.clamp(low, high)])
        return torch.cat([x, ball.project(moved, origin, box)])


def box_of(bounds: tuple[Bound, Bound], x: Tensor) -> tuple[Box, Tensor]:
    """Return the lowest and the highest valid value of every channel of x [N, C, ...], and x clamped to them.

    Raises:
        ValueError: the bounds are not lowest < highest, are neither numbers nor one a channel, or x leaves them.
    """
    channels = x.shape[1]
    made = []
    for value in bounds:
        contract = f"be numbers or {channels} values (one a channel)"
        bound = _check.given(_check.numbers(value), "bounds", contract, repr(value)).flatten()
        _check.require(bound.numel() in (1, channels), "bounds", contract, value)
        made.append(bound.to(x.device, x.dtype).expand(channels).contiguous())
    low, high = (bound.view(-1, *[1] * (x.dim() - 2)) for bound in made)
    _check.require(bool((low < high).all()), "bounds", "be lowest < highest", bounds)
    slack = _SLACK * (high - low)
    inside = bool(((x >= low - slack) & (x <= high + slack)).all())
    if not inside:
        _check.require(False, "x", "lie within the bounds", f"{x.min().item():.4g} .. {x.max().item():.4g}")
    return (made[0], made[1]), x.clamp(low, high)
