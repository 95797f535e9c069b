"""Max-pooling of jets in Triton; the contract and the reference are in ``fastxai.kernels.max_pool``.

Both kernels write each result once and read it nowhere: ``push`` owns an output element and reads its window, ``pull``
owns an input element and reads the few windows that cover it, so overlapping windows need no atomics and no zeroed
memory, and the sum has a fixed order (the result is deterministic).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastxai.kernels._native import is_channels_last
from fastxai.kernels.max_pool import Window
from fastxai.kernels.triton import launch, wide

__all__ = ["pull", "push"]

_UNROLLED = 16


@triton.jit
def _place(at, channels, height, width, LAST: tl.constexpr, WIDE: tl.constexpr):
    """(n, c, h, w) of the element stored at ``at``: order n h w c if LAST, n c h w otherwise."""
    number = at if WIDE else at.to(tl.int32)
    if LAST:
        c = number % channels
        rest = number // channels
    else:
        c = (number // (height * width)) % channels
        rest = number
    w = rest % width
    rest = rest // width
    h = rest % height
    n = rest // height if LAST else rest // height // channels
    return n, c, h, w


@triton.jit
def _address(n, c, h, w, channels, height, width, LAST: tl.constexpr):
    """Where (n, c, h, w) is stored: the inverse of ``_place``."""
    if LAST:
        return ((n * height + h) * width + w) * channels + c
    return ((n * channels + c) * height + h) * width + w


@triton.jit
def _push_kernel(
    y,
    index,
    x,
    size,
    x_size,
    channels,
    height,
    width,
    out_height,
    out_width,
    COMPONENTS: tl.constexpr,
    GIVEN: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    UNROLL: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    n, c, top, left = _place(at, channels, out_height, out_width, LAST, WIDE)
    top = top * SH - PH
    left = left * SW - PW
    if GIVEN:
        won = tl.load(index + at, mask, 0).to(tl.int32)
    else:
        # a window with nothing above -inf belongs to its first position outside the padding
        won = (tl.maximum(-top, 0) + DH - 1) // DH * KW + (tl.maximum(-left, 0) + DW - 1) // DW
        won = won.to(tl.int32)
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        for position in tl.range(0, KH * KW, loop_unroll_factor=UNROLL):  # pyright: ignore
            h = top + position // KW * DH
            w = left + position % KW * DW
            inside = mask & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            source = x + _address(n, c, h, w, channels, height, width, LAST)
            value = tl.load(source, inside, float("-inf")).to(tl.float32)
            wins = (value > best) | ((value != value) & (best == best))
            best = tl.where(wins, value, best)
            won = tl.where(wins, position, won)
    h = top + won // KW * DH
    w = left + won % KW * DW
    inside = mask & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    source = x + _address(n, c, h, w, channels, height, width, LAST)
    if not GIVEN:
        tl.store(index + at, won.to(tl.uint8), mask)
        tl.store(y + at, best, mask)
        source += x_size
        y += size
    for _ in range(COMPONENTS if GIVEN else COMPONENTS - 1):
        tl.store(y + at, tl.load(source, inside, 0.0), mask)
        source += x_size
        y += size


@triton.jit
def _pull_kernel(
    mu,
    nu,
    index,
    size,
    nu_size,
    channels,
    height,
    width,
    out_height,
    out_width,
    COMPONENTS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UNROLL: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    n, c, h, w = _place(at, channels, height, width, LAST, WIDE)
    h += PH
    w += PW
    for _ in range(COMPONENTS):
        total = tl.zeros((BLOCK,), tl.float32)
        for window in tl.range(0, ROWS * COLS, loop_unroll_factor=UNROLL):  # pyright: ignore
            # the window (row, col) starts `down`, `right` above and left of this element
            row = h // SH - window // COLS
            col = w // SW - window % COLS
            down = h - row * SH
            right = w - col * SW
            covers = mask & (row >= 0) & (row < out_height) & (col >= 0) & (col < out_width)
            covers = covers & (down <= (KH - 1) * DH) & (right <= (KW - 1) * DW)
            if DH > 1:
                covers = covers & (down % DH == 0)
            if DW > 1:
                covers = covers & (right % DW == 0)
            source = _address(n, c, row, col, channels, out_height, out_width, LAST)
            won = tl.load(index + source, covers, 255).to(tl.int32)
            here = won == down // DH * KW + right // DW
            # loaded where the window covers, not only where it won: such a load is one 16-byte access in channels last
            total += tl.where(here, tl.load(nu + source, covers, 0.0).to(tl.float32), 0.0)
        tl.store(mu + at, total, mask)
        mu += size
        nu += nu_size


def _empty(rows: int, like: Tensor, size: tuple[int, int], dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised [rows, C, *size] in the memory format, and on the device, of ``like``."""
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    shape = (rows, like.shape[1], *size)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _geometry(w: Window) -> dict[str, int]:
    pairs = {"K": w.kernel, "S": w.stride, "P": w.padding, "D": w.dilation}
    return {letter + axis: pair[i] for letter, pair in pairs.items() for i, axis in enumerate("HW")}


def push(x: Tensor, window: Window, components: int = 1, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool every component at component 0's first maximum; see ``fastxai.kernels.max_pool.push``."""
    rows, (height, width) = x.shape[0], x.shape[2:]
    out = window.output_size((height, width))
    y = _empty(rows, x, out)
    given = index is not None
    where = index if index is not None else _empty(rows // components, x, out, torch.uint8)
    size, x_size = where.numel(), x.numel() // components
    launch(
        _push_kernel, size, x, y, where, x, size, x_size, x.shape[1], height, width, *out,
        COMPONENTS=components, GIVEN=given, **_geometry(window),
        UNROLL=min(window.kernel[0] * window.kernel[1], _UNROLLED),
        LAST=is_channels_last(x), WIDE=wide(max(size, x_size)),
    )  # fmt: skip
    return y, where


def pull(nu: Tensor, window: Window, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum every component's cotangents at the position that won; see ``fastxai.kernels.max_pool.pull``."""
    mu = _empty(nu.shape[0], nu, size)
    components = nu.shape[0] // index.shape[0] if index.shape[0] else 1
    part = mu.numel() // components
    # windows that can cover one element, along each axis
    rows, cols = (d * (k - 1) // s + 1 for k, s, d in zip(window.kernel, window.stride, window.dilation, strict=True))
    launch(
        _pull_kernel, part, nu, mu, nu, index, part, index.numel(), nu.shape[1], *size, *nu.shape[2:],
        COMPONENTS=components, **_geometry(window), ROWS=rows, COLS=cols, UNROLL=min(rows * cols, _UNROLLED),
        LAST=is_channels_last(nu), WIDE=wide(max(part, index.numel())),
    )  # fmt: skip
    return mu
