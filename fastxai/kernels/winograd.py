"""3x3 and 5x5 convolutions of stride 1 by Winograd's tiles: 16 multiply-adds for four pixels, not 36; 36, not 100.

Contract (C and O multiples of 16, one group, dilation 1, K = 3 or 5):

    x [R, C, H, W], W [O, C, K, K] -> y [R, O, Ho, Wo], plus b [O] where there is one
    for every 2x2 tile of y, over its (K+1)x(K+1) pixels d of x:   y = A^T [sum_c (G W G^T) * (B^T d B)] A

    K = 3:   A^T = 1 1  1  0     B^T = 1  0 -1  0     G =   1    0    0
                   0 1 -1 -1           0  1  1  0          1/2  1/2  1/2
                                       0 -1  1  0          1/2 -1/2  1/2
                                       0  1  0 -1           0    0    1

    K = 5, points a = 5/8, b = 3/2:

             A^T = 1 1  1 1  1 0     B^T = a^2 b^2    0   -a^2-b^2    0    1  0     G = e(0) / (a^2 b^2)
                   0 a -a b -b 1             0     -a b^2   -b^2      a    1  0         e(a) / (2 a^2 (a^2-b^2))
                                             0      a b^2   -b^2     -a    1  0         e(-a) / (2 a^2 (a^2-b^2))
                                             0     -a^2 b   -a^2      b    1  0         e(b) / (2 b^2 (b^2-a^2))
                                             0      a^2 b   -a^2     -b    1  0         e(-b) / (2 b^2 (b^2-a^2))
                                             0    a^2 b^2     0   -a^2-b^2  0  1        0 0 0 0 1
             e(p) = 1 p p^2 p^3 p^4

    dW = G^T [sum over tiles of (B^T d B) (x) (A nu A^T)] G      for a cotangent nu of y

(Lavin, Gray: Fast algorithms for convolutional neural networks, 2016.) Sums run over C products instead of K^2 C, in
runs of 32. For K = 3 they err no more than a direct sum: relative to the result by 2.0e-7 to 2.4e-7 for C of 32 to 512,
where oneDNN errs by 2.1e-7 to 2.3e-7, on channels-last input by 2.9e-7 to 1.2e-6. For K = 5 by 6.6e-7 to 7.4e-7,
oneDNN by 3.3e-7 to 3.5e-7, on channels-last input by 4.8e-7 to 1.2e-6. oneDNN has no Winograd convolution on x86; in
cpu time of a Zen 4 core it takes, for K = 3, 1.3 (16 channels) to 1.8 times as long (from 128 on), for the weight
gradient 1.4 to 2.1 times; with AVX2 alone 1.1 to 1.7 and 1.1 to 2.4 times. For K = 5 1.7 (32 channels) to 2.1 times
(256), for the weight gradient 1.1 to 1.7 times; with AVX2 alone 1.6 to 1.9 and 1.0 to 1.6 times.
There is a cpu kernel, float32 and channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _backend
from fastxai.kernels import _memory, _native

__all__ = ["conv", "fits", "pack", "serves", "weight_grad"]

# Outputs that are stored side by side for every channel.
_PANEL = 32
# Work, in multiply-adds, for which another thread is woken; and bytes of all threads' sums.
_PIECE, _SUMS = 1 << 22, 256 << 20
_G3 = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
# The finite points of K = 5, as in csrc/cpu/winograd_tiles.h.
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def fits(weight: Tensor, out: Sequence[int]) -> bool:
    """True if a kernel [O, C, KH, KW] is one of these, and tiles make images ``out`` (height, width) faster with it."""
    o, c, *kernel = weight.shape
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or o % 16 or c % 16:
        return False
    if kernel not in ([3, 3], [5, 5]) or not _native.vector_registers():
        return False
    # The transforms of 5x5 tiles pay from 1024 pairs of channels on: 16 to 32 take the vendor's time.
    if kernel[0] == 5 and o * c < 32 * 32:
        return False
    # At least a fifth of the multiply-adds has to remain as gain, tiles being cut at the edges.
    direct = kernel[0] ** 2 * out[0] * out[1]
    return 1.25 * _positions(kernel[0]) * -(-out[0] // 2) * -(-out[1] // 2) <= direct


def serves(x: Tensor) -> bool:
    """True if the backend in force has the kernel for this operand."""
    return x.dtype == torch.float32 and _backend.pick(x) == "cpu"


def _positions(kernel: int) -> int:
    """Return how many products a tile takes."""
    return (kernel + 1) ** 2


def _transform(kernel: int) -> Tensor:
    """Return W -> G W G^T as a matrix [(K+1)^2, K^2]."""
    g = torch.tensor(_G3, dtype=torch.float64)
    if kernel == 5:
        points = torch.tensor(_POINTS, dtype=torch.float64)
        apart = (points[:, None] - points).fill_diagonal_(1).prod(1)
        last = torch.tensor([[0, 0, 0, 0, 1.0]], dtype=torch.float64)
        g = torch.cat([points[:, None] ** torch.arange(5) / apart[:, None], last])
    return torch.kron(g, g)


def pack(weight: Tensor) -> Tensor:
    """Return G W G^T of W [O, C, K, K] in the kernel's order: panels of outputs [(K+1)^2, C, 32 (the last: or 16)]."""
    o, c, kernel, _ = weight.shape
    u = _transform(kernel) @ weight.double().permute(2, 3, 1, 0).reshape(kernel**2, c * o)
    return torch.cat([part.flatten() for part in u.float().view(-1, c, o).split(_PANEL, 2)])


def unpack(u: Tensor, channels: int, kernel: int) -> Tensor:
    """Return G^T U G [O, C, K, K], the adjoint of ``pack``."""
    positions = _positions(kernel)
    panels = [part.view(positions, channels, -1) for part in u.split(positions * channels * _PANEL)]
    w = _transform(kernel).T @ torch.cat(panels, 2).double().flatten(1)
    return w.float().view(kernel, kernel, channels, -1).permute(3, 2, 0, 1)


def conv(x: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, int], kernel: int) -> Tensor:
    """Return y [R, O, Ho, Wo] in channels-last.

    Args:
        x: [R, C, H, W] float32 on the CPU; a copy is made where it is not channels-last.
        packed: from ``pack``.
        bias: [O], or None.
        padding: zeros around x.
        kernel: K.
    """
    return _run(x, packed, bias, padding, kernel, _native.vector_registers())


def _run(
    x: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, int], kernel: int, registers: int
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    outputs = packed.numel() // (_positions(kernel) * channels)
    out_height, out_width = (n + 2 * p - kernel + 1 for n, p in zip((height, width), padding, strict=True))
    y = _memory.empty((rows, outputs, out_height, out_width), x, last=True)
    if y.numel():
        geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs, kernel)
        start = 0 if bias is None else (bias := bias.contiguous()).data_ptr()
        addresses = (x.data_ptr(), packed.data_ptr(), start, y.data_ptr())
        _native.launch("cpu", "winograd_conv", x, geometry, *addresses, registers)
    return y


def weight_grad(x: Tensor, nu: Tensor, padding: tuple[int, int], kernel: int) -> Tensor:
    """Return dW [O, C, K, K] of a cotangent nu [R, O, Ho, Wo] of y; x, padding and kernel as in ``conv``."""
    return _sum(x, nu, padding, kernel, _native.vector_registers())


def _sum(x: Tensor, nu: Tensor, padding: tuple[int, int], kernel: int, registers: int) -> Tensor:
    x, nu = x.contiguous(memory_format=torch.channels_last), nu.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    outputs, out_height, out_width = nu.shape[1:]
    size = _positions(kernel) * channels * outputs
    most = min(torch.get_num_threads(), _SUMS // (4 * size), nu[:, 0].numel() // 4 * size // _PIECE)
    sums = _memory.empty((max(1, most), size), x)
    geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs, kernel)
    addresses = (x.data_ptr(), nu.data_ptr(), sums.data_ptr())
    _native.function("cpu_winograd_weight_grad")(geometry, *addresses, registers, len(sums))
    return unpack(sums.sum(0), channels, kernel)
