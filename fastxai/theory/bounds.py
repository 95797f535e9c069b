"""Bounds on the Hessian from the weights alone: [R] theorems 1 and 2, and the constant of [M1]'s theorem.

Both papers speak of fully-connected networks: L layers, each a matrix W and an activation. A convolution is a matrix
too, whose Frobenius norm counts a kernel entry once for every position where it meets the image: ``layer_norms`` gives
it. With Frobenius norms the bounds are on ||H||_F, as printed; with spectral norms the same proofs bound ||H||_2, by
orders of magnitude less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine import Net
from fastxai.engine.explain import LayerSample
from fastxai.engine.graph import Input
from fastxai.engine.jets import Linear, Node, Sweep
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.linear import Dense
from fastxai.engine.nodes.max_pool import MaxPool
from fastxai.theory._common import count, prepare
from fastxai.theory._lanczos import lanczos
from fastxai.theory.spectrum import starts

__all__ = [
    "count_kinks",
    "hessian_bound",
    "layer_norms",
    "loose_softplus_bound",
    "relu_bound",
    "softplus_bound",
    "weight_constant",
]

Norms = Sequence[float] | Tensor

# The probability that a convolution's spectral norm is above the value given for it.
_FAILURE = 1e-6


def _terms(norms: Norms) -> Tensor:
    """Return prod_{l<=m} ||W_l||^2 prod_{l>m} ||W_l|| for m = 1 .. L, [L] in float64."""
    n = torch.as_tensor(norms, dtype=torch.float64).detach().cpu()
    _check.require(n.dim() == 1 and len(n) > 0, "norms", "hold one number per layer", list(n.shape))
    _check.require(bool((n >= 0).all()), "norms", "be zero or positive", n.tolist())
    return n.cumprod(0) * n.prod()


def weight_constant(norms: Norms) -> float:
    """Return C~ = sum_m prod_{l<=m} ||W_l||_F^2 prod_{l>m} ||W_l||_F ([M1] eq. 18).

    Args:
        norms: of the layers, first to last, [L].

    Raises:
        ValueError: norms are none, not one-dimensional, or negative.

    >>> fastxai.theory.weight_constant([2.0, 3.0])
    48.0
    """
    return _terms(norms).sum().item()


def hessian_bound(norms: Norms, slope: float, curvature: float, *, linear_head: bool = False) -> float:
    """Return sum_m prod_{l<=m} ||W_l||^2 prod_{l>m} ||W_l|| S1^{L+m-2} S2 >= ||H|| everywhere ([R] eq. 8).

    Args:
        norms: of the layers, first to last, [L]: Frobenius norms, for a bound on ||H||_F, or spectral, for ||H||_2.
        slope: S1 >= |s'| of every activation.
        curvature: S2 >= |s''|.
        linear_head: no activation follows the last layer, as where scores are explained: its term is left out, and one
            factor S1. ([R] has one.)

    Raises:
        ValueError: norms are none, not one-dimensional, or negative; slope or curvature is negative or not finite.

    >>> fastxai.theory.hessian_bound([2.0, 3.0], 1.0, 0.25), fastxai.theory.hessian_bound([2.0], 1.0, 0.25)
    (12.0, 1.0)
    """
    for value, name in ((slope, "slope"), (curvature, "curvature")):
        _check.require(0 <= value < math.inf, name, "be finite and not negative", value)
    terms = _terms(norms)[: -1 if linear_head else None]
    powers = torch.arange(len(terms), dtype=torch.float64) + (len(terms) - 1)
    return curvature * (terms * slope**powers).sum().item()


def softplus_bound(norms: Norms, beta: float, *, linear_head: bool = False) -> float:
    """Return ``hessian_bound`` for softplus_beta: S1 = 1, S2 = beta / 4 ([R] eq. 8 and 10).

    Divided by the smallest ||nabla g|| it bounds every principal curvature too ([M1] eq. 23).

    >>> fastxai.theory.softplus_bound([2.0, 3.0], 10.0)
    120.0
    """
    return hessian_bound(norms, 1.0, _check.positive(beta, "beta") / 4, linear_head=linear_head)


def loose_softplus_bound(norms: Norms, beta: float) -> float:
    """Return beta C~ >= ||H||_F ([M1] eq. 17): four times ``softplus_bound``, as [M1] drops the factor s'' <= beta / 4.

    >>> fastxai.theory.loose_softplus_bound([2.0, 3.0], 10.0)
    480.0
    """
    return _check.positive(beta, "beta") * weight_constant(norms)


def relu_bound(norms: Norms, kinks: int) -> float:
    """Return sqrt(kinks) prod_l ||W_l||_F >= ||h(x) - h(x_adv)|| for a ReLU network ([R] eq. 27).

    As any two gradients are at most 2 prod_l ||W_l|| apart, it says nothing new from four kinks on.

    Args:
        norms: of the layers, [L].
        kinks: how often the path from x to x_adv crosses the kink of a unit (``count_kinks``).

    Raises:
        ValueError: norms are none, not one-dimensional, or negative; kinks is no int or negative.

    >>> fastxai.theory.relu_bound([2.0, 3.0], 4)
    12.0
    """
    terms = _terms(norms)
    return math.sqrt(count(kinks, "kinks", 0)) * terms[-1].sqrt().item()


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
        ValueError: the layers are no chain.
    """
    joints: list[list[Node]] = [[] for _ in samples]
    for i, sample in enumerate(samples):
        above = samples[i - 1].site.node if i else None
        owner, node = i, sample.site.node.inputs[0]
        while node is not above and len(node.inputs) == 1:
            if isinstance(node, Activate):
                owner = max(i - 1, 0)
            else:
                joints[owner].append(node)
            node = node.inputs[0]
        chained = node is above or (above is None and isinstance(node, Input))
        _check.require(chained, "net", "be a chain of layers", f"branches at {type(node).__name__}")
    return joints


def layer_norms(net: Net, x: Tensor, target: int | None = None, *, norm: str = "frobenius", steps: int = 64) -> Tensor:
    """Return the norms ||W_l|| of a network's layers, first to last, for inputs of x's shape.

    The network must be a chain: convolutions and dense layers (a batch norm behind one is part of it), with activations
    and pools between them, and a layer last. Pools, normalisation and the like enter a layer's norm as factors, by
    their spectral norms.

    Args:
        net: compiled; which activations its view has does not matter.
        x: inputs [N, ...], of which the first is looked at.
        target: the explained class, whose row alone then stands for the last layer; None: the whole layer, which serves
            every class.
        norm: "frobenius" or "spectral", of the matrix that a layer is; or "kernel", the Frobenius norm of the weight as
            it is stored, without any factors, which no theorem here is about.
        steps: Lanczos steps for the spectral norm of a convolution. The value is raised so far (1 % for 3072 pixels at
            64 steps) that it lies below the norm with probability 1e-6 only.

    Returns:
        [L].

    Raises:
        TypeError: net is no compiled net, x no floating point tensor.
        ValueError: the net is no such chain, x holds no input, norm is unknown, or target is out of range.
        RuntimeError: the engine cannot run the model.

    >>> linear = torch.nn.Linear(4, 3)
    >>> norms = fastxai.theory.layer_norms(fastxai.compile(linear), torch.rand(1, 4))
    >>> torch.allclose(norms, linear.weight.norm())
    True
    """
    x, _ = prepare(net, x, 0)
    _check.one_of(norm, "norm", ("frobenius", "spectral", "kernel"))
    _check.require(len(x) > 0, "x", "hold an input", list(x.shape))
    count(steps, "steps")
    samples, scores = list(net.layers(x[:1])), net(x[:1])
    head = samples[-1].outputs if samples else None
    last = head is not None and head.shape == scores.shape and torch.allclose(head, scores, rtol=1e-4, atol=1e-5)
    _check.require(last, "net", "end with a layer", "something else that makes the scores")
    if norm == "kernel":
        norms = [torch.linalg.vector_norm(sample.weight) for sample in samples]
    else:
        norms = [_frobenius(sample) if norm == "frobenius" else _spectral(sample, steps) for sample in samples]
    if target is not None:
        classes = scores.shape[1]
        fits = isinstance(target, int) and 0 <= target < classes
        _check.require(fits, "target", f"be None or lie in 0 .. {classes - 1}", target)
        norms[-1] = torch.linalg.vector_norm(samples[-1].weight[target])
    if norm != "kernel":
        for i, nodes in enumerate(_joints(samples)):
            for node in nodes:
                norms[i] = norms[i] * _joint_norm(node, samples[i].site.sweep, x)
    return torch.stack(norms).detach()


def count_kinks(net: Net, points: Tensor) -> Tensor:
    """Return how often units of a ReLU network change sign between consecutive points, LongTensor [N].

    A unit that changes sign and back between two points is missed; one that a max-pool discards is counted.

    Args:
        net: compiled; the model's own activations are meant, whatever the view has.
        points: a path [T + 1, N, ...].

    Raises:
        TypeError: net is no compiled net, points no floating point tensor.
        ValueError: points hold no path.
        RuntimeError: the engine cannot run the model.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU()))
    >>> fastxai.theory.count_kinks(net, torch.tensor([-1.0, 1.0, 2.0, -1.0]).view(4, 1, 1))
    tensor([2])
    """
    fits = _check.tensor(points, "points").dim() >= 3 and len(points) > 1
    _check.require(fits, "points", "have shape [T + 1, N, ...] with T >= 1", list(points.shape))
    prepare(net, points[0], 0, "points")
    kinks = torch.zeros(points.shape[1], dtype=torch.long, device=points.device)
    last: list[Tensor] = []
    for x in points.detach():
        signs: dict[Node, list[Tensor]] = {}
        for sample in net.base.layers(x):
            if sample.gated:
                signs.setdefault(sample.site.node, []).append((sample.outputs > 0).flatten(1))
        units = [torch.cat(chunks) for chunks in signs.values()]
        for now, before in zip(units, last, strict=bool(last)):
            kinks += (now != before).sum(1)
        last = units
    return kinks
