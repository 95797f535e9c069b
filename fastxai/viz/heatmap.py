"""Explanation maps as colours."""

from __future__ import annotations

import torch
from matplotlib import colormaps
from torch import Tensor

from fastxai._check import require, tensor

__all__ = ["heatmap", "overlay"]


def heatmap(maps: Tensor, *, signed: bool = False, quantile: float = 1.0) -> Tensor:
    """Colours of maps, each on its own scale.

    Unsigned: black through red to pale yellow over [0, L]. Signed: blue, white, red over [-L, L], so that zero is
    white. L is a quantile of the map's magnitudes; what lies beyond it gets the last colour.

    Args:
        maps: floating point [N, H, W].
        signed: whether the sign is shown; otherwise negative values are black.
        quantile: which quantile of |map| becomes L; 1 is the largest value, 0.99 keeps a few extreme pixels from
            darkening the rest.

    Returns:
        float32 [N, 3, H, W] in [0, 1], on the CPU. A map of zeros is black, or white when signed.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: not three axes with pixels, a value is not finite, or the quantile is outside (0, 1].

    >>> from fastxai.viz import heatmap
    >>> heatmap(torch.tensor([[[0.0, 1.0]]]))[0, :, 0, 1]
    tensor([0.9884, 0.9984, 0.6449])
    """
    values = _scaled(maps, quantile)
    colours = colormaps["RdBu_r" if signed else "inferno"]
    picked = colours(((values + 1) / 2 if signed else values).numpy())[..., :3]
    return torch.from_numpy(picked).movedim(-1, 1).float()


def overlay(
    images: Tensor, maps: Tensor, *, signed: bool = False, quantile: float = 1.0, strength: float = 0.9
) -> Tensor:
    """The map's colours over a grey copy of the image, the more opaque the larger the map is there.

    Args:
        images: floating point [N, 3, H, W] in [0, 1].
        maps: floating point [N, H, W] of the same N, H, W.
        signed: see ``heatmap``.
        quantile: see ``heatmap``.
        strength: opacity at the map's largest magnitude, in [0, 1].

    Returns:
        float32 [N, 3, H, W] in [0, 1], on the CPU.

    Raises:
        TypeError: not floating point tensors.
        ValueError: shapes do not agree, or see ``heatmap``.
    """
    tensor(images, "images")
    colours = heatmap(maps, signed=signed, quantile=quantile)
    require(images.shape == colours.shape, "images", f"have shape {list(colours.shape)}", list(images.shape))
    require(0 <= strength <= 1, "strength", "be in [0, 1]", strength)
    luminance = torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    grey = (images.detach().cpu().float().clamp(0, 1) * luminance).sum(1, keepdim=True)
    values = _scaled(maps, quantile)
    alpha = strength * (values.abs() if signed else values.clamp(min=0)).unsqueeze(1)
    return (1 - alpha) * grey + alpha * colours


def _scaled(maps: Tensor, quantile: float) -> Tensor:
    """Each map over its quantile of magnitudes, clipped to [-1, 1]: float32 [N, H, W] on the CPU."""
    tensor(maps, "maps")
    require(maps.dim() == 3 and min(maps.shape[1:]) > 0, "maps", "have shape [N, H, W]", list(maps.shape))
    require(0 < quantile <= 1, "quantile", "be in (0, 1]", quantile)
    values = maps.detach().cpu().double()
    require(bool(values.isfinite().all()), "maps", "be finite", "NaN or infinity")
    limit = values.abs().flatten(1).quantile(quantile, dim=1) if len(values) else values.new_zeros(0)
    return (values / torch.where(limit > 0, limit, 1).view(-1, 1, 1)).clamp(-1, 1).float()
