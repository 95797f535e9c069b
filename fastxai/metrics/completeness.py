"""Completeness of a map: does it sum to what it explains?"""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai._check import require, same_place, shape, tensor

__all__ = ["completeness"]


def completeness(h: Tensor, difference: Tensor, *, relative: bool = False) -> Tensor:
    """The gap of a map to the score that it distributes: sum(h) - (g_k(x) - g_k(baseline)).

    0 for exact integrated gradients; the maps of LRP without biases and with z+ sum to g_k(x) itself, so their
    difference is g_k(x).

    Args:
        h: unreduced map [N, ...], signs kept.
        difference: g_k(x) - g_k(baseline), [N], in the dtype and on the device of h.
        relative: divide the gap by |difference|. Where that is 0, a gap of 0 stays 0 and any other becomes infinite.

    Returns:
        [N], signed; differentiable.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices do not fit, or h has no axis beside N.

    >>> from fastxai.metrics import completeness
    >>> completeness(torch.tensor([[1.0, 2.0]]), torch.tensor([4.0]), relative=True)
    tensor([-0.2500])
    """
    tensor(h, "h")
    tensor(difference, "difference")
    require(h.dim() >= 2, "h", "have shape [N, ...] with at least two axes", list(h.shape))
    shape(difference, "difference", (h.shape[0],))
    same_place(difference, "difference", h, "h")
    gap = h.flatten(1).sum(1) - difference
    if not relative:
        return gap
    size = difference.abs()
    quotient = gap / torch.where(size == 0, 1, size)
    return torch.where((size == 0) & (gap != 0), gap.sign() * torch.inf, quotient)
