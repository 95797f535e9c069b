"""The floor of an engine call: its bare convolution and GEMM calls, each in its best layout, chunk and transposed form.

``python bench/floor.py [--networks cnn] [--batch 64] [--directions 1] [--small]`` prints every layer of the order-1 jet
((1 + S) N rows up, as many down), the best form of each, GFLOP/s, and the machine's GEMM rate beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from _measure import interleaved, machine, table
from _networks import NETWORKS, network
from torch import Tensor

import fastxai
from fastxai.engine.nodes.conv2d import Conv2d
from fastxai.engine.nodes.linear import Dense

__all__ = ["Layer", "floor", "weight_floor"]

CHUNKS = (2, 8, 16, 32, 128)
Call = Callable[[Tensor], object]


@dataclass
class Layer:
    """One vendor call of a jet: its best form, seconds and floating point operations."""

    name: str
    form: str
    seconds: float
    flops: float


def _chunks(rows: int) -> list[int]:
    return sorted({min(rows, chunk) for chunk in CHUNKS})


def _conv_forms(node: Conv2d, weight: Tensor) -> tuple[dict[str, Call], dict[str, Call]]:
    """Return the ways to call a convolution and its transpose, by name; the layout is the operand's."""
    stride, padding, dilation, groups = node.geometry
    last = weight.contiguous(memory_format=torch.channels_last)
    shape = node.inputs[0].shape

    def backward(nu: Tensor) -> object:
        x = torch.empty(nu.shape[0], *shape, dtype=nu.dtype, device=nu.device).to(memory_format=torch.channels_last)
        return torch.ops.aten.convolution_backward(
            nu, x, last, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[0]

    up: dict[str, Call] = {"conv": lambda x: F.conv2d(x, last, None, *node.geometry)}
    down: dict[str, Call] = {"backward": backward}
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if stride == (1, 1) and groups == 1 and min(reach) >= 0:
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        down["flipped"] = lambda nu: F.conv2d(nu, flipped, None, 1, reach, dilation)
    return up, down


def _layouts(rows: int, shape: tuple[int, ...], like: Tensor) -> Iterator[tuple[str, Tensor]]:
    x = torch.randn(rows, *shape, dtype=like.dtype, device=like.device)
    yield "", x
    if x.dim() == 4:
        yield "channels-last ", x.to(memory_format=torch.channels_last)


def _best(name: str, forms: dict[str, Call], rows: int, shape: tuple[int, ...], flops: float, like: Tensor) -> Layer:
    """Time every form x layout x chunk in one interleaved run and keep the fastest."""
    calls: dict[str, Callable[[], object]] = {}
    for layout, x in _layouts(rows, shape, like):
        for form, call in forms.items():
            for chunk in _chunks(rows):
                calls[f"{layout}{form} x{chunk}"] = lambda x=x, call=call, chunk=chunk: [
                    call(p) for p in x.split(chunk)
                ]
    seconds = interleaved(calls, repeats=5)
    form = min(seconds, key=lambda k: seconds[k])
    return Layer(name, form, seconds[form], flops)


@torch.no_grad()
def floor(net: fastxai.Net, x: Tensor, directions: int = 1) -> list[Layer]:
    """Return the vendor calls of an order-1 jet on x [N, ...] with S directions, each at its fastest."""
    run, _ = net._backend(x)
    prepared, rows, layers = run.weights.prepared(x), (1 + directions) * x.shape[0], []  # type: ignore[union-attr]
    for node in run.graph.nodes:  # type: ignore[union-attr]
        shape = node.inputs[0].shape if node.inputs else ()
        if isinstance(node, Conv2d):
            weight = prepared[node.index][0][0]
            up, down = _conv_forms(node, weight)
            flops = 2.0 * rows * weight.numel() * node.shape[1] * node.shape[2]
        elif isinstance(node, Dense):
            weight = prepared[node.index][0]
            shape = shape if node.image is None else weight.shape[1:]
            up = {"gemm": lambda t, w=weight: F.linear(t, w)}
            down = {"gemm": lambda t, w=weight: t @ w}
            flops = 2.0 * rows * weight.numel()
        else:
            continue
        layers.append(_best(f"{node.path or type(node).__name__} up", up, rows, shape, flops, x))
        layers.append(_best(f"{node.path or type(node).__name__} down", down, rows, node.shape, flops, x))
    return layers


@lru_cache(maxsize=64)
def _values(rows: int, shape: tuple[int, ...], order: torch.memory_format, like: Tensor) -> Tensor:
    return torch.randn(rows, *shape, dtype=like.dtype, device=like.device).contiguous(memory_format=order)


@torch.no_grad()
def weight_floor(net: fastxai.Net, x: Tensor, rows: int) -> list[Layer]:
    """Return the vendor calls of the weight gradients of so many rows, each at its fastest."""
    run, _ = net._backend(x)
    prepared, layers = run.weights.prepared(x), []  # type: ignore[union-attr]
    for node in run.graph.nodes:  # type: ignore[union-attr]
        if not isinstance(node, (Conv2d, Dense)):
            continue
        weight, shape = prepared[node.index][0], node.inputs[0].shape
        if isinstance(node, Conv2d):
            weight = weight[0].contiguous(memory_format=torch.channels_last)

            def backward(nu: Tensor, shape=shape, weight=weight, geometry=node.geometry) -> object:
                last = nu.is_contiguous(memory_format=torch.channels_last)
                values = _values(nu.shape[0], shape, torch.channels_last if last else torch.contiguous_format, x)
                stride, padding, dilation, groups = geometry
                mask = (False, True, False)
                return torch.ops.aten.convolution_backward(
                    nu, values, weight, None, stride, padding, dilation, False, (0, 0), groups, mask
                )[1]

            flops = 2.0 * rows * weight.numel() * node.shape[1] * node.shape[2]
        else:
            shape = shape if node.image is None else weight.shape[1:]

            def backward(nu: Tensor, shape=shape) -> object:
                return nu.T @ _values(nu.shape[0], shape, torch.contiguous_format, x)

            flops = 2.0 * rows * weight.numel()
        name = f"{node.path or type(node).__name__} weights"
        layers.append(_best(name, {"backward": backward}, rows, node.shape, flops, x))
    return layers


def gemm_rate(device: str = "cpu") -> float:
    """Return the machine's float32 GEMM rate in GFLOP/s, from a 2000 x 2000 product."""
    a = torch.randn(2000, 2000, device=device)
    return 2 * 2000**3 / interleaved({"gemm": lambda: a @ a}, repeats=5)["gemm"] / 1e9


def main() -> None:
    """Print the floor of each chosen network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["cnn"], choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--directions", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    batch = 2 if args.small else args.batch
    print(machine())
    print(f"GEMM rate {gemm_rate():.0f} GFLOP/s")
    for name in args.networks[: 1 if args.small else None]:
        model, x, _ = network(name, batch)
        layers = floor(fastxai.compile(model), x, args.directions)
        rows = [[la.name, la.form, f"{la.seconds * 1e3:.3f}", f"{la.flops / la.seconds / 1e9:.0f}"] for la in layers]
        total, flops = sum(la.seconds for la in layers), sum(la.flops for la in layers)
        rows.append(["total", "", f"{total * 1e3:.2f}", f"{flops / total / 1e9:.0f}"])
        print(f"\n{name}, batch {batch}, {args.directions} direction(s)")
        print(table(["call", "best form", "ms", "GFLOP/s"], rows))


if __name__ == "__main__":
    main()
