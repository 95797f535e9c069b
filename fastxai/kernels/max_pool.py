"""Max-pooling of every jet component by the argmax of component 0.

Contract (all backends; components side by side in dim 0, K of them, N rows each):

    push  x [KN, C, H, W] -> y [KN, C, Ho, Wo], index uint8 [N, C, Ho, Wo]
          index = position of the first maximum of component 0 in its window, row-major (kh * KW + kw); every
          component is gathered there. Padding never wins; a NaN wins.
    push  with a given index gathers every component of x (a tangent) and finds no maximum anew
    pull  nu [KN, C, Ho, Wo] -> mu [KN, C, H, W]: scatter-add of every component (windows may overlap)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import _check

__all__ = ["Window", "pull", "push"]


@dataclass(frozen=True)
class Window:
    """Geometry of a pooling window: (height, width) pairs, as in ``torch.nn.MaxPool2d``.

    Raises:
        ValueError: more than 255 positions in a window (the index is one byte).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        _check.require(self.kernel[0] * self.kernel[1] <= 255, "kernel", "hold at most 255 positions", self.kernel)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (Ho, Wo) for an input of (H, W), by PyTorch's rule."""
        out = []
        for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            room = n + 2 * p - d * (k - 1) - 1
            o = (room + (s - 1 if self.ceil_mode else 0)) // s + 1
            out.append(o - 1 if self.ceil_mode and (o - 1) * s >= n + p else o)
        return out[0], out[1]


def _windows(x: Tensor, w: Window, fill: float) -> Tensor:
    """Return x's windows as [positions, rows, C, Ho, Wo]."""
    (ho, wo), (ph, pw) = w.output_size((x.shape[2], x.shape[3])), w.padding
    need_h = (ho - 1) * w.stride[0] + w.dilation[0] * (w.kernel[0] - 1) + 1 - x.shape[2] - ph
    need_w = (wo - 1) * w.stride[1] + w.dilation[1] * (w.kernel[1] - 1) + 1 - x.shape[3] - pw
    x = F.pad(x, (pw, max(need_w, 0), ph, max(need_h, 0)), value=fill)
    return torch.stack(
        [
            x[:, :, i * w.dilation[0] :, j * w.dilation[1] :][:, :, :: w.stride[0], :: w.stride[1]][:, :, :ho, :wo]
            for i in range(w.kernel[0])
            for j in range(w.kernel[1])
        ]
    )


def _push_reference(x: Tensor, w: Window, components: int, index: Tensor | None) -> tuple[Tensor, Tensor]:
    n = x.shape[0] // components
    if index is None:
        windows = _windows(x[:n], w, -torch.inf)
        best, index = windows[0], torch.zeros(windows.shape[1:], dtype=torch.uint8, device=x.device)
        for position in range(1, len(windows)):
            wins = (windows[position] > best) | (windows[position].isnan() & ~best.isnan())
            best = torch.where(wins, windows[position], best)
            index = torch.where(wins, torch.full_like(index, position), index)
    windows = _windows(x, w, 0.0)
    where = index.long().repeat(components, 1, 1, 1)[None]
    y = windows.gather(0, where)[0]
    return y.contiguous(memory_format=_format(x)), index.contiguous(memory_format=_format(x))


def _pull_reference(nu: Tensor, w: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    components = nu.shape[0] // index.shape[0] if index.shape[0] else 1
    h, width = size
    rows = torch.arange(nu.shape[2], device=nu.device)[:, None] * w.stride[0] - w.padding[0]
    cols = torch.arange(nu.shape[3], device=nu.device)[None, :] * w.stride[1] - w.padding[1]
    position = index.long()
    rows = rows + position // w.kernel[1] * w.dilation[0]
    cols = cols + position % w.kernel[1] * w.dilation[1]
    flat = (rows * width + cols).repeat(components, 1, 1, 1).flatten(2)
    mu = nu.new_zeros(nu.shape[0], nu.shape[1], h * width).scatter_add_(2, flat, nu.flatten(2))
    return mu.unflatten(2, size).contiguous(memory_format=_format(nu))


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def push(x: Tensor, window: Window, components: int = 1, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool every component at the first maximum of component 0, or at a given index.

    Args:
        x: [KN, C, H, W], component 0 first.
        window: the pooling geometry.
        components: K.
        index: uint8 [N, C, Ho, Wo] from an earlier push, when component 0 is not among x's.

    Returns:
        (y [KN, C, Ho, Wo], index), in x's memory format.
    """
    return _push_reference(x, window, components, index)


def pull(nu: Tensor, window: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Scatter-add every component's cotangent to the position that won.

    Args:
        nu: [KN, C, Ho, Wo].
        window: the pooling geometry.
        index: uint8 [N, C, Ho, Wo] from ``push``.
        size: (H, W) of the input.

    Returns:
        mu [KN, C, H, W].
    """
    return _pull_reference(nu, window, index, size)
