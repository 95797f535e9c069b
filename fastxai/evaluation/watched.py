"""An explainer that shows what it is asked: the iterates of an attack, without the attack knowing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastxai.engine import Net
from fastxai.explainers import Explainer

__all__ = ["Watched"]


class Watched(Explainer):
    """The map of another explainer; where its gradient is wanted, ``see`` gets the input first.

    Attributes:
        explainer: gives the map.
        see: called with x [N, ...], detached: the first one and every ``every``-th after it.
        every: 1 shows them all.
    """

    def __init__(self, explainer: Explainer, see: Callable[[Tensor], None], every: int = 1) -> None:
        """Wrap ``explainer``."""
        super().__init__(explainer.net)
        self.explainer, self.see, self.every = explainer, see, every
        self._asked = 0

    def map_and_scores(
        self, x: Tensor, target: int | Tensor | None = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (h(x), g(x)) of the wrapped explainer; arguments as in the base class."""
        if x.requires_grad:
            if self._asked % self.every == 0:
                self.see(x.detach())
            self._asked += 1
        return self.explainer.map_and_scores(x, target, net=net, parameters=parameters)
