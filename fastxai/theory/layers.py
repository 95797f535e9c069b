"""What the bounds ask of a network: the norms of its layers, and how smooth its activations are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.explain import LayerSample
from fastxai.engine.graph import Input
from fastxai.engine.jets import Curved, Linear, Node, Sweep
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.linear import Dense
from fastxai.engine.nodes.max_pool import MaxPool
from fastxai.kernels.activation import RELU_LIKE, Activation
from fastxai.theory._common import count, prepare
from fastxai.theory._lanczos import lanczos
from fastxai.theory.spectrum import starts

__all__ = ["Smoothness", "closing_layers", "layer_norms", "smoothness"]

# The probability that a convolution's spectral norm is above the value given for it.
_FAILURE = 1e-6


@dataclass(frozen=True)
class Smoothness:
    """What the theorems ask of a network's activations and pools.

    Attributes:
        slope: S1, an upper bound of every |s'|.
        curvature: S2, of every |s''|; infinite if an activation has a kink.
        jumps: whether a map jumps somewhere, which no Hessian sees: at kinks, or where a max-pool changes its winner.
            Then [R] eq. 4 and 5 do not hold.
        piecewise_linear: whether kinks and pools are all that is not linear, as [R] theorem 2 has it.
    """

    slope: float
    curvature: float
    jumps: bool
    piecewise_linear: bool


def _suprema(act: Activation) -> tuple[float, float]:
    """Return the suprema of |s'| and |s''|; of ReLU-like ones the surrogate's curvature, if there is one."""
    bend, steepest = act.beta / 4, max(1.0, abs(act.alpha))
    kink = {"own": math.inf, "none": 0.0, "curvature": bend}[act.second]
    return {
        "identity": (1.0, 0.0),
        "softplus": (1.0, bend),
        "softplus6": (1.0, bend),
        "leaky_softplus": (steepest, abs(1 - act.alpha) * bend),
        "relu": (1.0, kink),
        "relu6": (1.0, kink),
        "leaky_relu": (steepest, kink * abs(1 - act.alpha) if act.alpha != 1 else 0.0),
        "sigmoid": (1 / 4, 1 / (6 * math.sqrt(3))),
        "tanh": (1.0, 4 / (3 * math.sqrt(3))),
        "elu": (steepest, abs(act.alpha)),
        # The slopes' maxima are at 2.3994, sqrt(2) and 1.4189, rounded up.
        "silu": (1.09984, 1 / 2),
        "gelu": (1.12891, math.sqrt(2 / math.pi)),
        "gelu_tanh": (1.12900, math.sqrt(2 / math.pi)),
    }[act.name]


def smoothness(net: Net, x: Tensor) -> Smoothness:
    """Return S1 >= |s'| and S2 >= |s''| over a view's activations ([R] eq. 7), and whether its maps jump.

    For softplus_beta they are 1 and beta / 4 ([R] eq. 10). The kink of an ELU of alpha != 1 is left out of S2, as
    max-pools are: there the Hessian does not exist, and it is bounded everywhere else.

    Args:
        net: compiled, ending with a layer.
        x: inputs [N, ...], of which the shape matters alone.

    Raises:
        TypeError: net is no compiled net, x no floating point tensor.
        ValueError: the net does not end with a layer.
        RuntimeError: the engine cannot run the model.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)))
    >>> fastxai.theory.smoothness(net, torch.rand(1, 4))
    Smoothness(slope=1.0, curvature=0.769800358919501, jumps=False, piecewise_linear=False)
    """
    x, _ = prepare(net, x, 0)
    site = closing_layers(net, x)[0][-1].site
    seen, stack = set(), [site.node]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += node.inputs
    used = {site.sweep.activations[node.activation_slot] for node in seen if isinstance(node, Activate)}
    slopes, curvatures = zip(*[_suprema(act) for act in used] or [(1.0, 0.0)], strict=True)
    kinks = any(act.name in RELU_LIKE or (act.name == "elu" and act.alpha != 1) for act in used)
    linear = all(act.name in (*RELU_LIKE, "identity") for act in used)
    return Smoothness(
        max(slopes),
        max(curvatures),
        jumps=kinks or any(isinstance(node, MaxPool) for node in seen),
        piecewise_linear=linear and not any(isinstance(node, Curved) for node in seen),
    )


def _joint_norm(node: Node, sweep: Sweep, like: Tensor) -> Tensor:
    """Return ||J||_2 [] of a node that is no layer, or a bound on it for any input."""
    if isinstance(node, Bias):
        return like.new_ones(())
    if isinstance(node, MaxPool):
        # How many windows a pixel can win in.
        sizes = zip(node.window.kernel, node.window.stride, node.window.dilation, strict=True)
        return like.new_tensor(math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in sizes)).sqrt()
    if not isinstance(node, Linear):
        raise ValueError(f"net must be made of layers, activations and pools, got {type(node).__name__}")
    # ||J||_2^2 <= ||J||_1 ||J||_inf, the largest sums of |entries|; equal for pools without overlap, pads, scales.
    w = node.weight(sweep).abs() if node.params else None
    (back,) = node.transpose(w, like.new_ones(1, *node.shape))
    assert back is not None
    return (node.apply(w, like.new_ones(1, *node.inputs[0].shape)).max() * back.max()).sqrt()


def _frobenius(sample: LayerSample) -> Tensor:
    """Return the Frobenius norm [] of a layer's matrix: its entries squared, applied to ones, summed."""
    node = sample.site.node
    return node.affine(node.pack(sample.weight.square()), None, torch.ones_like(sample.inputs)).sum().sqrt()


def _spectral(sample: LayerSample, steps: int) -> Tensor:
    """Return ||W||_2 [] of a layer; of a convolution, a bound that fails with probability ``_FAILURE``."""
    node, w, x = sample.site.node, sample.site.weight, torch.zeros_like(sample.inputs)
    if isinstance(node, Dense):
        return torch.linalg.matrix_norm(sample.weight, 2)

    def gram(v: Tensor) -> Tensor:
        return node.transpose(w, node.apply(w, v.reshape(x.shape)))[0].reshape(v.shape)

    ritz = lanczos(gram, starts(x, 0, None), min(steps, x.numel()))
    # Kuczynski and Wozniakowski 1992: for a positive matrix and a start uniform on the sphere,
    # P(theta < (1 - e) lambda) <= 1.648 sqrt(n) exp(-sqrt(e) (2 steps - 1)).
    missed = (math.log(1.648 * math.sqrt(x.numel()) / _FAILURE) / (2 * steps - 1)) ** 2 if steps < x.numel() else 0.0
    bound = (ritz.values[0, -1] / (1 - missed)).sqrt() if missed < 1 else ritz.values.new_tensor(torch.inf)
    return torch.minimum(bound, _frobenius(sample))


def _joints(samples: list[LayerSample]) -> list[list[Node]]:
    """Return, for each layer, the nodes that belong to it: those between it and the activations around it.

    Raises:
        ValueError: the layers are no chain, or an activation has no layer of its own.
    """
    joints: list[list[Node]] = [[] for _ in samples]
    for i, sample in enumerate(samples):
        above = samples[i - 1].site.node if i else None
        owner, node = i, sample.site.node.inputs[0]
        while node is not above and len(node.inputs) == 1:
            if isinstance(node, Activate):
                owned = owner == i and i > 0
                _check.require(owned, "net", "have a layer before each activation", f"none before {node.path!r}")
                owner = i - 1
            else:
                joints[owner].append(node)
            node = node.inputs[0]
        chained = node is above or (above is None and isinstance(node, Input))
        _check.require(chained, "net", "be a chain of layers", f"branches at {type(node).__name__}")
    return joints


def closing_layers(net: Net, x: Tensor) -> tuple[list[LayerSample], Tensor]:
    """Return (every layer at some input of x's shape [N, ...], scores [1, K]) of a net whose last layer gives them.

    Raises:
        ValueError: something else makes the scores.
    """
    # Not x itself, of which the shape matters alone: it may be uninitialised.
    one = starts(x.new_empty(1, *x.shape[1:]), 0, None)(0).view(1, *x.shape[1:])
    samples, scores = list(net.layers(one)), net(one)
    head = samples[-1].outputs if samples else None
    last = head is not None and head.shape == scores.shape and torch.allclose(head, scores, rtol=1e-4, atol=1e-5)
    _check.require(last, "net", "end with a layer", "something else that makes the scores")
    return samples, scores


def layer_norms(
    net: Net, x: Tensor, target: int | Tensor | None = None, *, norm: str = "frobenius", steps: int = 64
) -> Tensor:
    """Return the norms ||W_l|| of a network's layers, first to last, for inputs of x's shape.

    The network must be a chain: convolutions and dense layers (a batch norm behind one is part of it), at most one
    activation and any pools between them, and a layer last. Pools, normalisation and the like enter a layer's norm as
    factors, by their spectral norms.

    Args:
        net: compiled; which activations its view has does not matter.
        x: inputs [N, ...], of which the shape matters alone.
        target: the explained class, whose row alone then stands for the last layer, or several, a LongTensor [K]; None:
            the whole layer, which serves every class.
        norm: "frobenius" or "spectral", of the matrix that a layer is; or "kernel", the Frobenius norm of the weight as
            it is stored, without any factors, which no theorem here is about.
        steps: Lanczos steps for the spectral norm of a convolution. The value is raised so far (1 % for 3072 pixels at
            64 steps) that it lies below the norm with probability 1e-6 only.

    Returns:
        [L], or [K, L] for several targets.

    Raises:
        TypeError: net is no compiled net, x no floating point tensor, target no integers.
        ValueError: the net is no such chain, norm is unknown, or target is out of range.
        RuntimeError: the engine cannot run the model.

    >>> linear = torch.nn.Linear(4, 3)
    >>> norms = fastxai.theory.layer_norms(fastxai.compile(linear), torch.rand(1, 4))
    >>> torch.allclose(norms, linear.weight.norm())
    True
    """
    x, _ = prepare(net, x, 0)
    _check.one_of(norm, "norm", ("frobenius", "spectral", "kernel"))
    count(steps, "steps")
    samples, scores = closing_layers(net, x)
    if norm == "kernel":
        norms = [torch.linalg.vector_norm(sample.weight) for sample in samples]
    else:
        norms = [_frobenius(sample) if norm == "frobenius" else _spectral(sample, steps) for sample in samples]
    if target is not None:
        rows = samples[-1].weight[_classes(target, scores)]
        norms[-1] = torch.linalg.vector_norm(rows, dim=-1)
    if norm != "kernel":
        for i, nodes in enumerate(_joints(samples)):
            for node in nodes:
                norms[i] = norms[i] * _joint_norm(node, samples[i].site.sweep, x)
    return torch.stack(torch.broadcast_tensors(*norms), -1).detach()


def _classes(target: int | Tensor, scores: Tensor) -> Tensor:
    """Return the target as a LongTensor [] or [K] on the scores' device, its range checked."""
    number = isinstance(target, int) and not isinstance(target, bool)
    whole = number or (isinstance(target, Tensor) and not (target.is_floating_point() or target.dtype == torch.bool))
    _check.require(whole, "target", "be None, an int or a LongTensor [K]", target, TypeError)
    index = torch.as_tensor(target, device=scores.device)
    inside = index.dim() < 2 and bool(((index >= 0) & (index < scores.shape[1])).all())
    _check.require(inside, "target", f"be None or lie in 0 .. {scores.shape[1] - 1}", target)
    return index.long()
