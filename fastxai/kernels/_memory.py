"""Uninitialised tensors; on the CPU the large ones take memory that earlier ones have left.

A sweep makes and drops tensors of many megabytes. The C library gives them back to the system, which hands out every
page of the next ones anew and zeroed: of 30-step integrated gradients on ResNet-20, 72,000 page faults and a quarter of
the processor's time. Up to 256 MiB of what is dropped is kept instead, for the next tensors of about the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastxai import _backend
from fastxai.kernels import _native

__all__ = ["empty", "empty_cache", "empty_like", "unused"]

# Bytes of the smallest tensor that gains: the C library keeps smaller ones itself.
_LEAST = 1 << 18
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


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None, *, last: bool = False) -> Tensor:
    """Return a tensor on like's device.

    Args:
        shape: its shape.
        like: gives the device, and the dtype where none is given.
        dtype: its dtype.
        last: whether [N, C, H, W] lies in channels-last.
    """
    dtype = dtype or like.dtype
    if like.device.type == "cpu" and dtype in _TYPES:
        strides, count = _strides(shape, last=last)
        if count * dtype.itemsize >= _LEAST and _pooled():
            return _take(shape, strides, count, dtype)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=order)


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of x's shape, dtype, device and, where x is dense, strides."""
    large = x.device.type == "cpu" and x.dtype in _TYPES and x.numel() * x.itemsize >= _LEAST and _pooled()
    if large and _native.dense(x) is x:
        return _take(x.shape, x.stride(), x.numel(), x.dtype)
    return torch.empty_like(x)


def _strides(shape: Sequence[int], *, last: bool) -> tuple[list[int], int]:
    """Return the strides of a dense tensor, and how many values it has."""
    order = (1, 3, 2, 0) if last else range(len(shape) - 1, -1, -1)
    strides, count = [0] * len(shape), 1
    for axis in order:
        strides[axis] = count
        count *= shape[axis]
    return strides, count


def _take(shape: Sequence[int], strides: Sequence[int], count: int, dtype: torch.dtype) -> Tensor:
    make = _native.function("cpu_pool_tensor")
    return from_dlpack(make(shape, strides, count * dtype.itemsize, *_TYPES[dtype]))


def unused() -> int:
    """Return how many bytes are kept, at most 256 MiB."""
    return _native.function("cpu_pool_unused")() if _pooled() else 0  # type: ignore[return-value]


def empty_cache() -> None:
    """Give the memory of dropped tensors back to the system: up to 256 MiB, which the CPU engine keeps for its next.

    What ``torch.cuda.empty_cache`` does on a GPU. Tensors that are alive are not touched.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)))
    >>> fastxai.empty_cache()
    """
    if _pooled():
        _native.function("cpu_pool_clear")()
