"""Mean squared error."""

from __future__ import annotations

from torch import Tensor

from fastxai.metrics._pair import pair

__all__ = ["mse"]


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean over all elements of a sample of (a - b)^2.

    Args:
        a: [N, ...].
        b: the same shape, dtype and device.

    Returns:
        [N].

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ, or there is no axis beside N.

    [M] section 2.

    >>> from fastxai.metrics import mse
    >>> mse(torch.zeros(1, 4), torch.tensor([[0.0, 0, 0, 2]]))
    tensor([1.])
    """
    pair(a, b)
    return (a - b).square().flatten(1).mean(1)
