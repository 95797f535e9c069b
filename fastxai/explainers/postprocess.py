"""From a raw map to the picture that is shown and compared."""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["reduce_map"]


def reduce_map(h: Tensor, reduce: str | None = "abs_sum", normalize: str | None = "sum") -> Tensor:
    """Reduce a map to one value a pixel and scale it, differentiably: r = sum_c |h_c|, then r / sum_p r_p ([M], [R]).

    Args:
        h: map [N, C, ...] (any shape [N, ...] where ``reduce`` is None).
        reduce: over channels: "abs_sum" (|h| summed), "sum" (h summed) or None (kept as it is).
        normalize: "sum" divides by the sum of all values of the sample, None does not.

    Returns:
        [N, ...], the channels gone unless ``reduce`` is None. A sample whose sum is 0 becomes zeros, its gradient too.

    Raises:
        TypeError: h is no floating point tensor.
        ValueError: an option is unknown, or h has no channel dimension to reduce.

    >>> fastxai.explainers.reduce_map(torch.tensor([[[[1.0, -2.0]], [[3.0, 2.0]]]]))
    tensor([[[0.5000, 0.5000]]])
    """
    _check.tensor(h, "h")
    _check.one_of(reduce, "reduce", ("abs_sum", "sum", None))
    _check.one_of(normalize, "normalize", ("sum", None))
    least, shape = (1, "[N, ...]") if reduce is None else (3, "[N, C, ...]")
    _check.require(h.dim() >= least, "h", f"have shape {shape}", list(h.shape))
    if reduce is not None:
        h = (h.abs() if reduce == "abs_sum" else h).sum(1)
    if normalize is None:
        return h
    total = h.sum(tuple(range(1, h.dim())), keepdim=True) if h.dim() > 1 else h
    zero = total == 0
    return torch.where(zero, 0, h / torch.where(zero, 1, total))
