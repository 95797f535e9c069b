"""What an experiment is given and what it hands back: tensors and numbers, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.attacks import Similarity
from fastxai.explainers import Explainer, reduce_map

__all__ = ["Outcome", "Space", "Task", "listed", "shown_map"]


@dataclass(frozen=True)
class Space:
    """The input space of a study: a box, and how [0, 1] images get into it.

    [M]'s attacks work on the normalised input (x - mean) / std, and so do their step sizes, zero baselines and boxes.

    Attributes:
        mean: per channel.
        std: per channel, positive.

    >>> space = fastxai.evaluation.Space((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    >>> space.name, space.low, space.high, space.span
    ('normalised', (-2.0, -2.0, -2.0), (2.0, 2.0, 2.0), 4.0)
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        """Check the statistics."""
        _check.require(len(self.mean) == len(self.std), "std", f"have {len(self.mean)} values", self.std)
        _check.require(min(self.std) > 0, "std", "be positive", self.std)

    @property
    def name(self) -> str:
        """What rows call this space: "normalised", or "image" where it is [0, 1]."""
        return "image" if set(self.mean) == {0.0} and set(self.std) == {1.0} else "normalised"

    @property
    def low(self) -> tuple[float, ...]:
        """Lowest valid value per channel, (0 - mean) / std."""
        return tuple((0 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """Highest valid value per channel, (1 - mean) / std."""
        return tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def span(self) -> float:
        """x_max - x_min over all channels: what a noise level is multiplied by ([M1] supplement D)."""
        return max(self.high) - min(self.low)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std

    def enter(self, images: Tensor) -> Tensor:
        """Return (x - mean) / std for [0, 1] images [N, C, H, W]."""
        mean, std = self._statistics(images)
        return (images - mean) / std

    def leave(self, x: Tensor) -> Tensor:
        """Return the [0, 1] images of x [N, C, H, W]."""
        mean, std = self._statistics(x)
        return x * std + mean

    def described(self) -> dict[str, Any]:
        """Return what a row says of this space."""
        return {"name": self.name, "low": list(self.low), "high": list(self.high)}


@dataclass(frozen=True)
class Task:
    """One chunk of pairs for one experiment with one method.

    Attributes:
        explainer: the method, on the network in its own input space.
        space: of x and target_x.
        x: images [N, C, H, W].
        target_x: images whose maps are the target maps, of x's shape.
        pairs: the numbers of the pairs, N of them.
        settings: of the experiment.
        seed: of everything random.
        given: tensors of the experiment that this one builds on: "manipulated" [N, C, H, W].
        keep: how many of the first pairs' pictures go into the outcome.
    """

    explainer: Explainer
    space: Space
    x: Tensor
    target_x: Tensor
    pairs: Sequence[int]
    settings: Mapping[str, Any]
    seed: int = 0
    given: Mapping[str, Tensor] = field(default_factory=dict)
    keep: int = 0

    def kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows [n, ...] of those pairs whose number is below ``keep``."""
        rows = [i for i, number in enumerate(self.pairs) if number < self.keep]
        return {name: values[rows] for name, values in tensors.items()} if rows else {}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        values: numbers and lists, JSON values all; a list over pairs is in the order of the task's pairs.
        tensors: images and maps, of all pairs or of the kept ones ("example." before the name).
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def shown_map(explainer: Explainer, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the map [N, H, W] that is compared: channels summed as |.|, each sample's sum 1 ([M] section 2)."""
    return reduce_map(explainer.attribute(x, target))


def listed(**similarities: Similarity) -> dict[str, list[float]]:
    """Return ``name.pcc``, ``name.ssim``, ``name.mse``: a list over pairs each."""
    return {
        f"{name}.{metric}": getattr(one, metric).tolist()
        for name, one in similarities.items()
        for metric in ("pcc", "ssim", "mse")
    }
