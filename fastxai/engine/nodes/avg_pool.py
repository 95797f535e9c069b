"""Average pooling, adaptive or with a window, and the mean over space."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Linear, Node, Pulled
from fastxai.engine.nodes.conv2d import pair
from fastxai.engine.trace import Unsupported

__all__ = ["AdaptiveAvgPool", "AvgPool", "Mean"]


def _like(node: Node, nu: Tensor) -> Tensor:
    shape = (nu.shape[0], *node.inputs[0].shape)
    return torch.empty(shape, dtype=nu.dtype, device=nu.device, memory_format=torch.channels_last)


class AvgPool(Linear):
    """Average over a window."""

    keeps_sign = True

    def __init__(self, x: Node, window: tuple[Any, ...]) -> None:
        out = F.avg_pool2d(torch.empty(1, *x.shape, device="meta"), *window)
        super().__init__([x], out.shape[1:])
        self.window = window

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Average."""
        return F.avg_pool2d(xs[0], *self.window)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Spread each cotangent over its window."""
        return [
            torch.ops.aten.avg_pool2d_backward(
                nu.contiguous(memory_format=torch.channels_last), _like(self, nu), *self.window
            )
        ]


class AdaptiveAvgPool(Linear):
    """Average over windows that tile the input into a given output size."""

    keeps_sign = True

    def __init__(self, x: Node, size: tuple[int, int]) -> None:
        super().__init__([x], (x.shape[0], *size))

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Average."""
        return F.adaptive_avg_pool2d(xs[0], (self.shape[1], self.shape[2]))

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Spread each cotangent over its window."""
        return [
            torch.ops.aten._adaptive_avg_pool2d_backward(
                nu.contiguous(memory_format=torch.channels_last), _like(self, nu)
            )
        ]


class Mean(Linear):
    """Mean over dimensions other than the batch."""

    keeps_sign = True

    def __init__(self, x: Node, dims: tuple[int, ...], *, keepdim: bool) -> None:
        out = torch.empty(1, *x.shape, device="meta").mean(dims, keepdim)
        super().__init__([x], out.shape[1:])
        self.dims, self.keepdim = dims, keepdim
        self.count = 1
        for d in dims:
            self.count *= x.shape[d - 1]

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Average."""
        return xs[0].mean(self.dims, self.keepdim)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Spread each cotangent over what was averaged."""
        if not self.keepdim:
            for d in sorted(self.dims):
                nu = nu.unsqueeze(d)
        like = torch.empty((0, *self.inputs[0].shape), device="meta")
        spread = (nu / self.count).expand(nu.shape[0], *like.shape[1:])
        return [spread.contiguous(memory_format=torch.channels_last) if spread.dim() == 4 else spread.contiguous()]


def adaptive_size(input: Node, output_size: Any) -> tuple[int, int]:
    """Return (height, width) of an adaptive pool's output; None keeps the input's."""
    wanted = (output_size, output_size) if isinstance(output_size, int) or output_size is None else tuple(output_size)
    height, width = (n if n is not None else have for n, have in zip(wanted, input.shape[1:], strict=True))
    return height, width


@builds("avg_pool2d")
def _avg_pool2d(
    input: Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    size = pair(kernel_size)
    step = pair(stride) if stride else size
    return AvgPool(input, (size, step, pair(padding), ceil_mode, count_include_pad, divisor_override))


@builds("adaptive_avg_pool2d")
def _adaptive(input: Node, output_size: Any) -> Node:
    height, width = adaptive_size(input, output_size)
    if (height, width) == input.shape[1:]:
        return input
    if (height, width) == (1, 1):
        return Mean(input, (2, 3), keepdim=True)
    return AdaptiveAvgPool(input, (height, width))


@builds("mean")
def _mean(input: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    dims = tuple(d % input.dim for d in ((dim,) if isinstance(dim, int) else dim or ()))
    if not dims or 0 in dims or dtype is not None:
        raise Unsupported("it averages over the batch or changes the dtype")
    return Mean(input, dims, keepdim=keepdim)
