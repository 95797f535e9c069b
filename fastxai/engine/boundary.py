"""The affine prefix of a graph, and the gates through which a straight path enters the rest.

Every node that is affine in the input belongs to the prefix P. Along x_k = xbar + t_k d the values at its boundary are
a_k = a_0 + t_k a_d, so P itself sees two rows, xbar (with the constants) and d (without), for any number of points. A
gate turns them into the rows of all points for one reader, and reduces what comes back over the points:

    start   up: (a_0, a_d) [2N] -> [KN];  down: nu_v [KN] -> sum_k mu_v,k [N]
    extend  up: a_v [N], the same at all points -> [KN];  down: nu_0 [KN] -> (M0, M1) = sum_k (1, t_k) mu_0,k [2N]

Rows of points are k-major: row k N + n.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai.engine.graph import Graph, Part
from fastxai.engine.jets import Linear, Node, Sweep
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.bias import Bias
from fastxai.kernels import _memory, interpolate

__all__ = ["Boundary", "Gate"]


class Gate(ABC):
    """One place where the path enters: it reads value ``source`` of the prefix and gives value ``index``."""

    def __init__(self, source: int, index: int) -> None:
        self.source, self.index = source, index

    @abstractmethod
    def push(self, s: Sweep, a: Tensor, t: Tensor) -> Tensor:
        """Return the rows of all points."""

    @abstractmethod
    def pull(self, s: Sweep, nu: Tensor | None, t: Tensor) -> Tensor | None:
        """Return the sums over the points; None is zero."""


@dataclass
class _Memory:
    kept: Tensor
    nu_v: Tensor | None = None
    a_v: Tensor | None = None


class Fused(Gate):
    """An activation that reads the prefix: its kernels interpolate and reduce on the way."""

    def __init__(self, node: Activate) -> None:
        super().__init__(node.inputs[0].index, node.index)
        self.node = node

    def push(self, s: Sweep, a: Tensor, t: Tensor) -> Tensor:
        """Activate every point; in an extension push the one tangent through all of them."""
        act = s.activations[self.node.activation_slot]
        if s.extend:
            memory = s.memory[self.index]
            memory.a_v = a
            return interpolate.tangent(act, memory.kept, a)
        y, kept = interpolate.push(act, a, t, s.prepared[self.index])
        s.memory[self.index] = _Memory(kept)
        return y

    def pull(self, s: Sweep, nu: Tensor | None, t: Tensor) -> Tensor | None:
        """Reduce over the points."""
        act, memory = s.activations[self.node.activation_slot], s.memory[self.index]
        if not s.extend:
            memory.nu_v = nu if s.keep else None
            return None if nu is None else interpolate.reduce(act, memory.kept, nu, t.shape[0])
        if memory.nu_v is not None and not act.flat:
            nu_v, a_v = memory.nu_v, memory.a_v
        elif nu is not None:
            nu_v, a_v = nu, nu.new_zeros(nu.shape[0] // t.shape[0], *nu.shape[1:])
        else:
            return None
        both = interpolate.reduce_primal(act, memory.kept, a_v, nu_v, nu, t)
        if self.node.slot in s.wanted:
            s.collect(self.node.slot, both[: a_v.shape[0]].sum([0, *range(2, self.node.dim)]))
        return both


class Plain(Gate):
    """Any other reader, or the scores themselves: the value is written out for every point."""

    def __init__(self, source: int) -> None:
        super().__init__(source, source)

    def push(self, s: Sweep, a: Tensor, t: Tensor) -> Tensor:
        """Write a_0 + t_k a_d; in an extension repeat the tangent."""
        points = t.shape[0]
        start, step = (a, None) if s.extend else a.chunk(2)
        rows = _memory.empty((points * start.shape[0], *a.shape[1:]), a, last=a.dim() == 4)
        by_point = rows.unflatten(0, (points, start.shape[0]))
        if step is None:
            by_point.copy_(start)
        else:
            torch.addcmul(start, t.view(-1, *[1] * a.dim()), step, out=by_point)
        return rows

    def pull(self, s: Sweep, nu: Tensor | None, t: Tensor) -> Tensor | None:
        """Sum over the points."""
        if nu is None:
            return None
        ones = torch.ones_like(t)
        return _combine(torch.stack([ones, t]) if s.extend else ones[None], nu)


def _combine(factors: Tensor, nu: Tensor) -> Tensor:
    """Return sum_k factors[r, k] nu_k for factors [R, K] and nu [KN, ...] as [RN, ...], by one matrix product."""
    image = nu.dim() == 4
    flat = nu.permute(0, 2, 3, 1) if image else nu
    rows, points = factors.shape
    out = factors @ flat.reshape(points, -1)
    out = out.reshape(rows * nu.shape[0] // points, *flat.shape[1:])
    return out.permute(0, 3, 1, 2) if image else out


class Boundary:
    """A graph cut where it stops being affine in the input.

    Attributes:
        prefix, upper: the parts on either side; the input is in neither, nor are the activations that gates replace.
        gates: how values get from one to the other.
        sources: the values that gates read.
    """

    def __init__(self, graph: Graph) -> None:
        start, *nodes = graph.nodes
        affine: set[Node] = {start}
        for node in nodes:
            if isinstance(node, (Linear, Bias)) and affine.issuperset(node.inputs):
                affine.add(node)
        rest = [node for node in nodes if node not in affine]
        fused = [node for node in rest if isinstance(node, Activate) and node.inputs[0] in affine]
        upper = [node for node in rest if node not in fused]
        open_ends = {parent.index for node in upper for parent in node.inputs if parent in affine}
        if graph.nodes[-1] in affine:
            open_ends.add(graph.nodes[-1].index)
        self.gates: list[Gate] = [*map(Fused, fused), *map(Plain, sorted(open_ends))]
        self.sources = sorted({gate.source for gate in self.gates})
        self.prefix = Part([node for node in nodes if node in affine], keep=self.sources)
        self.upper = Part(upper)
