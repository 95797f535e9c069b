"""Max-pooling: every component follows the argmax of component 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Node, Pulled, Sweep
from fastxai.engine.nodes.avg_pool import adaptive_size
from fastxai.engine.nodes.conv2d import pair
from fastxai.engine.trace import Unsupported
from fastxai.kernels import max_pool as kernel

__all__ = ["MaxPool"]


class MaxPool(Node):
    """y = max over a window, first maximum in row-major order."""

    keeps_sign = True
    compares = True

    def __init__(self, x: Node, window: kernel.Window) -> None:
        super().__init__([x], (x.shape[0], *window.output_size((x.shape[1], x.shape[2]))))
        self.window = window

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Find the argmax of component 0 (kept for every later sweep) and gather."""
        if s.extend:
            return kernel.push(xs[0], self.window, 1 + s.directions, s.memory[self.index])[0]
        y, s.memory[self.index] = kernel.push(xs[0], self.window, 1 + s.directions)
        return y

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Scatter every cotangent to where the maximum was."""
        if nu is None:
            return [None]
        height, width = self.inputs[0].shape[1:]
        return [kernel.pull(nu, self.window, s.memory[self.index], (height, width))]


@builds("max_pool2d")
def _build(
    input: Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:
    if return_indices or len(input.shape) != 3:
        raise Unsupported("it returns its indices, or its input has no batch dimension")
    size = pair(kernel_size)
    window = kernel.Window(size, pair(stride) if stride else size, pair(padding), pair(dilation), ceil_mode)
    return MaxPool(input, window)


@builds("adaptive_max_pool2d")
def _adaptive(input: Node, output_size: Any, return_indices: bool = False) -> Node:
    if return_indices or len(input.shape) != 3:
        raise Unsupported("it returns its indices, or its input has no batch dimension")
    size, have = adaptive_size(input, output_size), (input.shape[1], input.shape[2])
    if any(n % m for n, m in zip(have, size, strict=True)):
        raise Unsupported(f"its windows differ in size: {have} to {size}")
    window = (have[0] // size[0], have[1] // size[1])
    return input if window == (1, 1) else MaxPool(input, kernel.Window(window, window))
