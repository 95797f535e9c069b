"""How a gradient map changes along a path of images, link by link of [R]'s bound.

    ||h(x_T) - h(x_0)||  <=  int ||H gamma'|| dt  <=  max ||H||_2 L  <=  max ||H||_F L          h = nabla g_k

The left side is exact, and so is [R] eq. 4, h(x_T) - h(x_0) = int H(gamma) gamma' dt, where g is twice differentiable.
With max-pools it is not: the map jumps where one changes its winner, H does not see it, and the first link can fail. So
the jumps are measured beside the integral: over a segment, the change of the map less the integral.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.theory._common import Target, count, flat_hvp, pieces, prepare, row_norm
from fastxai.theory.layers import smoothness
from fastxai.theory.spectrum import frobenius_norm, spectral_norm

__all__ = ["PathChange", "maps_jump", "path_change", "path_length"]


# A segment is 1/4096 then.
_HALVINGS = 12
# What is missed and no more than so many roundings of the maps, and not even half of what the whole segment missed, is
# rounding.
_ROUNDINGS = 1024


@dataclass(frozen=True)
class PathChange:
    """Every link of the chain, per sample [N] unless said otherwise.

    Attributes:
        change: h(x_T) - h(x_0), [N, ...].
        integral: int H gamma' dt, of the same shape: the same by [R] eq. 4.
        total: int ||H gamma'|| dt.
        jumps: sum over the segments of ||change - integral||: what H does not see, and the error of the quadrature.
        length: L, of the polyline.
        distance: ||x_T - x_0||.
        spectral: max ||H||_2 over the sampled points, at most that over the path.
        frobenius: max ||H||_F over them, likewise, by Hutchinson's estimate.
        frobenius_error: its standard error at the point of the maximum.
    """

    change: Tensor
    integral: Tensor
    total: Tensor
    jumps: Tensor
    length: Tensor
    distance: Tensor
    spectral: Tensor
    frobenius: Tensor
    frobenius_error: Tensor

    @property
    def moved(self) -> Tensor:
        """||h(x_T) - h(x_0)||, [N]."""
        return row_norm(self.change.flatten(1))

    @property
    def closure(self) -> Tensor:
        """||integral - change|| / ||change||, [N]: how far [R] eq. 4 is missed; NaN where both are 0."""
        return row_norm((self.integral - self.change).flatten(1)) / self.moved

    @property
    def ratios(self) -> dict[str, Tensor]:
        """Each link over the next, [N] each: the nearer to 1, the tighter; NaN where both are 0.

        The first holds whatever the net: the map moves by the integral and the jumps at most. The others are at most 1
        but for the error of ||H||_F; the last is the whole chain as printed, which needs a net without jumps.
        """
        links = {
            "change / (integral + jumps)": self.moved / (self.total + self.jumps),
            "integral / spectral": self.total / (self.spectral * self.length),
            "spectral / Frobenius": self.spectral / self.frobenius,
        }
        return {**links, "change / Frobenius": self.moved / (self.frobenius * self.length)}

    def __str__(self) -> str:
        """Return the chain, as medians over the batch; NaN of an empty one."""
        rows = {
            "||h(x_T) - h(x_0)||": self.moved,
            "int ||H gamma'||": self.total,
            "jumps": self.jumps,
            "max ||H||_2 L": self.spectral * self.length,
            "max ||H||_F L": self.frobenius * self.length,
            "L": self.length,
            "||x_T - x_0||": self.distance,
            "eq. 4 missed by": self.closure,
            **self.ratios,
        }
        medians = {name: value.double().quantile(0.5) if len(value) else torch.nan for name, value in rows.items()}
        return "\n".join(f"{name:<27} {value:.3g}" for name, value in medians.items())


def _points(points: Tensor, net: Net, target: Target) -> tuple[Tensor, Tensor]:
    """Return (points [T + 1, N, D], classes [N])."""
    fits = _check.tensor(points, "points").dim() >= 3 and len(points) > 1
    _check.require(fits, "points", "have shape [T + 1, N, ...] with T >= 1", list(points.shape))
    _, target = prepare(net, points[0], target, "points")
    return points.detach().flatten(2), target


def path_length(points: Tensor) -> Tensor:
    """Return sum_t ||x_{t+1} - x_t||, [N].

    Args:
        points: [T, N, ...].

    Raises:
        TypeError: points are no floating point tensor.
        ValueError: they have another shape.

    >>> fastxai.theory.path_length(torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 5.0]]]))
    tensor([6.])
    """
    _check.require(_check.tensor(points, "points").dim() >= 3, "points", "have shape [T, N, ...]", list(points.shape))
    return row_norm(points.flatten(2).diff(dim=0)).sum(0)


def path_change(
    net: Net,
    points: Tensor,
    target: Target = None,
    *,
    nodes: int = 1,
    samples: int = 4,
    steps: int = 32,
    probes: int | None = 32,
    tolerance: float | None = None,
) -> PathChange:
    """Measure every link of [R]'s chain (eq. 4 and 5) along the polyline through stored images.

    The integrals take Gauss-Legendre nodes on every segment: one Hessian-vector product for each node. The norms are
    taken at those nodes of each sample where ||H gamma'|| / ||gamma'|| is largest, so that no link of the chain fails
    for a maximum that was missed, only for Hutchinson's error; and at as many points evenly along the polyline. Their
    largest are lower bounds of the maxima along the path: those of other points may be larger.

    Args:
        net: a smooth net, or a view of one (``with_activation``): one net for the whole path, whatever an attack used.
        points: such as an attack's iterates, [T + 1, N, ...].
        target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts at the first
            points.
        nodes: per segment; 1 is the midpoint rule.
        samples: at how many nodes of each sample the norms are taken, at most all, and at how many of ``points``.
        steps: Lanczos steps for ||H||_2.
        probes: for ||H||_F; None: exact.
        tolerance: halve segments, each at most a dozen times, until ``jumps`` is at most this share of the map's
            change, which [R] eq. 4 then misses by no more, unless rounding is all that is missed. None takes the
            segments as they are.

    Raises:
        TypeError: net is no compiled net, points no floating point tensor, target no integer.
        ValueError: a shape, range, dtype or device is wrong; or there is a tolerance, and maps jump (``smoothness``).

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> change = fastxai.theory.path_change(net, torch.rand(5, 2, 6), nodes=8, probes=None)
    >>> bool((change.closure < 1e-3).all()), all(bool((r < 1).all()) for r in change.ratios.values())
    (True, True)
    """
    flat, target = _points(points, net, target)
    path = _Path(net, target, points.shape[2:], count(nodes, "nodes"), count(samples, "samples"), flat[0])
    if tolerance is not None:
        _check.positive(tolerance, "tolerance")
        contract = "be None where maps jump, at max-pools or kinks, which no number of nodes closes"
        _check.require(not maps_jump(net, points[0]), "tolerance", contract, tolerance)
    n, h = flat.shape[1], path.maps(flat.flatten(0, 1), target.repeat(len(flat))).view_as(flat)
    change, lengths = h[-1] - h[0], row_norm(flat.diff(dim=0))
    sample = torch.arange(n, device=flat.device).repeat(len(flat) - 1)
    ends, maps = ((each[:-1].flatten(0, 1), each[1:].flatten(0, 1)) for each in (flat, h))
    segments = _Segments(ends, maps, sample, torch.full_like(lengths, torch.inf).flatten())
    path.add(segments, None if tolerance is None else tolerance * row_norm(change) / lengths.sum(0))
    path.spread(flat)
    spectral, frobenius, error = path.norms(steps, probes)
    return PathChange(
        change=change.view_as(points[0]),
        integral=path.integral.view_as(points[0]),
        total=path.total,
        jumps=path.jumps,
        length=lengths.sum(0),
        distance=row_norm(flat[-1] - flat[0]),
        spectral=spectral,
        frobenius=frobenius,
        frobenius_error=error,
    )


def maps_jump(net: Net, x: Tensor) -> bool:
    """Return whether maps are known to jump, at max-pools or kinks; images [N, ...] of which the shape matters."""
    try:
        return smoothness(net, x).jumps
    except (RuntimeError, ValueError):
        return False


@dataclass(frozen=True)
class _Segments:
    """S segments of paths: start and end, [S, D] each, the maps there, and whose they are, [S].

    ``parent`` [S] is what the integral missed of the segments that were halved, ``halvings`` times so far.
    """

    ends: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]
    sample: Tensor
    parent: Tensor
    halvings: int = 0

    def rows(self, part: slice) -> _Segments:
        ends, maps = ((a[part], b[part]) for a, b in (self.ends, self.maps))
        return replace(self, ends=ends, maps=maps, sample=self.sample[part], parent=self.parent[part])

    def halved(self, path: _Path, which: Tensor, missed: Tensor) -> _Segments:
        """Return the halves of some segments; ``missed`` [S] of all."""
        (start, end), (first, last) = ((a[which], b[which]) for a, b in (self.ends, self.maps))
        sample, middle = self.sample[which], (start + end) / 2
        between = path.maps(middle, path.target[sample])
        ends = torch.cat([start, middle]), torch.cat([middle, end])
        maps = torch.cat([first, between]), torch.cat([between, last])
        return _Segments(ends, maps, sample.repeat(2), missed[which].repeat(2), self.halvings + 1)


class _Path:
    """The sums over segments so far, and where the Hessian gains most."""

    def __init__(
        self, net: Net, target: Tensor, shape: tuple[int, ...], nodes: int, samples: int, like: Tensor
    ) -> None:
        self.net, self.target, self.shape, self.samples = net, target, shape, samples
        z, w = np.polynomial.legendre.leggauss(nodes)
        self.nodes = list(zip(((1 + z) / 2).tolist(), (w / 2).tolist(), strict=True))
        self.integral = torch.zeros_like(like)
        self.total, self.jumps = (like.new_zeros(len(like)) for _ in range(2))
        # Candidates for the norms, ``samples`` a sample and as many again once spread: images [M, D],
        # ||H gamma'|| / ||gamma'|| and samples [M].
        self.best = like[:0], like.new_zeros(0), target[:0]

    def maps(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return h at images [M, D]."""
        found = [
            self.net.gradient(x[part].unflatten(1, self.shape), classes[part]).flatten(1)
            for part in pieces(len(x), x[:1].numel() * x.element_size())
        ]
        return torch.cat([x[:0], *found])

    def add(self, segments: _Segments, allowed: Tensor | None) -> None:
        """Add segments, halved until the integral misses at most ``allowed`` [N] a unit length; None: as they are."""
        row = segments.ends[0][:1]
        waiting = [segments]
        while waiting:
            whole = waiting.pop()
            for part in pieces(len(whole.sample), 16 * row.numel() * row.element_size()):
                each = whole.rows(part)
                missed, over = self._added(each, None if whole.halvings == _HALVINGS else allowed)
                if len(over):
                    waiting.append(each.halved(self, over, missed))

    def _added(self, segments: _Segments, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add the segments of whose change enough is met; return what is missed of all, and which are left."""
        (start, end), (first, last), sample = segments.ends, segments.maps, segments.sample
        d = end - start
        length, integral, total = row_norm(d), torch.zeros_like(d), torch.zeros_like(d[:, 0])
        for t, weight in self.nodes:
            x = torch.add(start, d, alpha=t)
            hd = flat_hvp(self.net, x.unflatten(1, self.shape), self.target[sample])(d)
            size = row_norm(hd)
            integral, total = integral + weight * hd, total + weight * size
            self._consider(x, torch.where(length > 0, size / length, 0), sample)
        missed = row_norm(last - first - integral)
        over = torch.zeros_like(sample, dtype=torch.bool)
        if allowed is not None:
            roundings = _ROUNDINGS * torch.finfo(d.dtype).eps * (row_norm(first) + row_norm(last))
            over = (missed > allowed[sample] * length) & ((missed > roundings) | (missed <= segments.parent / 2))
        kept = (~over).nonzero()[:, 0]
        for sums, values in ((self.integral, integral), (self.total, total), (self.jumps, missed)):
            sums.index_add_(0, sample[kept], values[kept])
        return missed, over.nonzero()[:, 0]

    def _consider(self, x: Tensor, gain: Tensor, sample: Tensor) -> None:
        """Keep the largest gains of every sample, and where they are."""
        x, gain, sample = (torch.cat(pair) for pair in zip(self.best, (x, gain, sample), strict=True))
        kept = _largest(gain, sample, self.samples)
        self.best = x[kept], gain[kept], sample[kept]

    def spread(self, points: Tensor) -> None:
        """Add points of the polyline [T + 1, N, D], evenly, to the candidates for the norms."""
        some = np.linspace(0, len(points) - 1, min(self.samples, len(points))).round().astype(int).tolist()
        x, count = points[some].flatten(0, 1), points.shape[1]
        sample = torch.arange(count, device=x.device).repeat(len(some))
        self.best = tuple(torch.cat(pair) for pair in zip(self.best, (x, x.new_zeros(len(x)), sample), strict=True))

    def norms(self, steps: int, probes: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return max ||H||_2, max ||H||_F and its standard error, [N] each."""
        x, gain, sample = self.best
        x, classes, zeros = x.unflatten(1, self.shape), self.target[sample], torch.zeros_like(self.total)
        spectral = torch.maximum(spectral_norm(self.net, x, classes, steps=steps).value, gain)
        frobenius = frobenius_norm(self.net, x, classes, probes=probes)
        top = _largest(frobenius.value, sample, 1)
        largest, error = (zeros.index_copy(0, sample[top], value[top]) for value in (frobenius.value, frobenius.error))
        return zeros.scatter_reduce(0, sample, spectral, "amax"), largest, error


def _largest(values: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest values of every sample are, samples in order."""
    order = values.argsort(descending=True)
    order = order[sample[order].argsort(stable=True)]
    owner = sample[order]
    first = torch.searchsorted(owner, owner)
    return order[torch.arange(len(owner), device=owner.device) - first < count]
