"""Update rules of attacks. They return new tensors, so that an interrupted attack never holds a half-written image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["OPTIMIZERS", "Adam", "Descent", "Optimizer"]

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """m = b1 m + (1-b1) d, v = b2 v + (1-b2) d^2, x - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps), per element."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def step(self, x: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the next x, clamped to [low, high]."""
        self.t += 1
        m, v = (1 - BETA_1) * gradient, (1 - BETA_2) * gradient.square()
        self.m = m if self.m is None else BETA_1 * self.m + m
        self.v = v if self.v is None else BETA_2 * self.v + v
        spread = self.v.sqrt() / (1 - BETA_2**self.t) ** 0.5 + EPS
        return (x - self.lr / (1 - BETA_1**self.t) * self.m / spread).clamp(low, high)

    def keep(self, rows: Tensor) -> None:
        """Forget every row but these, LongTensor."""
        if self.m is not None and self.v is not None:
            self.m, self.v = self.m[rows], self.v[rows]


class Descent:
    """x - lr d."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, x: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the next x, clamped to [low, high]."""
        return (x - self.lr * gradient).clamp(low, high)

    def keep(self, rows: Tensor) -> None:
        """Rows have no past here."""


Optimizer = Adam | Descent
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {"adam": Adam, "descent": Descent}
