"""Trace: run a model once on meta tensors and record every torch function it calls.

The recording sits at the level of ``__torch_function__``: modules, functional calls, tensor methods and reused modules
all arrive in one form, Python control flow on shapes just runs, and the parameters are meta stand-ins that map back to
the model's own. torch.fx would stop at iteration over shapes (TensorFlow-style SAME padding) and keep four spellings of
every operation. The batch dimension is a large prime, so an operation that mixes samples shows in its output shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from fastxai.engine.weights import Apply, Constant, Expr, Source

__all__ = ["BATCH", "Call", "Trace", "Unsupported", "Value", "evaluation", "trace"]

BATCH = 99991  # a prime: no reshape of real data contains it by accident
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "normal_", "uniform_", "bernoulli", "bernoulli_")


class Unsupported(Exception):
    """The model, or one node of it, cannot run on the engine; the message says which and why."""


@dataclass(eq=False)
class Value:
    """A tensor that depends on the input; ``shape`` is per sample, without the batch dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batched: bool = True

    @property
    def dim(self) -> int:
        """Number of dimensions including the batch."""
        return len(self.shape) + 1


@dataclass(eq=False)
class Call:
    """One recorded torch function: arguments hold Values (depend on x) and Exprs (do not)."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]
    path: str


@dataclass
class Trace:
    """The recorded calls in order, the input and the output."""

    input: Value
    output: Value
    calls: list[Call] = field(default_factory=list)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside the block, and back as it was."""
    training = [m for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _function_name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.known: dict[int, Value | Expr] = {}
        self.alive: list[Tensor] = []  # ids stay unique while the tensors live
        self.stand_ins: dict[int, Tensor] = {}  # meta tensor by the id of the real one
        self.stale: set[int] = set()
        self.path: list[str] = []

    def bind(self, meta: Tensor, what: Value | Expr) -> Tensor:
        self.alive.append(meta)
        self.known[id(meta)] = what
        self.stale.discard(id(meta))
        return meta

    def where(self) -> str:
        return self.path[-1] if self.path else ""

    def lookup(self, meta: Tensor, name: str) -> Value | Expr:
        if id(meta) in self.stale:
            raise Unsupported(f"{name} at {self.where()!r} reads a view of a tensor that was modified in place")
        found = self.known.get(id(meta))
        if found is None:
            raise Unsupported(f"{name} at {self.where()!r} reads a tensor that no recorded operation made")
        return found

    def stand_in(self, leaf: Any) -> Any:
        """Replace a real tensor (a parameter, a buffer, a constant of the model) by a meta one."""
        if not isinstance(leaf, Tensor) or leaf.device.type == "meta":
            return leaf
        return self.stand_ins[id(leaf)] if id(leaf) in self.stand_ins else self.replace(leaf, Constant(leaf))

    def replace(self, real: Tensor, what: Expr) -> Tensor:
        """Make the meta tensor that stands for a real one; the model keeps its own, which threads may be using."""
        self.alive.append(real)
        self.stand_ins[id(real)] = self.bind(real.detach().to("meta"), what)
        return self.stand_ins[id(real)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        args, kwargs = tree_map(self.stand_in, (args, kwargs))
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        versions = [leaf._version for leaf in leaves]
        result = func(*args, **kwargs)
        outputs, spec = tree_flatten(result)
        if not any(isinstance(out, Tensor) for out in outputs):
            self.refuse_silent_mutation(func, leaves, versions)
            return result
        name = _function_name(func)
        if not all(isinstance(out, Tensor) for out in outputs):
            raise Unsupported(f"{name} at {self.where()!r} returns tensors mixed with other values")
        if name in _RANDOM:
            raise Unsupported(f"{name} at {self.where()!r} draws random numbers")
        made = [out if out.device.type == "meta" else self.stand_in(out) for out in outputs]
        if any(new is not old for new, old in zip(made, outputs, strict=True)):
            return spec.unflatten(made) if len(made) > 1 else made[0]
        mutated = [leaf for leaf, version in zip(leaves, versions, strict=True) if leaf._version != version]
        frozen = tree_map(lambda leaf: self.lookup(leaf, name) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        self.forget_views(mutated, outputs, name)
        if name.startswith("new_") or not any(isinstance(f, Value) for f in tree_flatten(frozen)[0]):
            self.record_static(func, frozen, outputs)
        else:
            self.record(func, frozen, outputs)
        return result

    def refuse_silent_mutation(self, func: Any, leaves: list[Tensor], versions: list[int]) -> None:
        if any(leaf._version != version for leaf, version in zip(leaves, versions, strict=True)):
            raise Unsupported(f"{_function_name(func)} at {self.where()!r} writes into part of a tensor")

    def forget_views(self, mutated: list[Tensor], outputs: list[Tensor], name: str) -> None:
        for leaf in mutated:
            if not any(leaf is out for out in outputs) or isinstance(self.known.get(id(leaf)), Source):
                raise Unsupported(f"{name} at {self.where()!r} modifies an argument that it does not return")
            storage = leaf.untyped_storage()._cdata
            for other in self.alive:
                if other is not leaf and other.device.type == "meta" and other.untyped_storage()._cdata == storage:
                    self.stale.add(id(other))

    def record_static(self, func: Any, frozen: tuple[Any, Any], outputs: list[Tensor]) -> None:
        if any(BATCH in out.shape for out in outputs):
            raise Unsupported(f"{_function_name(func)} at {self.where()!r} makes a constant of the batch's size")
        args, kwargs = frozen
        made = Apply(func, args, kwargs)
        for i, out in enumerate(outputs):
            self.bind(out, made if len(outputs) == 1 else Apply(_item, (made, i), {}))

    def record(self, func: Any, frozen: tuple[Any, Any], outputs: list[Tensor]) -> None:
        values = [Value(tuple(out.shape[1:]), out.dtype, out.dim() > 0 and out.shape[0] == BATCH) for out in outputs]
        self.calls.append(Call(func, *frozen, values, self.where()))
        for out, value in zip(outputs, values, strict=True):
            self.bind(out, value)


def _item(sequence: Any, i: int) -> Any:
    return sequence[i]


@contextmanager
def _paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the module that this thread is running on top of the stack."""
    owner = get_ident()

    def enter(name: str) -> None:
        if get_ident() == owner:
            stack.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if get_ident() == owner:
            stack.pop()

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda m, i, name=name: enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, prepare: Callable[[Tensor], Tensor]) -> Trace:
    """Record ``model(prepare(x))`` in eval mode for inputs of a per-sample shape.

    Raises:
        Unsupported: the model cannot be recorded (data-dependent control flow, operations across samples, ...).
    """
    recorder = _Recorder()
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in recorder.stand_ins:
                    recorder.replace(tensor, Source(table, name))
    x = torch.empty(BATCH, *shape, dtype=dtype, device="meta")
    start = Value(tuple(shape), dtype)
    try:
        with evaluation(model), _paths(model, recorder.path), torch.no_grad(), recorder:
            recorder.bind(x, start)
            out = model(prepare(x))
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"the model does not run on shape-only tensors at {recorder.where()!r}: {error}") from error
    if not isinstance(out, Tensor):
        raise Unsupported(f"the model must return one tensor of scores [N, K], got {type(out).__name__}")
    end = recorder.known.get(id(out))
    if not isinstance(end, Value) or not end.batched or len(end.shape) != 1:
        raise Unsupported(f"the model must return scores of shape [N, K], got {['N', *out.shape[1:]]}")
    return Trace(start, end, recorder.calls)
