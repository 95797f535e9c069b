"""Max-pooling of jets: the reference against PyTorch, the CPU kernels against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pool_cases import POOL_CASES, WINDOWS, PoolCase, check_pool
from torch import Tensor

import fastxai
from fastxai.kernels import max_pool
from fastxai.kernels.max_pool import Window


def torch_pool(x: Tensor, w: Window) -> tuple[Tensor, Tensor]:
    """PyTorch's pooling and its flat index, at the first maximum."""
    return F.max_pool2d(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode, return_indices=True)


def flat(index: Tensor, w: Window, width: int) -> Tensor:
    """Our position in the window as PyTorch's position in the plane."""
    rows = torch.arange(index.shape[2])[:, None] * w.stride[0] - w.padding[0]
    cols = torch.arange(index.shape[3])[None] * w.stride[1] - w.padding[1]
    position = index.long()
    rows = rows + position // w.kernel[1] * w.dilation[0]
    return rows * width + cols + position % w.kernel[1] * w.dilation[1]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w.kernel}{w.stride}{w.padding}{w.dilation}{w.ceil_mode}")
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("last", [False, True])
def test_matches_torch(window: Window, backend: str, last: bool) -> None:
    x = torch.randint(-3, 4, (3, 5, 13, 15)).double()
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    want, want_index = torch_pool(x, window)
    nu = torch.randn_like(want)
    (want_mu,) = torch.autograd.grad(want, x, nu)
    with fastxai.backend(backend):
        y, index = max_pool.push(x.detach(), window)
        mu = max_pool.pull(nu, window, index, (13, 15))
    assert torch.equal(y, want.detach())
    assert torch.equal(flat(index, window, 15), want_index)
    torch.testing.assert_close(mu, want_mu, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_cpu_pool(case: PoolCase, dtype: torch.dtype) -> None:
    check_pool(case, "cpu", dtype)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("last", [False, True])
def test_padding_never_wins(backend: str, last: bool) -> None:
    x = torch.full((1, 2, 4, 4), -torch.inf)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    window = Window((3, 3), (2, 2), (1, 1))
    with fastxai.backend(backend):
        y, index = max_pool.push(x, window)
        mu = max_pool.pull(torch.ones_like(y), window, index, (4, 4))
    assert torch.equal(y, torch.full((1, 2, 2, 2), -torch.inf))
    assert index[0, 0].tolist() == [[4, 3], [1, 0]]
    assert float(mu.sum()) == y.numel()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("last", [False, True])
def test_the_first_nan_wins(backend: str, last: bool) -> None:
    x = torch.tensor([[1.0, torch.nan], [torch.inf, torch.nan]]).expand(1, 70, 2, 2)
    x = torch.cat([x, torch.arange(4.0).view(1, 1, 2, 2).expand(1, 70, 2, 2)])
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with fastxai.backend(backend):
        y, index = max_pool.push(x, Window((2, 2), (2, 2)), 2)
    assert bool(y[0].isnan().all()) and bool((index == 1).all()) and bool((y[1] == 1).all())


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(
    kernel=pairs,
    stride=pairs,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    halves=st.tuples(st.booleans(), st.booleans()),
    ceil=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)),
    last=st.booleans(),
)
def test_cpu_any_geometry(kernel, stride, dilation, halves, ceil, shape, last) -> None:
    padding = tuple(k // 2 if half else 0 for k, half in zip(kernel, halves, strict=True))
    window = Window(kernel, stride, padding, dilation, ceil)
    x = torch.randint(-4, 5, shape).float()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    x.requires_grad_()
    try:
        want, want_index = torch_pool(x, window)
    except RuntimeError:
        assume(False)  # the window is larger than the input
    assume(bool(torch.isfinite(want).all()))  # a window that lies in the padding alone
    nu = torch.randint(-4, 5, want.shape).float()
    y, index = max_pool.push(x.detach(), window)
    assert torch.equal(y, want.detach()) and torch.equal(flat(index, window, shape[3]), want_index)
    mu = max_pool.pull(nu, window, index, (shape[2], shape[3]))
    assert torch.equal(mu, torch.autograd.grad(want, x, nu)[0])


def test_any_strides_and_the_format_of_an_ambiguous_output() -> None:
    window = Window((2, 2), (2, 2))
    x = torch.randn(4, 6, 8, 10)
    want, want_index = max_pool.push(x[:, 1:4, :, ::2].contiguous(), window, 2)
    y, index = max_pool.push(x[:, 1:4, :, ::2], window, 2)
    assert torch.equal(y, want) and torch.equal(index, want_index)
    whole = Window((8, 10), (1, 1))
    y, index = max_pool.push(x.contiguous(memory_format=torch.channels_last), whole)
    assert y.shape == (4, 6, 1, 1) and y.stride(3) == 6
    assert max_pool.pull(y, whole, index, (8, 10)).is_contiguous(memory_format=torch.channels_last)


def test_threads_do_not_change_the_bits() -> None:
    x = torch.randn(4, 37, 33, 35)
    window = Window((3, 3), (2, 2), (1, 1))
    threads = torch.get_num_threads()
    for order in (torch.contiguous_format, torch.channels_last):
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            y, index = max_pool.push(x.contiguous(memory_format=order), window, 2)
            results.append((y, index, max_pool.pull(y, window, index, (33, 35))))
        torch.set_num_threads(threads)
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Window((16, 16), (2, 2)), ValueError, "kernel must hold at most 255 positions"),
        (lambda: Window((2, 2), (0, 2)), ValueError, "stride must be two integers of at least 1"),
        (lambda: max_pool.push(torch.zeros(2, 3, 4), WINDOWS[0]), ValueError, "x must have shape"),
        (lambda: max_pool.push(torch.zeros(3, 3, 4, 4), WINDOWS[0], 2), ValueError, "multiples of K"),
        (lambda: max_pool.push(torch.zeros(2, 3, 1, 1), WINDOWS[0]), ValueError, "at least as large as the window"),
        (
            lambda: max_pool.push(torch.zeros(2, 3, 4, 4), WINDOWS[0], 1, torch.zeros(2, 3, 2, 2)),
            TypeError,
            "index must have dtype torch.uint8",
        ),
        (
            lambda: max_pool.pull(torch.zeros(2, 3, 3, 2), WINDOWS[0], torch.zeros(2, 3, 2, 2).byte(), (4, 4)),
            ValueError,
            "nu must have shape \\[2, 3, 2, 2\\]",
        ),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
