"""Dissimilarities d_s(S, S_T) of maps, one number a sample: what the attacks of [F] ascend.

All are batched, differentiable and 0 for equal maps, but for samples that have no correlation or direction (see there).
Their gradient is 0 at equal maps too, that of ``top_k`` alone is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastxai import _check, metrics
from fastxai.metrics._pair import pair

__all__ = ["DISSIMILARITIES", "Dissimilarity", "cosine", "l1", "l2", "mass_centre", "pcl", "ssim", "top_k"]

Dissimilarity = Callable[[Tensor, Tensor], Tensor]


def pcl(a: Tensor, b: Tensor) -> Tensor:
    """PCL = 1 - (PCC + 1) / 2 over all values of a sample, in [0, 1] ([F] eq. 10).

    A constant map has no correlation: the value is 1/2 then, also of two equal ones, and the gradient 0.

    Args:
        a: maps [N, ...].
        b: the same shape, dtype and device.

    Returns:
        [N].

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ.

    >>> fastxai.attacks.dissimilarities.pcl(torch.tensor([[1.0, 2, 3]]), torch.tensor([[5.0, 3, 1]]))
    tensor([1.])
    """
    return (1 - metrics.pcc(a, b)) / 2


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) over all values of a sample, in [0, 2]; arguments as for ``pcl``.

    A map of zeros has no direction: the value is 1 then, also of two of them, and the gradient 0.
    """
    return 1 - metrics.cosine(a, b)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(1 - SSIM) / 2, in [0, 1]: 0 for equal maps, constant ones too; arguments as for ``metrics.ssim``."""
    return (1 - metrics.ssim(a, b)) / 2


def l1(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|_1, summed over all values of a sample ([F] eq. 8, IG-NORM); arguments as for ``pcl``."""
    pair(a, b)
    return (a - b).abs().flatten(1).sum(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|_2 over all values of a sample; arguments as for ``pcl``. Its gradient is 0 where a = b."""
    pair(a, b)
    return _length((a - b).flatten(1))


def top_k(a: Tensor, b: Tensor, k: int = 100) -> Tensor:
    """What the k largest values of b lose: sum_{i in B} b_i - a_i, B their places ([F]'s Sum-Top-k, Ghorbani 2019).

    Only -sum_{i in B} a_i has a gradient. Of values that tie for the last places those with the lowest index are taken.

    Args:
        a: maps [N, ...], such as ``reduce_map`` gives: d is the mass that has left B then, at most 1.
        b: the same shape, dtype and device.
        k: from 1 to the number of values a sample.

    Raises:
        TypeError: not a floating point tensor, or k is no int.
        ValueError: shapes, dtypes or devices differ, or k is out of range.

    >>> fastxai.attacks.dissimilarities.top_k(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[0.5, 0.4, 0.1]]), k=2)
    tensor([0.6000])
    """
    pair(a, b)
    _check.require(isinstance(k, int) and not isinstance(k, bool), "k", "be an int", type(k).__name__, TypeError)
    a, b = a.flatten(1), b.flatten(1)
    _check.require(1 <= k <= a.shape[1], "k", f"be from 1 to {a.shape[1]}, the number of values a sample", k)
    places = b.detach().argsort(dim=1, descending=True, stable=True)[:, :k]
    return (b - a).gather(1, places).sum(1)


def mass_centre(a: Tensor, b: Tensor) -> Tensor:
    """|C(a) - C(b)|_2 in pixels, C(a) = sum_p a_p p / sum_p a_p over every axis but the first (Ghorbani et al. 2019).

    The centre of a map whose sum is 0 is the middle of the image. Maps should not be negative. The gradient is 0 where
    the centres agree.

    Args:
        a: maps [N, H, W], such as ``reduce_map`` gives; any other axes likewise.
        b: the same shape, dtype and device.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ.

    >>> a, b = torch.tensor([[[1.0, 0, 0, 0, 1]]]), torch.tensor([[[0.0, 0, 0, 0, 3]]])
    >>> fastxai.attacks.dissimilarities.mass_centre(a, b)
    tensor([2.])
    """
    pair(a, b)
    return _length(_centre(a) - _centre(b))


def _centre(h: Tensor) -> Tensor:
    """Return the centre of mass [N, axes], from the middle of the image."""
    axes = range(1, h.dim())
    total = h.flatten(1).sum(1)
    empty = total == 0
    centre = []
    for axis in axes:
        others = [other for other in axes if other != axis]
        marginal = h.sum(others) if others else h
        places = torch.arange(h.shape[axis], dtype=h.dtype, device=h.device) - (h.shape[axis] - 1) / 2
        centre.append(torch.where(empty, 0, marginal @ places / torch.where(empty, 1, total)))
    return torch.stack(centre, 1)


def _length(rows: Tensor) -> Tensor:
    """Return the length of every row [N, M], its gradient 0 where the row is 0, without squares of 1e-30 or 1e30."""
    largest = rows.detach().abs().amax(1, keepdim=True)
    zero = largest == 0
    # The length scales with the row, so a factor held fixed leaves the derivative exact.
    squares = (rows / torch.where(zero, 1, largest)).square().sum(1, keepdim=True)
    return torch.where(zero, 0, largest * torch.where(zero, 1, squares).sqrt())[:, 0]


DISSIMILARITIES: dict[str, Dissimilarity] = {
    "pcl": pcl,
    "l1": l1,
    "l2": l2,
    "cosine": cosine,
    "top_k": top_k,
    "mass_centre": mass_centre,
    "ssim": ssim,
}
