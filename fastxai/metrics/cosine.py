"""Cosine similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai.metrics._pair import pair

__all__ = ["cosine"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two samples, over all elements: sum(a b) / (|a| |b|).

    A sample of zeros has no direction: its value is 0, and so is its gradient. Both samples are scaled by their largest
    magnitude first, so values of 1e-30 or 1e30 neither vanish nor overflow in float32.

    Args:
        a: [N, ...].
        b: the same shape, dtype and device.

    Returns:
        [N], in [-1, 1] up to rounding; differentiable twice.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ, or there is no axis beside N.

    ``torch.nn.functional.cosine_similarity`` over whole samples; the cosine of [F] eq. 9 is pointwise.

    >>> from fastxai.metrics import cosine
    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
    tensor([0.6000])
    """
    pair(a, b)
    return (_direction(a) * _direction(b)).sum(1)


def _direction(values: Tensor) -> Tensor:
    """Each sample with norm 1, as [N, M]; zeros for one of zeros."""
    values = values.flatten(1)
    largest = values.detach().abs().amax(1, keepdim=True)
    nonzero = largest != 0
    # A direction does not change with scale, so a factor held fixed leaves the derivatives exact.
    scaled = torch.where(nonzero, values, 0) / torch.where(nonzero, largest, 1)
    return scaled / torch.where(nonzero, scaled.square().sum(1, keepdim=True), 1).sqrt()
