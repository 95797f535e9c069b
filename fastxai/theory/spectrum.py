"""The Hessian of a class score seen through Hessian-vector products: eigenvalues, norms, the matrix itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai import _random
from fastxai.engine import Net
from fastxai.engine.directions import directions
from fastxai.theory._common import Target, count, flat_hvp, prepare
from fastxai.theory._lanczos import Ritz, lanczos

__all__ = ["Estimate", "Spectrum", "frobenius_norm", "hessian", "spectral_norm", "spectrum"]


@dataclass(frozen=True)
class Estimate:
    """A number per sample and how far off it may be.

    Attributes:
        value: [N].
        error: [N]; what it means is said where the estimate is made.
    """

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of N symmetric operators, as Lanczos' method sees them.

    Every value lies within its residual ||A y - theta y|| of an eigenvalue (up to rounding), and none lies outside the
    spectrum: ``lowest`` comes from above, ``highest`` from below.

    Attributes:
        values: the k largest in absolute value, [N, k], descending in it.
        vectors: unit vectors y [N, k, ...] in the shape of the input.
        residuals: [N, k].
        lowest, highest: the ends of the spectrum, [N] each.
        lowest_residual, highest_residual: [N] each.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    lowest: Tensor
    highest: Tensor
    lowest_residual: Tensor
    highest_residual: Tensor

    @classmethod
    def of(cls, ritz: Ritz, pairs: int, shape: torch.Size) -> Spectrum:
        """Pick what is reported out of all Ritz pairs; ``shape`` is that of one input."""
        which = ritz.largest(pairs)
        ends = (ritz.values[:, 0], ritz.values[:, -1], ritz.residuals[:, 0], ritz.residuals[:, -1])
        vectors = ritz.vectors(which).unflatten(2, shape)
        return cls(ritz.values.gather(1, which), vectors, ritz.residuals.gather(1, which), *ends)

    @property
    def norm(self) -> Estimate:
        """The spectral norm |theta_1| [N], from below, and its residual."""
        return Estimate(self.values[:, 0].abs(), self.residuals[:, 0])


def starts(x: Tensor, seed: int, index: Tensor | None) -> Callable[[int], Tensor]:
    """Return j -> the Gaussian vectors [N, D] that Lanczos' method starts from, or goes on from, at step j."""
    return lambda j: _random.probes("gaussian", x, (seed,), index, range(j, j + 1))[0]


def spectrum(
    net: Net,
    x: Tensor,
    target: Target = None,
    *,
    steps: int = 32,
    pairs: int = 1,
    seed: int = 0,
    index: Tensor | None = None,
) -> Spectrum:
    """Return extreme eigenvalues of H(x) = nabla^2 g_k(x) and eigenvectors of the largest |lambda|, per sample.

    N Lanczos processes run in lock-step: ``steps`` Hessian-vector products of the whole batch, one at a time, and
    ``steps`` vectors of its size in memory. With as many steps as x has elements the result is the exact spectrum.

    Args:
        net: a smooth net, or a view of one (``with_activation``).
        x: inputs [N, ...] of D elements each.
        target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts.
        steps: Lanczos steps, at most D are taken.
        pairs: how many pairs to return, at most as many as steps are taken.
        seed: of the starting vectors.
        index: LongTensor [N], a number per sample: samples of unlike numbers start from unlike vectors. None: all start
            from the same. Either way a sample's result does not depend on the batch around it.

    Raises:
        TypeError: net is no compiled net, x no floating point tensor, target or index hold no integers.
        ValueError: a shape, range, dtype or device is wrong.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> fastxai.theory.spectrum(net, torch.rand(2, 6), pairs=3).vectors.shape
    torch.Size([2, 3, 6])
    """
    x, target = prepare(net, x, target)
    steps = min(count(steps, "steps"), math.prod(x.shape[1:]))
    ritz = lanczos(flat_hvp(net, x, target), starts(x, seed, index), steps)
    return Spectrum.of(ritz, count(pairs, "pairs"), x.shape[1:])


def spectral_norm(
    net: Net, x: Tensor, target: Target = None, *, steps: int = 32, seed: int = 0, index: Tensor | None = None
) -> Estimate:
    """Return ||H(x)||_2 = max |lambda| per sample; arguments and errors as ``spectrum``.

    Returns:
        A value that never exceeds the norm, and the residual of its eigenpair: a small one says that it is an
        eigenvalue, and only the steps that no larger one was missed.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> bool((fastxai.theory.spectral_norm(net, torch.rand(2, 6)).error < 1e-5).all())
    True
    """
    return spectrum(net, x, target, steps=steps, seed=seed, index=index).norm


def frobenius_norm(
    net: Net,
    x: Tensor,
    target: Target = None,
    *,
    probes: int | None = 32,
    kind: str = "rademacher",
    seed: int = 0,
    index: Tensor | None = None,
) -> Estimate:
    """Return ||H(x)||_F = sqrt(E_v ||H v||^2) per sample, E v v^T = 1 ([R] section 3.1).

    Args:
        net: as for ``spectrum``.
        x: inputs [N, ...] of D elements each.
        target: as for ``spectrum``.
        probes: S random directions that share one primal pass; None: all D basis vectors, which is exact.
        kind: "rademacher" (v_i = +-1, the smaller variance) or "gaussian" ([R]).
        seed: of the probes.
        index: as for ``spectrum``. Where a mean over samples is the aim, give one: errors then average out.

    Returns:
        The norm and its standard error, from the scatter of the ||H v||^2: unknown (NaN) of one probe, 0 if exact.

    Raises:
        TypeError, ValueError: as for ``spectrum``; the kind is unknown.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> exact = fastxai.theory.frobenius_norm(net, torch.rand(2, 6), 0, probes=None)
    >>> exact.value.shape, exact.error
    (torch.Size([2]), tensor([0., 0.]))
    """
    x, target = prepare(net, x, target)
    squares = torch.cat([hv.square().sum(2) for _, hv in products(net, x, target, probes, (kind, seed, index))])
    if probes is None:
        return Estimate(squares.sum(0).sqrt(), torch.zeros_like(squares[0]))
    mean = sample_mean(squares)
    value = mean.value.sqrt()
    return Estimate(value, torch.where(value == 0, value, mean.error / (2 * value)))


def sample_mean(samples: Tensor) -> Estimate:
    """Return the mean over the first of two dimensions and its standard error (NaN of one sample)."""
    mean, freedom = samples.mean(0), len(samples) - 1
    scatter = (samples - mean).square().sum(0) / freedom if freedom else torch.full_like(mean, torch.nan)
    return Estimate(mean, (scatter / len(samples)).sqrt())


def products(
    net: Net,
    x: Tensor,
    target: Tensor,
    probes: int | None,
    source: tuple[str, int, Tensor | None],
    change: Callable[[Tensor], Tensor] = lambda v: v,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (v, H v), [S, N, D] each, a few at a time; v = change(probe).

    Args:
        net: as for ``spectrum``.
        x: inputs [N, ...].
        target: classes [N].
        probes: how many random directions; None for all basis vectors.
        source: (kind, seed, index) of the random ones.
        change: applied to the directions first.
    """
    product = flat_hvp(net, x, target)
    kind, seed, index = source
    for v in directions(x, probes, kind=kind, seed=seed, index=index):
        v = change(v.flatten(2))
        yield v, product(v)


def hessian(net: Net, x: Tensor, target: Target = None) -> Tensor:
    """Return H(x) = nabla^2 g_k(x) as matrices [N, D, D]; for small inputs.

    Arguments and errors as ``spectrum``.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)))
    >>> h = fastxai.theory.hessian(net, torch.rand(2, 6), 0)
    >>> torch.allclose(h, h.mT, atol=1e-6)
    True
    """
    x, target = prepare(net, x, target)
    rows = [hv for _, hv in products(net, x, target, None, ("rademacher", 0, None))]
    return torch.cat(rows).movedim(0, 1)
