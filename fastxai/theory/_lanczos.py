"""Lanczos' method for N symmetric operators in lock-step, with full reorthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai.theory._common import row_norm

__all__ = ["Ritz", "lanczos"]

_TINY = 16  # roundings, relative to the operator's norm, that count as a breakdown


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of N operators on R^D from m steps; NaN for a sample whose operator gave anything not finite.

    Attributes:
        values: [N, m], ascending.
        residuals: ||A y - theta y|| [N, m]: an eigenvalue of A lies that close to theta (both up to rounding).
        coefficients: [N, m, m]; y_i = sum_j coefficients[:, j, i] q_j.
        basis: q_j [N, m, D], orthonormal.
    """

    values: Tensor
    residuals: Tensor
    coefficients: Tensor
    basis: Tensor

    def vectors(self, which: Tensor) -> Tensor:
        """Return the Ritz vectors [N, k, D] of the positions ``which`` [N, k]."""
        chosen = self.coefficients.gather(2, which[:, None].expand(-1, self.coefficients.shape[1], -1))
        return chosen.mT @ self.basis

    def largest(self, pairs: int) -> Tensor:
        """Return the positions [N, k] of the largest |theta|, descending."""
        return self.values.abs().argsort(dim=1, descending=True, stable=True)[:, :pairs]


def lanczos(
    operator: Callable[[Tensor], Tensor], starts: Callable[[int], Tensor], steps: int, locked: Tensor | None = None
) -> Ritz:
    """Build T = Q^T A Q and return its Ritz pairs.

    Where a Krylov space is exhausted (a sample's new vector is nothing but rounding), that sample goes on from a fresh
    vector, orthogonal to everything so far: T falls into blocks, the pairs of the finished ones are exact, and repeated
    eigenvalues are found as often as they occur. The other samples notice nothing, and the host waits for nothing.

    Args:
        operator: A, symmetric, [N, D] -> [N, D].
        starts: j -> the vector [N, D] that begins a Krylov space at step j.
        steps: m, at most D less the locked vectors.
        locked: orthonormal vectors [N, L, D] that everything stays orthogonal to: the result is that of P A P on their
            complement.
    """
    first = starts(0)
    n, size = first.shape
    fixed = first.new_empty(n, 0, size) if locked is None else locked
    kept = fixed.shape[1]
    basis = torch.cat([fixed, first.new_zeros(n, steps, size)], 1)

    def clean(v: Tensor, upto: int) -> Tensor:
        known = basis[:, :upto]
        return v - ((known @ v[:, :, None]).mT @ known)[:, 0]

    def unit(v: Tensor) -> Tensor:
        return v / row_norm(v)[:, None]

    tiny = _TINY * torch.finfo(first.dtype).eps * size**0.5
    t = first.new_zeros(n, steps, steps)
    lost = first.new_zeros(n, steps)
    scale = first.new_zeros(n)
    q = unit(clean(unit(clean(first, kept)), kept))
    for j in range(steps):
        basis[:, kept + j] = q
        w = operator(q)
        scale = torch.maximum(scale, row_norm(w))
        t[:, j, j] = (w * q).sum(1)
        w = clean(clean(w, kept + j + 1), kept + j + 1)
        beta = row_norm(w)
        if j + 1 == steps:
            lost[:, j] = beta
            break
        broken = beta <= tiny * scale
        lost[:, j] = torch.where(broken, beta, 0)
        t[:, j, j + 1] = t[:, j + 1, j] = torch.where(broken, 0, beta)
        q = unit(clean(torch.where(broken[:, None], starts(j + 1), w), kept + j + 1))
        q = unit(clean(q, kept + j + 1))
    finite = t.isfinite().all(2).all(1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], t, 0))
    # A Q = Q T + sum_j w_j e_j^T, w_j the vectors that were dropped.
    residuals = (lost[:, None] @ vectors.abs())[:, 0]
    bad = ~finite[:, None]
    return Ritz(
        values.masked_fill(bad, torch.nan),
        residuals.masked_fill(bad, torch.nan),
        vectors.masked_fill(bad[:, :, None], torch.nan),
        basis[:, kept:],
    )
