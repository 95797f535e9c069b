"""Passes: what the graph gains before it is finished. Each keeps values and derivatives exactly.

fold_scales       convolution or dense layer -> scale per channel: the scale joins the weight
pool_first        monotone activation -> max-pool: pool first, activate a quarter of the elements
float_biases      channel biases move down (over max-pools and sums) into the activation kernel that follows
attach_biases     for rules: the bias joins its convolution or dense layer instead
"""

from __future__ import annotations

import torch

from fastxai.engine.graph import Input
from fastxai.engine.jets import Layer, Node
from fastxai.engine.nodes.activation import Activate
from fastxai.engine.nodes.add import Add
from fastxai.engine.nodes.bias import Bias
from fastxai.engine.nodes.conv2d import Conv2d
from fastxai.engine.nodes.linear import Dense
from fastxai.engine.nodes.max_pool import MaxPool
from fastxai.engine.nodes.scale import Scale
from fastxai.engine.weights import Apply, Expr, shape_of

__all__ = ["simplify", "simplify_for_rules"]


class _Editor:
    """The graph under change: who reads whom."""

    def __init__(self, output: Node) -> None:
        self.output: Node = Input([output], ())  # a reader of the output, so that the output can be replaced too
        self.readers: dict[Node, list[Node]] = {}
        self.nodes: list[Node] = []
        stack: list[Node] = [self.output]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            self.nodes.append(node)
            for parent in node.inputs:
                self.readers.setdefault(parent, []).append(node)
                stack.append(parent)
        self.nodes.remove(self.output)

    def sole_reader(self, node: Node) -> Node | None:
        readers = self.readers.get(node, [])
        return readers[0] if len(readers) == 1 and readers[0] is not self.output else None

    def replace(self, old: Node, new: Node) -> None:
        """Let every reader of ``old`` read ``new``."""
        for reader in self.readers.pop(old, []):
            reader.inputs = [new if parent is old else parent for parent in reader.inputs]
            self.readers.setdefault(new, []).append(reader)

    def remove(self, node: Node) -> None:
        """Cut a node of one input out."""
        parent = node.inputs[0]
        self.readers[parent].remove(node)
        self.replace(node, parent)
        self.nodes.remove(node)

    def swap(self, upper: Node, lower: Node) -> None:
        """Exchange ``upper`` and its only reader ``lower``; shapes follow."""
        source = upper.inputs[0]
        self.readers[source].remove(upper)
        self.readers[upper].remove(lower)
        self.replace(lower, upper)
        lower.inputs = [source if parent is upper else parent for parent in lower.inputs]
        self.readers[source].append(lower)
        upper.inputs = [lower]
        self.readers[lower] = [upper]
        upper.shape = lower.shape


def _scale_rows(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return weight * factor.view(-1, *[1] * (weight.dim() - 1))


def _channel_last_dim(node: Node) -> bool:
    return isinstance(node, Conv2d) or (isinstance(node, Dense) and node.dim == 2)


def fold_scales(graph: _Editor) -> None:
    """Let W absorb a following scale per channel; a bias in between is scaled too."""
    for scale in [n for n in graph.nodes if isinstance(n, Scale) and n.channel]:
        above: Node = scale.inputs[0]
        bias = above if isinstance(above, Bias) and above.channel else None
        layer = bias.inputs[0] if bias else above
        if not _channel_last_dim(layer) or graph.sole_reader(layer) is not (bias or scale):
            continue
        if bias and graph.sole_reader(bias) is not scale:
            continue
        factor: Expr = scale.params[0]
        layer.params = [Apply(_scale_rows, (layer.params[0], factor), {})]
        if bias:
            bias.params = [Apply(torch.mul, (bias.params[0], factor), {})]
        graph.remove(scale)


def pool_first(graph: _Editor) -> None:
    """Exchange a monotone activation and the max-pool that alone reads it.

    Not under the curvature surrogate: among values that the activation made equal, it sees which one was routed.
    """
    for node in [n for n in graph.nodes if isinstance(n, Activate)]:
        reader = graph.sole_reader(node)
        if isinstance(reader, MaxPool) and node.activation.monotone:
            graph.swap(node, reader)


def _absorb_below(graph: _Editor, bias: Bias) -> bool:
    reader = graph.sole_reader(bias)
    if isinstance(reader, Bias) and reader.channel:
        reader.params = [bias.merge(reader)]
        graph.remove(bias)
    elif isinstance(reader, (MaxPool, Add)):
        if isinstance(reader, Add) and reader.inputs[0] is reader.inputs[1]:
            return False
        graph.swap(bias, reader)
    elif isinstance(reader, Activate) and not reader.params:
        reader.absorb(bias.params[0])
        graph.remove(bias)
    else:
        return False
    return True


def float_biases(graph: _Editor) -> None:
    """Move channel biases down until an activation kernel takes them or nothing lets them pass."""
    pending = [n for n in graph.nodes if isinstance(n, Bias) and n.channel]
    while pending:
        bias = pending.pop()
        if bias in graph.nodes and _absorb_below(graph, bias) and bias in graph.nodes:
            pending.append(bias)


def attach_biases(graph: _Editor) -> None:
    """Let convolutions and dense layers take over the bias that alone reads them."""
    for bias in [n for n in graph.nodes if isinstance(n, Bias)]:
        layer = bias.inputs[0]
        if isinstance(layer, Bias) and layer.channel and bias.channel and graph.sole_reader(layer) is bias:
            bias.params = [layer.merge(bias)]
            graph.remove(layer)
            layer = bias.inputs[0]
        fits = isinstance(layer, Dense) and shape_of(bias.params[0]) == (layer.shape[-1],)
        if isinstance(layer, Layer) and graph.sole_reader(layer) is bias and (bias.channel or fits):
            layer.take_bias(bias.params[0])
            graph.remove(bias)


def simplify_for_rules(output: Node) -> Node:
    """Run the passes that rules allow, and return the output node: batch norms and biases join their layers."""
    graph = _Editor(output)
    fold_scales(graph)
    attach_biases(graph)
    return graph.output.inputs[0]


def simplify(output: Node, *, pools_first: bool) -> Node:
    """Run every pass and return the output node; ``pools_first`` is for nets without the curvature surrogate."""
    graph = _Editor(output)
    fold_scales(graph)
    if pools_first:
        pool_first(graph)
    float_biases(graph)
    return graph.output.inputs[0]
