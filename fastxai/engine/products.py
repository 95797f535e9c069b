"""Hessian-vector products that any loss may be made of: order-1 sweeps, extended to order 2 by the loss's gradient.

The forward pass goes up with (y, y_v) and down with (nu_v, nu_0). Given u = dL/d(Hv) the backward pass computes what
order 2 adds, (y_w, y_u) up and (nu_0, nu_v) down, and no more: for one direction an interior layer costs 4 units
forward, 4 back and 4 of weight gradients in 2 + 2 + 1 calls. A cotangent of the gradient itself is the tangent w at the
input, and one of the scores joins nu_0 at the head: both are free of charge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.fallback import Fallback
from fastxai.engine.heads import Head
from fastxai.engine.jets import Sweep
from fastxai.engine.runtime import Activations, Extend, Runtime, dense, numeric
from fastxai.engine.weights import Weights

__all__ = ["Products", "products"]


@dataclass
class _Part:
    """One chunk of the batch: its start, its scores (z, z_v) and its classes."""

    rows: slice
    sweep: Sweep
    scores: Tensor
    target: Tensor


@dataclass
class Products:
    """H v and nabla f for directions v [S, N, ...], at some inputs.

    Attributes:
        run: the graph with its weights.
        head: the function f of the scores.
        target: explained classes [N], or None for the highest scores.
        acts: the activations of the view.
        wanted: parameters whose gradients may be asked for, by number; None keeps nothing for a backward pass.
        to_input: gradients of inputs or directions may be asked for too.
        directions: S, once ``start`` has seen them.
        parts: what ``extend`` goes on from, chunk by chunk.
    """

    run: Runtime
    head: Head
    target: Tensor | None
    acts: Activations
    wanted: frozenset[int] | None = None
    to_input: bool = True
    directions: int = 0
    parts: list[_Part] = field(default_factory=list)

    @property
    def weights(self) -> Weights:
        """The graph's weights."""
        return self.run.weights

    def differentiable(self, x: Tensor, v: Tensor, *, parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H v [S, N, ...], nabla f [N, ...], g(x)), differentiable in x, v and, if asked, the parameters."""
        parameters = parameters and torch.is_grad_enabled() and self.weights.require_grad
        weights = self.weights.differentiable(x) if parameters else []
        if not torch.is_grad_enabled() or not (x.requires_grad or v.requires_grad or weights):
            return self.start(x, v)
        return _Product.apply(self, x, v, *weights)

    @numeric
    def start(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H v, nabla f, g(x))."""
        prepared = self.weights.prepared(x)
        directions = self.directions = v.shape[0]
        keep = self.wanted is not None
        kept = {"keep": keep, "wanted": self.wanted or frozenset(), "to_input": self.to_input}
        hv = torch.empty_like(v, memory_format=torch.contiguous_format)
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.run.graph.nodes[-1].shape)
        for rows in self.run.chunks(x, (1 + directions) * (1 + keep)):
            s = self.run.sweep(rows.stop - rows.start, directions, prepared, self.acts, **kept)
            both = self.run.graph.up(s, dense(torch.cat([x[rows][None], v[:, rows]]).flatten(0, 1)))
            z, z_v = s.split(both)
            target = z.argmax(1) if self.target is None else self.target[rows]
            bent = None if self.head.linear else _along(self.head.d2, z, target, z_v)
            seed = torch.cat([self.head.d1(z, target), torch.zeros_like(z_v).flatten(0, 1) if bent is None else bent])
            mu = self.run.graph.down(s, seed)
            assert mu is not None
            scores[rows] = z
            gradient[rows], hv[:, rows] = s.split(mu)
            if keep:
                self.parts.append(_Part(rows, s, both, target))
        return hv, gradient, scores

    @numeric
    def extend(
        self, x: Tensor, u: Tensor | None, w: Tensor | None, scores_bar: Tensor | None, parts: list[_Part]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of <u, H v> + <w, nabla f> + <scores_bar, g> for x, then for v and the parameters."""
        grads: list[Tensor | None] = [None] * len(self.weights.params)
        dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
        dv = x.new_zeros(self.directions, *x.shape)
        for part in parts:
            s, rows = replace(part.sweep, extend=True, grads=grads), part.rows
            first = torch.zeros_like(x[rows]) if w is None else w[rows]
            others = torch.zeros_like(dv[:, rows]) if u is None else u[:, rows]
            added = self.run.graph.up(s, dense(torch.cat([first[None], others]).flatten(0, 1)))
            mu = self.run.graph.down(s, self._seed(part, added, None if scores_bar is None else scores_bar[rows]))
            if mu is not None:
                dx[rows], dv[:, rows] = s.split(mu)
        return dx, [dv, *grads]

    def _seed(self, part: _Part, added: Tensor, scores_bar: Tensor | None) -> Tensor | None:
        """Return the cotangents (nu_0, nu_v) of the scores."""
        z, z_v = part.sweep.split(part.scores)
        z_w, z_u = part.sweep.split(added)
        nu_v = None if self.head.linear else _along(self.head.d2, z, part.target, z_u)
        if nu_v is None:
            return None if scores_bar is None else torch.cat([scores_bar, torch.zeros_like(z_v).flatten(0, 1)])
        twist = _along(self.head.d3, z, part.target, z_u, z_v)
        nu_0 = self.head.d2(z, part.target, z_w)
        for term in (None if twist is None else twist.view_as(z_v).sum(0), scores_bar):
            nu_0 = nu_0 if term is None else term if nu_0 is None else nu_0 + term
        return torch.cat([torch.zeros_like(z) if nu_0 is None else nu_0, nu_v])


def products(run: Runtime | Fallback, f: Head, target: Tensor | None, acts: Any) -> Any:
    """Return what multiplies on the engine, or on autograd."""
    return Products(run, f, target, acts) if isinstance(run, Runtime) else run.products(f, target, acts)


def _along(derivative: Any, z: Tensor, target: Tensor, *directions: Tensor) -> Tensor | None:
    """Return a head's derivative [SN, K] along directions [S, N, K] each."""
    count = directions[0].shape[0]
    return derivative(z.repeat(count, 1), target.repeat(count), *(w.flatten(0, 1) for w in directions))


class _Product(torch.autograd.Function):
    """The products: forward starts, backward extends."""

    @staticmethod
    def forward(ctx: Any, run: Products, x: Tensor, v: Tensor, *weights: Tensor) -> Any:
        run.wanted = frozenset(i for i, weight in enumerate(weights) if weight.requires_grad)
        run.to_input = any(ctx.needs_input_grad[1:3])
        result = run.start(x, v)
        ctx.run, ctx.parts = run, run.parts
        ctx.generation, ctx.marks = run.weights.generation, run.weights.marks()
        ctx.save_for_backward(x, v, *weights)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, *Extend.apply(ctx, len(cotangents), *cotangents, *ctx.saved_tensors)
