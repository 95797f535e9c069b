"""Tapes: what a CPU's recorded calls are, torch's operations and our kernels' launches one after the other.

A replay runs them again on the same memory, without the Python that decided on them. An iteration of [M]'s attack on
[R]'s CNN takes 0.51 of the time for one image, 0.81 for 16 and 0.95 for 64 (two Zen 4 cores). A tape keeps every tensor
of its call, there 2, 45 and 182 MiB: those of more than 128 MiB are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastxai.engine.recorder import Ran, Recorder, Recording
from fastxai.kernels import _native

__all__ = ["TapeRecorder"]

# Bytes of all tensors of a call.
_MOST = 128 << 20
_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@cache
def _writes(func: Any) -> bool:
    """Return whether an operation changes an operand."""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)


def _refused(func: Any, args: Any, tensors: Iterable[Tensor]) -> str:
    """Return why an operation cannot be run again on the same memory, "" if it can."""
    if func is torch.ops.aten.index.Tensor:
        reads = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    else:
        reads = not _DEPENDENT.isdisjoint(func.tags)
    if reads:
        return f"it takes values from tensors in {func}"
    if func.overloadpacket in (torch.ops.aten.set_, torch.ops.aten.resize_):
        return f"it changes the memory of a tensor in {func}"
    return "" if all(x.layout == torch.strided for x in tensors) else f"it has sparse tensors in {func}"


@cache
def _into(func: Any) -> tuple[Any, str] | None:
    """Return the form of an operation that writes into a tensor, and that argument's name; None if it has none."""

    def inputs(schema: Any) -> list[tuple[str, str]]:
        return [(a.name, str(a.type)) for a in schema.arguments if not a.is_out]

    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        outs = [a.name for a in other._schema.arguments if a.is_out]
        if len(outs) == 1 and inputs(other._schema) == inputs(func._schema):
            return other, outs[0]
    return None


def _again(func: Any, args: Any, kwargs: Any, made: Any) -> Callable[[], Any]:
    """Return what runs an operation again, its results into the memory of those that it made."""
    form = _into(func) if isinstance(made, Tensor) and not _writes(func) else None
    if form is not None:
        return partial(form[0], *args, **kwargs, **{form[1]: made})

    def step() -> None:
        for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
            if isinstance(old, Tensor) and _storage(old) != _storage(new):
                old.copy_(new)

    return step


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class _Writing(TorchDispatchMode):
    """Writes down what runs.

    Attributes:
        steps: what a replay does.
        reason: why it cannot be replayed, "" if it can.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], Any]] = []
        self.reason = ""
        self._kept: dict[int, Tensor] = {}
        self._size = 0

    def write(self, step: Callable[[], Any]) -> None:
        """Note a call."""
        if not self.reason:
            self.steps.append(step)

    def keep(self, x: Tensor) -> None:
        """Hold memory that the call took."""
        if not self.reason and _storage(x) not in self._kept:
            self._kept[_storage(x)] = x
            self._size += x.untyped_storage().nbytes()
            if self._size > _MOST:
                self._refuse(f"its tensors take more than {_MOST >> 20} MiB")

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.steps, self._kept = [], {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Aliases, since a tensor may get another shape later.
        inputs, options = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        # What an operation launches in its turn is a part of it.
        token = _native.writer.set(None)
        try:
            made = func(*args, **kwargs)
        finally:
            _native.writer.reset(token)
        if self.reason:
            return made
        operands, results = _tensors((inputs, options)), _tensors(made)
        reason = _refused(func, args, operands + results)
        if reason:
            self._refuse(reason)
            return made
        known = {_storage(x) for x in operands}
        new = [x for x in results if _storage(x) not in known]
        for x in new:
            self.keep(x)
        if func is torch.ops.aten.lift_fresh.default:  # a constant, which may be written to
            self.keep(made)
            self.write(partial(made.detach().copy_, made.clone()))
        elif torch.Tag.inplace_view not in func.tags and (
            _writes(func) or not func._schema.returns or (new and func.overloadpacket.__name__ not in _EMPTY)
        ):
            self.write(_again(func, inputs, options, tree_map_only(Tensor, Tensor.detach, made)))
        return made


class _TapeRecording(Recording):
    def __init__(self, outputs: Any, written: _Writing) -> None:
        super().__init__(outputs, None)
        self._written = written

    @torch.no_grad()
    def replay(self) -> None:
        """Run every step again."""
        for step in self._written.steps:
            step()


class TapeRecorder(Recorder):
    """Tapes of what runs on the CPU; a call runs while it is recorded."""

    # The tensors of a usual batch are more than a tape holds.
    trains, runs = False, True

    def serves(self, device: torch.device) -> bool:
        """Return whether it is the CPU, and nobody else writes down what happens on it."""
        return device.type == "cpu" and _native.writer.get() is None

    def run(self, function: Callable[[], Any], device: torch.device, *, watch: bool) -> tuple[Any, str]:
        """Run a call; where it is watched, as if it were recorded."""
        if not watch:
            return function(), ""
        result, written = _written(function)
        return result, written.reason

    def record(self, function: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        """Write one call down."""
        outputs, written = _written(function)
        if written.reason:
            raise Ran(written.reason, outputs)
        return _TapeRecording(outputs, written)

    def follow(self, device: torch.device) -> None:
        """There is one order of things."""


def _written(function: Callable[[], Any]) -> tuple[Any, _Writing]:
    written, cached = _Writing(), torch.is_autocast_cache_enabled()
    token = _native.writer.set(written)
    # A cast of a weight that autocast remembers would be missing on the tape.
    torch.set_autocast_cache_enabled(False)
    try:
        # What is made in inference mode could be written to in no other.
        with torch.inference_mode(False), torch.no_grad(), written:
            return function(), written
    finally:
        torch.set_autocast_cache_enabled(cached)
        _native.writer.reset(token)
