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
        """||integral - change|| / ||change||, [N]: how far [R] eq. 4 is missed."""
        return row_norm((self.integral - self.change).flatten(1)) / self.moved

    @property
    def ratios(self) -> dict[str, Tensor]:
        """Each link over the next, [N] each: the nearer to 1, the tighter.

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
        """Return the chain, as medians over the batch."""
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
        return "\n".join(f"{name:<27} {value.double().quantile(0.5):.3g}" for name, value in rows.items())


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

    >>> fastxai.theory.path_length(torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 5.0]]]))
    tensor([6.])
    """
    return row_norm(_check.tensor(points, "points").flatten(2).diff(dim=0)).sum(0)


def path_change(
    net: Net,
    points: Tensor,
    target: Target = None,
    *,
    nodes: int = 1,
    samples: int = 4,
    steps: int = 32,
    probes: int | None = 32,
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

    Raises:
        TypeError: net is no compiled net, points no floating point tensor, target no integer.
        ValueError: a shape, range, dtype or device is wrong.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> change = fastxai.theory.path_change(net, torch.rand(5, 2, 6), nodes=8, probes=None)
    >>> bool((change.closure < 1e-3).all()), all(bool((r < 1).all()) for r in change.ratios.values())
    (True, True)
    """
    flat, target = _points(points, net, target)
    n, shape = flat.shape[1], points.shape[2:]
    segments = flat.diff(dim=0)
    lengths = row_norm(segments)
    z, w = np.polynomial.legendre.leggauss(count(nodes, "nodes"))
    at = ((1 + z) / 2).tolist()
    h = torch.cat(
        [
            net.gradient(points[part].detach().flatten(0, 1), target.repeat(part.stop - part.start))
            for part in pieces(len(points), flat[0].numel() * flat.element_size())
        ]
    ).view_as(flat)
    rest, integral, total, gains = h.diff(dim=0), torch.zeros_like(flat[0]), torch.zeros_like(lengths[0]), []
    for t, weight in zip(at, (w / 2).tolist(), strict=True):
        for part in pieces(len(segments), 4 * flat[0].numel() * flat.element_size()):
            d = segments[part]
            x = (flat[part] + t * d).flatten(0, 1).unflatten(1, shape)
            hd = flat_hvp(net, x, target.repeat(len(d)))(d.flatten(0, 1)).view_as(d)
            rest[part] -= weight * hd
            integral += weight * hd.sum(0)
            total += weight * row_norm(hd).sum(0)
            gains.append(torch.where(lengths[part] > 0, row_norm(hd) / lengths[part], 0))
    gain, best = torch.cat(gains).topk(min(count(samples, "samples"), len(segments) * nodes), dim=0)
    which = (best % len(segments))[:, :, None].expand(-1, -1, flat.shape[2])
    position = torch.tensor(at, dtype=flat.dtype, device=flat.device)[best // len(segments)]
    x = torch.addcmul(flat.gather(0, which), position[:, :, None], segments.gather(0, which))
    x = x.flatten(0, 1).unflatten(1, shape)
    classes = target.repeat(len(best))
    spectral = spectral_norm(net, x, classes, steps=steps).value.view_as(gain)
    frobenius = frobenius_norm(net, x, classes, probes=probes)
    largest, place = frobenius.value.view_as(gain).max(0)
    return PathChange(
        change=(h[-1] - h[0]).reshape(n, *shape),
        integral=integral.reshape(n, *shape),
        total=total,
        jumps=row_norm(rest).sum(0),
        length=lengths.sum(0),
        distance=row_norm(flat[-1] - flat[0]),
        spectral=torch.maximum(spectral, gain).amax(0),
        frobenius=largest,
        frobenius_error=frobenius.error.view_as(gain).gather(0, place[None])[0],
    )
