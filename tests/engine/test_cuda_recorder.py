"""What the recorder of CUDA graphs asks of torch.cuda, in which order: against a stand-in that notes it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastxai.engine.capture import CudaRecorder, Graphs

X = torch.ones(2)
SYNC = "called a synchronizing CUDA operation (Triggered internally at somewhere.cpp:1.)"


class Stream:
    """A stream by name."""

    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """Counts its replays."""

    def __init__(self) -> None:
        self.handle, self.replays = object(), 0

    def pool(self) -> object:
        return self.handle

    def replay(self) -> None:
        self.replays += 1


class Cuda:
    """The names of torch.cuda that a recorder uses."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.mode, self.capturing = 0, False
        self.current = self.default = Stream(self, "default")
        self.pools: list[Any] = []
        self.made = 0

    def Stream(self, device: torch.device) -> Stream:
        self.made += 1
        return Stream(self, f"aside {self.made}")

    def device(self, device: torch.device) -> Any:
        return nullcontext()

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self) -> Graph:
        return Graph()

    @contextmanager
    def graph(self, graph: Graph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert stream is self.current and capture_error_mode == "thread_local"
        self.pools.append(pool)
        if pool is not None:
            graph.handle = pool
        self.capturing = True
        try:
            yield
        except RuntimeError as error:
            # As torch.cuda.graph: its own stream stays the current one, and ending a broken capture raises.
            self.current = Stream(self, "left behind")
            raise RuntimeError("capture was invalidated") from error
        finally:
            self.capturing = False

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        if mode == "warn":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # type: ignore[call-overload]


class Here(CudaRecorder):
    """Takes the CPU for a GPU."""

    def serves(self, device: torch.device) -> bool:
        return super().serves(torch.device("cuda"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(torch, "cuda", made)
    return made


def test_calls_run_aside_and_replays_where_the_caller_is(cuda: Cuda) -> None:
    graphs, seen = Graphs(recorder=Here()), []

    def work(x: Tensor) -> Tensor:
        seen.append((cuda.current.name, cuda.mode, cuda.capturing))
        return 2 * x

    for _ in range(4):
        assert torch.equal(graphs("twice", work, (X,)), 2 * X)
    assert seen == [("aside 1", 0, False), ("aside 1", 1, False), ("aside 1", 0, True)] and cuda.made == 1
    assert cuda.log == ["aside 1 waits for default", "default waits for aside 1"] * 3
    assert cuda.current is cuda.default and cuda.mode == 0
    with cuda.stream(Stream(cuda, "other")):
        graphs("twice", work, (X,))
    assert cuda.log[6:] == ["other waits for default"]


def test_recordings_share_a_pool_as_long_as_one_is_left(cuda: Cuda) -> None:
    graphs = Graphs(1, recorder=Here())
    for n in (1, 2):
        for _ in range(3):
            graphs("ones", torch.ones_like, (torch.zeros(n),))
    assert cuda.pools == [None, None], "the first left, and its pool with it"
    graphs = Graphs(2, recorder=Here())
    for n in (1, 2, 3):
        for _ in range(3):
            graphs("ones", torch.ones_like, (torch.zeros(n),))
    assert cuda.pools[2] is None and cuda.pools[3] is cuda.pools[4] is not None


def test_waits_are_told_and_other_warnings_passed_on(cuda: Cuda) -> None:
    graphs = Graphs(recorder=Here())

    def waits(x: Tensor) -> Tensor:
        if cuda.mode == 1:
            warnings.warn(SYNC, stacklevel=1)
        warnings.warn("of its own", stacklevel=1)
        return x + 1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            assert torch.equal(graphs("norms", waits, (X,)), X + 1)
    told = [str(w.message) for w in caught]
    assert told.count("of its own") == 4 and len(told) == 5
    (reason,) = (text for text in told if "norms is not captured" in text)
    assert f"waits for the device at {__file__}:" in reason
    assert cuda.pools == [] and cuda.mode == 0


def test_whoever_watches_himself_gets_his_own(cuda: Cuda) -> None:
    graphs, modes = Graphs(recorder=Here()), []
    cuda.mode = 2
    for _ in range(3):
        graphs("modes", lambda x: (modes.append(cuda.mode), x)[1], (X,))
    assert modes == [2, 2, 2] and cuda.mode == 2


@pytest.mark.parametrize("message", ["operation not permitted when stream is capturing", ""])
def test_a_capture_that_breaks_says_why_and_leaves_the_stream(cuda: Cuda, message: str) -> None:
    graphs = Graphs(recorder=Here())

    def late(x: Tensor) -> Tensor:
        if cuda.capturing:
            raise RuntimeError(f"{message}\nand more" if message else "")
        return x + 1

    with pytest.warns(UserWarning, match=f"Cause: RuntimeError: {message}$"):
        for _ in range(5):
            assert torch.equal(graphs("late", late, (X,)), X + 1)
    assert cuda.current is cuda.default and len(cuda.pools) == 1 and len(graphs) == 0


def test_an_error_in_a_watched_call_restores_the_mode(cuda: Cuda) -> None:
    graphs, calls = Graphs(recorder=Here()), []

    def fails(x: Tensor) -> Tensor:
        calls.append(0)
        if len(calls) == 2:
            raise ValueError("of its own")
        return x

    graphs("failure", fails, (X,))
    with pytest.raises(ValueError, match="of its own"):
        graphs("failure", fails, (X,))
    assert cuda.mode == 0 and cuda.current is cuda.default
    for _ in range(2):
        assert torch.equal(graphs("failure", fails, (X,)), X)
    assert len(graphs) == 1


def test_inside_a_capture_of_the_users_it_is_a_plain_call(cuda: Cuda) -> None:
    graphs = Graphs(recorder=Here())
    cuda.capturing = True
    for _ in range(4):
        assert graphs("itself", lambda x: x, (X,)) is X
    assert cuda.log == [] and not Here().serves(torch.device("cpu")) and not CudaRecorder().serves(torch.device("cpu"))
