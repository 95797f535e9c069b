"""Runtime: runs a graph's sweeps over batch chunks, as numbers or as one differentiable function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastxai.engine.graph import Graph
from fastxai.engine.jets import Sweep
from fastxai.engine.weights import Weights
from fastxai.kernels.activation import Activation

__all__ = ["Runtime"]

# Bytes of the largest layer (input and output, all components) that a chunk may hold. Measured on two Zen 4 cores
# (1 MiB L2 each, 32 MiB L3): from 1 to 8 MiB the rate is flat, beyond that pages are faulted in anew at every call.
_CHUNK_BYTES = 4 << 20

Activations = tuple[Activation, ...]


def dense(x: Tensor) -> Tensor:
    """Return x in the layout that the sweeps use: channels-last for images, contiguous otherwise."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


class Runtime:
    """A graph with its weights. All methods take the activations of the view they run for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights = Weights(graph.nodes)
        sizes = [torch.Size(node.shape).numel() for node in graph.nodes]
        self._widest = max(size + sum(sizes[p] for p in graph.inputs[i]) for i, size in enumerate(sizes))

    def chunks(self, x: Tensor, components: int) -> Iterator[slice]:
        """Split the batch so that a chunk's activations stay in cache; one chunk on a GPU."""
        n = x.shape[0]
        size = n
        if x.device.type == "cpu":
            size = max(1, _CHUNK_BYTES // (self._widest * components * x.element_size()))
        for start in range(0, n, max(size, 1)):
            yield slice(start, min(start + size, n))

    def _sweep(self, n: int, directions: int, prepared: list[Any], acts: Activations, **options: Any) -> Sweep:
        return Sweep(n, directions, prepared, acts, [None] * len(self.graph.nodes), **options)

    @torch.no_grad()
    def scores(self, x: Tensor, acts: Activations) -> Tensor:
        """Return g(x) [N, K]."""
        prepared = self.weights.prepared(x)
        out = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        for rows in self.chunks(x, 1):
            s = self._sweep(rows.stop - rows.start, 0, prepared, acts)
            out[rows] = self.graph.up(s, dense(x[rows]))
        return out

    @torch.no_grad()
    def gradient(self, x: Tensor, target: Tensor | None, acts: Activations) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)); k is the highest score where no target is given."""
        prepared = self.weights.prepared(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        for rows in self.chunks(x, 1):
            s = self._sweep(rows.stop - rows.start, 0, prepared, acts)
            self._start(s, dense(x[rows]), target, rows, out, scores)
        return out, scores

    def _start(
        self, s: Sweep, x: Tensor, target: Tensor | None, rows: slice, out: Tensor, scores: Tensor
    ) -> None:
        """Sweep one chunk up and down; write its scores, and at the input nu_v, into the outputs."""
        scores[rows] = self.graph.up(s, x)
        chosen = scores[rows].argmax(1) if target is None else target[rows]
        seed = torch.zeros_like(scores[rows]).scatter_(1, chosen[:, None], 1)
        out[rows] = self.graph.down(s, seed)

    @torch.no_grad()
    def hvp(self, x: Tensor, v: Tensor, target: Tensor | None, acts: Activations) -> tuple[Tensor, Tensor]:
        """Return (H v [S, N, ...], nabla g_k(x) [N, ...]) for S directions v [S, N, ...]."""
        prepared, directions = self.weights.prepared(x), v.shape[0]
        hv = torch.empty_like(v, memory_format=torch.contiguous_format)
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows in self.chunks(x, 1 + directions):
            n = rows.stop - rows.start
            s = self._sweep(n, directions, prepared, acts)
            scores = self.graph.up(s, dense(torch.cat([x[rows][None], v[:, rows]]).flatten(0, 1)))[:n]
            chosen = scores.argmax(1) if target is None else target[rows]
            seed = scores.new_zeros((1 + directions) * n, scores.shape[1])
            seed[:n].scatter_(1, chosen[:, None], 1)
            mu = self.graph.down(s, seed)
            assert mu is not None
            gradient[rows], hv[:, rows] = mu[:n], mu[n:].unflatten(0, (directions, n))
        return hv, gradient

    def explain(
        self, x: Tensor, target: Tensor | None, acts: Activations, *, parameters: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)), differentiable in x and, where ``parameters``, in the model's parameters."""
        weights = self.weights.differentiable(x) if parameters and torch.is_grad_enabled() else []
        wanted = frozenset(i for i, weight in enumerate(weights) if weight.requires_grad)
        if not torch.is_grad_enabled() or not (x.requires_grad or wanted):
            return self.gradient(x, target, acts)
        return _Gradient.apply(self, acts, wanted, target, x, *weights)  # type: ignore[return-value]


class _Gradient(torch.autograd.Function):
    """The gradient map: forward sweeps value and cotangent, backward extends them by the tangent v = dL/dh."""

    @staticmethod
    def forward(
        ctx: Any, run: Runtime, acts: Activations, wanted: frozenset[int], target: Tensor | None, x: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        prepared = run.weights.prepared(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *run.graph.nodes[-1].shape)
        ctx.parts = []
        for rows in run.chunks(x, 2):
            s = run._sweep(rows.stop - rows.start, 0, prepared, acts, keep=True, wanted=wanted)
            run._start(s, dense(x[rows]), target, rows, out, scores)
            ctx.parts.append((rows, s))
        ctx.run, ctx.wanted, ctx.count, ctx.generation = run, wanted, len(weights), run.weights.generation
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        return out, scores

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        v, scores_bar = cotangents
        dx, *grads = _Extend.apply(ctx, x, v, scores_bar)  # type: ignore[misc]
        return (None, None, None, None, dx, *grads) if ctx.count else (None, None, None, None, dx)


class _Extend(torch.autograd.Function):
    """The adjoint sweeps, as a function that says what to do when somebody differentiates it once more."""

    @staticmethod
    def forward(ctx: Any, made: Any, x: Tensor, v: Tensor | None, scores_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        run: Runtime = made.run
        if made.generation != run.weights.generation:
            raise RuntimeError("the model's weights changed between an explanation map and its backward()")
        grads: list[Tensor | None] = [None] * made.count
        dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for rows, start in made.parts:
            s = Sweep(
                start.n, 1, start.prepared, start.activations, start.memory, extend=True, grads=grads, wanted=made.wanted
            )
            run.graph.up(s, dense(torch.zeros_like(x[rows]) if v is None else v[rows]))
            mu = run.graph.down(s, None if scores_bar is None else scores_bar[rows].contiguous())
            if mu is not None:
                dx[rows] = mu
        return (dx, *grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "an explanation map can be differentiated once; for its second derivative use the autograd fallback: "
            "fastxai.compile(model, fallback=True)"
        )
