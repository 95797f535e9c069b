"""Weights: differentiable expressions of the model's own parameters, and their cached numeric values.

An effective weight (a folded batch norm, a sum of biases, a reparametrised kernel) is an ``Expr`` over the model's
tensors, in plain torch. Evaluated with gradients it lets autograd finish the chain to the user's parameters; evaluated
without it is cached and rebuilt only when (data_ptr, _version) of a source changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["Apply", "Constant", "Expr", "Source", "Weights", "evaluate", "shape_of", "sources", "unscaled", "version"]


def unscaled(x: Tensor) -> AbstractContextManager[Any]:
    """Keep an autocast that is on around the caller from rounding what is computed from x inside the block."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def version(tensor: Tensor) -> int:
    """Return how often the tensor was changed in place, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(eq=False, frozen=True)
class Source:
    """A parameter or buffer, looked up in its module's table at every use so that replacements are seen."""

    table: Any
    name: str

    def get(self) -> Tensor:
        """Return the tensor as it is now."""
        return self.table[self.name]

    def held(self) -> Tensor:
        """Return the tensor as it is now, whatever happens to it before a backward through it.

        Batch norm's statistics are copied: autograd does not see that a training forward writes them either.
        """
        tensor = self.get()
        return tensor.clone() if "num_batches_tracked" in self.table and not tensor.requires_grad else tensor

    def edits(self) -> tuple[int, int]:
        """Return two counts, one of which grows at every change in place.

        A training forward of batch norm writes its statistics without a new ``_version``; only its own counter tells.
        """
        counter = self.table.get("num_batches_tracked")
        return version(self.get()), 0 if counter is None else version(counter)


@dataclass(eq=False, frozen=True)
class Constant:
    """A tensor that belongs to no module."""

    tensor: Tensor
    _placed: dict[Any, Tensor] = field(default_factory=dict)

    def get(self) -> Tensor:
        """Return the tensor."""
        return self.tensor

    def on(self, like: Tensor) -> Tensor:
        """Return it on the device of ``like``, in its dtype if it floats; kept there: to copy it waits for a GPU."""
        dtype = like.dtype if self.tensor.is_floating_point() else self.tensor.dtype
        if (self.tensor.device, self.tensor.dtype) == (like.device, dtype):
            return self.tensor
        key = like.device, dtype, version(self.tensor)
        if key not in self._placed:
            with torch.inference_mode(False):
                self._placed[key] = self.tensor.to(like.device, dtype)
        return self._placed[key]

    def edits(self) -> tuple[int, int]:
        """Return as ``Source.edits``."""
        return version(self.tensor), 0


@dataclass(eq=False, frozen=True)
class Apply:
    """A function of other expressions."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Expr = Source | Constant | Apply


def sources(roots: list[Expr]) -> list[Source | Constant]:
    """Return every leaf under the expressions, once each."""

    def walk(expr: Any) -> Iterator[Source | Constant]:
        if id(expr) in seen:
            return
        if isinstance(expr, (Source, Constant)):
            seen.add(id(expr))
            yield expr
        elif isinstance(expr, Apply):
            seen.add(id(expr))
            for leaf in tree_flatten((expr.args, expr.kwargs))[0]:
                yield from walk(leaf)

    seen: set[int] = set()
    return [leaf for root in roots for leaf in walk(root)]


def evaluate(roots: list[Expr], like: Tensor) -> list[Tensor]:
    """Evaluate expressions with the tensors as they are now, on the dtype and device of ``like``.

    Under ``torch.enable_grad`` the results are differentiable functions of the parameters.
    """
    memo: dict[int, Any] = {}

    def value(expr: Any) -> Any:
        if not isinstance(expr, (Source, Constant, Apply)):
            if isinstance(expr, torch.device) and expr.type == "meta":
                return like.device
            return like[:0] if type(expr).__name__ == "Value" else expr
        if id(expr) not in memo:
            if isinstance(expr, Apply):
                args, kwargs = tree_map(value, (expr.args, expr.kwargs))
                memo[id(expr)] = expr.func(*args, **kwargs)
            elif isinstance(expr, Constant):
                memo[id(expr)] = expr.on(like)
            else:
                memo[id(expr)] = expr.held() if torch.is_grad_enabled() else expr.get()
        return memo[id(expr)]

    return [value(root) for root in roots]


def shape_of(expr: Expr) -> tuple[int, ...]:
    """Return the shape that an expression has now."""
    with torch.no_grad():
        return tuple(evaluate([expr], torch.empty(0))[0].shape)


class Weights:
    """The numeric weights of a graph's nodes, prepared once and rebuilt when a source changes."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._nodes = nodes
        self.params: list[Expr] = [expr for node in nodes for expr in node.params]
        self._leaves = sources(self.params)
        place = {id(leaf): i for i, leaf in enumerate(self._leaves)}
        self._needs = [frozenset(place[id(leaf)] for leaf in sources(node.params)) for node in nodes]
        self._seen: list[Tensor] = []
        self._state: list[tuple[int, tuple[int, int]]] = []
        self._owned: set[int] = set()  # storages of derived weights that no tensor of the model shares
        self._place: tuple[torch.dtype, torch.device] | None = None
        self._prepared: list[Any] = [None] * len(nodes)
        self._flat: tuple[int, tuple[Tensor, ...]] = 0, ()
        self.generation = 0

    def refresh(self) -> None:
        """Forget everything: the next use rebuilds from the parameters."""
        self._place = None

    def prepared(self, like: Tensor) -> list[Any]:
        """Return every node's weights on the dtype and device of ``like``, rebuilding those whose sources changed."""
        tensors = [leaf.get() for leaf in self._leaves]
        state = [(t.data_ptr(), leaf.edits()) for t, leaf in zip(tensors, self._leaves, strict=True)]
        place = (like.dtype, like.device)
        if place != self._place:
            changed = set(range(-1, len(tensors)))
        elif state == self._state and all(map(is_, tensors, self._seen)):
            return self._prepared
        else:
            pairs = enumerate(zip(tensors, self._seen, state, self._state, strict=True))
            changed = {i for i, (new, old, now, then) in pairs if new is not old or now != then}
        shared = {_storage(t) for t in tensors}
        stale = [i for i, needs in enumerate(self._needs) if needs & changed or -1 in changed]
        with torch.inference_mode(False), torch.no_grad():
            values = iter(evaluate([expr for i in stale for expr in self._nodes[i].params], like))
            for i in stale:
                made = self._nodes[i].prepare(*[next(values) for _ in self._nodes[i].params])
                self._prepared[i] = _into_place(self._prepared[i], made, shared, self._owned)
        self._seen, self._state, self._place = tensors, state, place
        self.generation += 1
        return self._prepared

    def tensors(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return all tensors of ``prepared`` side by side: the same tuple again where nothing was rebuilt."""
        prepared = self.prepared(like)
        if self._flat[0] != self.generation:
            self._flat = self.generation, tuple(x for x in tree_leaves(prepared) if isinstance(x, Tensor))
        return self._flat[1]

    def marks(self) -> list[tuple[Tensor, int]]:
        """Return the sources that a backward reads with their versions, to tell later whether one was changed in place.

        A buffer behind a derived weight, such as the vectors of a spectral norm, which move at every training forward,
        is read no more.
        """
        used = {_storage(x) for x in tree_leaves(self._prepared) if isinstance(x, Tensor)}
        tensors = [leaf.get() for leaf in self._leaves]
        read = [t for t in tensors if isinstance(t, torch.nn.Parameter) or _storage(t) in used]
        return [(tensor, version(tensor)) for tensor in read]

    @property
    def size(self) -> int:
        """Elements of all parameters and buffers."""
        return sum(leaf.get().numel() for leaf in self._leaves)

    @property
    def require_grad(self) -> bool:
        """True if some parameter wants a gradient."""
        return any(leaf.get().requires_grad for leaf in self._leaves)

    def differentiable(self, like: Tensor) -> list[Tensor]:
        """Return every weight expression as a differentiable function of the parameters, as autograd has them now."""
        with torch.enable_grad(), unscaled(like):
            return evaluate(self.params, like)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _into_place(old: Any, new: Any, shared: set[int], owned: set[int]) -> Any:
    """Copy new derived weights into the storage of the old, where captured graphs see them; share the model's own.

    Only storage that was ours from the start is written to: the old weight may be a view of a tensor that left the
    model and that the user keeps.
    """

    def settle(new: Any, old: Any) -> Any:
        if not isinstance(new, Tensor):
            return new
        mine = _storage(new) not in shared
        if isinstance(old, Tensor) and _storage(old) in owned:
            layout = (new.shape, new.stride(), new.dtype, new.device)
            if mine and layout == (old.shape, old.stride(), old.dtype, old.device):
                return old.copy_(new)
            owned.discard(_storage(old))
        if mine:
            owned.add(_storage(new))
        return new

    if isinstance(new, tuple):
        olds = old if isinstance(old, tuple) and len(old) == len(new) else (None,) * len(new)
        parts = [_into_place(o, n, shared, owned) for n, o in zip(new, olds, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    return settle(new, old)
