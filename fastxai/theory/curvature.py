"""Curvature of the level sets g_k = const: how fast the normalised gradient map turns along them ([M] section 3).

The second fundamental form has [M]'s sign: L(u, v) = <v, D_u n> = <v, H u> / ||nabla g|| for tangents u, v and the unit
normal n = nabla g / ||nabla g||; [M1] eq. 19-21 has the opposite sign. The spheres g = ||x||^2 / 2 = const have the
curvature +1/r. Where the gradient vanishes there is no level surface, and everything here is NaN for that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.theory._common import Target, count, flat_hvp, pieces, prepare, row_norm
from fastxai.theory._lanczos import lanczos
from fastxai.theory.spectrum import Estimate, Spectrum, products, sample_mean, starts

__all__ = [
    "LevelChange",
    "level_change",
    "level_curve",
    "mean_curvature",
    "normal",
    "principal_curvatures",
    "second_fundamental_form",
]

# A tangent space needs two dimensions around it.
_LEAST = 2
# Roundings, relative to a direction, that count as no tangent part of it.
_TINY = 4


def _frame(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (unit normal [N, D], ||nabla g|| [N])."""
    gradient = net.gradient(x, target).flatten(1)
    length = row_norm(gradient)
    return gradient / length[:, None], length


def _tangent(v: Tensor, n: Tensor) -> Tensor:
    """Return P v = v - n <n, v> for v [..., N, D]."""
    return v - n * (n * v).sum(-1, keepdim=True)


def normal(net: Net, x: Tensor, target: Target = None) -> Tensor:
    """Return n(x) = nabla g_k / ||nabla g_k||, of x's shape: the normalised gradient map ([M] eq. 7).

    Args:
        net: a smooth net, or a view of one (``with_activation``).
        x: inputs [N, ...] of at least two elements each.
        target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts.

    Raises:
        TypeError: net is no compiled net, x no floating point tensor, target no integer.
        ValueError: a shape, range, dtype or device is wrong.

    >>> net = fastxai.compile(torch.nn.Linear(4, 3))
    >>> torch.allclose(fastxai.theory.normal(net, torch.rand(2, 4), 0).norm(dim=1), torch.ones(2))
    True
    """
    x, target = prepare(net, x, target, least=_LEAST)
    return _frame(net, x, target)[0].reshape(x.shape)


def second_fundamental_form(net: Net, x: Tensor, u: Tensor, target: Target = None) -> Tensor:
    """Return the vector P H P u / ||nabla g||, P = 1 - n n^T, whose product with v is L(u, v) ([M] section 3).

    For a tangent u this is D_u n, the change of the normal per unit length along u.

    Args:
        net: as for ``normal``.
        x: as for ``normal``.
        u: directions, of x's shape or [S, N, ...]; their normal part is ignored.
        target: as for ``normal``.

    Returns:
        Of u's shape.

    Raises:
        TypeError, ValueError: as for ``normal``; u does not fit x.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)))
    >>> fastxai.theory.second_fundamental_form(net, torch.rand(2, 4), torch.rand(5, 2, 4)).shape
    torch.Size([5, 2, 4])
    """
    x, target = prepare(net, x, target, least=_LEAST)
    u = _check.same_place(_check.tensor(u, "u"), "u", x, "x").detach()
    fits = u.shape[u.dim() - x.dim() :] == x.shape and u.dim() <= x.dim() + 1
    _check.require(fits, "u", f"have shape {list(x.shape)} or [S, N, ...]", list(u.shape))
    n, length = _frame(net, x, target)
    flat = u.flatten(u.dim() - x.dim() + 1)
    turned = _tangent(flat_hvp(net, x, target)(_tangent(flat, n)), n)
    return (turned / length[:, None]).reshape(u.shape)


def principal_curvatures(
    net: Net,
    x: Tensor,
    target: Target = None,
    *,
    steps: int = 32,
    pairs: int = 1,
    seed: int = 0,
    index: Tensor | None = None,
) -> Spectrum:
    """Return extreme principal curvatures: eigenvalues of P H P / ||nabla g|| on the tangent space, and directions.

    Lanczos' method with the normal deflated, so its eigenvalue 0, which is no curvature, is never seen. Arguments,
    costs and errors as ``spectrum``; at most D - 1 steps are taken, D >= 2.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> fastxai.theory.principal_curvatures(net, torch.rand(2, 6), pairs=2).values.shape
    torch.Size([2, 2])
    """
    x, target = prepare(net, x, target, least=_LEAST)
    n, length = _frame(net, x, target)
    product = flat_hvp(net, x, target)
    steps = min(count(steps, "steps"), n.shape[1] - 1)
    ritz = lanczos(lambda v: product(v) / length[:, None], starts(x, seed, index), steps, n[:, None])
    return Spectrum.of(ritz, count(pairs, "pairs"), x.shape[1:])


def mean_curvature(
    net: Net,
    x: Tensor,
    target: Target = None,
    *,
    probes: int | None = 32,
    kind: str = "rademacher",
    seed: int = 0,
    index: Tensor | None = None,
) -> Estimate:
    """Return the mean of the D - 1 principal curvatures, tr(P H P) / ((D - 1) ||nabla g||), by Hutchinson's estimate.

    Arguments, errors and the meaning of ``error`` as ``frobenius_norm``; D >= 2.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> fastxai.theory.mean_curvature(net, torch.rand(2, 6), probes=None).value.shape
    torch.Size([2])
    """
    x, target = prepare(net, x, target, least=_LEAST)
    n, length = _frame(net, x, target)
    parts = products(net, x, target, probes, (kind, seed, index), lambda v: _tangent(v, n))
    traces = torch.cat([(v * hv).sum(2) for v, hv in parts])
    traces = traces / ((n.shape[1] - 1) * length)
    return Estimate(traces.sum(0), torch.zeros_like(length)) if probes is None else sample_mean(traces)


def level_curve(
    net: Net, x: Tensor, direction: Tensor, length: float, target: Target = None, *, steps: int = 32
) -> Tensor:
    """Walk on the level set of g_k at unit speed: gamma' = P u / ||P u||, gamma(0) = x, u fixed, P that of gamma.

    Runge-Kutta steps of fourth order, each followed by one Newton step along the gradient, back to g_k(x).

    Args:
        net: as for ``normal``.
        x: as for ``normal``.
        direction: u, of x's shape, nowhere along the normal.
        length: of the curve, in the space of x.
        target: as for ``normal``.
        steps: T.

    Returns:
        Points [T + 1, N, ...], the first of them x.

    Raises:
        TypeError, ValueError: as for ``normal``; direction does not fit x, is not finite, zero or along the normal at
            x; length is not finite and positive.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> fastxai.theory.level_curve(net, torch.rand(2, 6), torch.rand(2, 6), 0.1, 0, steps=3).shape
    torch.Size([4, 2, 6])
    """
    x, target = prepare(net, x, target, least=_LEAST)
    u = _check.same_place(_check.tensor(direction, "direction"), "direction", x, "x").detach()
    u = _check.finite_samples(_check.shape(u, "direction", tuple(x.shape)), "direction", "be finite").flatten(1)
    h = _check.positive(length, "length") / count(steps, "steps")
    tiny = _TINY * torch.finfo(u.dtype).eps * u.shape[1] ** 0.5
    # False for NaN, where there is no level surface.
    short = row_norm(_tangent(u, _frame(net, x, target)[0])) <= tiny * row_norm(u)
    wrong = short.nonzero()[:, 0].tolist()
    _check.require(not wrong, "direction", "be neither zero nor along the normal", f"that for samples {wrong}")
    level = net.value_and_gradient(x, target)[0]

    def velocity(flat: Tensor) -> Tensor:
        v = _tangent(u, _frame(net, flat.reshape(x.shape), target)[0])
        return v / row_norm(v)[:, None]

    points = [x.flatten(1)]
    for _ in range(steps):
        p = points[-1]
        k_1 = velocity(p)
        k_2 = velocity(p + h / 2 * k_1)
        k_3 = velocity(p + h / 2 * k_2)
        k_4 = velocity(p + h * k_3)
        p = p + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        value, gradient = net.value_and_gradient(p.reshape(x.shape), target)
        gradient = gradient.flatten(1)
        points.append(p + ((level - value) / gradient.square().sum(1))[:, None] * gradient)
    return torch.stack(points).reshape(steps + 1, *x.shape)


@dataclass(frozen=True)
class LevelChange:
    """The terms of ||n(p) - n(p_0)|| <= |lambda_max| d ([M] eq. 9, [M1] eq. 29), per sample [N].

    Attributes:
        change: ||n(p) - n(p_0)||, p the last point.
        length: d, the length of the polyline, at least the geodesic distance less the error of the chords.
        curvature: the largest |principal curvature| at the sampled points of the curve.
        drift: the largest |g(point) - g(p_0)|: 0 on the level set.
    """

    change: Tensor
    length: Tensor
    curvature: Tensor
    drift: Tensor

    @property
    def bound(self) -> Tensor:
        """|lambda_max| d, [N]."""
        return self.curvature * self.length

    @property
    def ratio(self) -> Tensor:
        """The change over its bound, [N]; NaN where both are 0."""
        return self.change / self.bound


def level_change(
    net: Net, points: Tensor, target: Target = None, *, samples: int = 16, steps: int = 32, seed: int = 0
) -> LevelChange:
    """Measure both sides of [M]'s theorem 1 on curves that stay on their level sets.

    |lambda_max| is that of the curve, which is all that [M1] eq. 29 needs, sampled at points evenly spaced.

    Args:
        net: as for ``normal``.
        points: curves [T + 1, N, ...], such as ``level_curve`` gives.
        target: as for ``normal``; None is the class at the first points.
        samples: at how many points of each curve the curvature is computed, both ends included; at most all.
        steps: of Lanczos' method.
        seed: of its starting vectors.

    Raises:
        TypeError, ValueError: as for ``normal``; points hold no curve, samples or steps are too few.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> curve = fastxai.theory.level_curve(net, torch.rand(2, 6), torch.rand(2, 6), 0.1, 0)
    >>> bool((fastxai.theory.level_change(net, curve, 0).ratio < 1).all())
    True
    """
    fits = _check.tensor(points, "points").dim() >= 3 and len(points) > 1
    _check.require(fits, "points", "have shape [T + 1, N, ...] with T >= 1", list(points.shape))
    x, target = prepare(net, points[0], target, "points", _LEAST)
    points = points.detach()
    count(samples, "samples", 2)
    count(steps, "steps")
    ends = torch.stack([_frame(net, end, target)[0] for end in (x, points[-1])])
    each = x.numel() * x.element_size()
    chosen = points[torch.linspace(0, len(points) - 1, min(samples, len(points)), dtype=torch.float64).round().long()]
    drift, curvature = torch.zeros_like(ends[0, :, 0]), torch.zeros_like(ends[0, :, 0])
    level = net(x).gather(1, target[:, None])[:, 0]
    for part in pieces(len(points), each):
        rows = points[part]
        values = net(rows.flatten(0, 1)).gather(1, target.repeat(len(rows))[:, None]).view(len(rows), len(x))
        drift = torch.maximum(drift, (values - level).abs().amax(0))
    for part in pieces(len(chosen), each * (steps + 4)):
        rows = chosen[part]
        seen = principal_curvatures(net, rows.flatten(0, 1), target.repeat(len(rows)), steps=steps, seed=seed)
        curvature = torch.maximum(curvature, seen.norm.value.view(len(rows), len(x)).amax(0))
    length = row_norm(points.diff(dim=0).flatten(2)).sum(0)
    return LevelChange(row_norm(ends[1] - ends[0]), length, curvature, drift)
