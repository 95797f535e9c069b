"""Products of a dense layer.

Contract:

    x [R, K], W [N, K], nu [R, N] -> y = x W^T + b [R, N];  mu = nu W [R, K];  dW = nu^T x [N, K]

The sweeps bring few rows at a time, for which the vendor's matrix product spends most of its time packing W or on one
thread. Here W is read as it lies, by all threads: on two Zen 4 cores 1.7 to 6 times as fast at 2 to 8 rows, 1.2 to 1.8
times at 16 to 50, 1.0 to 1.25 times from 100 on. Sums are sums of 256 products, or of one a vector lane, and err no
more. There is a cpu kernel, float32, on x86-64; weights so small that the vendor's wins, by its cheaper call (2 us
against 8) or by packing, are left to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _backend
from fastxai.kernels import _memory, _native

__all__ = ["apply", "transpose", "weight_grad"]

# Inputs and elements of the smallest weights that gain: on one Zen 4 core a [256, 256] is read 0.8 to 1.0 times as fast
# as the vendor does it, a [256, 8] at 500 rows 0.07 times.
_INPUTS, _ELEMENTS = 256, 1 << 15


def pays(outputs: int, inputs: int) -> bool:
    """True if a weight of this shape is large enough for the kernel."""
    return inputs >= _INPUTS and outputs * inputs >= _ELEMENTS


def serves(*operands: Tensor) -> bool:
    """True if the backend in force has the kernel for these operands."""
    fits = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() for x in operands)
    return fits and _backend.pick(operands[0]) == "cpu" and _native.vector_registers() > 0


def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b on the last dimension: [..., K] -> [..., N]."""
    matches = x.shape[-1:] == weight.shape[1:] and (bias is None or bias.shape == weight.shape[:1])
    if not (matches and pays(*weight.shape) and serves(x, weight, *(() if bias is None else (bias,)))):
        return torch.nn.functional.linear(x, weight, bias)
    return _run("apply", (x, weight, bias), (*x.shape[:-1], len(weight)), weight, _native.vector_registers())


def transpose(nu: Tensor, weight: Tensor) -> Tensor:
    """Return nu W on the last dimension: [..., N] -> [..., K]."""
    matches = weight.dim() == 2 and nu.shape[-1] == len(weight)
    if not (matches and pays(*weight.shape) and serves(nu, weight)):
        return torch.matmul(nu, weight)
    return _run("transpose", (nu, weight), (*nu.shape[:-1], weight.shape[1]), weight, _native.vector_registers())


def weight_grad(nu: Tensor, x: Tensor) -> Tensor:
    """Return nu^T x, summed over all dimensions but the last: [..., N], [..., K] -> [N, K]."""
    nu, x = nu.flatten(0, -2), x.flatten(0, -2)
    if not (len(nu) == len(x) and pays(nu.shape[1], x.shape[1]) and serves(nu, x)):
        return nu.t() @ x
    out = x.new_empty(nu.shape[1], x.shape[1])
    return _run("weight_grad", (nu, x), out.shape, out, _native.vector_registers())


def _run(name: str, operands: Sequence[Tensor | None], shape: Sequence[int], weight: Tensor, registers: int) -> Tensor:
    """Launch a kernel; ``weight`` has the shape of W."""
    dense = [None if operand is None else operand.contiguous() for operand in operands]
    first = dense[0]
    assert first is not None
    out, (outputs, inputs) = _memory.empty(shape, first), weight.shape
    sizes = first.numel() // first.shape[-1], inputs, outputs
    addresses = [0 if operand is None else operand.data_ptr() for operand in (*dense, out)]
    _native.launch("cpu", f"linear_{name}", out, sizes, *addresses, registers)
    return out
