"""3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 multiply-adds for four pixels instead of 36.

Contract (C and O multiples of 16, one group, dilation 1):

    x [R, C, H, W], W [O, C, 3, 3] -> y [R, O, Ho, Wo], plus b [O] where there is one
    for every 2x2 tile of y, over its 4x4 pixels d of x:   y = A^T [sum_c (G W G^T) * (B^T d B)] A

    A^T = 1 1  1  0     B^T = 1  0 -1  0     G =   1    0    0
          0 1 -1 -1           0  1  1  0          1/2  1/2  1/2
                              0 -1  1  0          1/2 -1/2  1/2
                              0  1  0 -1           0    0    1

    dW = G^T [sum over tiles of (B^T d B) (x) (A nu A^T)] G      for a cotangent nu of y

(Lavin, Gray: Fast algorithms for convolutional neural networks, 2016.) Sums run over C products instead of 9 C, in
runs of 32, and err no more than a direct sum: relative to the result by 2.0e-7 to 2.4e-7 for C of 32 to 512, where
oneDNN errs by 2.1e-7 to 2.3e-7, on channels-last input by 2.9e-7 to 1.2e-6. oneDNN has no Winograd convolution on x86;
in cpu time of a Zen 4 core it takes 1.3 (16 channels) to 1.8 times as long (from 128 on), for the weight gradient 1.4
to 2.1 times; with AVX2 alone 1.1 to 1.7 and 1.1 to 2.4 times. There is a cpu kernel, float32 and channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _backend
from fastxai.kernels import _native

__all__ = ["conv", "fits", "pack", "serves", "weight_grad"]

# Outputs that are stored side by side for every channel.
_PANEL = 32
# Work, in multiply-adds, for which another thread is woken; and bytes of all threads' sums.
_PIECE, _SUMS = 1 << 22, 256 << 20
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


def fits(weight: Tensor, out: Sequence[int]) -> bool:
    """True if a kernel [O, C, KH, KW] is one of these, and tiles make images ``out`` (height, width) faster with it."""
    o, c, *kernel = weight.shape
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or kernel != [3, 3] or o % 16 or c % 16:
        return False
    # 16 multiply-adds a tile against 9 a pixel; at least a fifth has to remain as gain, tiles being cut at the edges.
    return _native.vector_registers() > 0 and 20 * -(-out[0] // 2) * -(-out[1] // 2) <= 9 * out[0] * out[1]


def serves(x: Tensor) -> bool:
    """True if the backend in force has the kernel for this operand."""
    return x.dtype == torch.float32 and _backend.pick(x) == "cpu"


def _transform() -> Tensor:
    """Return W -> G W G^T as a matrix [16, 9]."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.kron(g, g)


def pack(weight: Tensor) -> Tensor:
    """Return G W G^T of W [O, C, 3, 3] in the kernel's order: panels of outputs [16, C, 32 (the last: or 16)]."""
    o, c = weight.shape[:2]
    u = _transform() @ weight.double().permute(2, 3, 1, 0).reshape(9, c * o)
    return torch.cat([part.flatten() for part in u.float().view(16, c, o).split(_PANEL, 2)])


def unpack(u: Tensor, channels: int) -> Tensor:
    """Return G^T U G [O, C, 3, 3], the adjoint of ``pack``."""
    widest = 16 * channels * _PANEL
    panels = [part.view(16, channels, -1) for part in u.split(widest)]
    w = _transform().T @ torch.cat(panels, 2).double().flatten(1)
    return w.float().view(3, 3, channels, -1).permute(3, 2, 0, 1)


def conv(x: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Return y [R, O, Ho, Wo] in channels-last.

    Args:
        x: [R, C, H, W] float32 on the CPU; a copy is made where it is not channels-last.
        packed: from ``pack``.
        bias: [O], or None.
        padding: zeros around x, 0 to 2 of them.
    """
    return _run(x, packed, bias, padding, _native.vector_registers())


def _run(x: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, int], registers: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    outputs = packed.numel() // (16 * channels)
    out_height, out_width = (n + 2 * p - 2 for n, p in zip((height, width), padding, strict=True))
    y = torch.empty(rows, outputs, out_height, out_width, memory_format=torch.channels_last)
    if y.numel():
        geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs)
        start = 0 if bias is None else (bias := bias.contiguous()).data_ptr()
        addresses = (x.data_ptr(), packed.data_ptr(), start, y.data_ptr())
        _native.launch("cpu", "winograd_conv", x, geometry, *addresses, registers)
    return y


def weight_grad(x: Tensor, nu: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return dW [O, C, 3, 3] of a cotangent nu [R, O, Ho, Wo] of y; x and padding as in ``conv``."""
    return _sum(x, nu, padding, _native.vector_registers())


def _sum(x: Tensor, nu: Tensor, padding: tuple[int, int], registers: int) -> Tensor:
    x, nu = x.contiguous(memory_format=torch.channels_last), nu.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    outputs, out_height, out_width = nu.shape[1:]
    size = 16 * channels * outputs
    most = min(torch.get_num_threads(), _SUMS // (4 * size), nu[:, 0].numel() // 4 * size // _PIECE)
    sums = torch.empty(max(1, most), size)
    geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs)
    addresses = (x.data_ptr(), nu.data_ptr(), sums.data_ptr())
    _native.function("cpu_winograd_weight_grad")(geometry, *addresses, registers, len(sums))
    return unpack(sums.sum(0), channels)
