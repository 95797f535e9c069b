"""LRP-gamma: positive contributions favoured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from fastxai import _check
from fastxai.engine.rules.proportional import Group, Proportional, Term, Transform

__all__ = ["Gamma"]


@lru_cache
def _favour(gamma: float, sign: int) -> Transform:
    """Return w -> w + gamma max(w, 0), or min for sign -1; the same function for the same arguments."""

    def favoured(w: Tensor) -> Tensor:
        return w + gamma * (w.clamp(min=0) if sign > 0 else w.clamp(max=0))

    return favoured


@dataclass(frozen=True)
class Gamma(Proportional):
    """r_in = x (W + gamma W+)^T (r / stab(z)), the generalised form where y or x may be negative.

    Montavon et al. 2019; Andeol et al. 2021. Where y < 0 the favoured sign is the negative one.

    Raises:
        ValueError: gamma is not positive.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive(self.gamma, "gamma")

    def terms(self, *, signed: bool) -> tuple[Term, ...]:
        """Return one term where y > 0, its mirror where y < 0."""
        up, down = _favour(self.gamma, 1), _favour(self.gamma, -1)
        if not signed:
            return Term((Group("all", up, up),), sign=1), Term((Group("all", down, down),), sign=-1)
        return (
            Term((Group("positive", up, up), Group("negative", down)), sign=1),
            Term((Group("positive", down, down), Group("negative", up)), sign=-1),
        )
