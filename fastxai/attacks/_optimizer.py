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

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the next x."""
        self.t += 1
        m, v = (1 - BETA_1) * gradient, (1 - BETA_2) * gradient.square()
        self.m = m if self.m is None else BETA_1 * self.m + m
        self.v = v if self.v is None else BETA_2 * self.v + v
        spread = self.v.sqrt() / (1 - BETA_2**self.t) ** 0.5 + EPS
        return x - self.lr / (1 - BETA_1**self.t) * self.m / spread


class Descent:
    """x - lr d."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the next x."""
        return x - self.lr * gradient


Optimizer = Adam | Descent
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {"adam": Adam, "descent": Descent}
