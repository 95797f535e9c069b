"""The check that every metric of two batches begins with."""

from __future__ import annotations

from torch import Tensor

from fastxai._check import require, same_place, shape, tensor


def pair(a: Tensor, b: Tensor) -> None:
    """Raise unless both are floating point, [N, ...] with at least one element a sample, alike in shape and place."""
    tensor(a, "a")
    tensor(b, "b")
    require(a.dim() >= 2, "a", "have shape [N, ...] with at least two axes", list(a.shape))
    require(a[:1].numel() > 0 or a.shape[0] == 0, "a", "have at least one element a sample", list(a.shape))
    shape(b, "b", tuple(a.shape))
    same_place(b, "b", a, "a")
