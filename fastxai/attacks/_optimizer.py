"""Update rules of attacks. They return new tensors, so that an interrupted attack never holds a half-written image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastxai.kernels.attack_step import adam_clamp, moments

__all__ = ["OPTIMIZERS", "Adam", "Box", "Descent", "Optimizer"]

# The lowest and the highest valid value, [C] each.
Box = tuple[Tensor, Tensor]


class Adam:
    """Adam's step; the formula is that of ``fastxai.kernels.attack_step``."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.t = 0
        self.state: tuple[Tensor, Tensor] | None = None

    def step(self, x: Tensor, gradient: Tensor, box: Box) -> Tensor:
        """Return the next x [N, C, ...], clamped to the box."""
        self.t += 1
        self.state = moments(x) if self.state is None else self.state
        return adam_clamp(x, gradient, self.state, self.lr, self.t, box)

    def keep(self, rows: Tensor) -> None:
        """Forget every row but these, LongTensor."""
        if self.state is not None:
            m, v = self.state
            self.state = m[rows], v[rows]


class Descent:
    """x - lr d."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, x: Tensor, gradient: Tensor, box: Box) -> Tensor:
        """Return the next x [N, C, ...], clamped to the box."""
        low, high = (bound.view(-1, *[1] * (x.dim() - 2)) for bound in box)
        return (x - self.lr * gradient).clamp(low, high)

    def keep(self, rows: Tensor) -> None:
        """Rows have no past here."""


Optimizer = Adam | Descent
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {"adam": Adam, "descent": Descent}
