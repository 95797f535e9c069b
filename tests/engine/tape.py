"""A stand-in for CUDA graphs on the CPU, as unforgiving: it records operations, and runs them again in the same memory.

While it records, nothing happens to what exists already, and results are NaN until the first replay. Memory from
before is referred to by address: a recording does not keep it alive, and fails where it is gone. A replay is not seen
by version counters, spoils what other recordings of the same pool hold, and reading a value on the host is refused.
It sees torch's operations alone: what it records must run under ``fastxai.backend("reference")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from fastxai.engine.capture import Recorder, Recording

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item")


def _waits(func: Any) -> bool:
    return func._schema.name.removeprefix("aten::").lstrip("_") in {name.lstrip("_") for name in WAITS}


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@dataclass(frozen=True)
class _Outer:
    """A tensor that was there before."""

    storage: StorageWeakRef
    geometry: tuple[Any, ...]

    @classmethod
    def of(cls, x: Tensor) -> _Outer:
        return cls(StorageWeakRef(x.untyped_storage()), (x.dtype, x.storage_offset(), x.shape, x.stride()))

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        assert storage is not None, "the recording refers to memory that was given back"
        dtype, *geometry = self.geometry
        return torch.empty(0, dtype=dtype).set_(storage, *geometry)


@dataclass(frozen=True)
class _Inner:
    """A tensor in the recording's own memory."""

    tensor: Tensor


class _Writing(TorchDispatchMode):
    """Writes operations down while they run, and keeps a copy of whatever they change from before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.own: dict[int, Tensor] = {}
        self.outer: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def _place(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return _Inner(x) if _storage(x) in self.own else _Outer.of(x)

    def _whole(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func):
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and _storage(x) not in self.own:
                self.outer.add(_storage(x))
                # any operand may be written to; copies are cheap here
                if _storage(x) not in self.before:
                    self.before[_storage(x)] = self._whole(x), self._whole(x).clone()
        place = tree_map(self._place, (args, kwargs))
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for x in made:
            if _storage(x) not in self.outer:
                self.own.setdefault(_storage(x), x)
        self.calls.append((func, *place, list(map(self._place, made))))
        return out


def _spoil(x: Tensor) -> None:
    if x.is_floating_point():
        x.fill_(torch.nan)


class TapeRecording(Recording):
    """The operations of one call."""

    def __init__(self, outputs: Any, pool: list[TapeRecording], written: _Writing) -> None:
        super().__init__(outputs, pool)
        self._written = written
        pool.append(self)
        self.spoil()

    def spoil(self) -> None:
        """Fill all memory of the recording with NaN."""
        with torch.no_grad():
            for x in self._written.own.values():
                whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
                _spoil(whole)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again."""
        for recording in self.pool:
            recording.spoil()
        for func, args, kwargs, made in self._written.calls:
            args, kwargs = tree_map_only((_Inner, _Outer), _tensor, (args, kwargs))
            got = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for place, new in zip(made, got, strict=True):
                old = _tensor(place)
                if _storage(old) != _storage(new):
                    old.copy_(new)


def _tensor(place: _Inner | _Outer) -> Tensor:
    return place.tensor if isinstance(place, _Inner) else place.tensor()


class _Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@dataclass
class TapeRecorder(Recorder):
    """Records on the CPU, and notes what it did: "run", "record" and the device's name.

    Attributes:
        log: "run" and "record", in order.
        watches: whether waits are told before they break a recording.
        pools: one list of recordings for each pool.
    """

    log: list[str] = field(default_factory=list)
    watches: bool = True
    pools: list[list[TapeRecording]] = field(default_factory=list)

    def serves(self, device: torch.device) -> bool:
        """Return True."""
        return True

    def run(self, function: Callable[[], Any], device: torch.device, *, watch: bool) -> tuple[Any, str]:
        """Run."""
        self.log.append("run")
        if not (watch and self.watches):
            return function(), ""
        with _Watching() as watched:
            result = function()
        return result, f"it waits for the device in {watched.waits[0]}" if watched.waits else ""

    def record(self, function: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        """Record."""
        self.log.append("record")
        written = _Writing()
        try:
            with written:
                outputs = function()
        finally:
            with torch.no_grad():
                for storage, (now, before) in written.before.items():
                    if storage not in written.own:
                        now.copy_(before)
            written.before.clear()
        if pool is None:
            pool = []
            self.pools.append(pool)
        return TapeRecording(outputs, pool, written)

    def follow(self, device: torch.device) -> None:
        """There is one stream."""


@contextmanager
def taped(net: Any, bound: int = 8) -> Iterator[TapeRecorder]:
    """Give a net graphs of this kind inside the block, on reference kernels."""
    import fastxai
    from fastxai.engine.capture import Graphs

    recorder, core = TapeRecorder(), net._core
    core.graphs = Graphs(bound, recorder)
    try:
        with fastxai.backend("reference"):
            yield recorder
    finally:
        core.graphs = None
