"""3x3 and 5x5 convolutions of stride 1 by Winograd's tiles: a quarter, or 36 in 100, of the multiply-adds.

Contract (C and O multiples of 16, one group, dilation 1, K = 3 or 5):

    x [R, C, H, W], W [O, C, K, K] -> y [R, O, Ho, Wo], plus b [O] where there is one
    for every TxT tile of y, over its (K+T-1)x(K+T-1) pixels d of x:   y = A^T [sum_c (G W G^T) * (B^T d B)] A

    K = 3, T = 2:   A^T = 1 1  1  0     B^T = 1  0 -1  0     G =   1    0    0
                          0 1 -1 -1           0  1  1  0          1/2  1/2  1/2
                                              0 -1  1  0          1/2 -1/2  1/2
                                              0  1  0 -1           0    0    1

    K = 3, T = 4, points 0, +-a, +-b, a = 5/8, b = 3/2:

                    A^T = 1  1   1   1   1   0     B^T = a^2 b^2    0   -a^2-b^2    0    1  0
                          0  a  -a   b  -b   0             0     -a b^2   -b^2      a    1  0
                          0 a^2 a^2 b^2 b^2  0             0      a b^2   -b^2     -a    1  0
                          0 a^3-a^3 b^3-b^3  1             0     -a^2 b   -a^2      b    1  0
                                                           0      a^2 b   -a^2     -b    1  0
                                                           0    a^2 b^2     0   -a^2-b^2  0  1

    K = 5, T = 2, points 0, 1, -1, -1/2, 2:

                    A^T = 1  1   1   1   1   0     B^T =  1   3/2   -2   -3/2   1   0
                          0  1  -1 -1/2  2   1            0   -1   -5/2  -1/2   1   0
                                                          0    1    1/2  -5/2   1   0
                                                          0    2    -1    -2    1   0
                                                          0  -1/2   -1    1/2   1   0
                                                          0    1    3/2   -2  -3/2  1

    the rows of G, but 0 .. 0 1 for infinity:   1, p, p^2 .. p^(K-1), over prod (p - q), q the other finite points

    dW = G^T [sum over tiles of (B^T d B) (x) (A nu A^T)] G      for a cotangent nu of y

(Lavin, Gray: Fast algorithms for convolutional neural networks, 2016.) Sums run over C products instead of K^2 C, in
runs of 32. Errors relative to the result, C of 16 to 512:

    K = 3, T = 2: 1.6e-7 .. 2.4e-7   T = 4: 4.7e-7 .. 7.0e-7   oneDNN: 2.1e-7 .. 2.3e-7, channels-last to 1.2e-6
    K = 5, T = 2: 9.0e-7 .. 1.0e-6 (C from 32 on)              oneDNN: 3.3e-7 .. 3.7e-7, channels-last to 1.2e-6

oneDNN has no Winograd convolution on x86; in cpu time of a Zen 4 core it takes, for K = 3, 1.7 (16 channels), 2.5 (32)
to 3.0 times as long (256), for the weight gradient 1.1 to 2.6 times; with AVX2 alone 1.9 to 3.1 and 1.4 to 3.7 times.
For K = 5 1.7 (32 channels) to 2.1 times (256), for the weight gradient 1.1 to 1.7 times; with AVX2 alone 1.6 to 1.9 and
1.0 to 1.6 times. There is a cpu kernel, float32 and channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastxai import _backend
from fastxai.kernels import _memory, _native

__all__ = ["Packed", "Refined", "Scheme", "conv", "pack", "scheme", "serves", "weight_grad"]

# Outputs that are stored side by side for every channel.
_PANEL = 32
# Work, in multiply-adds, for which another thread is woken; and bytes of all threads' sums.
_PIECE, _SUMS = 1 << 22, 256 << 20
# Of |W_o|_2 max |x|, the unit in which tiles round by some 6e-7: outputs below are summed anew where they matter.
_SMALL = 2.0**-8
_G3 = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
# The finite points of the 6x6 transforms, by the side of the kernel, as in csrc/cpu/winograd_tiles.h.
_POINTS = {3: (0.0, 0.625, -0.625, 1.5, -1.5), 5: (0.0, 1.0, -1.0, -0.5, 2.0)}


class Scheme(NamedTuple):
    """The side of a kernel, and of a tile of outputs."""

    kernel: int
    tile: int

    @property
    def positions(self) -> int:
        """How many products a tile takes."""
        return (self.kernel + self.tile - 1) ** 2

    @property
    def exact(self) -> bool:
        """Whether an output depends on the pixels of its window alone, and all of a constant window are equal.

        Elsewhere both hold but for a rounding.
        """
        return self.tile == 2

    def tiles(self, out: Sequence[int]) -> int:
        """Return how many tiles cover an image ``out`` (height, width)."""
        return -(-out[0] // self.tile) * -(-out[1] // self.tile)


_LARGE = Scheme(3, 4)
# Of these tiles, from which on a weight gradient gains more by them than its sums, of 36 positions not 16, cost.
_MANY = 256


class Packed(NamedTuple):
    """G W G^T in the kernel's order; ``least`` [O] is what counts as a small output of x with |x| <= 1."""

    u: Tensor
    scheme: Scheme
    least: Tensor


def scheme(weight: Tensor, out: Sequence[int], *, exact: bool = False) -> Scheme | None:
    """Return the fastest tiles for a kernel [O, C, KH, KW] and images ``out`` (height, width), None if none pay.

    With ``exact``, of those that are.
    """
    o, c, *kernel = weight.shape
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or o % 16 or c % 16:
        return None
    if kernel not in ([3, 3], [5, 5]) or not _native.vector_registers():
        return None
    # The transforms of 5x5 tiles pay from 1024 pairs of channels on: 16 to 32 take the vendor's time.
    if kernel[0] == 5 and o * c < 32 * 32:
        return None
    found = [Scheme(kernel[0], 2)] if exact or kernel[0] == 5 else [Scheme(3, 2), _LARGE]
    work = {s.positions * s.tiles(out): s for s in reversed(found)}
    least = min(work)
    # At least a fifth of the multiply-adds has to remain as gain, tiles being cut at the edges.
    return work[least] if 1.25 * least <= kernel[0] ** 2 * out[0] * out[1] else None


def serves(x: Tensor) -> bool:
    """True if the backend in force has the kernel for this operand."""
    return x.dtype == torch.float32 and _backend.pick(x) == "cpu"


def _transform(scheme: Scheme) -> Tensor:
    """Return W -> G W G^T as a matrix [positions, K^2]."""
    if scheme == (3, 2):
        g = torch.tensor(_G3, dtype=torch.float64)
    else:
        points = torch.tensor(_POINTS[scheme.kernel], dtype=torch.float64)
        apart = (points[:, None] - points).fill_diagonal_(1).prod(1)
        powers = points[:, None] ** torch.arange(scheme.kernel)
        infinity = torch.eye(scheme.kernel, dtype=torch.float64)[-1:]
        g = torch.cat([powers / apart[:, None], infinity])
    return torch.kron(g, g)


def pack(weight: Tensor, scheme: Scheme) -> Packed:
    """Return G W G^T of W [O, C, K, K] in panels of outputs [positions, C, 32 (the last: or 16)]."""
    o, c, kernel, _ = weight.shape
    u = _transform(scheme) @ weight.double().permute(2, 3, 1, 0).reshape(kernel**2, c * o)
    panels = [part.flatten() for part in u.float().view(-1, c, o).split(_PANEL, 2)]
    return Packed(torch.cat(panels), scheme, weight.flatten(1).norm(dim=1).mul_(_SMALL))


def unpack(u: Tensor, channels: int, scheme: Scheme) -> Tensor:
    """Return G^T U G [O, C, K, K], the adjoint of ``pack``."""
    panels = [part.view(scheme.positions, channels, -1) for part in u.split(scheme.positions * channels * _PANEL)]
    w = _transform(scheme).T @ torch.cat(panels, 2).double().flatten(1)
    return w.float().view(scheme.kernel, scheme.kernel, channels, -1).permute(3, 2, 0, 1)


class Refined(NamedTuple):
    """Where an output is summed by itself: where z is small beside the largest of what its tile mixes.

    Attributes:
        weight: W in channels-last.
        like: another image and its result z; None: x and y themselves, which then has three digits wherever all terms
            have one sign, and is zero where they are.
    """

    weight: Tensor
    like: tuple[Tensor, Tensor] | None = None


def conv(
    x: Tensor, packed: Packed, bias: Tensor | None, padding: tuple[int, int], refined: Refined | None = None
) -> Tensor:
    """Return y [R, O, Ho, Wo] in channels-last.

    Args:
        x: [R, C, H, W] float32 on the CPU; a copy is made where it is not channels-last.
        packed: from ``pack``.
        bias: [O], or None.
        padding: zeros around x.
        refined: which outputs are not to hold roundings of others; None: tiles alone.
    """
    return _run(x, packed, bias, padding, refined, _native.vector_registers())


def _run(
    x: Tensor, packed: Packed, bias: Tensor | None, padding: tuple[int, int], refined: Refined | None, registers: int
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    scheme = packed.scheme
    outputs = packed.u.numel() // (scheme.positions * channels)
    out_height, out_width = (n + 2 * p - scheme.kernel + 1 for n, p in zip((height, width), padding, strict=True))
    y = _memory.empty((rows, outputs, out_height, out_width), x, last=True)
    if y.numel():
        geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs, *scheme)
        start = 0 if bias is None else (bias := bias.contiguous()).data_ptr()
        addresses = (x.data_ptr(), packed.u.data_ptr(), start, y.data_ptr())
        _native.launch("cpu", "winograd_conv", x, geometry, *addresses, registers)
        if refined is not None:
            of, z = (t.contiguous(memory_format=torch.channels_last) for t in refined.like or (x, y))
            operands = (packed.least, of, z, x, refined.weight)
            _native.launch(
                "cpu", "winograd_refine", x, geometry, *(t.data_ptr() for t in operands), start, y.data_ptr()
            )
    return y


def weight_grad(x: Tensor, nu: Tensor, padding: tuple[int, int], kernel: int) -> Tensor:
    """Return dW [O, C, K, K] of a cotangent nu [R, O, Ho, Wo] of y; x and padding as in ``conv``."""
    large = kernel == 3 and len(nu) * _LARGE.tiles(nu.shape[2:]) >= _MANY
    return _sum(x, nu, padding, _LARGE if large else Scheme(kernel, 2), _native.vector_registers())


def _sum(x: Tensor, nu: Tensor, padding: tuple[int, int], scheme: Scheme, registers: int) -> Tensor:
    x, nu = x.contiguous(memory_format=torch.channels_last), nu.contiguous(memory_format=torch.channels_last)
    rows, channels, height, width = x.shape
    outputs, out_height, out_width = nu.shape[1:]
    size = scheme.positions * channels * outputs
    most = min(torch.get_num_threads(), _SUMS // (4 * size), nu[:, 0].numel() // scheme.tile**2 * size // _PIECE)
    sums = _memory.empty((max(1, most), size), x)
    geometry = (rows, height, width, out_height, out_width, *padding, channels, outputs, *scheme)
    addresses = (x.data_ptr(), nu.data_ptr(), sums.data_ptr())
    _native.call("cpu_winograd_weight_grad", geometry, *addresses, registers, len(sums))
    return unpack(sums.sum(0), channels, scheme)
