"""Graph: nodes in topological order, built from a trace, simplified, and swept up and down."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastxai.engine.jets import Curved, Node, Pulled, Sweep
from fastxai.engine.trace import Call, Trace, Unsupported, Value
from fastxai.engine.weights import Expr
from fastxai.kernels.activation import Activation

__all__ = ["FLAT", "Graph", "Input", "Part", "build", "builds", "ordered", "same"]

FLAT = (
    "the network is piecewise linear: the Hessian of its scores is zero. Name what you want: activation='softplus' "
    "(smooth the network), surrogate='curvature' or surrogate='none'."
)

Builder = Callable[..., Node | Sequence[Node]]
B = TypeVar("B", bound=Builder)
_BUILDERS: dict[str, Builder] = {}


def builds(*names: str) -> Callable[[B], B]:
    """Register a builder for torch functions of these names (in-place forms included).

    The builder gets the recorded arguments, with a Node for each tensor that depends on the input and an Expr for each
    that does not, and returns the node (or one node per output).
    """

    def register(builder: B) -> B:
        for name in names:
            _BUILDERS[name] = builder
        return builder

    return register


class Input(Node):
    """The network's input."""

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Never called: the sweep starts with the input's components."""
        raise AssertionError

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Never called: the sweep ends here."""
        raise AssertionError


def same(x: Node, shape: Sequence[int]) -> Node:
    """Return x itself if it has that per-sample shape already; Unsupported otherwise (broadcast between samples)."""
    if tuple(x.shape) != tuple(shape):
        raise Unsupported(f"shapes {list(x.shape)} and {list(shape)} broadcast against each other")
    return x


def _builder(call: Call) -> Builder:
    for module in pkgutil.iter_modules(importlib.import_module("fastxai.engine.nodes").__path__):
        importlib.import_module(f"fastxai.engine.nodes.{module.name}")
    name = getattr(call.func, "__name__", str(call.func))
    for form in (name, name.removesuffix("_"), name.replace("__i", "").removesuffix("__")):
        if form in _BUILDERS:
            return _BUILDERS[form]
    raise Unsupported(f"{name} has no node type")


def _make(call: Call, nodes: dict[Value, Node], dtype: torch.dtype) -> list[Node]:
    if not all(value.batched for value in call.outputs):
        raise Unsupported("it mixes samples of the batch")
    other = next((value.dtype for value in call.outputs if value.dtype != dtype), None)
    if other is not None:
        raise Unsupported(f"it computes in {other}, the input is {dtype}")
    args, kwargs = tree_map(lambda leaf: nodes[leaf] if isinstance(leaf, Value) else leaf, (call.args, call.kwargs))
    builder = _builder(call)
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    try:
        made = builder(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"its arguments are not understood ({error})") from error
    return [made] if isinstance(made, Node) else list(made)


def build(trace: Trace) -> tuple[Node, Node, list[tuple[str, str, str]]]:
    """Make nodes of the recorded calls.

    Returns:
        (input node, output node, rows), a row being (module path, operation, "" or why the engine cannot run it).
    """
    start = Input((), trace.input.shape)
    nodes: dict[Value, Node] = {trace.input: start}
    rows = []
    for call in trace.calls:
        name = getattr(call.func, "__name__", str(call.func)).strip("_")
        try:
            made, reason = _make(call, nodes, trace.input.dtype), ""
        except Unsupported as error:
            reason = str(error)
            made = [Input((), value.shape) for value in call.outputs]
        rows.append((call.path, name, reason))
        for value, node in zip(call.outputs, made, strict=True):
            if not reason and node.shape != value.shape:
                raise AssertionError(f"{name} at {call.path!r}: built {node.shape}, recorded {value.shape}")
            _name(node, call.path, set(nodes.values()))
            nodes[value] = node
    return start, nodes[trace.output], rows


def _name(node: Node, path: str, known: set[Node]) -> None:
    """Give a module's path to the nodes that were made for one of its calls."""
    if node not in known:
        node.path = path
        for parent in node.inputs:
            _name(parent, path, known)


@runtime_checkable
class _Elementwise(Protocol):
    """A node that is an activation, found in a slot of the sweep's activations."""

    activation: Activation
    activation_slot: int


class Graph:
    """The finished graph of one input shape.

    Attributes:
        nodes: in topological order, the input first.
        params: every node's weight expressions, one after the other.
        activations: the model's own activation functions, by slot.
        has_curved: it has a nonlinear node that is no elementwise activation.
        whole: every node but the input, as one part.
    """

    def __init__(self, start: Node, output: Node, *, overwrite: bool = True) -> None:
        """Order the nodes; without ``overwrite`` every value of a sweep stays as it was computed."""
        self.nodes = ordered(start, output)
        self.params: list[Expr] = []
        self.activations: tuple[Activation, ...] = ()
        for index, node in enumerate(self.nodes):
            node.index, node.slot = index, len(self.params) if node.params else -1
            node.fed = any(parent.params or parent.fed for parent in node.inputs)
            self.params += node.params
            if isinstance(node, _Elementwise):
                node.activation_slot = len(self.activations)
                self.activations += (node.activation,)
        for node in reversed(self.nodes):
            for parent in node.inputs:
                parent.compared = parent.compared or node.compared or node.compares
        self.inputs = [[parent.index for parent in node.inputs] for node in self.nodes]
        self.has_curved = any(isinstance(node, Curved) for node in self.nodes)
        if overwrite:
            self._mark_ownership()
        self.whole = Part(self.nodes[1:])
        self.up_frees = self.whole.frees

    def is_flat(self, acts: Sequence[Activation]) -> bool:
        """Return True if the network is piecewise linear with these activations."""
        return all(act.flat for act in acts) and not self.has_curved

    def _mark_ownership(self) -> None:
        readers: list[list[Node]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in node.inputs:
                readers[parent.index].append(node)
        sole = [len(r) == 1 for r in readers]
        owned_value = [False] * len(self.nodes)
        for node in self.nodes[1:]:
            node.owns_input = all(owned_value[p.index] and sole[p.index] for p in node.inputs)
            owned_value[node.index] = node.makes_memory or (node.passes_memory and node.owns_input)
        for node in reversed(self.nodes):
            # Several readers: their cotangents are summed into new memory.
            node.owns_cotangent = len(readers[node.index]) > 1 or all(
                reader.pulls_new_memory or (reader.owns_cotangent and len(reader.inputs) == 1)
                for reader in readers[node.index]
            )
        self.nodes[-1].owns_cotangent = False

    def up(self, s: Sweep, x: Tensor) -> Tensor:
        """Push the input's components to the scores; rows as the sweep says."""
        values: list[Any] = [None] * len(self.nodes)
        values[0] = x
        self.whole.up(s, values)
        return values[-1]

    def down(self, s: Sweep, nu: Tensor | None) -> Tensor | None:
        """Pull the scores' cotangents to the input."""
        cotangents: list[Tensor | None] = [None] * len(self.nodes)
        cotangents[-1] = nu
        self.whole.down(s, cotangents)
        return cotangents[0]


class Part:
    """Some nodes of a graph in topological order, swept by themselves; values and cotangents lie by node index.

    Attributes:
        frees: per node index, the values that nobody in this part reads after that node.
    """

    def __init__(self, nodes: Sequence[Node], keep: Sequence[int] = ()) -> None:
        """Sweep ``nodes``; the values of indices in ``keep`` are never dropped."""
        self.nodes = nodes
        for node in reversed(self.nodes):
            for parent in node.inputs:
                parent.compared = parent.compared or node.compared or node.compares
        self.inputs = [[parent.index for parent in node.inputs] for node in nodes]
        self.frees: dict[int, list[int]] = {node.index: [] for node in nodes}
        seen = set(keep)
        for node, parents in zip(reversed(nodes), reversed(self.inputs), strict=True):
            for p in parents:
                if p not in seen:
                    seen.add(p)
                    self.frees[node.index].append(p)

    def up(self, s: Sweep, values: list[Any]) -> None:
        """Fill in the nodes' values, given those that they read from outside."""
        for node, parents in zip(self.nodes, self.inputs, strict=True):
            values[node.index] = node.push(s, *[values[p] for p in parents])
            for p in self.frees[node.index]:
                values[p] = None

    def down(self, s: Sweep, cotangents: list[Tensor | None]) -> None:
        """Move the nodes' cotangents to what they read from outside."""
        summed: set[int] = set()
        for node, parents in zip(reversed(self.nodes), reversed(self.inputs), strict=True):
            nu, cotangents[node.index] = cotangents[node.index], None
            if nu is None and not s.extend:
                continue
            for p, mu in zip(parents, node.pull(s, nu), strict=True):
                old = cotangents[p]
                if old is None or mu is None:
                    cotangents[p] = mu if old is None else old
                elif p in summed:
                    old.add_(mu)
                elif node.pulls_new_memory and len(parents) == 1:
                    cotangents[p] = mu.add_(old)
                    summed.add(p)
                else:
                    cotangents[p] = old + mu
                    summed.add(p)


def ordered(start: Node, output: Node) -> list[Node]:
    """Return the nodes between input and output in topological order, the input first."""
    order, state, stack = [start], {id(start): 2}, [output]
    while stack:
        node = stack[-1]
        if state.get(id(node)) == 2:
            stack.pop()
        elif state.get(id(node)) == 1:
            state[id(node)] = 2
            order.append(stack.pop())
        else:
            state[id(node)] = 1
            stack += [parent for parent in node.inputs if state.get(id(parent)) != 2]
    return order
