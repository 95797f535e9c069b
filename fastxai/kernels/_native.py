"""What the launchers of compiled kernels share: dtype numbers, dense layouts, threads and streams."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fastxai import _backend

__all__ = [
    "DTYPES", "Writer", "alike", "call", "channels_last", "dense", "function", "is_channels_last", "launch",
    "vector_registers", "writer",
]  # fmt: skip

# The numbers by which csrc/bindings chooses a type.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


@cache
def function(name: str) -> Callable[..., None]:
    """Return a function of ``fastxai._C``.

    Raises:
        RuntimeError: the extension is missing or was built without it.
    """
    found = getattr(_backend.extension(), name, None)
    if found is None:
        raise RuntimeError(f"fastxai._C has no {name}: {_backend.available()[name.partition('_')[0]]}")
    return found


class Writer(Protocol):
    """Who writes down what the cpu kernels are called with, to call them again: ``fastxai.engine.tape``."""

    def write(self, step: Callable[[], Any]) -> None:
        """Note a call."""

    def keep(self, x: Tensor) -> None:
        """Hold memory that kernels know by its address."""


writer: ContextVar[Writer | None] = ContextVar("fastxai_writer", default=None)


@cache
def vector_registers() -> int:
    """Return how many vector registers the products of the cpu backend may use here; 0 where they have no kernel."""
    return 0 if _backend.available()["cpu"] else function("cpu_vector_registers")()  # type: ignore[return-value]


def call(name: str, *args: Any) -> None:
    """Call a cpu kernel, and write the call down where somebody does so."""
    kernel = function(name)
    kernel(*args)
    if (notes := writer.get()) is not None:
        notes.write(partial(kernel, *args))


def launch(backend: str, name: str, x: Tensor, *args: Any) -> None:
    """Call a compiled kernel with torch's thread count ("cpu") or the current stream of x's device ("cuda").

    An argument of a cpu kernel that is a function is called at every launch, one that is written down at every replay.
    """
    if backend != "cpu":
        with torch.cuda.device(x.device):
            function("cuda_" + name)(*args, torch.cuda.current_stream().cuda_stream)
    elif any(map(callable, args)):
        kernel, threads = function("cpu_" + name), torch.get_num_threads()

        def step() -> None:
            kernel(*[arg() if callable(arg) else arg for arg in args], threads)

        step()
        if (notes := writer.get()) is not None:
            notes.write(step)
    else:
        call("cpu_" + name, *args, torch.get_num_threads())


def is_channels_last(x: Tensor) -> bool:
    """True if [N, C, H, W] lies in memory as [N, H, W, C]; where both orders agree, strides tell which was meant."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return not x.is_contiguous() or (x.stride(1) == 1 and x.stride(3) == x.shape[1] > 1)


def channels_last(x: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels-last, with the strides that say so where both orders agree.

    torch takes a single channel for channels-first by its usual strides, and so what a convolution makes of it.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, c, h, w = x.shape
    return x.as_strided(x.shape, (c * h * w, 1, c * w, c))


def dense(x: Tensor) -> Tensor:
    """Return x itself if its memory is dense, channels first or last, else a dense copy in the nearer of the two."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    last = x.dim() == 4 and x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def alike(leader: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """Return all tensors dense and in the leader's memory order, copying only those that are not."""
    leader = dense(leader)
    order = torch.contiguous_format if leader.is_contiguous() else torch.channels_last
    for x in others:
        if x is not None and not x.is_contiguous(memory_format=order):
            others = tuple(y if y is None else y.contiguous(memory_format=order) for y in others)
            break
    return leader, *others  # type: ignore[return-value]
