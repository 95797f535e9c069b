"""Intersection of the k most relevant elements."""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai._check import require
from fastxai.metrics._pair import pair

__all__ = ["top_k_intersection"]


def top_k_intersection(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Share of the k largest elements of a sample that are among the k largest of the other: |A_k and B_k| / k.

    Of elements that tie for the last places those with the lowest index are taken, as a stable sort would.

    Args:
        a: [N, ...].
        b: the same shape, dtype and device.
        k: from 1 to the number of elements a sample.

    Returns:
        [N] in [0, 1], in the dtype of a; NaN for a sample that has one. It is piecewise constant: there is no gradient.

    Raises:
        TypeError: not a floating point tensor, or k is no int.
        ValueError: shapes, dtypes or devices differ, there is no axis beside N, or k is out of range.

    [F] evaluation, IN.

    >>> from fastxai.metrics import top_k_intersection
    >>> top_k_intersection(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[4.0, 1, 2, 3]]), k=2)
    tensor([0.5000])
    """
    pair(a, b)
    require(isinstance(k, int) and not isinstance(k, bool), "k", "be an int", type(k).__name__, TypeError)
    a, b = (x.detach().flatten(1) for x in (a, b))
    require(1 <= k <= a.shape[1], "k", f"be from 1 to {a.shape[1]}, the number of elements a sample", k)
    shared = (_largest(a, k) & _largest(b, k)).sum(1).to(a.dtype) / k
    return torch.where((a.isnan() | b.isnan()).any(1), torch.nan, shared)


def _largest(values: Tensor, k: int) -> Tensor:
    """True at the k largest of each sample [N, M]."""
    last = values.topk(k, sorted=False).values.amin(1, keepdim=True)
    above, ties = values > last, values == last
    return above | (ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True)))
