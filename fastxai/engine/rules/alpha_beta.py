"""LRP-alpha-beta: positive and negative contributions apart."""

from __future__ import annotations

from dataclasses import dataclass

from fastxai import _check
from fastxai.engine.rules.proportional import Group, Proportional, Term, negative, positive

__all__ = ["AlphaBeta"]


@dataclass(frozen=True)
class AlphaBeta(Proportional):
    """r_in = alpha (share of the positive contributions) - beta (share of the negative ones); alpha - beta = 1.

    Bach et al. 2015, eq. 60; biases join the contributions of their sign.

    Raises:
        ValueError: alpha or beta is negative, or alpha - beta is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.alpha >= 0 and self.beta >= 0 and abs(self.alpha - self.beta - 1) < 1e-12
        _check.require(fits, "alpha, beta", "be zero or positive with alpha - beta = 1", (self.alpha, self.beta))

    def terms(self, *, signed: bool) -> tuple[Term, ...]:
        """Return one term per sign."""
        if not signed:
            plus, minus = (Group("all", positive, positive),), (Group("all", negative, negative),)
        else:
            plus = (Group("positive", positive, positive), Group("negative", negative))
            minus = (Group("positive", negative, negative), Group("negative", positive))
        both = (Term(plus, self.alpha), Term(minus, -self.beta))
        return both if self.beta else both[:1]
