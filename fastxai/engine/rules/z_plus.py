"""LRP-z+: positive contributions only."""

from __future__ import annotations

from dataclasses import dataclass

from fastxai.engine.rules.proportional import Group, Proportional, Term, negative, positive

__all__ = ["ZPlus"]


@dataclass(frozen=True)
class ZPlus(Proportional):
    """r_in = x (W+)^T (r / stab(W+ x)) for x >= 0; for signed x also the products of negatives ([M] eq. 2).

    Attributes:
        bias: b+ joins z, as in zennit and Captum; without it z is [M]'s, and relevance is conserved.
    """

    bias: bool = False

    def terms(self, *, signed: bool) -> tuple[Term, ...]:
        """Return z = W+ x+ (+ b+) + W- x-."""
        b = positive if self.bias else None
        if not signed:
            return (Term((Group("all", positive, b),)),)
        return (Term((Group("positive", positive, b), Group("negative", negative))),)
