"""Integrated gradients as the objectives of [F] take them."""

from __future__ import annotations

from functools import partial

from fastxai.engine.heads import Output, head
from fastxai.explainers import IntegratedGradients, quadrature
from fastxai.training.objective import Batch
from fastxai.training.per_batch import PerBatch

__all__ = ["from_x", "from_zero"]

# Where the integrand jumps, as a ReLU network's does, no rule of as many points is closer.
_METHOD = "midpoint"


def from_zero(n_steps: int) -> PerBatch:
    """Return IG(., 0) of the label's score, by ``n_steps`` midpoints; TypeError or ValueError if they are none."""
    quadrature(_METHOD, n_steps)
    return PerBatch(partial(_zero_baseline, n_steps=n_steps))


def _zero_baseline(batch: Batch, *, n_steps: int) -> IntegratedGradients:
    return IntegratedGradients(batch.net, n_steps=n_steps, method=_METHOD)


def from_x(n_steps: int, output: Output) -> PerBatch:
    """Return IG(., x) of a function of the scores, the baseline being the batch; errors as above."""
    quadrature(_METHOD, n_steps)
    head(output)
    return PerBatch(partial(_batch_baseline, n_steps=n_steps, output=output))


def _batch_baseline(batch: Batch, *, n_steps: int, output: Output) -> IntegratedGradients:
    n, rest = len(batch.x), [1] * (batch.x.dim() - 1)
    # The attack's rows are the batch, restart by restart.
    return IntegratedGradients(batch.net, lambda x: batch.x.repeat(len(x) // n, *rest), n_steps, _METHOD, output)
