"""Convolution from few channels and its transpose: how values enter a network, and cotangents leave it.

Contract (stride 1, dilation 1, one group, C of 1 to 4, O a multiple of 16):

    apply       x [R, C, H, W] -> y [R, O, Ho, Wo]
                y[y, x, o] = sum over i, j, c of W[o, c, i, j] x[y - p + i, x - p + j, c], plus b[o] where there is one
    transpose   nu [R, O, Ho, Wo] -> mu [R, C, H, W]
                mu[y, x, c] = sum over i, j, o of W[o, c, i, j] nu[y + p - i, x + p - j, o]

The vendor's transposed convolution pads three output channels to a vector of sixteen and reaches 35 GFLOP/s where it
reaches 200 elsewhere (32 -> 3 channels, 3x3, 32x32 pixels, two Zen 4 cores). Its forward one is as fast as this for
some images of 32x32, and takes 2.9 times as long for one, 3.4 times for eight of 224x224 (one core). There is a cpu
kernel, float32 and channels-last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastxai import _backend
from fastxai.kernels import _memory, _native

__all__ = ["apply", "fits", "pack", "serves", "transpose", "transpose_reference"]


def fits(weight: Tensor) -> bool:
    """True if a kernel of shape [O, C, KH, KW] is wide above and thin below."""
    return 1 <= weight.shape[1] <= 4 and weight.shape[0] % 16 == 0


def serves(nu: Tensor) -> bool:
    """True if the backend in force has the kernel for this operand."""
    return nu.dtype == torch.float32 and _backend.pick(nu) == "cpu"


def pack(weight: Tensor) -> Tensor:
    """Return W [O, C, KH, KW] as the kernel reads it: [KH KW, C, O]."""
    return weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()


def apply(x: Tensor, packed: Tensor, bias: Tensor | None, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return y [R, O, Ho, Wo] in channels-last.

    Args:
        x: [R, C, H, W] float32 on the CPU; a copy is made where it is not channels-last.
        packed: [KH KW, C, O] from ``pack``.
        bias: [O], or None.
        kernel: (KH, KW).
        padding: (PH, PW), zeros around x.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    rows, thin, height, width = x.shape
    out_height, out_width = (n + 2 * p - k + 1 for n, k, p in zip((height, width), kernel, padding, strict=True))
    wide = packed.shape[2]
    y = _memory.empty((rows, wide, out_height, out_width), x, last=True)
    if y.numel():
        geometry = (rows, height, width, out_height, out_width, *kernel, *padding, thin, wide)
        start = 0 if bias is None else (bias := bias.contiguous()).data_ptr()
        addresses = (x.data_ptr(), packed.data_ptr(), start, y.data_ptr())
        _native.launch("cpu", "thin_conv_apply", x, geometry, *addresses)
    return y


def transpose_reference(nu: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return mu by torch's transposed convolution, any dtype and device."""
    return torch.conv_transpose2d(nu, weight, None, 1, padding)


def transpose(nu: Tensor, packed: Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return mu [R, C, H, W] in channels-last.

    Args:
        nu: [R, O, Ho, Wo] float32 on the CPU; a copy is made where it is not channels-last.
        packed: [KH KW, C, O] from ``pack``.
        kernel: (KH, KW).
        padding: (PH, PW) of the forward convolution.
    """
    nu = nu.contiguous(memory_format=torch.channels_last)
    rows, wide, out_height, out_width = nu.shape
    height, width = (n + k - 1 - 2 * p for n, k, p in zip((out_height, out_width), kernel, padding, strict=True))
    thin = packed.shape[1]
    mu = _memory.empty((rows, thin, height, width), nu, last=True)
    if mu.numel():
        geometry = (rows, height, width, out_height, out_width, *kernel, *padding, thin, wide)
        _native.launch("cpu", "thin_conv_transpose", nu, geometry, nu.data_ptr(), packed.data_ptr(), mu.data_ptr())
    return mu
