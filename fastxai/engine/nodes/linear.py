"""Dense layer on the last dimension, or on a whole image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Layer, Node, Pulled
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.reshape import Reshape
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Expr, shape_of
from fastxai.kernels import linear

__all__ = ["Dense"]

# Elements of a weight whose columns are worth a copy in the images' order: beyond, flattened images are the smaller.
_REORDERED = 1 << 24


class Dense(Layer):
    """y = x W^T; the bias is a node of its own, unless rules are assigned.

    Of an image [C, H, W], which is flattened, x is read as it lies in channels-last: ``pack`` orders W's columns so.
    """

    heavy = True

    def __init__(self, x: Node, weight: Expr, *, image: bool = False) -> None:
        super().__init__([x], (*(() if image else x.shape[:-1]), shape_of(weight)[0]), [weight])
        self.image = x.shape if image else None

    def pack(self, weight: Tensor) -> Any:
        """Return W, its columns in the order of the input's memory; a bias as it is."""
        if self.image is None or weight.dim() == 1:
            return weight
        return weight.unflatten(1, self.image).permute(0, 2, 3, 1).flatten(1)

    def affine(
        self, w: Any, bias: Tensor | None, x: Tensor, tiles: str = "any", like: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return x W^T + b."""
        return linear.apply(self._features(x), w, bias)

    def spread(self, bias: Tensor) -> Tensor:
        """Return b: features come last."""
        return bias

    def bias_grad(self, mu: Tensor) -> Tensor:
        """Sum over all rows."""
        return mu.flatten(0, -2).sum(0)

    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Return nu W."""
        mu = linear.transpose(nu, w)
        return [mu if self.image is None else self._images(mu)]

    def weight_grad(self, w: Any, mu: Tensor, x: Tensor) -> Tensor:
        """Return mu^T x, summed over all rows."""
        grad = linear.weight_grad(mu, self._features(x))
        return grad if self.image is None else self._images(grad).flatten(1)

    def _features(self, x: Tensor) -> Tensor:
        return x if self.image is None else x.permute(0, 2, 3, 1).flatten(1)

    def _images(self, features: Tensor) -> Tensor:
        assert self.image is not None
        channels, height, width = self.image
        return features.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


@builds("linear")
def _build(input: Node, weight: Expr, bias: Expr | None = None) -> Node:
    if not isinstance(input, Node) or not input.shape or isinstance(weight, Node):
        raise Unsupported("the weight depends on the input, or the input has one dimension")
    image = input.inputs[0] if isinstance(input, Reshape) and input.dim == 2 and input.inputs[0].dim == 4 else None
    if image is not None and torch.Size(shape_of(weight)).numel() <= _REORDERED:
        node = Dense(image, weight, image=True)
    else:
        node = Dense(input, weight)
    return node if bias is None else Bias(node, bias, channel=node.dim == 2)
