"""LRP-epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from fastxai.engine.rules.proportional import OWN, Proportional, Term

__all__ = ["Epsilon"]


@dataclass(frozen=True)
class Epsilon(Proportional):
    """r_in = x W^T (r / stab(W x + b)); at sums and averages the same with their own linear map.

    With a small stabilizer this is LRP-0 (Bach et al. 2015, eq. 58).
    """

    def terms(self, *, signed: bool) -> tuple[Term, ...]:
        """Return the one term z = y."""
        return (Term((OWN,)),)
