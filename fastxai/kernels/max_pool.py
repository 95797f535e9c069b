"""Max-pooling of every jet component by the argmax of component 0.

Contract (all backends; components side by side in dim 0, K of them, N rows each):

    push  x [KN, C, H, W] -> y [KN, C, Ho, Wo], index uint8 [N, C, Ho, Wo]
          index = position of the first maximum of component 0 in its window, row-major (kh * KW + kw); every
          component is gathered there. Padding never wins; a NaN wins.
    push  with a given index gathers every component of x (a tangent) and finds no maximum anew
    pull  nu [KN, C, Ho, Wo] -> mu [KN, C, H, W]: scatter-add of every component (windows may overlap)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fastxai import _backend, _check
from fastxai.kernels import _memory, _native

__all__ = ["Window", "pull", "push"]


@dataclass(frozen=True)
class Window:
    """Geometry of a pooling window: (height, width) pairs, as in ``torch.nn.MaxPool2d``.

    Raises:
        ValueError: more than 255 positions in a window (the index is one byte), or a size out of range.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            _check.require(len(pair) == 2 and min(pair) >= least, name, f"be two integers of at least {least}", pair)
        _check.require(self.kernel[0] * self.kernel[1] <= 255, "kernel", "hold at most 255 positions", self.kernel)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (Ho, Wo) for an input of (H, W), by PyTorch's rule."""
        out = []
        for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            room = n + 2 * p - d * (k - 1) - 1
            o = (room + (s - 1 if self.ceil_mode else 0)) // s + 1
            out.append(o - 1 if self.ceil_mode and (o - 1) * s >= n + p else o)
        return out[0], out[1]


def _windows(x: Tensor, w: Window, fill: float) -> Tensor:
    """Return x's windows as [positions, rows, C, Ho, Wo]."""
    (ho, wo), (ph, pw) = w.output_size((x.shape[2], x.shape[3])), w.padding
    need_h = (ho - 1) * w.stride[0] + w.dilation[0] * (w.kernel[0] - 1) + 1 - x.shape[2] - ph
    need_w = (wo - 1) * w.stride[1] + w.dilation[1] * (w.kernel[1] - 1) + 1 - x.shape[3] - pw
    x = F.pad(x, (pw, max(need_w, 0), ph, max(need_h, 0)), value=fill)
    return torch.stack(
        [
            x[:, :, i * w.dilation[0] :, j * w.dilation[1] :][:, :, :: w.stride[0], :: w.stride[1]][:, :, :ho, :wo]
            for i in range(w.kernel[0])
            for j in range(w.kernel[1])
        ]
    )


def _push_reference(x: Tensor, w: Window, components: int, index: Tensor | None) -> tuple[Tensor, Tensor]:
    n = x.shape[0] // components
    if index is None:
        windows = _windows(x[:n], w, -torch.inf)
        inside = _windows(torch.ones_like(x[:1, :1]), w, 0.0) > 0
        best, found, index = windows[0], inside[0], torch.zeros_like(windows[0], dtype=torch.uint8)
        for position in range(1, len(windows)):
            new = windows[position]
            wins = (new > best) | (new.isnan() & ~best.isnan()) | (inside[position] & ~found)
            found = found | inside[position]
            best = torch.where(wins, new, best)
            index = torch.where(wins, torch.full_like(index, position), index)
    windows = _windows(x, w, 0.0)
    where = index.long().repeat(components, 1, 1, 1)[None]
    y = windows.gather(0, where)[0]
    return y.contiguous(memory_format=_format(x)), index.contiguous(memory_format=_format(x))


def _pull_reference(nu: Tensor, w: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    components = nu.shape[0] // index.shape[0] if index.shape[0] else 1
    h, width = size
    rows = torch.arange(nu.shape[2], device=nu.device)[:, None] * w.stride[0] - w.padding[0]
    cols = torch.arange(nu.shape[3], device=nu.device)[None, :] * w.stride[1] - w.padding[1]
    position = index.long()
    rows = rows + position // w.kernel[1] * w.dilation[0]
    cols = cols + position % w.kernel[1] * w.dilation[1]
    flat = (rows * width + cols).repeat(components, 1, 1, 1).flatten(2)
    mu = nu.new_zeros(nu.shape[0], nu.shape[1], h * width).scatter_add_(2, flat, nu.flatten(2))
    return mu.unflatten(2, size).contiguous(memory_format=_format(nu))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _native.is_channels_last(x) else torch.contiguous_format


@lru_cache(maxsize=1024)
def _geometry(w: Window, size: tuple[int, int]) -> tuple[int, ...]:
    """Return (H, W, Ho, Wo, kernel, stride, padding, dilation), having checked that no window misses the input."""
    out = w.output_size(size)
    for axis, n in enumerate(size):
        _check.require(out[axis] > 0, "x", f"be at least as large as the window {w}", size)
        k, s, p, d = w.kernel[axis], w.stride[axis], w.padding[axis], w.dilation[axis]
        for o in range(out[axis]):
            hit = any(0 <= o * s - p + tap * d < n for tap in range(k))
            _check.require(hit, "window", f"meet the input of size {size} wherever it is placed", w)
    return (*size, *out, *w.kernel, *w.stride, *w.padding, *w.dilation)


def _triton() -> ModuleType:
    from fastxai.kernels.triton import max_pool

    return max_pool


def _empty(like: Tensor, size: tuple[int, ...], order: torch.memory_format, rows: int, dtype: torch.dtype) -> Tensor:
    return _memory.empty((rows, like.shape[1], *size), like, dtype, last=order is torch.channels_last)


def _push_cpu(x: Tensor, w: Window, components: int, index: Tensor | None) -> tuple[Tensor, Tensor]:
    geometry, order, rows = _geometry(w, (x.shape[2], x.shape[3])), _format(x), x.shape[0] // components
    y = _empty(x, geometry[2:4], order, x.shape[0], x.dtype)
    find = index is None
    index = _empty(x, geometry[2:4], order, rows, torch.uint8) if index is None else index
    _native.launch(
        "cpu", "max_pool_push", x,
        _native.DTYPES[x.dtype], components, rows, x.shape[1], geometry, order is torch.channels_last, find,
        x.data_ptr(), y.data_ptr(), index.data_ptr(),
    )  # fmt: skip
    return y, index


def _pull_cpu(nu: Tensor, w: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    geometry, order, rows = _geometry(w, size), _format(nu), index.shape[0]
    mu = _empty(nu, size, order, nu.shape[0], nu.dtype)
    _native.launch(
        "cpu", "max_pool_pull", nu,
        _native.DTYPES[nu.dtype], nu.shape[0] // max(rows, 1), rows, nu.shape[1], geometry,
        order is torch.channels_last, nu.data_ptr(), index.data_ptr(), mu.data_ptr(),
    )  # fmt: skip
    return mu


def _check_index(index: Tensor, shape: tuple[int, ...], order: torch.memory_format) -> Tensor:
    _check.require(index.dtype == torch.uint8, "index", "have dtype torch.uint8", index.dtype, TypeError)
    return _check.shape(index, "index", shape).contiguous(memory_format=order)


def push(x: Tensor, window: Window, components: int = 1, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool every component at the first maximum of component 0, or at a given index.

    Args:
        x: [KN, C, H, W], component 0 first; a copy is made where it is not dense, channels first or last.
        window: the pooling geometry.
        components: K.
        index: uint8 [N, C, Ho, Wo] from an earlier push, when component 0 is not among x's.

    Returns:
        (y [KN, C, Ho, Wo], index), in x's memory format.

    Raises:
        ValueError: the rows are no multiple of K, a window misses the input, or the index has another shape.
        TypeError: the index is not uint8.
    """
    _check.require(x.dim() == 4, "x", "have shape [KN, C, H, W]", x.shape)
    _check.require(components > 0 and x.shape[0] % components == 0, "x", "have rows in multiples of K", x.shape)
    x = _native.dense(x)
    if index is not None:
        out = _geometry(window, (x.shape[2], x.shape[3]))[2:4]
        index = _check_index(index, (x.shape[0] // components, x.shape[1], *out), _format(x))
    match _backend.pick(x):
        case "reference":
            return _push_reference(x, window, components, index)
        case "cpu":
            return _push_cpu(x, window, components, index)
        case _:  # no CUDA version exists: Triton's has not been shown to be 10% slower than one
            return _triton().push(x, window, components, index)


def pull(nu: Tensor, window: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Scatter-add every component's cotangent to the position that won.

    Args:
        nu: [KN, C, Ho, Wo]; a copy is made where it is not dense, channels first or last.
        window: the pooling geometry.
        index: uint8 [N, C, Ho, Wo] from ``push``.
        size: (H, W) of the input.

    Returns:
        mu [KN, C, H, W], in nu's memory format.

    Raises:
        ValueError: the shapes do not belong together.
        TypeError: the index is not uint8.
    """
    _check.require(nu.dim() == 4, "nu", "have shape [KN, C, Ho, Wo]", nu.shape)
    nu, rows, size = _native.dense(nu), index.shape[0], (int(size[0]), int(size[1]))
    _check.require(nu.shape[0] % rows == 0 if rows else not nu.shape[0], "nu", "have rows in multiples of N", nu.shape)
    _check.shape(nu, "nu", (nu.shape[0], nu.shape[1], *_geometry(window, size)[2:4]))
    if _native.is_channels_last(index) and nu.is_contiguous(memory_format=torch.channels_last):
        nu = _native.channels_last(nu)  # [N, C, 1, 1] may have come in either guise
    index = _check_index(index, (rows, *nu.shape[1:]), _format(nu))
    match _backend.pick(nu):
        case "reference":
            return _pull_reference(nu, window, index, size)
        case "cpu":
            return _pull_cpu(nu, window, index, size)
        case _:
            return _triton().pull(nu, window, index, size)
