"""The table of max-pool windows that every kernel backend runs, and its check against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cases import place
from torch import Tensor

import fastxai
from fastxai.kernels import max_pool
from fastxai.kernels.max_pool import Window


@dataclass(frozen=True)
class PoolCase:
    """One window on one shape: [KN, C, H, W], channels first or last."""

    window: Window
    shape: tuple[int, int, int, int]
    components: int = 1
    last: bool = False

    def __str__(self) -> str:
        w = self.window
        pairs = "-".join("x".join(map(str, p)) for p in (w.kernel, w.stride, w.padding, w.dilation))
        size = "x".join(map(str, self.shape))
        return f"{pairs}{'-ceil' * w.ceil_mode}-{size}-K{self.components}{'-last' * self.last}"

    def tensor(self, dtype: torch.dtype, device: str) -> Tensor:
        """Return x with many ties, and with NaN and infinities among component 0."""
        seed = torch.Generator().manual_seed(11)
        x = torch.randint(-3, 4, (self.components * self.shape[0], *self.shape[1:]), generator=seed).float()
        special = torch.rand(x[: self.shape[0]].shape, generator=seed)
        for low, value in ((0.00, torch.nan), (0.01, torch.inf), (0.02, -torch.inf)):
            x[: self.shape[0]][(special > low) & (special < low + 0.01)] = value
        return place(x, self.last, dtype, device)


WINDOWS = (
    Window((2, 2), (2, 2)),
    Window((3, 3), (2, 2), (1, 1)),
    Window((3, 3), (2, 2)),
    Window((3, 3), (2, 2), ceil_mode=True),
    Window((2, 2), (2, 2), ceil_mode=True),
    Window((3, 3), (1, 1), (1, 1)),
    Window((3, 2), (1, 3), (1, 0), (2, 1)),
    Window((2, 2), (3, 3)),
    Window((5, 1), (2, 1), (2, 0)),
    Window((13, 15), (1, 1)),
)
POOL_CASES = [
    *(PoolCase(w, (2, 5, 13, 15), 3, last) for w in WINDOWS for last in (False, True)),
    *(PoolCase(w, (2, 300, 14, 16), 2, last) for w in WINDOWS[:2] for last in (False, True)),
    *(PoolCase(WINDOWS[0], (0, 3, 8, 8), 2, last) for last in (False, True)),
    *(PoolCase(WINDOWS[1], (2, 0, 8, 8), 2, last) for last in (False, True)),
    PoolCase(WINDOWS[0], (3, 1, 6, 6), 1, True),
    PoolCase(WINDOWS[0], (3, 7, 2, 2), 2, True),
]


def check_pool(case: PoolCase, backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Run push, push at a given index, and pull on a backend; all are exact, so compare bit by bit."""
    x = case.tensor(dtype, device)
    n, k, window = case.shape[0], case.components, case.window
    with fastxai.backend(backend):
        y, index = max_pool.push(x, window, k)
        again, _ = max_pool.push(x[n:], window, k - 1, index) if k > 1 else (y[n:], index)
        nu = (y.nan_to_num(1, 2, 3) + 1).round()
        mu = max_pool.pull(nu, window, index, (x.shape[2], x.shape[3]))
    with fastxai.backend("reference"):
        want_y, want_index = max_pool.push(x.cpu(), window, k)
        want_mu = max_pool.pull(nu.cpu(), window, want_index, (x.shape[2], x.shape[3]))
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(y.cpu(), want_y, **exact)
    torch.testing.assert_close(index.cpu(), want_index, **exact)
    torch.testing.assert_close(again, y[n:], **exact)
    torch.testing.assert_close(mu.cpu(), want_mu, **exact)
    if case.last and x.numel():
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, index, mu))
