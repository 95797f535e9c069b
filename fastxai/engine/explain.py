"""Explaining by rules: four sweeps, as numbers or as one differentiable function.

    1 value    up     the network's own values, all kept
    2 explain  down   every node's rule: relevance r
    3 adjoint  up     every rule's adjoint: t, the cotangent of r, and sources on values and parameters
    4 pull     down   the ordinary derivative, of the sources and of the scores' cotangent

Sweeps 1 and 2 are the map; 3 and 4 its derivative. For the ordinary derivative as a rule, 3 and 4 are the order-1 jet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine.graph import Graph, ordered
from fastxai.engine.jets import Layer, Node, Sweep, add
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.cat import Cat
from fastxai.engine.nodes.max_pool import MaxPool
from fastxai.engine.nodes.reshape import Permute, Reshape
from fastxai.engine.rules import Composite, PassThrough, Site
from fastxai.engine.runtime import Activations, Extend, Runtime, dense, numeric
from fastxai.engine.weights import evaluate

__all__ = ["SEEDS", "LayerSample", "RuleRuntime"]

SEEDS = ("one", "score")
_MOVES = (Cat, MaxPool, Permute, Reshape)


@dataclass
class _Part:
    """What sweeps 1 and 2 of one chunk leave for 3 and 4."""

    sweep: Sweep
    values: list[Tensor]
    sites: list[Site]
    saved: list[Any]
    seed: str
    onehot: Tensor


@dataclass(frozen=True)
class LayerSample:
    """What one layer reads and writes.

    Attributes:
        site: the layer in its sweep.
        weight: its effective weight.
        inputs: x [N, ...].
        outputs: W x + b [N, ...].
        gated: True if only activations read it.
    """

    site: Site
    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    gated: bool


@dataclass
class _Box:
    """The range of a first layer's input, and the sweep of the network's own box that led there.

    Attributes:
        generation: of the weights it was made of.
        ends: lowest and highest input of the layer [1, ...].
        swapped: where the low end of the network's box gave the high one.
        sweep: of two rows, the network's lowest and highest input.
        values: by node, of the layer's ancestors [2, ...].
    """

    generation: int
    ends: tuple[Tensor, Tensor]
    swapped: Tensor
    sweep: Sweep
    values: dict[int, Tensor]


class RuleRuntime(Runtime):
    """A graph with its weights and a rule for every node."""

    def __init__(self, start: Node, output: Node, composite: Composite) -> None:
        nodes = ordered(start, output)
        self.rules = composite.assign(nodes)
        super().__init__(Graph(start, output, overwrite=False))
        self._readers: list[list[Node]] = [[] for _ in nodes]
        for node in nodes:
            for parent in node.inputs:
                self._readers[parent.index].append(node)
        self._boxes: dict[int, _Box] = {}
        self._closed_layers: dict[tuple[str, ...], frozenset[int]] = {}

    def attribute(
        self, x: Tensor, target: Tensor | None, acts: Activations, seed: str, *, parameters: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (the map, g(x)), differentiable in x and, where ``parameters``, in the model's parameters."""
        parameters = parameters and torch.is_grad_enabled() and self.weights.require_grad
        weights = self.weights.differentiable(x) if parameters else []
        if not torch.is_grad_enabled() or not (x.requires_grad or weights):
            return self.explain_only(x, target, acts, seed, None)[:2]
        return _Relevance.apply(self, target, acts, seed, x, *weights)

    @numeric
    def explain_only(
        self, x: Tensor, target: Tensor | None, acts: Activations, seed: str, wanted: frozenset[int] | None
    ) -> tuple[Tensor, Tensor, list[tuple[slice, _Part]]]:
        """Return (the map, g(x), chunks to go on from); no chunk is kept where ``wanted`` is None."""
        prepared = self.weights.prepared(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scores = x.new_empty(x.shape[0], *self.graph.nodes[-1].shape)
        parts = []
        for rows in self.chunks(x, 2):
            n, keep = rows.stop - rows.start, wanted is not None
            s = self.sweep(n, 0, prepared, acts, keep=keep, wanted=wanted or frozenset())
            values = self._values(s, dense(x[rows]))
            scores[rows] = values[-1]
            chosen = scores[rows].argmax(1) if target is None else target[rows]
            onehot = torch.zeros_like(values[-1]).scatter_(1, chosen[:, None], 1)
            part = _Part(s, values, self._sites(s, values[0]), [], seed, onehot)
            out[rows] = self._explain(part, onehot * values[-1] if seed == "score" else onehot)
            if wanted is not None:
                parts.append((rows, part))
        return out, scores, parts

    @numeric
    def layers(self, x: Tensor, acts: Activations) -> list[LayerSample]:
        """Return what every layer reads and writes for x [N, ...], all at once: N should be small."""
        s = self.sweep(x.shape[0], 0, self.weights.prepared(x), acts)
        values = self._values(s, dense(x))
        nodes = [node for node in self.graph.nodes if isinstance(node, Layer)]
        inputs = [values[self.graph.inputs[node.index][0]] for node in nodes]
        weights = evaluate([node.params[0] for node in nodes], x)
        return [
            LayerSample(Site(node, s), weight.detach(), read, values[node.index], self.gated(node))
            for node, weight, read in zip(nodes, weights, inputs, strict=True)
        ]

    def gated(self, node: Node) -> bool:
        """Return True if everything that reads a node is an activation, pools and reshapes in between allowed."""
        readers = self._readers[node.index]
        return bool(readers) and all(
            isinstance(reader, Activate) or (isinstance(reader, (MaxPool, Reshape)) and self.gated(reader))
            for reader in readers
        )

    def _closed_of(self, acts: Activations) -> frozenset[int]:
        """Return the numbers of the layers that are closed, which depends on the activations' names alone."""
        names = tuple(act.name for act in acts)
        if names not in self._closed_layers:
            layers = [node for node in self.graph.nodes if isinstance(node, Layer)]
            self._closed_layers[names] = frozenset(node.index for node in layers if self._closed(node, acts))
        return self._closed_layers[names]

    def _closed(self, node: Node, acts: Activations) -> bool:
        """Return True if relevance of a node's output is zero wherever that is not positive, and t is ignored there.

        So it is below a ReLU that relevance passes, if every reader of the ReLU's output multiplies by it: in sweeps 2
        and 3 by the zero itself, in sweep 4 by the ReLU's derivative.
        """

        def closing(reader: Node) -> bool:
            if not isinstance(reader, Activate):
                return isinstance(reader, _MOVES) and self._closed(reader, acts)
            relu = acts[reader.activation_slot].name in ("relu", "relu6")
            return relu and isinstance(self.rules[reader.index], PassThrough) and self._proportional(reader)

        return bool(self._readers[node.index]) and all(map(closing, self._readers[node.index]))

    def _proportional(self, node: Node) -> bool:
        readers = self._readers[node.index]
        return bool(readers) and all(
            self.rules[reader.index].proportional or (isinstance(reader, _MOVES) and self._proportional(reader))
            for reader in readers
        )

    def _values(self, s: Sweep, x: Tensor) -> list[Tensor]:
        values = [x]
        for node in self.graph.nodes[1:]:
            values.append(node.push(s, *[values[p] for p in self.graph.inputs[node.index]]))
        return values

    def _sites(self, s: Sweep, x: Tensor) -> list[Site]:
        def wanted(node: Node) -> frozenset[int]:
            return frozenset(i for i in range(len(node.params)) if node.slot + i in s.wanted)

        sites, closed = [], self._closed_of(s.activations)
        for node, rule in zip(self.graph.nodes, self.rules, strict=True):
            box = None if rule.box is None else self._box(s, node, rule.box, x)
            moves = box is not None and any(wanted(self.graph.nodes[i]) for i in box.values)
            ends = None if box is None else box.ends
            sites.append(Site(node, s, wanted(node), ends, moves, node.index in closed))
        return sites

    def _box(self, s: Sweep, node: Node, box: tuple[Any, Any], like: Tensor) -> _Box:
        """Return the lowest and highest input of a node, for a box of the network's input."""
        known = self._boxes.get(node.index)
        if known is not None and known.generation == self.weights.generation:
            return known
        shape = self.graph.nodes[0].shape
        ends = [torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in box]
        for end in ends:
            good = end.dim() == 0 or len(end) in (1, shape[0])
            _check.require(good, "low, high", f"have one value or {shape[0]}, one a channel", list(end.shape))
        rows = torch.stack([end.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) for end in ends])
        values: dict[int, Tensor] = {0: dense(rows)}
        probe = self.sweep(2, 0, s.prepared, s.activations)

        def value(i: int) -> Tensor:
            if i not in values:
                values[i] = self.graph.nodes[i].push(probe, *[value(p) for p in self.graph.inputs[i]])
            return values[i]

        low, high = value(self.graph.inputs[node.index][0]).split(1)
        sorted_ends = torch.minimum(low, high), torch.maximum(low, high)
        made = _Box(self.weights.generation, sorted_ends, low > high, probe, values)
        self._boxes[node.index] = made
        return made

    def _pull_box(self, part: _Part, node: Node, ends: tuple[Tensor, Tensor]) -> None:
        """Collect the gradients of the parameters between the input and a node, for cotangents of its box."""
        box, (low, high) = self._boxes[node.index], ends
        sweep = replace(box.sweep, grads=part.sweep.grads, wanted=part.sweep.wanted)
        both = torch.cat([torch.where(box.swapped, high, low), torch.where(box.swapped, low, high)])
        cotangents: dict[int, Tensor | None] = {self.graph.inputs[node.index][0]: both}
        for i in sorted(box.values, reverse=True)[:-1]:
            above, parents, nu = self.graph.nodes[i], self.graph.inputs[i], cotangents.pop(i)
            assert nu is not None
            above.collect(sweep, [box.values[p] for p in parents], nu)
            for p, mu in zip(parents, above.pull(sweep, nu), strict=True):
                cotangents[p] = add(cotangents.get(p), mu)

    def _explain(self, part: _Part, seed: Tensor) -> Tensor:
        """Sweep 2: return the input's relevance."""
        relevance: list[Tensor | None] = [None] * len(part.values)
        relevance[-1] = seed
        part.saved = [None] * len(part.values)
        for node in reversed(self.graph.nodes[1:]):
            i = node.index
            r, relevance[i] = relevance[i], None
            assert r is not None
            xs = [part.values[p] for p in self.graph.inputs[i]]
            below, saved = self.rules[i].explain(part.sites[i], xs, part.values[i], r)
            part.saved[i] = saved if part.sweep.keep else None
            for p, share in zip(self.graph.inputs[i], below, strict=True):
                relevance[p] = add(relevance[p], share)
        assert relevance[0] is not None
        return relevance[0]

    def _adjoint(self, part: _Part, t: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Sweep 3: return t at the scores, and the sources on every value."""
        ts: list[Any] = [None] * len(part.values)
        ts[0] = t
        sources: list[Tensor | None] = [None] * len(part.values)
        for node in self.graph.nodes[1:]:
            i, parents = node.index, self.graph.inputs[node.index]
            xs = [part.values[p] for p in parents]
            got = self.rules[i].adjoint(part.sites[i], xs, part.values[i], part.saved[i], [ts[p] for p in parents])
            ts[i] = got.t_out
            for p, source in zip(parents, got.x or [None] * len(parents), strict=True):
                sources[p] = add(sources[p], source)
            sources[i] = add(sources[i], got.y)
            for position, grad in got.grads.items():
                part.sweep.collect(node.slot + position, grad)
            if got.box is not None:
                self._pull_box(part, node, got.box)
            for p in self.graph.up_frees[i]:
                ts[p] = None
        return ts[-1], sources

    def _pull(self, part: _Part, sources: list[Tensor | None]) -> Tensor | None:
        """Sweep 4: return the input's cotangent."""
        plain = replace(part.sweep, keep=False)
        for node in reversed(self.graph.nodes[1:]):
            i, parents = node.index, self.graph.inputs[node.index]
            nu, sources[i] = sources[i], None
            if nu is None:
                continue
            node.collect(plain, [part.values[p] for p in parents], nu)
            for p, mu in zip(parents, node.pull(plain, nu), strict=True):
                old = sources[p]
                if old is not None and mu is not None and node.pulls_new_memory:
                    sources[p] = mu.add_(old)
                else:
                    sources[p] = add(old, mu)
        return sources[0]

    @numeric
    def extend(
        self, x: Tensor, v: Tensor | None, scores_bar: Tensor | None, parts: list[tuple[slice, Any]]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of <v, map> + <scores_bar, g> for x and for every wanted parameter."""
        grads: list[Tensor | None] = [None] * len(self.weights.params)
        dx = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for rows, part in parts:
            part.sweep.grads = grads
            sources: list[Tensor | None] = [None] * len(part.values)
            if v is not None:
                top, sources = self._adjoint(part, dense(v[rows]))
                if part.seed == "score":
                    sources[-1] = add(sources[-1], part.onehot * top)
            if scores_bar is not None:
                sources[-1] = add(sources[-1], scores_bar[rows])
            mu = self._pull(part, sources)
            if mu is not None:
                dx[rows] = mu
        return dx, grads


class _Relevance(torch.autograd.Function):
    """A rule-based map: forward is sweeps 1 and 2, backward 3 and 4."""

    @staticmethod
    def forward(
        ctx: Any, run: RuleRuntime, target: Tensor | None, acts: Activations, seed: str, *tensors: Tensor
    ) -> Any:
        x, *weights = tensors
        wanted = frozenset(i for i, weight in enumerate(weights) if weight.requires_grad)
        out, scores, ctx.parts = run.explain_only(x, target, acts, seed, wanted)
        ctx.run, ctx.generation, ctx.marks = run, run.weights.generation, run.weights.marks()
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return out, scores

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        return None, None, None, None, *Extend.apply(ctx, len(cotangents), *cotangents, *ctx.saved_tensors)
