"""Pearson's correlation coefficient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai.metrics._pair import pair

__all__ = ["pcc"]


def pcc(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over all elements of a sample: sum(a' b') / (|a'| |b'|), a' = a - mean(a).

    A constant sample has no correlation: its value is 0, and so is its gradient. Both samples are scaled by their
    largest magnitude first, so values of 1e-30 or 1e30 neither vanish nor overflow in float32.

    Args:
        a: [N, ...].
        b: the same shape, dtype and device.

    Returns:
        [N], in [-1, 1] up to rounding; differentiable twice.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ, or there is no axis beside N.

    [R] section 5, [F] eq. 10 (PCL = 1 - (pcc + 1) / 2).

    >>> from fastxai.metrics import pcc
    >>> pcc(torch.tensor([[1.0, 2, 3]]), torch.tensor([[5.0, 3, 1]]))
    tensor([-1.])
    """
    pair(a, b)
    return (_standard(a) * _standard(b)).sum(1)


def _standard(values: Tensor) -> Tensor:
    """Each sample centred, with norm 1, as [N, M]; zeros for a constant one."""
    values = values.flatten(1)
    low, high = values.detach().aminmax(dim=1, keepdim=True)
    varies = low != high
    # Correlation does not change with scale, so a factor held fixed leaves the derivatives exact.
    largest = torch.maximum(high.abs(), low.abs())
    scaled = torch.where(varies, values, 0) / torch.where(varies, largest, 1)
    centred = scaled - scaled.mean(1, keepdim=True)
    return centred / torch.where(varies, centred.square().sum(1, keepdim=True), 1).sqrt()
