"""How a gradient map changes along a path of images, link by link of [R]'s bound.

    ||h(x_T) - h(x_0)||  <=  int ||H gamma'|| dt  <=  max ||H||_2 L  <=  max ||H||_F L          h = nabla g_k

The left side is exact, and so is [R] eq. 4, h(x_T) - h(x_0) = int H(gamma) gamma' dt, where g is twice differentiable.
With max-pools it is not: the map jumps where one changes its winner, H does not see it, and the first link can fail. So
the jumps are measured beside the integral: over a segment, the change of the map less the integral.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.theory._common import Target, count, flat_hvp, pieces, prepare, row_norm
from fastxai.theory.spectrum import frobenius_norm, spectral_norm

__all__ = ["PathChange", "path_change", "path_length"]


# A segment is 1/4096 then: what is still missed is a jump.
_HALVINGS = 12
# Halves that miss more than their segment did by this factor meet roundings: a jump stays what it is.
_WORSE = 1.5


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
        spectral: max ||H||_2 over the sampled points.
        frobenius: max ||H||_F over them, by Hutchinson's estimate.
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
    for a maximum that was missed; only Hutchinson's error can make one fail.

    Args:
        net: a smooth net, or a view of one (``with_activation``): one net for the whole path, whatever an attack used.
        points: such as an attack's iterates, [T + 1, N, ...].
        target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts at the first
            points.
        nodes: per segment; 1 is the midpoint rule.
        samples: at how many nodes of each sample the norms are taken; at most all.
        steps: Lanczos steps for ||H||_2.
        probes: for ||H||_F; None: exact.
        tolerance: halve segments until ``jumps`` is at most this share of the map's change, which [R] eq. 4 then misses
            by no more. At jumps of the map itself, and where rounding is all that is missed, halving ends before. None
            takes the segments as they are.

    Raises:
        TypeError: net is no compiled net, points no floating point tensor, target no integer.
        ValueError: a shape, range, dtype or device is wrong.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> change = fastxai.theory.path_change(net, torch.rand(5, 2, 6), nodes=8, probes=None)
    >>> bool((change.closure < 1e-3).all()), all(bool((r < 1).all()) for r in change.ratios.values())
    (True, True)
    """
    flat, target = _points(points, net, target)
    path = _Path(net, target, points.shape[2:], count(nodes, "nodes"), count(samples, "samples"), flat[0])
    if tolerance is not None:
        _check.positive(tolerance, "tolerance")
    n, h = flat.shape[1], path.maps(flat.flatten(0, 1), target.repeat(len(flat))).view_as(flat)
    change, lengths = h[-1] - h[0], row_norm(flat.diff(dim=0))
    sample = torch.arange(n, device=flat.device).repeat(len(flat) - 1)
    ends, maps = ((each[:-1].flatten(0, 1), each[1:].flatten(0, 1)) for each in (flat, h))
    segments = _Segments(ends, maps, sample)
    spare = None if tolerance is None else tolerance * row_norm(change)
    for halving in range(_HALVINGS + 1):
        left, missed = path.add(segments, None if halving == _HALVINGS else spare)
        if not len(left):
            break
        segments = segments.halved(path, left, missed)
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


@dataclass(frozen=True)
class _Segments:
    """S segments of paths: start and end, [S, D] each, the maps there, and whose they are, [S].

    ``parent`` [S / 2] is what the integral missed of the segments whose halves these are, first halves first.
    """

    ends: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]
    sample: Tensor
    parent: Tensor | None = None

    def halved(self, path: _Path, which: Tensor, missed: Tensor) -> _Segments:
        """Return the halves of some segments; ``missed`` [S] of all."""
        (start, end), (first, last) = ((a[which], b[which]) for a, b in (self.ends, self.maps))
        sample, middle = self.sample[which], (start + end) / 2
        between = path.maps(middle, path.target[sample])
        ends = torch.cat([start, middle]), torch.cat([middle, end])
        return _Segments(
            ends, (torch.cat([first, between]), torch.cat([between, last])), sample.repeat(2), missed[which]
        )


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
        # Candidates for the norms: images [M, D], ||H gamma'|| / ||gamma'|| and samples [M], at most so many a sample.
        self.best = like[:0], like.new_zeros(0), target[:0]

    def maps(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return h at images [M, D]."""
        found = [
            self.net.gradient(x[part].unflatten(1, self.shape), classes[part]).flatten(1)
            for part in pieces(len(x), x[:1].numel() * x.element_size())
        ]
        return torch.cat([x[:0], *found])

    def add(self, segments: _Segments, spare: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add those segments of whose changes the integrals miss least; return which others there are, and all misses.

        At most half of ``spare`` [N] is missed, and taken from it; None adds all segments.
        """
        (start, _), (first, last), sample = segments.ends, segments.maps, segments.sample
        each = 6 * start[:1].numel() * start.element_size()
        found = [self._integrated(segments, part) for part in pieces(len(sample), each)]
        integral, total = (torch.cat(parts) for parts in zip((start[:0], self.total[:0]), *found, strict=True))
        missed = row_norm(last - first - integral)
        over = torch.zeros_like(sample, dtype=torch.bool)
        if spare is not None:
            over = _running(missed, sample) > spare[sample] / 2
            if segments.parent is not None:
                over &= (missed.view(2, -1).sum(0) <= _WORSE * segments.parent).repeat(2)
            spare -= torch.zeros_like(spare).index_add_(0, sample, missed.masked_fill(over, 0))
            spare.clamp_(min=0)
        kept = (~over).nonzero()[:, 0]
        for sums, values in ((self.integral, integral), (self.total, total), (self.jumps, missed)):
            sums.index_add_(0, sample[kept], values[kept])
        return over.nonzero()[:, 0], missed

    def _integrated(self, segments: _Segments, part: slice) -> tuple[Tensor, Tensor]:
        """Return int H gamma' [S, D] and int ||H gamma'|| [S] of some segments."""
        start, sample = segments.ends[0][part], segments.sample[part]
        d = segments.ends[1][part] - start
        length, integral, total = row_norm(d), torch.zeros_like(d), torch.zeros_like(d[:, 0])
        for t, weight in self.nodes:
            x = torch.add(start, d, alpha=t)
            hd = flat_hvp(self.net, x.unflatten(1, self.shape), self.target[sample])(d)
            size = row_norm(hd)
            integral, total = integral + weight * hd, total + weight * size
            self._consider(x, torch.where(length > 0, size / length, 0), sample)
        return integral, total

    def _consider(self, x: Tensor, gain: Tensor, sample: Tensor) -> None:
        """Keep the largest gains of every sample, and where they are."""
        x, gain, sample = (torch.cat(pair) for pair in zip(self.best, (x, gain, sample), strict=True))
        kept = _largest(gain, sample, self.samples)
        self.best = x[kept], gain[kept], sample[kept]

    def norms(self, steps: int, probes: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return max ||H||_2, max ||H||_F and its standard error, [N] each."""
        x, gain, sample = self.best
        x, classes, zeros = x.unflatten(1, self.shape), self.target[sample], torch.zeros_like(self.total)
        spectral = torch.maximum(spectral_norm(self.net, x, classes, steps=steps).value, gain)
        frobenius = frobenius_norm(self.net, x, classes, probes=probes)
        top = _largest(frobenius.value, sample, 1)
        largest, error = (zeros.index_copy(0, sample[top], value[top]) for value in (frobenius.value, frobenius.error))
        return zeros.scatter_reduce(0, sample, spectral, "amax"), largest, error


def _running(values: Tensor, sample: Tensor) -> Tensor:
    """Return for each value the sum of those of its sample that are no larger, itself included."""
    order = values.argsort()
    order = order[sample[order].argsort(stable=True)]
    owner, sums = sample[order], values[order].double().cumsum(0)
    before = torch.searchsorted(owner, owner)
    ahead = torch.where(before > 0, sums[(before - 1).clamp(min=0)], 0)
    return torch.empty_like(values).index_copy(0, order, (sums - ahead).to(values.dtype))


def _largest(values: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest values of every sample are, samples in order."""
    order = values.argsort(descending=True)
    order = order[sample[order].argsort(stable=True)]
    owner = sample[order]
    first = torch.searchsorted(owner, owner)
    return order[torch.arange(len(owner), device=owner.device) - first < count]
