"""Padding: by a constant, reflected, replicated or circular."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled, Sweep
from fastxai.engine.trace import Unsupported

__all__ = ["Pad"]


class Pad(Linear):
    """x with a border; a constant border is the primal's alone."""

    def __init__(self, x: Node, widths: list[int], mode: str, fill: float) -> None:
        super().__init__([x], F.pad(torch.empty(1, *x.shape, device="meta"), widths, mode).shape[1:])
        self.widths, self.mode, self.fill = widths, mode, fill

    def nonnegative(self, *, signed: bool) -> bool:
        """Return True if neither input nor border is negative."""
        return self.fill >= 0 and not signed

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Pad every component, with zeros where the border is a constant."""
        return F.pad(xs[0], self.widths, self.mode)

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Pad; the constant goes to component 0."""
        if self.fill == 0 or s.extend:
            return self.apply(None, *xs)
        y = self.apply(None, *xs)
        y[: s.n] = F.pad(xs[0][: s.n], self.widths, self.mode, self.fill)
        return y

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Cut the border off, or fold it back."""
        if self.mode == "constant":
            return [F.pad(nu, [-w for w in self.widths])]
        if self.mode == "circular":
            return [self._fold_circular(nu)]
        backward = getattr(
            torch.ops.aten,
            f"{self.mode.removesuffix('e') if self.mode == 'replicate' else self.mode}ion_pad2d_backward",
        )
        return [backward(nu.contiguous(), nu.new_empty(nu.shape[0], *self.inputs[0].shape), self.widths)]

    def _fold_circular(self, nu: Tensor) -> Tensor:
        left, right, top, bottom = (*self.widths, 0, 0)[:4]
        for axis, before, after in ((3, left, right), (2, top, bottom)):
            size = nu.shape[axis] - before - after
            core = nu.narrow(axis, before, size).clone()
            core.narrow(axis, size - before, before).add_(nu.narrow(axis, 0, before))
            core.narrow(axis, 0, after).add_(nu.narrow(axis, before + size, after))
            nu = core
        return nu


@builds("pad")
def _build(input: Node, pad: Any, mode: str = "constant", value: float | None = None) -> Node:
    widths = list(pad)
    if len(widths) // 2 >= input.dim or (mode != "constant" and (input.dim != 4 or len(widths) != 4)):
        raise Unsupported("it pads the batch, or its mode and dimensions are not known")
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise Unsupported(f"padding mode {mode!r}")
    return Pad(input, widths, mode, 0.0 if mode != "constant" else float(value or 0.0))
