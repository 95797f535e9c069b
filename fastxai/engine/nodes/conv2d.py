"""Convolution in two dimensions: any stride, zero padding, dilation and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Layer, Node, Pulled
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.pad import Pad
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Expr, shape_of
from fastxai.kernels import thin_conv, winograd

__all__ = ["Conv2d"]


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) from an int or a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


class Conv2d(Layer):
    """y = W * x; the bias is a node of its own, unless rules are assigned."""

    def __init__(
        self,
        x: Node,
        weight: Expr,
        out_shape: tuple[int, int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__([x], out_shape, [weight])
        self.geometry = (stride, padding, dilation, groups)

    def prepare(self, *params: Tensor) -> tuple[Any, ...]:
        """Return the packed weights, the node's own first."""
        return tuple(self.pack(weight, own=i == 0) for i, weight in enumerate(params))

    def pack(self, weight: Tensor, *, own: bool = False) -> Any:
        """Return W in channels-last; flipped and transposed, where that turns the transpose into a convolution.

        Then W packed for the kernels that are faster than the vendor's: Winograd's, Winograd's for the transpose, and
        the thin ones for few channels below. None stands for what does not apply.
        """
        if weight.dim() == 1:
            return weight.contiguous()
        weight = weight.contiguous(memory_format=torch.channels_last)
        stride, _, dilation, groups = self.geometry
        if stride != (1, 1) or groups != 1:
            return weight, None, None, None, None
        plain = dilation == (1, 1)
        up = self._tiled(weight, self.shape[1:], exact=own and self.compared)
        if min(self._reach(weight)) < 0:
            return weight, None, up, None, None
        # A forward convolution reaches a higher rate than oneDNN's backward-data on channels-last input.
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        down = self._tiled(flipped, self.inputs[0].shape[1:])
        if down is not None:
            return weight, None, up, down, None
        return weight, flipped, up, None, thin_conv.pack(weight) if plain and thin_conv.fits(weight) else None

    def _tiled(self, weight: Tensor, out: Sequence[int], *, exact: bool = False) -> winograd.Packed | None:
        scheme = winograd.scheme(weight, out, exact=exact) if self.geometry[2] == (1, 1) else None
        return None if scheme is None else winograd.pack(weight, scheme)

    def _reach(self, weight: Tensor) -> tuple[int, int]:
        """Return the zeros around nu that make the transpose a convolution."""
        _, padding, dilation, _ = self.geometry
        height, width = (d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True))
        return height, width

    def affine(
        self, w: Any, bias: Tensor | None, x: Tensor, tiles: str = "any", like: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """W * x + b on every row."""
        if w[2] is not None and (tiles != "exact" or w[2].scheme.exact) and winograd.serves(x):
            refined = winograd.Refined(w[0], like) if tiles == "refined" else None
            return winograd.conv(x, w[2], bias, self.geometry[1], refined)
        if w[4] is not None and thin_conv.serves(x):
            return thin_conv.apply(x, w[4], bias, self._kernel(w[0]), self.geometry[1])
        return torch.conv2d(x, w[0], bias, *self.geometry)

    def mixes(self, w: Any, x: Tensor) -> bool:
        """Return whether there are tiles for x."""
        return winograd.serves(x) and (w[2] is not None or w[3] is not None)

    @staticmethod
    def _kernel(weight: Tensor) -> tuple[int, int]:
        return weight.shape[2], weight.shape[3]

    def spread(self, bias: Tensor) -> Tensor:
        """Return b as [C, 1, 1]."""
        return bias.view(-1, 1, 1)

    def bias_grad(self, mu: Tensor) -> Tensor:
        """Sum over rows and positions."""
        return mu.sum((0, 2, 3))

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """The transposed convolution."""
        weight, flipped, _, down, thin = w
        _, padding, dilation, _ = self.geometry
        if down is not None and winograd.serves(nu):
            return [winograd.conv(nu, down, None, self._reach(weight))]
        if thin is not None and thin_conv.serves(nu):
            return [thin_conv.transpose(nu, thin, self._kernel(weight), padding)]
        if flipped is not None:
            return [torch.conv2d(nu, flipped, None, 1, self._reach(weight), dilation)]
        return [self._backward(nu, self._like(nu), weight, (True, False, False))[0]]

    def weight_grad(self, w: Any, mu: Tensor, x: Tensor) -> Tensor:
        """Sum of mu (x) x over rows and positions."""
        if w[2] is not None and winograd.serves(x):
            return winograd.weight_grad(x, mu, self.geometry[1], w[0].shape[-1])
        return self._backward(mu, x, w[0], (False, True, False))[1]

    def _like(self, nu: Tensor) -> Tensor:
        shape = (nu.shape[0], *self.inputs[0].shape)
        return torch.empty(shape, dtype=nu.dtype, device=nu.device, memory_format=torch.channels_last)

    def _backward(self, nu: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]) -> Any:
        stride, padding, dilation, groups = self.geometry
        return torch.ops.aten.convolution_backward(
            nu, x, weight, None, stride, padding, dilation, False, (0, 0), groups, mask
        )


@builds("conv2d")
def _build(
    input: Node,
    weight: Expr,
    bias: Expr | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node:
    if not isinstance(input, Node) or isinstance(weight, Node) or len(input.shape) != 3:
        raise Unsupported("the kernel depends on the input, or the input has no batch dimension")
    x, kernel = input, shape_of(weight)
    stride, dilation = pair(stride), pair(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel[2:], strict=True)]
        if any(t % 2 for t in total):
            x = Pad(
                x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2], "constant", 0.0
            )
            total = [0, 0]
        padding = (total[0] // 2, total[1] // 2)
    padding = (0, 0) if padding == "valid" else pair(padding)
    probe = torch.empty(1, *x.shape, device="meta")
    out = F.conv2d(probe, torch.empty(kernel, device="meta"), None, stride, padding, dilation, groups)
    node = Conv2d(x, weight, (out.shape[1], out.shape[2], out.shape[3]), stride, padding, dilation, groups)
    return node if bias is None else Bias(node, bias, channel=True)
