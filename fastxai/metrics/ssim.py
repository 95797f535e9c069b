"""Structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fastxai._check import positive, require
from fastxai.metrics._pair import pair

__all__ = ["WINDOW", "ssim"]

# Side of the window, unless one is given: what is compared must hold one.
WINDOW = 7


def ssim(
    a: Tensor, b: Tensor, data_range: float | None = None, window: int = WINDOW, k1: float = 0.01, k2: float = 0.03
) -> Tensor:
    """Mean structural similarity with a uniform window and sample covariances, as scikit-image computes it.

    The mean over all windows inside the image, and over channels, of
    (2 ma mb + C1)(2 cov + C2) / ((ma^2 + mb^2 + C1)(va + vb + C2)), C1 = (k1 L)^2, C2 = (k2 L)^2, where ma, va and cov
    are the window's means, variances and covariance and L is the data range.

    Args:
        a: [N, H, W] or [N, C, H, W].
        b: the same shape, dtype and device.
        data_range: L; None takes largest minus smallest value over both samples of each pair (explanation maps), 1.0
            suits images in [0, 1].
        window: side of the window, odd, 3 at least.
        k1: keeps the quotient of means finite.
        k2: keeps the quotient of covariances finite.

    Returns:
        [N], at most 1; differentiable. Two equal samples score 1, constant ones too.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ, the window is even or larger than the image, or a constant is
            not positive.

    [R] section 5 (window 7, k1 .01, k2 .03, L = range).

    >>> from fastxai.metrics import ssim
    >>> image = torch.linspace(0, 1, 64).view(1, 8, 8)
    >>> ssim(image, image, data_range=1.0)
    tensor([1.])
    """
    pair(a, b)
    require(a.dim() in (3, 4), "a", "have shape [N, H, W] or [N, C, H, W]", list(a.shape))
    require(window % 2 == 1 and window >= 3, "window", "be odd and at least 3", window)
    height, width = a.shape[-2:]
    require(window <= min(height, width), "window", f"fit into the {height}x{width} image", window)
    span: float | Tensor
    if data_range is None:
        values = torch.cat((a, b), 1).flatten(1)
        span = values.amax(1) - values.amin(1)
        # A range of zero means two equal constants: any other range then gives their similarity, 1.
        span = torch.where(span == 0, 1, span).view(-1, 1, 1, 1)
    else:
        span = positive(data_range, "data_range")
    c1, c2 = (positive(k1, "k1") * span) ** 2, (positive(k2, "k2") * span) ** 2

    a, b = (x if x.dim() == 4 else x.unsqueeze(1) for x in (a, b))
    # Covariances do not change with a shift; without it E[x^2] - E[x]^2 cancels in float32.
    shift_a, shift_b = (x.detach().mean((2, 3), keepdim=True) for x in (a, b))
    a, b = a - shift_a, b - shift_b
    moments = torch.cat((a, b, a * a, b * b, a * b), 1)
    mean_a, mean_b, aa, bb, ab = avg_pool2d(moments, window, 1).chunk(5, 1)
    sample = window**2 / (window**2 - 1)
    variances = sample * (aa + bb - mean_a**2 - mean_b**2)
    covariance = sample * (ab - mean_a * mean_b)
    mean_a, mean_b = mean_a + shift_a, mean_b + shift_b
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean((1, 2, 3))
