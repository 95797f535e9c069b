"""Update rules of attacks. They return new tensors, so that an interrupted attack never holds a half-written image.

``advance`` comes before each step. What ``hold`` puts on the device lets recorded steps go on: they take its numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastxai.kernels.attack_step import adam_clamp, corrections, moments

__all__ = ["OPTIMIZERS", "Adam", "Box", "Descent", "Optimizer"]

# The lowest and the highest valid value, [C] each.
Box = tuple[Tensor, Tensor]


class Adam:
    """Adam's step; the formula is that of ``fastxai.kernels.attack_step``."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.state: tuple[Tensor, Tensor] | None = None
        self._table: Tensor | None = None
        self._now: Tensor | None = None

    def hold(self, x: Tensor, steps: int) -> None:
        """Keep the state for x and the numbers of so many steps on the device."""
        self.state = moments(x)
        rows = [corrections(self.lr, t) for t in range(1, steps + 1)]
        self._table = torch.tensor(rows, dtype=torch.float64, device=x.device)
        self._now = self._table[0].clone()

    def advance(self) -> None:
        """Count a step."""
        self.t += 1
        if self._now is not None and self._table is not None:
            self._now.copy_(self._table[self.t - 1])

    def reads(self) -> tuple[Tensor, ...]:
        """Return what a recorded step uses besides its arguments."""
        return tuple(x for x in (self._now, *(self.state or ())) if x is not None)

    def step(self, x: Tensor, gradient: Tensor, box: Box) -> Tensor:
        """Return the next x [N, C, ...], clamped to the box."""
        self.state = moments(x) if self.state is None else self.state
        return adam_clamp(x, gradient, self.state, self.lr, self.t if self._now is None else self._now, box)

    def keep(self, rows: Tensor) -> None:
        """Forget every row but these, LongTensor."""
        if self.state is not None:
            m, v = self.state
            self.state = m[rows], v[rows]


class Descent:
    """x - lr d."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def hold(self, x: Tensor, steps: int) -> None:
        """There is nothing to keep."""

    def advance(self) -> None:
        """All steps are alike."""

    def reads(self) -> tuple[Tensor, ...]:
        """Return nothing."""
        return ()

    def step(self, x: Tensor, gradient: Tensor, box: Box) -> Tensor:
        """Return the next x [N, C, ...], clamped to the box."""
        low, high = (bound.view(-1, *[1] * (x.dim() - 2)) for bound in box)
        return (x - self.lr * gradient).clamp(low, high)

    def keep(self, rows: Tensor) -> None:
        """Rows have no past here."""


Optimizer = Adam | Descent
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {"adam": Adam, "descent": Descent}
