"""Integrated gradients: d * sum_k w_k nabla f(xbar + t_k d), d = x - xbar, and its exact derivative.

The affine prefix P is swept twice whatever the number of points, once up with the rows (xbar, d) and once down with a
sum over k. Seeds carry the weights w_k, so that every sum over k is plain:

    value    seeds w_k Df(z_k);  G = P^T sum_k mu_v,k;  map = d G
    adjoint  of a cotangent hbar of the map: the tangent v = d hbar, the same at every point; seeds w_k D2f z_v,k;
             M0 = sum_k mu_0,k, M1 = sum_k t_k mu_0,k
             dL/dx = hbar G + P^T M1;   dL/dxbar = P^T (M0 - M1) - hbar G
             weights of P: M0 (x) xbar + M1 (x) d + (sum_k mu_v,k) (x) v;   constants of P: M0

The scores g(x) are the point t = 1, which weighs nothing in the map; their cotangent goes down from there.
A group of samples shares one sweep of P; its points are swept piece by piece, as many rows as stay in cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.boundary import Boundary
from fastxai.engine.heads import Head
from fastxai.engine.jets import Sweep
from fastxai.engine.runtime import Activations, Extend, Runtime, dense, numeric

__all__ = ["Path"]

# Bytes that one map may hold for its backward; what lies beyond is swept again there.
_KEPT_BYTES = 1 << 30
# Rows of a piece where fewer would fit in cache: each piece reads every weight once. VGG-16 with 10 points at 224 px
# takes 4.0 to 4.4 s at 1 row, 3.5 to 3.7 s at 5, 4.3 s at 10, on two Zen 4 cores.
_LEAST_ROWS = 5
# Values of a piece for each weight, which it reads and perhaps adds a gradient to, while they take no more than so many
# bytes. An iteration of IFIA with 30 points on MNISTCNN takes 1152 ms at 41 rows, 926 at 160.
_WEIGHT_RATIO, _WEIGHT_BYTES = 4, 256 << 20
# Quadratures that are kept on a GPU, the last ones used.
_RULES = 16
# Bytes of all values in one piece on a GPU.
_GPU_BYTES = 2 << 30


class _Sums:
    """Sums over points at the boundary, by source: one or two components [n, ...] side by side."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.by_source: dict[int, Tensor] = {}

    def add(self, source: int, samples: slice, part: Tensor) -> None:
        """Add a piece's sums, which belong to some of the n samples."""
        m = samples.stop - samples.start
        components = part.shape[0] // m
        if source not in self.by_source:
            if m == self.n:
                self.by_source[source] = part
                return
            self.by_source[source] = dense(part.new_zeros(components * self.n, *part.shape[1:]))
        total = self.by_source[source].unflatten(0, (components, self.n))
        total[:, samples] += part.unflatten(0, (components, m))


@dataclass
class _Piece:
    """Some points of some samples, swept up and down; ``scores`` [KN, classes]."""

    sweep: Sweep
    scores: Tensor


@dataclass
class _Group:
    """Samples that share one sweep of the prefix.

    Attributes:
        n: how many.
        prefix: the prefix's sweep, which holds what its weight gradients need.
        starts: (a_0, a_d) [2n, ...] by source of the boundary.
        end: the sweep from the boundary up, at x itself.
        scores: at x, [n, classes].
        target: explained classes [n].
        pieces: those that are kept, by number.
    """

    n: int
    prefix: Sweep
    starts: dict[int, Tensor]
    end: Sweep
    scores: Tensor
    target: Tensor
    pieces: dict[int, _Piece] = field(default_factory=dict)


@dataclass
class _Walk:
    """One map: what is integrated, and what a backward goes on from.

    Attributes:
        path: whose graph.
        x, baseline: [N, ...].
        t, w: positions and weights [K], of x's dtype and device.
        head: the function of the scores.
        target: explained classes [N], or None for the highest score at x.
        acts: the activations of the view.
        wanted: slots of the parameters whose gradient may be asked for; None if no backward will follow.
        baseline_wanted: whether the baseline's gradient may be asked for.
        to_input: whether that or x's may be: else a backward stops at the lowest parameters.
        gradient: G, of x's shape.
        groups: where each is in the batch; None in place of one that is not kept.
    """

    path: Path
    x: Tensor
    baseline: Tensor
    t: Tensor
    w: Tensor
    head: Head
    target: Tensor | None
    acts: Activations
    wanted: frozenset[int] | None = None
    baseline_wanted: bool = False
    to_input: bool = True
    gradient: Tensor | None = None
    groups: list[tuple[slice, _Group | None]] = field(default_factory=list)

    def forward(self, room: int) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)); keep groups and pieces for a backward while they fit into ``room`` bytes."""
        keep = self.wanted is not None
        out = torch.empty_like(self.x, memory_format=torch.contiguous_format)
        scores = out.new_empty(out.shape[0], *self.path.run.graph.nodes[-1].shape)
        self.gradient = torch.empty_like(out) if keep else None
        for rows in _equal(self.x.shape[0], self.path.most(self.x, 2)):
            group, sums = self._open(rows), _Sums(rows.stop - rows.start)
            size = _bytes([group.prefix.memory, group.end.memory, group.starts])
            kept = keep and size <= room
            room -= size if kept else 0
            for number, (samples, steps) in enumerate(self._places(group.n)):
                piece = self._sweep_piece(group, samples, steps, sums)
                size = _bytes(piece.sweep.memory) if kept else 0
                if kept and size <= room:
                    group.pieces[number] = piece
                    room -= size
            gradient = self._pull_prefix(group.prefix, sums.by_source)
            assert gradient is not None
            scores[rows], out[rows] = group.scores, gradient * (self.x[rows] - self.baseline[rows])
            if self.gradient is not None:
                self.gradient[rows] = gradient
                self.groups.append((rows, group if kept else None))
        return out, scores

    def backward(self, v: Tensor | None, scores_bar: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of <v, map> + <scores_bar, g> for x, then for the baseline and every parameter."""
        assert self.gradient is not None
        grads: list[Tensor | None] = [None] * len(self.path.weights.params)
        dx = torch.zeros_like(self.gradient) if v is None else v * self.gradient
        dbaseline = -dx if self.baseline_wanted else None
        for rows, known in self.groups:
            group = known or self._open(rows)
            n, s = group.n, _extension(group.prefix, grads)
            moments = self._moments(group, s, rows, v, scores_bar)
            if not (self.wanted or self.baseline_wanted):
                moments = {source: both[n:] for source, both in moments.items()}
            mu = self._pull_prefix(s, moments)
            if mu is not None:
                dx[rows] += mu[-n:]
                if dbaseline is not None:
                    dbaseline[rows] += mu[:n] - mu[n:]
        return dx, [dbaseline, *grads]

    def _moments(
        self, group: _Group, s: Sweep, rows: slice, v: Tensor | None, scores_bar: Tensor | None
    ) -> dict[int, Tensor]:
        """Return (M0, M1) [2n, ...] by source; ``s`` extends the group's prefix, and gets its tangents here."""
        moments, sums = _Sums(group.n), _Sums(group.n)
        d = self.x[rows] - self.baseline[rows]
        tangents = self._push_prefix(s, torch.zeros_like(d) if v is None else d * v[rows])
        for number, (samples, steps) in enumerate(self._places(group.n) if v is not None else ()):
            piece = group.pieces.get(number) or self._sweep_piece(group, samples, steps, sums)
            more, t = _extension(piece.sweep, s.grads), self.t[steps]
            z_v = self._climb(more, {source: a_v[samples] for source, a_v in tangents.items()}, t)
            seed = self.head.d2(piece.scores, self._targets(group, samples, t), z_v)
            self._descend(more, None if seed is None else self._weighted(seed, steps), samples, t, moments)
        if self.wanted and sums.by_source and not group.pieces:
            # A group that was not kept lacks the cotangents that the gradients of its prefix's weights need.
            self._pull_prefix(group.prefix, sums.by_source)
        if scores_bar is not None:
            end = _extension(group.end, s.grads)
            self._descend(end, dense(scores_bar[rows]), slice(0, group.n), self.t.new_ones(1), moments)
        return moments.by_source

    def _open(self, rows: slice) -> _Group:
        """Sweep the prefix up, and on from there to the scores at x."""
        n = rows.stop - rows.start
        prefix, end = self._sweep(n, 1), self._sweep(n)
        starts = self._push_prefix(prefix, torch.cat([self.baseline[rows], self.x[rows] - self.baseline[rows]]))
        scores = self._climb(end, starts, self.t.new_ones(1))
        target = scores.argmax(1) if self.target is None else self.target[rows]
        return _Group(n, prefix, starts, end, scores, target)

    def _places(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Yield (samples, steps) of a group's pieces: all steps of some samples, or some steps of one."""
        most = self.path.most(self.x, 1 if self.wanted is None else 2)
        steps = _equal(self.t.shape[0], most)
        for samples in _equal(n, max(1, most // self.t.shape[0])):
            for step in steps:
                yield samples, step

    def _sweep_piece(self, group: _Group, samples: slice, steps: slice, sums: _Sums) -> _Piece:
        """Sweep one piece up and down; add what arrives at the boundary to ``sums``."""
        t, n = self.t[steps], group.n
        s = self._sweep((samples.stop - samples.start) * t.shape[0])
        whole = samples == slice(0, n)
        picked = {i: a if whole else torch.cat([a[:n][samples], a[n:][samples]]) for i, a in group.starts.items()}
        scores = self._climb(s, picked, t)
        seed = self.head.d1(scores, self._targets(group, samples, t))
        self._descend(s, self._weighted(seed, steps), samples, t, sums)
        return _Piece(s, scores)

    def _targets(self, group: _Group, samples: slice, t: Tensor) -> Tensor:
        return group.target[samples].repeat(t.shape[0])

    def _weighted(self, seed: Tensor, steps: slice) -> Tensor:
        w = self.w[steps]
        return (seed.unflatten(0, (w.shape[0], -1)) * w[:, None, None]).flatten(0, 1)

    def _sweep(self, n: int, directions: int = 0) -> Sweep:
        prepared, memory = self.path.weights.prepared(self.x), [None] * len(self.path.run.graph.nodes)
        kept = {"keep": self.wanted is not None, "wanted": self.wanted or frozenset(), "to_input": self.to_input}
        return Sweep(n, directions, prepared, self.acts, memory, **kept)

    def _push_prefix(self, s: Sweep, rows: Tensor) -> dict[int, Tensor]:
        """Push rows of the input to the boundary; return its values by source."""
        boundary = self.path.boundary
        values: list[Any] = [None] * len(s.memory)
        values[0] = dense(rows)
        boundary.prefix.up(s, values)
        return {source: values[source] for source in boundary.sources}

    def _pull_prefix(self, s: Sweep, nus: dict[int, Tensor]) -> Tensor | None:
        """Pull cotangents of the boundary's values to the input."""
        cotangents: list[Tensor | None] = [nus.get(i) for i in range(len(s.memory))]
        self.path.boundary.prefix.down(s, cotangents)
        return cotangents[0]

    def _climb(self, s: Sweep, starts: dict[int, Tensor], t: Tensor) -> Tensor:
        """Push from the boundary to the scores of all points."""
        values: list[Any] = [None] * len(s.memory)
        for gate in self.path.boundary.gates:
            values[gate.index] = gate.push(s, starts[gate.source], t)
        self.path.boundary.upper.up(s, values)
        return values[-1]

    def _descend(self, s: Sweep, nu: Tensor | None, samples: slice, t: Tensor, sums: _Sums) -> None:
        """Pull cotangents of the scores to the boundary; add up what arrives."""
        cotangents: list[Tensor | None] = [None] * len(s.memory)
        cotangents[-1] = nu
        self.path.boundary.upper.down(s, cotangents)
        for gate in self.path.boundary.gates:
            part = gate.pull(s, cotangents[gate.index], t)
            if part is not None:
                sums.add(gate.source, samples, part)


class Path:
    """The integrals of one runtime's graph along straight paths."""

    def __init__(self, run: Runtime, kept_bytes: int = _KEPT_BYTES, rows: int | None = None) -> None:
        """Integrate over ``run``'s graph.

        Args:
            run: the graph with its weights.
            kept_bytes: what a map may hold for its backward.
            rows: at most so many in one sweep; None is what fits in cache, or into a GPU's share.
        """
        self.run, self.weights, self.kept_bytes, self.rows = run, run.weights, kept_bytes, rows
        self.boundary = Boundary(run.graph)
        self._per_row = sum(torch.Size(node.shape).numel() for node in run.graph.nodes)
        self._known: OrderedDict[Any, list[Tensor]] = OrderedDict()

    def _placed(self, points: tuple[Tensor, Tensor], x: Tensor) -> list[Tensor]:
        """Return the points in x's dtype and on its device, kept there: to copy numbers waits for a GPU."""
        if points[0].device == x.device:
            return [value.to(x.dtype) for value in points]
        key = (*(tuple(value.tolist()) for value in points), x.dtype, x.device)
        if key not in self._known:
            self._known[key] = [value.to(x.device, x.dtype) for value in points]
            if len(self._known) > _RULES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def most(self, x: Tensor, components: int) -> int:
        """Return how many rows of inputs like x may be swept at once."""
        if self.rows is not None:
            return max(1, self.rows // components)
        if x.device.type == "cpu":
            size = self._per_row * components * x.element_size()
            balanced = min(_WEIGHT_RATIO * self.weights.size // self._per_row, _WEIGHT_BYTES // size)
            return max(_LEAST_ROWS, balanced, self.run.most(x, components))
        return max(1, _GPU_BYTES // (self._per_row * components * x.element_size()))

    def integrate(
        self,
        x: Tensor,
        baseline: Tensor,
        points: tuple[Tensor, Tensor],
        head: Head,
        target: Tensor | None,
        acts: Activations,
        *,
        parameters: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)), differentiable in x, the baseline and, where ``parameters``, the parameters.

        Args:
            x: inputs [N, ...].
            baseline: of x's shape.
            points: positions and weights, [K] each.
            head: the function of the scores that is integrated.
            target: explained classes [N], or None for the highest score at x.
            acts: the activations of the view.
            parameters: whether gradients of the parameters may be asked for.
        """
        t, w = self._placed(points, x)
        walk = _Walk(self, x.detach(), baseline.detach(), t, w, head, target, acts)
        parameters = parameters and torch.is_grad_enabled() and self.weights.require_grad
        weights = self.weights.differentiable(x) if parameters else []
        if not torch.is_grad_enabled() or not (x.requires_grad or baseline.requires_grad or weights):
            return self.start(walk.x, walk)
        return _Integral.apply(walk, x, baseline, *weights)

    @numeric
    def start(self, x: Tensor, walk: _Walk) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x))."""
        return walk.forward(self.kept_bytes)

    @numeric
    def extend(
        self, x: Tensor, v: Tensor | None, scores_bar: Tensor | None, walk: _Walk
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients for x, then for the baseline and every wanted parameter."""
        return walk.backward(v, scores_bar)


class _Integral(torch.autograd.Function):
    """The integrated gradient: forward sweeps all points, backward extends them by the tangent d hbar."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, *tensors: Tensor) -> Any:
        weights = tensors[2:]
        walk.wanted = frozenset(i for i, weight in enumerate(weights) if weight.requires_grad)
        walk.baseline_wanted, walk.to_input = ctx.needs_input_grad[2], any(ctx.needs_input_grad[1:3])
        ctx.run, ctx.parts = walk.path, walk
        result = walk.path.start(walk.x, walk)
        ctx.generation, ctx.marks = walk.path.weights.generation, walk.path.weights.marks()
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, *Extend.apply(ctx, len(cotangents), *cotangents, *ctx.saved_tensors)


def _extension(s: Sweep, grads: list[Tensor | None] | None) -> Sweep:
    return replace(s, extend=True, grads=grads)


def _equal(n: int, most: int) -> list[slice]:
    """Split n into slices of about equal size, at most ``most`` each."""
    pieces = -(-n // most)
    return [slice(n * i // pieces, n * (i + 1) // pieces) for i in range(pieces)]


def _bytes(memory: Any) -> int:
    """Return the size of every storage that a nest of lists, dicts and dataclasses refers to."""
    seen: dict[int, int] = {}
    stack = [memory]
    while stack:
        entry = stack.pop()
        if isinstance(entry, Tensor):
            seen[entry.untyped_storage().data_ptr()] = entry.untyped_storage().nbytes()
        elif isinstance(entry, (list, tuple)):
            stack += entry
        elif isinstance(entry, dict):
            stack += entry.values()
        elif is_dataclass(entry):
            stack += vars(entry).values()
    return sum(seen.values())
