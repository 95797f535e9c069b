"""Runtime: runs a graph's sweeps over batch chunks, as numbers or as one differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastxai.engine.graph import Graph
from fastxai.engine.jets import Sweep
from fastxai.engine.weights import Weights, unscaled, version
from fastxai.kernels._native import channels_last
from fastxai.kernels.activation import Activation

__all__ = ["Extend", "Runtime"]

# Bytes of the largest layer (input and output, all components) that a chunk may hold. Measured on two Zen 4 cores with
# 32 MiB of last-level cache, H v at batch 64: the CNN of [R] takes 111, 96, 83, 78 ms at 2, 4, 8, 16 MiB; ResNet-20
# takes 142 ms at 16 MiB and 154 to 170 above.
_CHUNK_BYTES = 16 << 20

Activations = tuple[Activation, ...]


def dense(x: Tensor) -> Tensor:
    """Return x in the layout that the sweeps use: channels-last for images, contiguous otherwise."""
    return channels_last(x) if x.dim() == 4 else x.contiguous()


@contextmanager
def true_float32() -> Iterator[None]:
    """Keep cuDNN and cuBLAS from rounding float32 operands to TF32 inside the block."""
    convolution, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolution, matmul


def numeric(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method whose first argument is a tensor without a graph and, on a GPU, in true float32."""

    @wraps(method)
    def run(self: Any, x: Tensor, *args: Any) -> Any:
        with torch.no_grad(), unscaled(x):
            if x.device.type != "cuda":
                return method(self, x, *args)
            with true_float32():
                return method(self, x, *args)

    return run


class Runtime:
    """A graph with its weights. All methods take the activations of the view they run for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights = Weights(graph.nodes)
        sizes = [torch.Size(node.shape).numel() for node in graph.nodes]
        self._widest = max(size + sum(sizes[p] for p in graph.inputs[i]) for i, size in enumerate(sizes))

    def most(self, x: Tensor, components: int) -> int:
        """Return how many rows of inputs like x may be in one chunk, so that its activations stay in cache."""
        return max(1, _CHUNK_BYTES // (self._widest * components * x.element_size()))

    def chunks(self, x: Tensor, components: int) -> Iterator[slice]:
        """Split the batch into chunks of about equal size; one chunk on a GPU."""
        n = x.shape[0]
        most = self.most(x, components) if x.device.type == "cpu" else n
        pieces = -(-n // most) if n else 0
        for i in range(pieces):
            yield slice(n * i // pieces, n * (i + 1) // pieces)

    def sweep(self, n: int, directions: int, prepared: list[Any], acts: Activations, **options: Any) -> Sweep:
        """Return the state of a new sweep."""
        return Sweep(n, directions, prepared, acts, [None] * len(self.graph.nodes), **options)

    @numeric
    def scores(self, x: Tensor, acts: Activations) -> Tensor:
        """Return g(x) [N, K]."""
        prepared = self.weights.prepared(x)
        out = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        for rows in self.chunks(x, 1):
            s = self.sweep(rows.stop - rows.start, 0, prepared, acts)
            out[rows] = self.graph.up(s, dense(x[rows]))
        return out

    @numeric
    def gradient(self, x: Tensor, target: Tensor | None, acts: Activations) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)); k is the highest score where no target is given."""
        prepared = self.weights.prepared(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        for rows in self.chunks(x, 1):
            s = self.sweep(rows.stop - rows.start, 0, prepared, acts)
            self._start(s, dense(x[rows]), target, rows, out, scores)
        return out, scores

    def _start(self, s: Sweep, x: Tensor, target: Tensor | None, rows: slice, out: Tensor, scores: Tensor) -> None:
        """Sweep one chunk up and down; write its scores, and at the input nu_v, into the outputs."""
        scores[rows] = self.graph.up(s, x)
        chosen = scores[rows].argmax(1) if target is None else target[rows]
        seed = torch.zeros_like(scores[rows]).scatter_(1, chosen[:, None], 1)
        gradient = self.graph.down(s, seed)
        assert gradient is not None
        out[rows] = gradient

    def explain(
        self, x: Tensor, target: Tensor | None, acts: Activations, *, parameters: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)), differentiable in x and, where ``parameters``, in the model's parameters."""
        parameters = parameters and torch.is_grad_enabled() and self.weights.require_grad
        weights = self.weights.differentiable(x) if parameters else []
        if not torch.is_grad_enabled() or not (x.requires_grad or weights):
            return self.gradient(x, target, acts)
        return _Gradient.apply(self, target, acts, x, *weights)

    @numeric
    def start(
        self, x: Tensor, target: Tensor | None, acts: Activations, wanted: frozenset[int], to_input: bool
    ) -> tuple[Tensor, Tensor, list[tuple[slice, Sweep]]]:
        """Return (nabla g_k(x), g(x)) and, chunk by chunk, the sweeps that an extension goes on from."""
        prepared = self.weights.prepared(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        parts = []
        for rows in self.chunks(x, 2):
            s = self.sweep(rows.stop - rows.start, 0, prepared, acts, keep=True, wanted=wanted, to_input=to_input)
            self._start(s, dense(x[rows]), target, rows, out, scores)
            parts.append((rows, s))
        return out, scores, parts

    @numeric
    def extend(
        self, x: Tensor, v: Tensor | None, scores_bar: Tensor | None, parts: list[tuple[slice, Sweep]]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of <v, nabla g_k> + <scores_bar, g> for x and for every wanted parameter."""
        grads: list[Tensor | None] = [None] * len(self.weights.params)
        dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for rows, start in parts:
            s = replace(start, extend=True, grads=grads)
            self.graph.up(s, dense(torch.zeros_like(x[rows]) if v is None else v[rows]))
            mu = self.graph.down(s, None if scores_bar is None else scores_bar[rows].contiguous())
            if mu is not None:
                dx[rows] = mu
        return dx, grads


class _Gradient(torch.autograd.Function):
    """The gradient map: forward sweeps value and cotangent, backward extends them by the tangent v = dL/dh."""

    @staticmethod
    def forward(ctx: Any, run: Runtime, target: Tensor | None, acts: Activations, *tensors: Tensor) -> Any:
        x, *weights = tensors
        wanted = frozenset(i for i, weight in enumerate(weights) if weight.requires_grad)
        out, scores, ctx.parts = run.start(x, target, acts, wanted, ctx.needs_input_grad[3])
        ctx.run, ctx.generation, ctx.marks = run, run.weights.generation, run.weights.marks()
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return out, scores

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, None, None, *Extend.apply(ctx, len(cotangents), *cotangents, *ctx.saved_tensors)


class Extend(torch.autograd.Function):
    """The adjoint sweeps, as a function that says what to do when somebody differentiates it once more.

    ``made`` is the context of the function that made the map: ``made.run.extend`` goes on from ``made.parts``.
    """

    @staticmethod
    def forward(ctx: Any, made: Any, count: int, *tensors: Tensor | None) -> Any:
        """Return the gradients of what was made, given its ``count`` cotangents, then what it was made of: x first."""
        cotangents, inputs = tensors[:count], tensors[count:]
        edited = any(version(tensor) != before for tensor, before in made.marks)
        if edited or made.generation != made.run.weights.generation:
            raise RuntimeError("the model's weights changed between an explanation map and its backward()")
        dx, grads = made.run.extend(inputs[0], *cotangents, made.parts)
        return dx, *grads[: len(inputs) - 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse."""
        raise RuntimeError(
            "an explanation map can be differentiated once; for the second derivative of one made of gradients use the "
            "autograd fallback, fastxai.compile(model, fallback=True); rule-based ones have none"
        )
