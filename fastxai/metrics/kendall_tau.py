"""Kendall's rank correlation, tau-b."""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai import _backend
from fastxai._check import require
from fastxai.metrics._pair import pair

__all__ = ["kendall_tau"]

# The numbers by which csrc/bindings chooses a type.
_DTYPES = {torch.float32: 0, torch.float64: 1}


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-b over all elements of a sample: (P - Q) / sqrt(U_a U_b).

    P and Q are the numbers of pairs that a and b order alike and oppositely, U_a and U_b those not tied in a and not
    tied in b: ``scipy.stats.kendalltau``'s variant "b", from exact integer counts. A constant sample has no order: its
    value is 0. Both take O(n log n): a kernel on the CPU (float32, float64), one sample a thread, and plain torch
    elsewhere and under ``fastxai.backend("reference")``, where the batch needs about 100 bytes an element.

    Args:
        a: [N, ...], without NaN.
        b: the same shape, dtype and device.

    Returns:
        [N] in [-1, 1], in the dtype of a. It is piecewise constant: there is no gradient.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: shapes, dtypes or devices differ, there is no axis beside N, a sample has 2^31 elements or more, or
            a value is NaN.

    [F] evaluation, CO.

    >>> from fastxai.metrics import kendall_tau
    >>> kendall_tau(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0.1, 0.3, 0.2, 0.9]]))
    tensor([0.6667])
    """
    pair(a, b)
    dtype = a.dtype
    a, b = (x.detach().flatten(1) for x in (a, b))
    require(a.shape[1] < 2**31, "a", "have fewer than 2^31 elements a sample", a.shape[1])
    difference, untied_a, untied_b = (_counts if a.is_cpu and _backend.pick(a) == "cpu" else _counts_reference)(a, b)
    # |P - Q| is at most U_a and U_b, and the root of a rounded square is exact: no rounding leads out of [-1, 1].
    return (difference / (untied_a * untied_b).clamp(min=1).sqrt()).to(dtype)


def _counts(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """P - Q, U_a and U_b, [N] float64 each, by the kernel."""
    module = _backend.extension()
    if isinstance(module, ImportError):
        raise module
    a, b = a.contiguous(), b.contiguous()
    counts = torch.empty(a.shape[0], 3, dtype=torch.int64)
    pointers = (x.data_ptr() for x in (a, b, counts))
    module.cpu_kendall(_DTYPES[a.dtype], *a.shape, *pointers, torch.get_num_threads())
    if bool((counts[:, 1:] < 0).any()):
        _refuse_nan(a, b)
    return counts.double().unbind(1)


def _counts_reference(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The same in plain torch, any dtype and device.

    The rank of a value is the number of strictly smaller ones, so the sum of all ranks is the number of untied pairs.
    With U_ab the pairs not tied in both, P - Q = U_a + U_b - U_ab - 2 Q.
    """
    _refuse_nan(a, b)
    rank_a, rank_b = _ranks(a), _ranks(b)
    joint = (rank_a * a.shape[1] + rank_b).sort(1).values
    untied_a, untied_b, untied = (ranks.sum(1) for ranks in (rank_a, rank_b, _ranks(joint)))
    difference = untied_a + untied_b - untied - 2 * _inversions(joint % a.shape[1])
    return difference.double(), untied_a.double(), untied_b.double()


def _refuse_nan(a: Tensor, b: Tensor) -> None:
    for x, name in ((a, "a"), (b, "b")):
        require(not bool(x.isnan().any()), name, "have no NaN", "NaN")


def _ranks(x: Tensor) -> Tensor:
    """For each value the number of strictly smaller ones in its sample, [N, n]."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.contiguous()
    return torch.searchsorted(x.sort(1).values, x)


def _inversions(ranks: Tensor) -> Tensor:
    """Pairs i < j with ranks[i] > ranks[j], [N], counted as a merge sort would, a whole level at a time."""
    samples, size = ranks.shape
    total = ranks.new_zeros(samples)
    # The padding is above every rank and stands last: it adds no inversion.
    padded = 1 << (size - 1).bit_length()
    ranks = torch.nn.functional.pad(ranks, (0, padded - size), value=size)
    width = 1
    while width < size:
        runs = ranks.view(samples, padded // (2 * width), 2, width)
        left, right = (half.contiguous() for half in runs.unbind(2))
        total += (width - torch.searchsorted(left, right, right=True)).sum((1, 2))
        ranks = runs.flatten(2).sort(2).values
        width *= 2
    return total
