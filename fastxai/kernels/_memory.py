"""Uninitialised tensors; on the CPU the large ones take memory that earlier ones have left.

A sweep makes and drops tensors of many megabytes. The C library gives them back to the system, which hands out every
page of the next ones anew and zeroed: of 30-step integrated gradients on ResNet-20, 72,000 page faults and a quarter of
the processor's time. Up to 256 MiB of what is dropped is kept instead, for the next tensors of about the same size.
Such tensors are like any other, but cannot be resized. Under deterministic algorithms they are filled as torch's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
from torch import Tensor
from torch.utils import deterministic
from torch.utils.dlpack import from_dlpack

from fastxai import _backend
from fastxai.kernels import _native

__all__ = ["empty", "empty_cache", "empty_like", "unused"]

# Bytes of the smallest tensor that gains, since the C library keeps smaller ones itself, and of all that is kept.
_LEAST, _MOST = 1 << 18, 256 << 20
# DLPack's code and bits.
_TYPES = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.uint8: (1, 8),
}


@cache
def _pooled() -> bool:
    return not _backend.available()["cpu"]


def _pays(device: torch.device, dtype: torch.dtype, count: int) -> bool:
    return device.type == "cpu" and dtype in _TYPES and _LEAST <= count * dtype.itemsize <= _MOST and _pooled()


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None, *, last: bool = False) -> Tensor:
    """Return a tensor on like's device.

    Args:
        shape: its shape.
        like: gives the device, and the dtype where none is given.
        dtype: its dtype.
        last: whether [N, C, H, W] lies in channels-last.
    """
    dtype = dtype or like.dtype
    if _pays(like.device, dtype, prod(shape)):
        return _take(shape, _strides(shape, last=last), dtype)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=order)


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of x's shape, dtype, device and, where x is dense, strides."""
    if _pays(x.device, x.dtype, x.numel()) and _native.dense(x) is x:
        return _take(x.shape, x.stride(), x.dtype)
    return torch.empty_like(x)


def _strides(shape: Sequence[int], *, last: bool) -> list[int]:
    """Return the strides of a dense tensor."""
    order = (1, 3, 2, 0) if last else range(len(shape) - 1, -1, -1)
    strides, count = [0] * len(shape), 1
    for axis in order:
        strides[axis] = count
        count *= shape[axis]
    return strides


def _take(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    make = _native.function("cpu_pool_tensor")
    capsule = make(shape, strides, prod(shape) * dtype.itemsize, *_TYPES[dtype])
    if capsule is None:  # torch says in its own words that there is no memory
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype)
    out = from_dlpack(capsule)
    if (notes := _native.writer.get()) is not None:
        notes.keep(out)
    if torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        out.fill_(float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max)
    return out


def unused() -> int:
    """Return how many bytes are kept, at most 256 MiB."""
    return _native.function("cpu_pool_unused")() if _pooled() else 0  # type: ignore[return-value]


def empty_cache() -> None:
    """Give the memory of dropped tensors back to the system: up to 256 MiB, which the CPU engine keeps for its next.

    What ``torch.cuda.empty_cache`` does on a GPU. Tensors that are alive are not touched.

    >>> maps = fastxai.Gradient(fastxai.models.CNN()).attribute(torch.rand(64, 3, 32, 32))
    >>> fastxai.empty_cache()  # tens of megabytes less
    """
    if _pooled():
        _native.function("cpu_pool_clear")()
