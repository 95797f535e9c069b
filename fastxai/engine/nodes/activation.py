"""Elementwise activations, with the channel bias that precedes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastxai.engine.graph import builds
from fastxai.engine.jets import Node, Pulled, Sweep
from fastxai.engine.trace import Unsupported
from fastxai.engine.weights import Expr
from fastxai.kernels import activation as kernel

__all__ = ["Activate"]


@dataclass
class _Memory:
    kept: Tensor
    a_v: Tensor | None
    nu_v: Tensor | None = None


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

    def nonnegative(self, *, signed: bool) -> bool:
        """Return True for functions that are never negative, whatever the view makes of them."""
        return self.activation.name in ("relu", "relu6", "softplus", "softplus6", "sigmoid")

    def push(self, s: Sweep, *xs: Tensor) -> Tensor:
        """Push the jet; remember the kept number and the tangents."""
        act, a = s.activations[self.activation_slot], xs[0]
        if s.extend:
            memory = s.memory[self.index]
            memory.a_v = a
            return kernel.pull(act, memory.kept, None, a)
        y, kept = kernel.push(act, a, s.directions, s.prepared[self.index], overwrite=self.owns_input)
        s.memory[self.index] = _Memory(kept, a[s.n :] if s.directions else None)
        return y

    def pull(self, s: Sweep, nu: Tensor | None) -> Pulled:
        """Pull the cotangents; in an extension only mu_0 is new."""
        act, memory = s.activations[self.activation_slot], s.memory[self.index]
        if not s.extend:
            assert nu is not None
            if s.keep:
                memory.nu_v = nu
            overwrite = self.owns_cotangent and not s.keep
            return [kernel.pull(act, memory.kept, memory.a_v, nu, s.directions, overwrite=overwrite)]
        mu = None if nu is None and act.flat else self._pull_primal(act, memory, nu)
        if mu is not None and self.slot in s.wanted:
            s.collect(self.slot, mu.sum([0, *range(2, self.dim)]))
        return [mu]

    def _pull_primal(self, act: kernel.Activation, memory: _Memory, nu: Tensor | None) -> Tensor | None:
        if memory.nu_v is None or act.flat:
            return None if nu is None else kernel.pull(act, memory.kept, None, nu)
        assert memory.a_v is not None
        return kernel.pull_primal(act, memory.kept, memory.a_v, memory.nu_v, nu)


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
