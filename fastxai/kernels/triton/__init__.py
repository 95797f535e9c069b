"""Triton kernels: one file per family, the same functions and arguments as the family's public contract.

Inputs are dense tensors (channels first or channels last) that the public functions have checked. Kernels launch on
the tensor's device and PyTorch's current stream, allocate only through PyTorch and never synchronise, so a call can be
captured in a CUDA graph once it has run outside one (the first call compiles).

Arithmetic is float32 and uses no approximation faster than PyTorch's own; contraction to FMA is asked for explicitly
because Triton's default for it changes between releases.

Launch: a 1-D grid over the elements of one component, ``BLOCK`` elements a program, and as many warps as give each
thread one 16-byte access per tensor (8 for float32, 4 for 2-byte storage). Integer arguments keep Triton's
specialisation on multiples of 16 (without it accesses are scalar: it is the element count that tells that component s
starts on a 16-byte boundary) and on 1 (channels-last bias: no division). The activation, the number of directions and
a pool's geometry are compile-time; values such as beta are plain floats, so that a growing beta recompiles nothing. A
beta that grows between the replays of a captured call lies in memory instead (``formulas.dials``).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from fastxai.kernels.formulas import Activation, split

__all__ = ["BLOCK", "launch", "loaded", "numbers", "wide"]

BLOCK = 1024
INT32_ELEMENTS = 2**31 - 2**20


def wide(size: int) -> bool:
    """Return True if numbering ``size`` elements (and a block beyond) takes 64 bits; 32-bit divisions are faster."""
    return size > INT32_ELEMENTS


def numbers(act: Activation) -> tuple[float | Tensor, float | None, float]:
    """Return (head of beta, its tail, alpha), or for a beta in memory (the tensor, None, alpha)."""
    return (act.beta, None, act.alpha) if isinstance(act.beta, Tensor) else (*split(act.beta), act.alpha)


@triton.jit
def loaded(head, tail):
    """(head, tail) of beta, as ``numbers`` gave them."""
    if tail is None:
        beta_head = tl.load(head + 1).to(tl.float32)
        beta_tail = tl.load(head + 2).to(tl.float32)
    else:
        beta_head = head
        beta_tail = tail
    return beta_head, beta_tail


def launch(kernel: Any, size: int, like: Tensor, *args: Any, **constants: Any) -> None:
    """Run a kernel over ``size`` elements stored as ``like`` is, on its device; nothing happens where size is 0.

    Args:
        kernel: a function under ``triton.jit`` whose last parameter is BLOCK.
        size: elements that the grid covers.
        like: a tensor with the device and the storage type that the launch is made for.
        args: the kernel's run-time arguments.
        constants: the kernel's compile-time arguments but BLOCK.

    Raises:
        ValueError: the tensor is on the CPU and Triton does not interpret its kernels.
    """
    if size == 0:
        return
    if not like.is_cuda and not knobs.runtime.interpret:
        raise ValueError(
            "backend 'triton' must get a CUDA tensor, got one on the CPU"
            " (TRITON_INTERPRET=1, set before triton is imported, interprets the kernels there)"
        )
    warps = BLOCK * like.element_size() // (16 * 32)
    with torch.cuda.device_of(like) if like.is_cuda else nullcontext():
        kernel[(triton.cdiv(size, BLOCK),)](*args, **constants, BLOCK=BLOCK, num_warps=warps, enable_fp_fusion=True)
