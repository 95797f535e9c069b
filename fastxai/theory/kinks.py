"""Kinks: where a piecewise linear network bends along a path ([R] theorem 2).

Along a straight line every one is found. Between two neighbouring kinks the network is linear, so a unit's values there
say in closed form whether and where it bends in between. One walk through the graph, node by node, carries the values
at all kinks so far: a node adds the kinks of its own units, and what is still to be read is interpolated there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.graph import Input, ordered
from fastxai.engine.jets import Linear, Node, Sweep
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.max_pool import MaxPool
from fastxai.kernels.max_pool import Window
from fastxai.theory._common import pieces, prepare
from fastxai.theory.layers import closing_layers

__all__ = ["Kinks", "count_kinks", "segment_kinks"]

# Where a piecewise linear activation bends.
_BENDS = {"identity": (), "relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0)}
# What a node's sweep takes at one point, in multiples of the values that are read and written.
_COPIES = 12


@dataclass(frozen=True)
class Kinks:
    """The kinks of N segments x + t (other - x).

    Attributes:
        positions: t of every kink in [0, 1], ascending, N tensors in float64; as often as units bend there.
        units: how many are bends of an activation's units, LongTensor [N].
        winners: how many are changes of the pixel that wins a max-pool's window, LongTensor [N].
    """

    positions: tuple[Tensor, ...]
    units: Tensor
    winners: Tensor

    @property
    def weighted(self) -> Tensor:
        """The sum over kinks of [R] eq. 27: units + 2 winners, LongTensor [N].

        A change of winner moves the map by the difference of two rows, up to sqrt(2) times as far as a bend does.
        """
        return self.units + 2 * self.winners


@dataclass
class _Line:
    """Points of the segments, by sample and t; all values are linear between neighbours of one sample.

    Attributes:
        row: the sample that a point belongs to, LongTensor [P].
        t: [P] in float64.
        values: of the nodes that are still to be read, by index, [P, ...].
    """

    row: Tensor
    t: Tensor
    values: dict[int, Tensor]

    @property
    def joined(self) -> Tensor:
        """Whether a point and the next belong to one sample, bool [P - 1]."""
        return self.row[1:] == self.row[:-1]

    def between(self, v: Tensor, piece: Tensor, share: Tensor) -> Tensor:
        """Return a value [P, ...] at the given shares [R] of the pieces that begin at points [R]."""
        share = share.to(v.dtype).view(-1, *[1] * (v.dim() - 1))
        return v[piece] + share * (v[piece + 1] - v[piece])

    def cut(self, part: slice) -> _Line:
        """Return the pieces of a range; a point where one range ends and the next begins is in both."""
        points = slice(part.start, part.stop + 1)
        return _Line(self.row[points], self.t[points], {i: v[points] for i, v in self.values.items()})

    def refined(self, piece: Tensor, share: Tensor) -> _Line:
        """Return the line with points added at those shares of those pieces, one where several coincide."""
        if not len(piece):
            return self
        order = share.argsort(stable=True)
        order = order[piece[order].argsort(stable=True)]
        piece, share = piece[order], share[order]
        fresh = torch.ones_like(piece, dtype=torch.bool)
        fresh[1:] = (piece.diff() != 0) | (share.diff() != 0)
        piece, share = piece[fresh], share[fresh]
        place = torch.cat([torch.arange(len(self.t), device=piece.device), piece]).argsort(stable=True)
        values = {i: torch.cat([v, self.between(v, piece, share)])[place] for i, v in self.values.items()}
        row, t = torch.cat([self.row, self.row[piece]]), torch.cat([self.t, self.between(self.t, piece, share)])
        return _Line(row[place], t[place], values)


def _crossings(a: Tensor, level: float, line: _Line) -> tuple[Tensor, Tensor]:
    """Return (piece, share) of every place where a unit of a [P, ...] changes between <= level and above."""
    a = a.flatten(1)
    on = a > level
    piece, unit = ((on[1:] != on[:-1]) & line.joined[:, None]).nonzero(as_tuple=True)
    low, high = a[piece, unit].double() - level, a[piece + 1, unit].double() - level
    return piece, low / (low - high)


def _places(window: Window, size: Sequence[int]) -> Tensor:
    """Return which pixels [positions, windows] of an image of H, W the windows hold, by number; H W for the padding."""
    needed = [
        (o - 1) * s + d * (k - 1) + 1 - n - p
        for o, n, k, s, p, d in zip(
            *(window.output_size((size[0], size[1])), size, window.kernel),
            *(window.stride, window.padding, window.dilation),
            strict=True,
        )
    ]
    pixels = torch.arange(size[0] * size[1], dtype=torch.float64).view(1, 1, *size)
    pixels = F.pad(pixels, (window.padding[1], needed[1], window.padding[0], needed[0]), value=pixels.numel())
    return F.unfold(pixels, window.kernel, window.dilation, 0, window.stride)[0].long()


def _changes(x: Tensor, winners: Tensor, window: Window, line: _Line) -> tuple[Tensor, Tensor]:
    """Return (piece, share) of every change of winner inside a piece: the corners of the windows' upper envelopes.

    A tie at the start of a piece goes to what rises most, for its corner was found before. At the ends of a segment it
    goes to the network's own choice: there a change of winner counts too.

    Args:
        x: what the pool reads [P, C, H, W].
        winners: the positions that the network chooses [P, C, Ho, Wo].
        window: the pool's geometry.
        line: the points.
    """
    places = _places(window, x.shape[2:]).to(x.device)
    chosen, flat = winners.flatten(2).long(), x.flatten(2)
    kept = places[chosen[:-1], torch.arange(places.shape[1], device=x.device)]
    right = flat[1:].gather(2, places[chosen[1:], torch.arange(places.shape[1], device=x.device)])
    last = (line.t[1:] == 1)[:, None, None] & (chosen[1:] != chosen[:-1])
    # Lines that lead at both ends lead in between.
    wanted = ((flat[1:].gather(2, kept) < right) | last) & line.joined[:, None, None]
    piece, channel, place = wanted.nonzero(as_tuple=True)
    pixels = places.T[place]
    inside, pixels = pixels < flat.shape[2], pixels.clamp(max=flat.shape[2] - 1)
    low, high = (flat[p[:, None], channel[:, None], pixels].double() for p in (piece, piece + 1))
    # Padding lies far below everything and stays there.
    low, rise = torch.where(inside, low, -1e300), torch.where(inside, high - low, 0)
    begin, end = (chosen[p, channel, place] for p in (piece, piece + 1))
    steepest = torch.where(low == low.amax(1, keepdim=True), rise, -torch.inf).argmax(1)
    now, each = torch.where(line.t[piece] == 0, begin, steepest), torch.arange(len(piece), device=x.device)
    share, found = low.new_zeros(len(piece)), [(piece[:0], low.new_zeros(0))]
    while len(piece):
        faster = rise - rise[each, now][:, None]
        meet = torch.where(faster > 0, (low[each, now][:, None] - low) / faster, torch.inf)
        meet = torch.maximum(meet, share[:, None])
        nearest = meet.amin(1)
        on = nearest < 1
        if not on.any():
            break
        found.append((piece[on], nearest[on]))
        best = torch.where(meet <= nearest[:, None], rise, -torch.inf).argmax(1)
        now, share = torch.where(on, best, now), torch.where(on, nearest, share)
    top = low + rise
    tied = (line.t[piece + 1] == 1) & (end != now) & (top[each, end] == top[each, now])
    found.append((piece[tied], torch.ones_like(share[tied])))
    at, shares = zip(*found, strict=True)
    return torch.cat(at), torch.cat(shares)


def _walk(nodes: Sequence[Node], sweep: Sweep, line: _Line) -> Iterator[tuple[Node, Tensor, Tensor]]:
    """Yield (node, samples [R], t [R]) of every node's kinks; the line holds what the nodes read from outside."""
    until = {parent.index: i for i, node in enumerate(nodes) for parent in node.inputs}
    for i, node in enumerate(nodes):
        sizes = [*(v[0].numel() for v in line.values.values()), torch.Size(node.shape).numel()]
        parts = list(pieces(len(line.t) - 1, _COPIES * sum(sizes) * next(iter(line.values.values())).element_size()))
        if len(parts) > 1:
            for part in parts:
                yield from _walk(nodes[i:], sweep, line.cut(part))
            return
        read = [parent.index for parent in node.inputs]
        bends = [(line.row[:0], line.t[:0])]
        if isinstance(node, Activate):
            levels = _BENDS[sweep.activations[node.activation_slot].name]
            bends += [_crossings(line.values[read[0]], level, line) for level in levels]
        elif isinstance(node, MaxPool):
            pooled = replace(sweep, n=len(line.t), memory=[None] * len(sweep.memory))
            node.push(pooled, line.values[read[0]])
            bends.append(_changes(line.values[read[0]], pooled.memory[node.index], node.window, line))
        piece, share = (torch.cat(parts) for parts in zip(*bends, strict=True))
        yield node, line.row[piece], line.between(line.t, piece, share)
        line = line.refined(piece, share)
        pushed = replace(sweep, n=len(line.t), memory=[None] * len(sweep.memory))
        line.values[node.index] = node.push(pushed, *[line.values[p] for p in read])
        line.values = {p: v for p, v in line.values.items() if until.get(p, -1) > i}


def _bending_nodes(net: Net, x: Tensor) -> tuple[list[Node], Sweep]:
    """Return the nodes up to the last that bends, the input left out, and a sweep that holds their weights.

    Raises:
        ValueError: a node is not piecewise linear, or the net does not end with a layer.
    """
    site = closing_layers(net.base, x)[0][-1].site
    start = site.node
    while start.inputs:
        start = start.inputs[0]
    nodes = ordered(start, site.node)[1:]
    for node in nodes:
        bends = isinstance(node, Activate) and site.sweep.activations[node.activation_slot].name in _BENDS
        kind = site.sweep.activations[node.activation_slot].name if isinstance(node, Activate) else type(node).__name__
        known = bends or isinstance(node, (Linear, Bias, MaxPool))
        _check.require(known, "net", "be piecewise linear", f"{kind} at {node.path!r}")
    last = max((i for i, node in enumerate(nodes) if isinstance(node, (Activate, MaxPool))), default=-1)
    return nodes[: last + 1], site.sweep


@torch.no_grad()
def segment_kinks(net: Net, x: Tensor, other: Tensor) -> Kinks:
    """Return every kink of a ReLU network on the straight way from x to ``other``: units that bend, pools that switch.

    Exact but for rounding: no kink is missed, however close. It takes a forward pass a kink, of all samples together
    and in pieces that fit into memory, so it is for small networks. Units whose output a max-pool discards count.

    Args:
        net: compiled, ending with a layer; the model's own activations are meant, whatever the view has.
        x: where the segments start [N, ...].
        other: where they end, of x's shape.

    Raises:
        TypeError: net is no compiled net, x or other no floating point tensor.
        ValueError: the net is not piecewise linear or does not end with a layer; shapes, dtypes or devices differ; an
            end is not finite.
        RuntimeError: the engine cannot run the model.

    [R] eq. 27 has the kinks along a curve with g = const; the bound does not need that.

    >>> relu = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    >>> _ = [torch.nn.init.constant_(p, 1.0) for p in relu.parameters()]
    >>> net = fastxai.compile(relu)
    >>> fastxai.theory.segment_kinks(net, torch.tensor([[-3.0]]), torch.tensor([[1.0]])).positions
    (tensor([0.5000], dtype=torch.float64),)
    """
    x, _ = prepare(net, x, 0)
    other = _check.same_place(_check.tensor(other, "other"), "other", x, "x").detach()
    _check.shape(other, "other", tuple(x.shape))
    for end, name in ((x, "x"), (other, "other")):
        _check.require(bool(end.isfinite().all()), name, "be finite", "inf or nan")
    nodes, sweep = _bending_nodes(net, x)
    n = len(x)
    row = torch.arange(n, device=x.device).repeat_interleave(2)
    ends = torch.stack([x, other], 1).flatten(0, 1)
    if ends.dim() == 4:
        ends = ends.contiguous(memory_format=torch.channels_last)
    counts = {False: torch.zeros_like(row[:n]), True: torch.zeros_like(row[:n])}
    samples, positions = [row[:0]], [torch.zeros(0, dtype=torch.float64, device=x.device)]
    if n and nodes:
        start = nodes[0].inputs[0]
        assert isinstance(start, Input)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device).repeat(n)
        for node, at, t_kink in _walk(nodes, sweep, _Line(row, t, {start.index: ends})):
            counts[isinstance(node, MaxPool)] += at.bincount(minlength=n)
            samples.append(at)
            positions.append(t_kink)
    sample, position = torch.cat(samples), torch.cat(positions)
    order = position.argsort(stable=True)
    order = order[sample[order].argsort(stable=True)]
    split = position[order].split((counts[False] + counts[True]).tolist())
    return Kinks(split, counts[False], counts[True])


def count_kinks(net: Net, points: Tensor) -> Tensor:
    """Return how often units of a ReLU network change sign between consecutive points, LongTensor [N].

    A unit that changes sign and back between two points is missed (``segment_kinks`` finds it); one that a max-pool
    discards is counted, one that reads a sum is not.

    Args:
        net: compiled; the model's own activations are meant, whatever the view has.
        points: a path [T + 1, N, ...].

    Raises:
        TypeError: net is no compiled net, points no floating point tensor.
        ValueError: points hold no path, or one that is not finite.
        RuntimeError: the engine cannot run the model.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU()))
    >>> fastxai.theory.count_kinks(net, torch.tensor([-1.0, 1.0, 2.0, -1.0]).view(4, 1, 1))
    tensor([2])
    """
    fits = _check.tensor(points, "points").dim() >= 3 and len(points) > 1
    _check.require(fits, "points", "have shape [T + 1, N, ...] with T >= 1", list(points.shape))
    prepare(net, points[0], 0, "points")
    _check.require(bool(points.isfinite().all()), "points", "be finite", "inf or nan")
    kinks = torch.zeros(points.shape[1], dtype=torch.long, device=points.device)
    last: list[Tensor] = []
    for x in points.detach():
        signs: dict[Node, list[Tensor]] = {}
        for sample in net.base.layers(x):
            if sample.gated:
                signs.setdefault(sample.site.node, []).append((sample.outputs > 0).flatten(1))
        units = [torch.cat(chunks) for chunks in signs.values()]
        for now, before in zip(units, last, strict=bool(last)):
            kinks += (now != before).sum(1)
        last = units
    return kinks
