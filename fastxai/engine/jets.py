"""Jets: the state of one sweep, and the node types that every other node is one of.

A jet's components lie side by side in the batch dimension. A sweep runs in one of two ways:

    start   up: y, y_v^1 .. y_v^S (S = ``directions``, possibly 0);  down: nu_v, nu_0^1 .. nu_0^S
    extend  after a kept start, one order more: up: y_w, y_u^1 .. y_u^S;  down: nu_0, nu_v^1 .. nu_v^S

nu_v, the cotangent of a start's tangents, does not depend on the direction, so S directions share one; it equals the
ordinary cotangent that an order-0 start sends down. An extension finds all of the start's in memory and computes only
what is new: for S = 0 one tangent w and the cotangent of y; for S directions v as many directions u of its own, the
mixed components of all pairs summed up in y_w (nothing needs them apart), and the cotangents of y and of the y_v.
Start and extension meet component by component, (y, y_v) with (nu_0, nu_v) and (nu_v, nu_0) with (y_w, y_u), and the
parameter gradients are the sums of these products: dW = nu (x) y over both sweeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
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
        directions: S of the start sweep.
        prepared: per node, its weights as ``prepare`` left them.
        activations: per activation slot, the function to use.
        extend: this is an extension of a kept start.
        keep: remember what an extension will need.
        to_input: an extension's cotangents of the network's input are wanted, not only those of parameters.
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
    to_input: bool = True
    grads: list[Tensor | None] | None = None
    wanted: frozenset[int] = field(default=frozenset())

    def collect(self, slot: int, grad: Tensor) -> None:
        """Add to a parameter's gradient."""
        assert self.grads is not None
        old = self.grads[slot]
        self.grads[slot] = grad if old is None else old.add_(grad)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the first component [n, ...], those of the directions [S, n, ...])."""
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
        fed: a node with parameters lies before it (set when the graph is finished).
        own_params: how many of ``params`` are the operation's own (a rule may add others behind them).
        compares: derivatives depend on which of the input's values are equal, or zero.
        compared: its value reaches a node that compares (set when the graph is finished).
        keeps_sign: inputs >= 0 give an output >= 0.
        makes_memory, passes_memory: the output is new memory; the output is a view of the input.
    """

    makes_memory = True
    passes_memory = False
    pulls_new_memory = True
    keeps_sign = False
    compares = False

    def __init__(self, inputs: Sequence[Node], shape: Sequence[int], params: Sequence[Expr] = ()) -> None:
        self.inputs = list(inputs)
        self.shape = tuple(shape)
        self.params: list[Expr] = list(params)
        self.path = ""
        self.index = self.slot = -1
        self.owns_input = self.owns_cotangent = False
        self.signed, self.own_params, self.fed, self.compared = True, 0, True, False

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

    Attributes:
        heavy: the weight has about as many elements as the rows that meet it; its gradient is better written once.
    """

    heavy = False

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
        if nu is None or (s.extend and not (s.to_input or self.fed)):
            return [None] * len(self.inputs)
        return self.transpose(self.weight(s), nu)

    def _remember_or_collect(self, s: Sweep, nu: Tensor | None) -> None:
        if not s.extend:
            if s.keep:
                s.memory[self.index][1] = nu
            return
        x, started, added = s.memory[self.index]
        pairs = [(mu, values) for mu, values in ((started, added), (nu, x)) if mu is not None]
        if self.heavy and len(pairs) > 1:
            pairs = [(torch.cat([mu for mu, _ in pairs]), torch.cat([values for _, values in pairs]))]
        for mu, values in pairs:
            s.collect(self.slot, self.weight_grad(self.weight(s), mu, values))


class Layer(Linear):
    """A linear node that mixes features by a weight W; where rules are assigned it takes over the bias that follows."""

    def take_bias(self, bias: Expr) -> None:
        """Take over b [features]; sweeps of order 0 only."""
        self.params.append(bias)

    @abstractmethod
    def affine(
        self, w: Any, bias: Tensor | None, x: Tensor, tiles: str = "any", like: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return W x + b.

        Args:
            w: a packed weight.
            bias: [features], or None.
            x: any number of rows.
            tiles: which convolutions by tiles will do: "any", those that are "exact" (``winograd.Scheme``), or those
                whose small outputs are "refined" (``winograd.Refined``).
            like: with "refined", the operand and the result of another call, whose small outputs count.
        """

    def mixes(self, w: Any, x: Tensor) -> bool:
        """Return whether W x or W^T nu may come by tiles, so that an output holds roundings of its neighbours."""
        return False

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
        return self.affine(self.weight(s), bias, xs[0], "exact" if self.compared and not s.extend else "any")

    def collect(self, s: Sweep, xs: Sequence[Tensor], nu: Tensor) -> None:
        """Collect the gradients of W and b."""
        if self.slot in s.wanted:
            s.collect(self.slot, self.weight_grad(self.weight(s), nu, xs[0]))
        if self.own_params > 1 and self.slot + 1 in s.wanted:
            s.collect(self.slot + 1, self.bias_grad(nu))


@dataclass
class _Curve:
    """What a curved node remembers: of the start its inputs, output, tangents and cotangents, then the extension's."""

    primal: list[Tensor]
    y: Tensor
    vs: list[Tensor]
    nu: Tensor | None = None
    w: Sequence[Tensor] = ()
    us: Sequence[Tensor] = ()


class Curved(Node):
    """A nonlinear node given by its value and five products; all tensors [..., n, *shape], directions in front."""

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

    @abstractmethod
    def bend(self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
        """The second derivative D2f[u, v]."""

    @abstractmethod
    def twist(
        self, xs: Sequence[Tensor], y: Tensor, us: Sequence[Tensor], vs: Sequence[Tensor], nu: Tensor
    ) -> list[Tensor]:
        """The third-order terms (D_u D_v Df)^T nu, one per input."""

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Push value and tangents; remember the primal inputs, the output and the tangents."""
        if s.extend:
            memory = s.memory[self.index]
            w, memory.us = [x[: s.n] for x in xs], [s.split(x)[1] for x in xs]
            memory.w = w
            y_w = self.tangent(memory.primal, memory.y, w)
            if not s.directions:
                return y_w
            y_w = y_w + self.bend(memory.primal, memory.y, memory.us, memory.vs).sum(0)
            return torch.cat([y_w, self.tangent(memory.primal, memory.y, memory.us).flatten(0, 1)])
        primal = [x[: s.n] for x in xs]
        y = self.value(primal)
        vs = [s.split(x)[1] for x in xs]
        s.memory[self.index] = _Curve(primal, y, vs)
        return torch.cat([y, self.tangent(primal, y, vs).flatten(0, 1)]) if s.directions else y.clone()

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pull nu_v by Df^T and nu_0 by Df^T plus the curvature term; in an extension the next order's."""
        memory = s.memory[self.index]
        if s.extend:
            return self._pull_extension(s, memory, nu)
        if nu is None:
            return [None] * len(memory.primal)
        if s.keep:
            memory.nu = nu
        primal, y = memory.primal, memory.y
        if not s.directions:
            return self.cotangent(primal, y, nu)
        nu_v, nu_0 = s.split(nu)
        bent = self.curvature(primal, y, memory.vs, nu_v)
        straight = self.cotangent(primal, y, nu_0)
        first = self.cotangent(primal, y, nu_v)
        return [torch.cat([f, (b + a).flatten(0, 1)]) for f, b, a in zip(first, bent, straight, strict=True)]

    def _pull_extension(self, s: Sweep, memory: _Curve, bar: Tensor | None) -> Pulled:
        primal, y, us, vs = memory.primal, memory.y, memory.us, memory.vs
        mu_0: list[list[Tensor]] = []
        mu_v: list[list[Tensor]] = []
        if bar is not None:
            bar_0, bar_v = s.split(bar)
            mu_0.append(self.cotangent(primal, y, bar_0))
            if s.directions:
                mu_0.append([m.sum(0) for m in self.curvature(primal, y, vs, bar_v)])
                mu_v.append(self.cotangent(primal, y, bar_v))
        if memory.nu is not None:
            nu_v, nu_0 = s.split(memory.nu)
            mu_0.append(self.curvature(primal, y, memory.w, nu_v))
            if s.directions:
                mu_0.append([m.sum(0) for m in self.curvature(primal, y, us, nu_0)])
                mu_0.append([m.sum(0) for m in self.twist(primal, y, us, vs, nu_v)])
                mu_v.append(self.curvature(primal, y, us, nu_v))
        if not mu_0:
            return [None] * len(primal)
        sums = [[reduce(torch.add, terms) for terms in zip(*parts, strict=True)] for parts in (mu_0, mu_v)]
        if not s.directions:
            return sums[0]
        return [torch.cat([first, rest.flatten(0, 1)]) for first, rest in zip(*sums, strict=True)]
