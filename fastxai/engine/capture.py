"""Captured functions: work that is launched once, recorded and replayed from then on, on a GPU as a CUDA graph.

A pass through a small network is hundreds of launches of a few microseconds each, so that a device waits for Python. A
recording launches them all at once. What it does is fixed when it is recorded, addresses and numbers included, hence:

    inputs    are copied into static buffers before every replay
    outputs   are copied out of the graph's memory after it: the caller owns them
    reads     whatever else the function reads or writes on the device (weights, the state of an optimizer) must lie
              where it lay; a graph whose reads moved is recorded anew. What changes there is seen
    numbers   of Python, a step or a sharpness, are frozen; those that change must be tensors, inputs or reads

Nothing is run twice: a function's first two calls are ordinary ones (the first compiles kernels and lets the vendor's
libraries choose theirs, the second is watched for waits), the third is recorded, and on a GPU replayed, since recording
runs nothing there. Where that fails it is called again, so it must change nothing on the host.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastxai import _backend, _check
from fastxai._warn import warn
from fastxai.engine.recorder import Ran, Recorder, Recording
from fastxai.engine.tape import TapeRecorder

__all__ = ["BOUND", "CudaRecorder", "Graphs"]

# Graphs of one network that are kept, the last ones used: each holds its buffers and a share of one pool of memory.
BOUND = 8
# Ordinary calls before a function is recorded.
_WARM = 2


class _CudaRecording(Recording):
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Any) -> None:
        super().__init__(outputs, graph.pool())
        self._graph = graph

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


class CudaRecorder(Recorder):
    """CUDA graphs, one stream a device aside from the caller's to run and record on."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._last: dict[torch.device, torch.cuda.Stream] = {}
        self._broken: list[torch.cuda.CUDAGraph] = []

    def serves(self, device: torch.device) -> bool:
        """Return whether it is a GPU whose current stream nobody records already."""
        if device.type != "cuda":
            return False
        with torch.cuda.device(device):
            return not torch.cuda.is_current_stream_capturing()

    @contextmanager
    def _aside(self, device: torch.device) -> Iterator[torch.cuda.Stream]:
        """Work on the stream aside, after what the current one has to do and before what it gets next.

        The default stream cannot be recorded, and libraries keep work space by stream: first calls belong on the one
        that is recorded later.
        """
        with torch.cuda.device(device):
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            aside, current = self._streams[device], torch.cuda.current_stream(device)
            aside.wait_stream(current)
            try:
                with torch.cuda.stream(aside):
                    yield aside
            finally:
                current.wait_stream(aside)

    def run(self, function: Callable[[], Any], device: torch.device, *, watch: bool) -> tuple[Any, str]:
        """Run a call aside, and under torch's synchronisation warnings where it is watched."""
        mode = torch.cuda.get_sync_debug_mode()
        with self._aside(device):
            if not watch or mode != 0:  # whoever switched it on himself gets his own warnings or errors
                return function(), ""
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    result = function()
                finally:
                    torch.cuda.set_sync_debug_mode(mode)
        waits = []
        for w in caught:
            if "synchronizing CUDA operation" in str(w.message):
                waits.append(f"it waits for the device at {w.filename}:{w.lineno}")
            elif "Synchronization debug mode" not in str(w.message):  # that it is a prototype
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno, source=w.source)
        return result, waits[0] if waits else ""

    def record(self, function: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        """Capture one call in a graph."""
        graph, causes = torch.cuda.CUDAGraph(), []
        with self._aside(device) as aside:
            try:
                # Other threads, such as those that load data, may go on with calls that end a "global" capture.
                with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                    try:
                        outputs = function()
                    except RuntimeError as error:
                        causes.append(error)
                        raise
            except RuntimeError as error:
                # torch 2.11's allocator goes on asking a capture that broke which memory is its own.
                self._broken.append(graph)
                # Ending it fails in its turn, which says nothing.
                raise causes[0] if causes else error from None
        return _CudaRecording(graph, outputs)

    def follow(self, device: torch.device) -> None:
        """Wait for the stream of the last replay where that is another one."""
        current = torch.cuda.current_stream(device)
        last = self._last.get(device)
        if last is not None and last != current:
            current.wait_stream(last)
        self._last[device] = current


@dataclass
class _Entry:
    """One function of inputs of one layout: how often it was called, and its recording with what that refers to."""

    device: torch.device
    reads: Sequence[Tensor]
    places: tuple[Any, ...]
    calls: int = 0
    refused: bool = False
    recording: Recording | None = None
    buffers: list[Tensor | None] = field(default_factory=list)


class Graphs:
    """Functions of tensors, recorded at their third call and replayed from then on.

    At most ``bound`` are kept, the last ones used. On a GPU they share one pool of memory, which is safe because each
    replay begins with its inputs and ends with copies of its outputs: no two may run at once, so one object of this
    class serves one thread. Replays on different streams wait for each other.

    A function that cannot be recorded, because it waits for the device or takes numbers from tensors for one, goes on
    as ordinary calls; a warning says so and why, once.

    Attributes:
        bound: how many are kept.
        quiet: nothing is said of what cannot be recorded.

    >>> graphs = fastxai.engine.capture.Graphs()
    >>> graphs("the double of x", lambda x: 2 * x, [torch.ones(2)])
    tensor([2., 2.])
    """

    def __init__(self, bound: int = BOUND, recorder: Recorder | None = None, *, quiet: bool = False) -> None:
        """Keep at most ``bound`` recordings.

        Args:
            bound: how many.
            recorder: who makes them; by default CUDA graphs and a CPU's tapes.
            quiet: say nothing of what cannot be recorded.
        """
        whole = isinstance(bound, int) and not isinstance(bound, bool) and bound > 0
        _check.require(whole, "bound", "be a positive int", bound)
        self.bound, self.quiet = bound, quiet
        self._recorders = (CudaRecorder(), TapeRecorder()) if recorder is None else (recorder,)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._announced: set[str] = set()

    def serves(self, x: Tensor, *, training: bool = False) -> bool:
        """Return whether calls on inputs like x, or steps of ``training``, are recorded."""
        recorder = self._recorder(x.device) if x.numel() else None
        return recorder is not None and (recorder.trains or not training)

    def another(self) -> Graphs:
        """Return new ones, empty, with the same settings."""
        other = Graphs(self.bound, quiet=self.quiet)
        other._recorders = self._recorders
        return other

    def _recorder(self, device: torch.device) -> Recorder | None:
        """Return who records calls on this device now."""
        return next((r for r in self._recorders if not r.busy and r.serves(device)), None)

    def __len__(self) -> int:
        return sum(entry.recording is not None for entry in self._entries.values())

    def clear(self) -> None:
        """Forget every recording."""
        self._entries.clear()

    def __call__(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Sequence[Tensor | None],
        key: Hashable = None,
        reads: Sequence[Tensor] = (),
    ) -> Any:
        """Return ``function(*inputs)``, a tensor or a nest of tuples, lists and dicts of them, without a graph.

        Random numbers: torch's own generator of the device moves on at every replay, as it does in ordinary calls; keys
        of ``fastxai._random`` are frozen unless they are tensors.

        Args:
            name: of the function, for messages.
            function: work on the inputs' device alone. It may write to ``reads``, and to no other tensor that is not
                its own. What it takes from tensors by ``tolist`` or ``numpy`` is frozen, and nobody sees that.
            inputs: the first is a tensor; each on one device.
            key: all else that decides what the function does. It is kept, so it may hold the objects themselves.
            reads: every tensor that the function uses besides its inputs. The same sequence again means that none
                moved.
        """
        first = inputs[0]
        assert first is not None
        recorder = self._recorder(first.device) if first.numel() else None
        if recorder is None:
            return function(*inputs)
        layout = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        entry = self._entry((name, key, layout, first.device, _settings(first.device)), first.device, reads)
        if entry.recording is None:
            known = self._ordinary(name, function, inputs, entry, recorder)
            if known is not None:
                return known[0]
        assert entry.recording is not None
        recorder.follow(entry.device)
        self._fill(entry, inputs)
        entry.recording.replay()
        return _copied(entry.recording.outputs)

    def _entry(self, key: Hashable, device: torch.device, reads: Sequence[Tensor]) -> _Entry:
        """Return the function's entry, a new one if something that a recording refers to has moved."""
        entry = self._entries.get(key)
        if entry is None or (entry.reads is not reads and entry.places != _places(reads)):
            entry = self._entries[key] = _Entry(device, reads, _places(reads))
        entry.reads = reads
        self._entries.move_to_end(key)
        if len(self._entries) > self.bound:
            self._entries.popitem(last=False)
        return entry

    def _ordinary(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Sequence[Tensor | None],
        entry: _Entry,
        recorder: Recorder,
    ) -> tuple[Any] | None:
        """Make an ordinary call and return its result, or record one and return None where it has not run."""
        entry.calls += 1
        if entry.refused:
            return (function(*inputs),)
        if entry.calls < _WARM:
            with _busy(recorder):
                return (recorder.run(lambda: function(*inputs), entry.device, watch=False)[0],)
        # From here on in the buffers: kernels are compiled for addresses like theirs.
        self._fill(entry, inputs)
        call = partial(function, *entry.buffers)
        if entry.calls == _WARM:
            with _busy(recorder):
                result, reason = recorder.run(call, entry.device, watch=True)
            if reason:
                self._refuse(name, entry, reason)
            return (_copied(result),)
        try:
            with _busy(recorder):
                entry.recording = recorder.record(call, entry.device, self._pool(entry.device))
        except Ran as done:
            self._refuse(name, entry, str(done))
            return (done.result,)
        except RuntimeError as error:
            if recorder.runs:
                raise
            self._refuse(name, entry, f"{type(error).__name__}: {error}".splitlines()[0])
            return (function(*inputs),)
        return (_copied(entry.recording.outputs),) if recorder.runs else None

    def _fill(self, entry: _Entry, inputs: Sequence[Tensor | None]) -> None:
        """Copy the inputs into the entry's buffers."""
        with torch.no_grad():
            if not entry.buffers:
                with torch.inference_mode(False):
                    entry.buffers = [None if x is None else x.detach().clone() for x in inputs]
                return
            for buffer, x in zip(entry.buffers, inputs, strict=True):
                if buffer is not None and x is not None:
                    buffer.copy_(x)

    def _pool(self, device: torch.device) -> Any:
        """Return the memory of a recording on the same device; torch ends a pool with the last of its graphs."""
        others = (entry.recording for entry in self._entries.values() if entry.device == device)
        return next((other.pool for other in others if other is not None), None)

    def _refuse(self, name: str, entry: _Entry, reason: str) -> None:
        entry.refused, entry.buffers = True, []
        if reason not in self._announced and not self.quiet:
            self._announced.add(reason)
            warn(f"{name} is not captured and runs as usual. Cause: {reason}")


@contextmanager
def _busy(recorder: Recorder) -> Iterator[None]:
    recorder.busy = True
    try:
        yield
    finally:
        recorder.busy = False


def _copied(result: Any) -> Any:
    with torch.no_grad():
        return tree_map_only(Tensor, Tensor.clone, result)


def _places(reads: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((x.data_ptr(), x.shape, x.stride(), x.dtype) for x in reads)


def _settings(device: torch.device) -> tuple[Any, ...]:
    """Return torch's and our switches that decide which kernels a call gets."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return (
        _backend.chosen(),
        torch.get_num_threads() if device.type == "cpu" else 0,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        autocast,
    )
