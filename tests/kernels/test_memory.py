"""Large tensors take the memory of dropped ones, never that of living ones."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastxai
from fastxai.kernels import _memory, _native

pytestmark = pytest.mark.skipif(bool(fastxai.available()["cpu"]), reason="no fastxai._C")

LARGE = (_memory._LEAST // 4 // 64, 4, 4, 4)
LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    fastxai.empty_cache()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 90), st.integers(0, 90)),
        st.tuples(st.integers(0, 300), st.integers(0, 3000)),
    ),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64]),
    last=st.booleans(),
)
def test_is_what_torch_gives(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    last = last and len(shape) == 4
    order = torch.channels_last if last else torch.contiguous_format
    want = torch.empty(shape, dtype=dtype, memory_format=order)
    got = _memory.empty(shape, LIKE, dtype, last=last)
    assert (got.shape, got.dtype, got.device) == (want.shape, dtype, want.device)
    assert got.is_contiguous(memory_format=order) and got.data_ptr() % 64 == 0
    if 0 not in shape:
        assert got.stride() == want.stride()
    like = _memory.empty_like(got)
    assert (like.shape, like.stride(), like.dtype) == (got.shape, torch.empty_like(got).stride(), dtype)


def test_strides_of_a_single_channel_stay() -> None:
    x = _native.channels_last(torch.rand(3000, 1, 10, 10))
    assert _memory.empty_like(x).stride() == x.stride() == (100, 1, 10, 1)


def test_strided_memory_is_not_copied_as_it_lies() -> None:
    x = torch.rand(600, 600)[:, ::2]
    assert _memory.empty_like(x).is_contiguous() and _memory.unused() == 0


def test_dropped_memory_is_taken_again_and_may_be_given_back() -> None:
    first = _memory.empty(LARGE, LIKE)
    address, size = first.data_ptr(), first.numel() * 4
    assert _memory.unused() == 0
    view = first[3:]
    del first
    assert _memory.unused() == 0  # a view keeps it alive
    del view
    assert size <= _memory.unused() <= size + 4096
    assert _memory.empty(LARGE, LIKE).data_ptr() == address
    # At most an eighth is wasted.
    assert _memory.empty((LARGE[0] * 3 // 4, 4, 4, 4), LIKE, torch.float64).data_ptr() != address
    fastxai.empty_cache()
    assert _memory.unused() == 0


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first() -> None:
    mebibyte = 1 << 18
    many = [_memory.empty((32 * mebibyte + i,), LIKE) for i in range(10)]
    addresses = [x.data_ptr() for x in many]
    while many:
        del many[0]
    assert 192 << 20 < _memory.unused() <= 256 << 20
    assert _memory.empty((32 * mebibyte + 9,), LIKE).data_ptr() in addresses[-7:]
    kept = _memory.unused()
    # One too large to be kept drives nothing out.
    huge = _native.function("cpu_pool_tensor")((1 << 30,), (1,), 1 << 30, 1, 8)
    del huge
    assert _memory.unused() == kept


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3)), max_size=40))
def test_living_tensors_share_nothing(steps: list[tuple[int, int]]) -> None:
    alive: dict[int, Tensor] = {}
    for number, (slot, size) in enumerate(steps):
        alive.pop(slot, None)
        alive[slot] = _memory.empty((size * LARGE[0], *LARGE[1:]), LIKE).fill_(number)
    last = {slot: number for number, (slot, _) in enumerate(steps)}
    assert all(bool((x == last[slot]).all()) for slot, x in alive.items())


def test_threads_share_nothing() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            x = _memory.empty(LARGE, LIKE).fill_(number)
            if not bool((x == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensors_are_torchs_own() -> None:
    x = _memory.empty(LARGE, LIKE).fill_(2).requires_grad_()
    x.square().sum().backward()
    assert x.grad is not None and bool((x.grad == 4).all())
    with torch.no_grad():
        file = io.BytesIO()
        torch.save(x.detach(), file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=True), x) and torch.equal(copy.deepcopy(x), x)
        shared = x.detach().clone(memory_format=torch.preserve_format).share_memory_()
        assert torch.equal(x.detach().share_memory_(), shared)


SHORT = """
import resource, torch
from fastxai.kernels import _memory
like = torch.empty(0)
held = [_memory.empty((25 << 20,), like).zero_() for _ in range(2)]
held.clear()
assert _memory.unused() == 200 << 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (10 << 20),) * 2)
x = _memory.empty((40 << 20,), like).zero_()
assert _memory.unused() == 0
try:
    _memory.empty((60 << 20,), like)
except RuntimeError as error:
    assert "allocate memory" in str(error), error
else:
    raise AssertionError("nothing was raised")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts its address space")
def test_where_memory_is_short_what_is_kept_goes_first() -> None:
    run = subprocess.run([sys.executable, "-P", "-c", SHORT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_child_process_has_a_pool_of_its_own() -> None:
    x = _memory.empty(LARGE, LIKE).fill_(3)
    del x
    numbers = torch.utils.data.TensorDataset(torch.arange(4.0))
    loader = torch.utils.data.DataLoader(numbers, num_workers=2, collate_fn=_filled, multiprocessing_context="fork")
    assert [float(y) for y in loader] == [0, 1, 2, 3]
    assert _memory.unused() > 0


def _filled(values: list[tuple[Tensor]]) -> Tensor:
    return _memory.empty(LARGE, LIKE).fill_(values[0][0]).mean()


def test_deterministic_algorithms_get_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    for _ in range(2):
        assert bool(_memory.empty(LARGE, LIKE).isnan().all())
        assert bool((_memory.empty((4 * LARGE[0], 64), LIKE, torch.uint8) == 255).all())
    address = _memory.empty(LARGE, LIKE).fill_(3).data_ptr()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x = _memory.empty(LARGE, LIKE)
    assert x.data_ptr() == address and bool((x == 3).all())


def test_a_capsule_that_nobody_takes_gives_its_memory_back() -> None:
    capsule = _native.function("cpu_pool_tensor")((1 << 20,), (1,), 4 << 20, 2, 32)
    assert _memory.unused() == 0
    del capsule
    assert _memory.unused() == 4 << 20


def test_a_sweep_takes_what_the_last_one_left() -> None:
    net = fastxai.compile(fastxai.models.CNN(torch.nn.Softplus).eval())
    x, v = torch.rand(16, 3, 32, 32), torch.randn(16, 3, 32, 32)
    want = net.hvp(x, v, 0)
    kept = _memory.unused()
    assert 0 < kept <= 256 << 20
    assert torch.equal(net.hvp(x, v, 0), want) and _memory.unused() == kept
    fastxai.empty_cache()
    assert torch.equal(net.hvp(x, v, 0), want)
