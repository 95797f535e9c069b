"""Jets: the state of one sweep, and the node types that every other node is one of.

A jet's components lie side by side in the batch dimension. A sweep runs in one of two ways:

    start   up: y, y_1 .. y_S (S = ``directions``, possibly 0);  down: nu_v, nu_0^1 .. nu_0^S
    extend  after a kept start of order 0, one tangent more: up: y_v alone;  down: nu_0 alone

nu_v, the cotangent of the tangents, does not depend on the direction, so S directions share one; it equals the ordinary
cotangent that an order-0 start sends down. An extension therefore finds y and nu_v in memory and computes only what is
new, and its down sweep is where parameter gradients fall out: dW = nu_v (x) y_v + nu_0 (x) y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.weights import Expr
from fastxai.kernels.activation import Activation

__all__ = ["Curved", "Layer", "Linear", "Node", "Sweep", "add"]

Pulled = Sequence[Tensor | None]


@dataclass
class Sweep:
    """What the nodes of one chunk share.

    Attributes:
        n: samples in the chunk.
        directions: S of a start sweep; 1 in an extension.
        prepared: per node, its weights as ``prepare`` left them.
        activations: per activation slot, the function to use.
        extend: this is an extension of a kept start.
        keep: remember what an extension will need.
        grads: per parameter, the gradient so far or None; None altogether when no parameter wants one.
        memory: per node, what it remembers at this call site.
    """

    n: int
    directions: int
    prepared: list[Any]
    activations: tuple[Activation, ...]
    memory: list[Any]
    extend: bool = False
    keep: bool = False
    grads: list[Tensor | None] | None = None
    wanted: frozenset[int] = field(default=frozenset())

    def collect(self, slot: int, grad: Tensor) -> None:
        """Add to a parameter's gradient."""
        assert self.grads is not None
        old = self.grads[slot]
        self.grads[slot] = grad if old is None else old.add_(grad)

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return (component 0 or None in an extension, the directions as [S, n, ...])."""
        if self.extend:
            return None, x[None]
        return x[: self.n], x[self.n :].unflatten(0, (self.directions, self.n))


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a + b, None standing for zero."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


class Node(ABC):
    """One operation of the graph; its state lives in ``Sweep.memory``, its weights in ``Sweep.prepared``.

    Attributes:
        inputs: the nodes it reads.
        shape: per-sample shape of its output.
        params: expressions of its weights.
        path: the module it came from, for messages.
        index, slot: its place in the graph, and of its first parameter (set when the graph is finished).
        owns_input, owns_cotangent: nobody else reads that memory, so a kernel may write over it.
        signed: an input may be negative, as far as is known (set where rules are assigned).
        own_params: how many of ``params`` are the operation's own (a rule may add others behind them).
        keeps_sign: inputs >= 0 give an output >= 0.
        makes_memory, passes_memory: the output is new memory; the output is a view of the input.
    """

    makes_memory = True
    passes_memory = False
    pulls_new_memory = True
    keeps_sign = False

    def __init__(self, inputs: Sequence[Node], shape: Sequence[int], params: Sequence[Expr] = ()) -> None:
        self.inputs = list(inputs)
        self.shape = tuple(shape)
        self.params: list[Expr] = list(params)
        self.path = ""
        self.index = self.slot = -1
        self.owns_input = self.owns_cotangent = False
        self.signed, self.own_params = True, 0

    @property
    def dim(self) -> int:
        """Number of dimensions of the output including the batch."""
        return len(self.shape) + 1

    def nonnegative(self, *, signed: bool) -> bool:
        """Return True if the output is known to be >= 0, given whether an input may be negative."""
        return self.keeps_sign and not signed

    def prepare(self, *params: Tensor) -> Any:
        """Return the weights in the layout that the sweeps want."""
        return params

    def collect(self, s: Sweep, xs: Sequence[Tensor], nu: Tensor) -> None:  # noqa: B027 (most nodes have none)
        """Collect the gradients of the node's own parameters, for a cotangent of its output at order 0."""

    @abstractmethod
    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Push the components of every input through the node."""

    @abstractmethod
    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pull the cotangents of the output back to every input; None is zero."""


class Linear(Node):
    """A node that acts on each component alone; a subclass gives ``apply``, ``transpose``, perhaps ``weight_grad``.

    ``w`` is a weight as ``pack`` left it: the node's own, or another of the same shape; None for nodes without one.
    """

    def pack(self, weight: Tensor) -> Any:
        """Return a weight in the layout that ``apply`` and ``transpose`` want."""
        return weight

    def prepare(self, *params: Tensor) -> tuple[Any, ...]:
        """Return the packed weight, or nothing."""
        return tuple(self.pack(weight) for weight in params)

    def weight(self, s: Sweep) -> Any:
        """Return the node's own weight, packed, or None."""
        return s.prepared[self.index][0] if self.params else None

    @abstractmethod
    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """The linear map on any number of rows."""

    @abstractmethod
    def transpose(self, w: Any, nu: Tensor) -> Pulled:
        """Its transpose on any number of rows, one result per input."""

    def weight_grad(self, w: Any, mu: Tensor, x: Tensor) -> Tensor:
        """Sum over rows of mu (x) x, in the shape of the one parameter."""
        raise NotImplementedError

    def collect(self, s: Sweep, xs: Sequence[Tensor], nu: Tensor) -> None:
        """Collect the weight's gradient."""
        if self.slot in s.wanted:
            s.collect(self.slot, self.weight_grad(self.weight(s), nu, xs[0]))

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Apply to all components in one call."""
        if self.slot in s.wanted:
            if s.extend:
                s.memory[self.index][2] = xs[0]
            else:
                s.memory[self.index] = [xs[0], None, None]
        return self.value(s, *xs)

    def value(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Return what ``push`` returns."""
        return self.apply(self.weight(s), *xs)

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Transpose all cotangents in one call; collect the weight gradient in an extension."""
        if self.slot in s.wanted:
            self._remember_or_collect(s, nu)
        return [None] * len(self.inputs) if nu is None else self.transpose(self.weight(s), nu)

    def _remember_or_collect(self, s: Sweep, nu: Tensor | None) -> None:
        if not s.extend:
            if s.keep:
                s.memory[self.index][1] = nu
            return
        x, nu_v, x_v = s.memory[self.index]
        if nu_v is None:
            nu_v, x_v = nu, x
        elif nu is not None:
            nu_v, x_v = torch.cat([nu_v, nu]), torch.cat([x_v, x])
        if nu_v is not None:
            s.collect(self.slot, self.weight_grad(self.weight(s), nu_v, x_v))


class Layer(Linear):
    """A linear node that mixes features by a weight W; where rules are assigned it takes over the bias that follows."""

    def take_bias(self, bias: Expr) -> None:
        """Take over b [features]; sweeps of order 0 only."""
        self.params.append(bias)

    @abstractmethod
    def affine(self, w: Any, bias: Tensor | None, x: Tensor) -> Tensor:
        """Return W x + b."""

    @abstractmethod
    def spread(self, bias: Tensor) -> Tensor:
        """Return b as it broadcasts against the output."""

    @abstractmethod
    def bias_grad(self, mu: Tensor) -> Tensor:
        """Return the sum of mu over everything but the features."""

    def apply(self, w: Any, *xs: Tensor) -> Tensor:
        """Return W x."""
        return self.affine(w, None, xs[0])

    def value(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Return W x, and + b where it was taken over and a value is computed."""
        bias = s.prepared[self.index][1] if self.own_params > 1 and not s.extend else None
        return self.affine(self.weight(s), bias, xs[0])

    def collect(self, s: Sweep, xs: Sequence[Tensor], nu: Tensor) -> None:
        """Collect the gradients of W and b."""
        if self.slot in s.wanted:
            s.collect(self.slot, self.weight_grad(self.weight(s), nu, xs[0]))
        if self.own_params > 1 and self.slot + 1 in s.wanted:
            s.collect(self.slot + 1, self.bias_grad(nu))


class Curved(Node):
    """A nonlinear node given by its value and three products; all tensors [..., n, *shape], directions in front."""

    @abstractmethod
    def value(self, xs: Sequence[Tensor]) -> Tensor:
        """The value y = f(x)."""

    @abstractmethod
    def tangent(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor]) -> Tensor:
        """The tangent Df v."""

    @abstractmethod
    def cotangent(self, xs: Sequence[Tensor], y: Tensor, nu: Tensor) -> list[Tensor]:
        """The cotangents Df^T nu, one per input."""

    @abstractmethod
    def curvature(self, xs: Sequence[Tensor], y: Tensor, vs: Sequence[Tensor], nu: Tensor) -> list[Tensor]:
        """The second-order terms (D_v Df)^T nu, one per input."""

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Push value and tangents; remember the primal inputs, the output and the tangents."""
        if s.extend:
            primal, y, _, nu = s.memory[self.index]
            s.memory[self.index] = (primal, y, [x[None] for x in xs], nu)
            return self.tangent(primal, y, [x[None] for x in xs])[0]
        primal = [x[: s.n] for x in xs]
        y = self.value(primal)
        vs = [s.split(x)[1] for x in xs] if s.directions else []
        s.memory[self.index] = (primal, y, vs, None)
        return torch.cat([y, self.tangent(primal, y, vs).flatten(0, 1)]) if vs else y.clone()

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pull nu_v by Df^T and nu_0 by Df^T plus the curvature term."""
        primal, y, vs, nu_v = s.memory[self.index]
        if s.extend:
            bent = [None] * len(primal) if nu_v is None else [m[0] for m in self.curvature(primal, y, vs, nu_v)]
            straight = [None] * len(primal) if nu is None else self.cotangent(primal, y, nu)
            return [add(a, b) for a, b in zip(bent, straight, strict=True)]
        if nu is None:
            return [None] * len(primal)
        if s.keep:
            s.memory[self.index] = (primal, y, vs, nu)
        if not s.directions:
            return self.cotangent(primal, y, nu)
        nu_v, nu_0 = nu[: s.n], s.split(nu)[1]
        bent = self.curvature(primal, y, vs, nu_v)
        straight = self.cotangent(primal, y, nu_0)
        first = self.cotangent(primal, y, nu_v)
        return [torch.cat([f, (b + a).flatten(0, 1)]) for f, b, a in zip(first, bent, straight, strict=True)]
