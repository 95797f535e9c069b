"""Directions to multiply a Hessian by: random ones, or all of a basis, a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fastxai import _check, _random

__all__ = ["directions"]

# They share one primal sweep, which is a seventeenth of the work then; more only take memory.
_TOGETHER = 16


def directions(
    x: Tensor, probes: int | None, *, kind: str = "gaussian", seed: int = 0, index: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield directions [S, N, ...] for inputs x [N, ...].

    Args:
        x: the inputs.
        probes: how many random ones, E v v^T = 1; None for all basis vectors.
        kind: "gaussian" or "rademacher" (v_i = +-1).
        seed: of the random ones.
        index: LongTensor [N], a number per sample: samples of unlike numbers get unlike directions. None: all get the
            same. Either way a sample's directions do not depend on the batch around it.

    Raises:
        TypeError: seed or index hold no integers.
        ValueError: probes is not positive, the kind is unknown, index has not the shape [N].
    """
    whole = probes is None or (isinstance(probes, int) and not isinstance(probes, bool) and probes > 0)
    _check.require(whole, "probes", "be a positive int, or None for all basis vectors", probes)
    size = math.prod(x.shape[1:])
    total = size if probes is None else probes
    for start in range(0, total, _TOGETHER):
        rows = range(start, min(start + _TOGETHER, total))
        if probes is None:
            place = torch.arange(rows.start, rows.stop, device=x.device)
            v = one_hot(place, size).to(x.dtype)[:, None].expand(-1, x.shape[0], -1)
        else:
            v = _random.probes(kind, x, (seed,), index, rows)
        yield v.unflatten(2, x.shape[1:])
