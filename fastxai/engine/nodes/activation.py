"""Elementwise activations, with the channel bias that precedes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Node, Pulled, Sweep
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Expr
from fastxai.kernels import activation as kernel
from fastxai.kernels import mixed

__all__ = ["Activate"]


@dataclass
class _Memory:
    """What an activation remembers of the start, and what its extension pushed."""

    kept: Tensor
    a_v: Tensor
    nu: Tensor | None = None
    added: Tensor | None = None


class Activate(Node):
    """y = s(a + b): the only node that mixes components elementwise."""

    def __init__(self, a: Node, activation: kernel.Activation) -> None:
        super().__init__([a], a.shape)
        self.activation = activation
        self.activation_slot = -1

    def prepare(self, *params: Tensor) -> Tensor | None:
        """Return the bias [C] or None."""
        return params[0].contiguous() if params else None

    def absorb(self, bias: Expr) -> None:
        """Take over the channel bias of the node before."""
        self.params = [bias]

    @property
    def compares(self) -> bool:  # type: ignore[override]
        """True for kinks at zero without a bias, which lie where the input is zero."""
        bias = self.params or self.inputs[0].own_params > 1 or isinstance(self.inputs[0], Bias)
        return self.activation.name in kernel.RELU_LIKE and not bias

    def nonnegative(self, *, signed: bool) -> bool:
        """Return True for functions that are never negative, whatever the view makes of them."""
        return self.activation.name in ("relu", "relu6", "softplus", "softplus6", "sigmoid")

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Push the jet; remember the kept number and the tangents."""
        act, a = s.activations[self.activation_slot], xs[0]
        if s.extend:
            memory = s.memory[self.index]
            memory.added = a
            if act.flat or not s.directions:
                return kernel.pull(act, memory.kept, None, a, s.directions)
            return mixed.push(act, memory.kept, memory.a_v, a, s.directions)
        y, kept = kernel.push(act, a, s.directions, s.prepared[self.index], overwrite=self.owns_input)
        s.memory[self.index] = _Memory(kept, a[s.n :])
        return y

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pull the cotangents; in an extension those of the next order."""
        act, memory = s.activations[self.activation_slot], s.memory[self.index]
        if not s.extend:
            assert nu is not None
            if s.keep:
                memory.nu = nu
            overwrite = self.owns_cotangent and not s.keep
            return [kernel.pull(act, memory.kept, memory.a_v, nu, s.directions, overwrite=overwrite)]
        mu = self._pull_extension(act, memory, nu, s.directions)
        if mu is not None and self.slot in s.wanted:
            s.collect(self.slot, mu[: s.n].sum([0, *range(2, self.dim)]))
        return [mu]

    def _pull_extension(
        self, act: kernel.Activation, memory: _Memory, bar: Tensor | None, directions: int
    ) -> Tensor | None:
        if act.flat or (memory.nu is None and not directions):
            return None if bar is None else kernel.pull(act, memory.kept, None, bar, directions)
        assert memory.added is not None
        if not directions:
            assert memory.nu is not None
            return kernel.pull_primal(act, memory.kept, memory.added, memory.nu, bar)
        if memory.nu is None and bar is None:
            return None
        nu, bar = (torch.zeros_like(memory.added) if x is None else x for x in (memory.nu, bar))
        return mixed.pull(act, memory.kept, memory.a_v, memory.added, nu, bar, directions)


def _floating(a: Node, name: str, **settings: Any) -> Node:
    if not isinstance(a, Node):
        raise Unsupported("its input does not depend on the network's input")
    return Activate(a, kernel.Activation(name, **settings))


@builds("relu")
def _relu(input: Node) -> Node:
    return _floating(input, "relu")


@builds("relu6")
def _relu6(input: Node) -> Node:
    return _floating(input, "relu6")


@builds("hardtanh")
def _hardtanh(input: Node, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Node:
    if (min_val, max_val) != (0.0, 6.0):
        raise Unsupported(f"hardtanh between {min_val} and {max_val}; only ReLU6's 0 and 6 are known")
    return _floating(input, "relu6")


@builds("clamp", "clip", "clamp_min")
def _clamp(input: Node, min: float | None = None, max: float | None = None) -> Node:
    if min != 0 or max not in (None, 6):
        raise Unsupported(f"clamp between {min} and {max}; only ReLU's 0 and ReLU6's 0 and 6 are known")
    return _floating(input, "relu" if max is None else "relu6")


@builds("leaky_relu")
def _leaky_relu(input: Node, negative_slope: float = 0.01, inplace: bool = False) -> Node:
    return _floating(input, "leaky_relu", alpha=float(negative_slope))


@builds("softplus")
def _softplus(input: Node, beta: float = 1.0, threshold: float = 20.0) -> Node:
    return _floating(input, "softplus", beta=float(beta))


@builds("sigmoid")
def _sigmoid(input: Node) -> Node:
    return _floating(input, "sigmoid")


@builds("tanh")
def _tanh(input: Node) -> Node:
    return _floating(input, "tanh")


@builds("silu")
def _silu(input: Node, inplace: bool = False) -> Node:
    return _floating(input, "silu")


@builds("gelu")
def _gelu(input: Node, approximate: str = "none") -> Node:
    return _floating(input, "gelu_tanh" if approximate == "tanh" else "gelu")


@builds("elu")
def _elu(input: Node, alpha: float = 1.0, inplace: bool = False) -> Node:
    return _floating(input, "elu", alpha=float(alpha))
