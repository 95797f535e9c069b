"""Integrated gradients: d * sum_k w_k nabla f(xbar + t_k d), d = x - xbar, and its exact derivative.

The affine prefix P is swept twice whatever the number of points, once up with the rows (xbar, d) and once down with a
sum over k. Seeds carry the weights w_k, so that every sum over k is plain:

    value    seeds w_k Df(z_k);  G = P^T sum_k mu_v,k;  map = d G
    adjoint  of a cotangent hbar of the map: the tangent v = d hbar, the same at every point; seeds w_k D2f z_v,k;
             M0 = sum_k mu_0,k, M1 = sum_k t_k mu_0,k
             dL/dx = hbar G + P^T M1;   dL/dxbar = P^T M0 - dL/dx
             weights of P: M0 (x) xbar + M1 (x) d + (sum_k mu_v,k) (x) v;   constants of P: M0

The scores g(x) are the point t = 1, which weighs nothing in the map; their cotangent goes down from there.
A group of samples shares one sweep of P; its points are taken piece by piece, as many rows at once as stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.boundary import Boundary
from fastxai.engine.heads import Head
from fastxai.engine.jets import Sweep
from fastxai.engine.runtime import Activations, Extend, Runtime, dense, numeric

__all__ = ["Path"]

# Bytes that the pieces of one map may hold for its backward; those beyond are computed again there.
_KEPT_BYTES = 1 << 30
# Bytes of all activations of one piece on a GPU.
_GPU_BYTES = 2 << 30


@dataclass(frozen=True)
class _Task:
    """What is integrated.

    Attributes:
        t, w: positions and weights [K], of the input's dtype and device.
        target: explained classes [N], or None for the highest score at x.
        head: the function of the scores.
        acts: the activations of the view.
        wanted: slots of the parameters whose gradient may be asked for; None if nothing will be.
    """

    t: Tensor
    w: Tensor
    target: Tensor | None
    head: Head
    acts: Activations
    wanted: frozenset[int] | None = None

    @property
    def keep(self) -> bool:
        return self.wanted is not None


@dataclass
class _Piece:
    """Some points of some samples of a group, swept up and down."""

    samples: slice
    steps: slice
    sweep: Sweep
    scores: Tensor


@dataclass
class _Group:
    """Samples that share one sweep of the prefix.

    Attributes:
        rows: where they are in the batch.
        prefix: the prefix's sweep, which holds what its weight gradients need.
        starts: (a_0, a_d) [2n, ...] by source of the boundary.
        end: the sweep at x itself.
        target: explained classes [n].
        sums: sum_k mu_v,k [n, ...] by source.
        pieces: the swept pieces that are kept, by position.
    """

    rows: slice
    prefix: Sweep
    starts: dict[int, Tensor]
    end: Sweep
    target: Tensor
    sums: dict[int, Tensor]
    pieces: dict[int, _Piece] = field(default_factory=dict)


@dataclass
class _Parts:
    """What a backward goes on from: every group, or only where it lies if it was not kept."""

    task: _Task
    baseline: Tensor
    gradient: Tensor
    baseline_wanted: bool
    groups: list[_Group | slice] = field(default_factory=list)


class Path:
    """The integrals of one runtime's graph along straight paths."""

    def __init__(self, run: Runtime, kept_bytes: int = _KEPT_BYTES) -> None:
        """Integrate over ``run``'s graph; a map holds at most ``kept_bytes`` for its backward."""
        self.run, self.weights, self.kept_bytes = run, run.weights, kept_bytes
        self.boundary = Boundary(run.graph)
        self._per_row = sum(torch.Size(node.shape).numel() for node in run.graph.nodes)

    def integrate(
        self, x: Tensor, baseline: Tensor, points: tuple[Tensor, Tensor], head: Head, view: Any, *, parameters: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)), differentiable in x, the baseline and, where ``parameters``, the parameters.

        Args:
            x: inputs [N, ...].
            baseline: of x's shape.
            points: positions and weights, [K] each.
            head: the function of the scores that is integrated.
            view: (explained classes [N] or None for the highest score at x, the view's activations).
            parameters: whether gradients of the parameters may be asked for.
        """
        target, acts = view
        t, w = (value.to(x.device, x.dtype) for value in points)
        task = _Task(t, w, target, head, acts)
        parameters = parameters and torch.is_grad_enabled() and self.weights.require_grad
        weights = self.weights.differentiable(x) if parameters else []
        if not torch.is_grad_enabled() or not (x.requires_grad or baseline.requires_grad or weights):
            return self.start(x.detach(), baseline.detach(), task)[:2]
        return _Integral.apply(self, task, x, baseline, *weights)  # type: ignore[return-value]

    @numeric
    def start(self, x: Tensor, baseline: Tensor, task: _Task) -> tuple[Tensor, Tensor, _Parts]:
        """Return (the map, g(x), what a backward goes on from)."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.run.graph.nodes[-1].shape)
        gradient = torch.empty_like(out) if task.keep else out
        parts = _Parts(task, baseline, gradient, False)
        room = self.kept_bytes
        for rows in self.run.chunks(x, 2):
            group, scores[rows] = self._open(x, baseline, rows, task)
            used = _bytes(group.prefix, group.end)
            for number, place in enumerate(self._places(x, rows, task)):
                piece = self._sweep_piece(group, place, task)
                used += _bytes(piece.sweep) if task.keep else 0
                if task.keep and used <= room:
                    group.pieces[number] = piece
            gradient[rows] = self._pull_prefix(group)
            torch.mul(gradient[rows], x[rows] - baseline[rows], out=out[rows])
            held = _bytes(group.prefix, group.end)
            if task.keep:
                parts.groups.append(group if held <= room else rows)
                room -= min(room, used)
        return out, scores, parts
