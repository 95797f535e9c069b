"""Two softplus networks of different beta that are one function ([R] appendix C)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fastxai import _check

__all__ = ["interchange_beta"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# f(r x) = r f(x) for r > 0.
_HOMOGENEOUS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.Identity, nn.Unflatten, nn.ZeroPad2d),
)
_HOMOGENEOUS_CALLS = (
    *("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "getitem", "chunk"),
    *("split", "mean", "sum", "neg", "dropout", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d"),
)
_SUMS = ("add", "iadd", "sub", "cat", "concat")
_SIZES = ("size", "getattr", "dim")


def interchange_beta(model: nn.Module, beta_from: float, beta_to: float) -> nn.Module:
    """Return a copy of a softplus network that takes another beta and gives the same scores ([R] appendix C).

        softplus_b1(a) = b2 / b1 softplus_b2(b1 a / b2),        r = b1 / b2:
        W_1 -> r W_1,    W_n -> W_n / r,    b_i -> r b_i for i < n,    all others stay

    Where there are branches, W_1 is every layer that reads the input and W_n every layer that gives the scores. Maps,
    Hessians and even the bound of [R] eq. 8 stay as they are: beta alone says nothing of a network.

    Args:
        model: layers, ``nn.Softplus`` and what commutes with a positive factor: pools, dropout, sums, reshapes.
            ``nn.ReLU`` stands for the softplus of a smoothed view: as a ReLU network the copy is the same function.
        beta_from: beta of its softplus.
        beta_to: beta of the copy's.

    Raises:
        TypeError: model is no module.
        ValueError: a beta is not finite and positive, the two are so far apart that weights overflow, the model's
            softplus has another one, torch.fx cannot trace the model, or it has an operation that does not commute with
            a positive factor, such as a batch norm.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softplus(10), torch.nn.Linear(4, 2))
    >>> x, other = torch.rand(5, 3), fastxai.theory.interchange_beta(model, 10, 1)
    >>> other[1].beta, torch.allclose(other(x), model(x), atol=1e-6)
    (1, True)
    """
    _check.require(isinstance(model, nn.Module), "model", "be a torch.nn.Module", type(model).__name__, TypeError)
    ratio = _check.positive(beta_from, "beta_from") / _check.positive(beta_to, "beta_to")
    _check.positive(ratio, "beta_from / beta_to")
    model = copy.deepcopy(model)
    try:
        graph = fx.Tracer().trace(model)
    except (TraceError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"model must be traceable by torch.fx, got {error}") from error
    modules = dict(model.named_modules())
    factors = _factors(graph, modules, ratio, beta_from)
    done: set[int] = set()
    with torch.no_grad():
        for layer, factor, out in factors:
            for name, scale in (("weight", factor), ("bias", out)):
                tensor = layer._parameters.get(name)
                _check.require(tensor is None or id(tensor) not in done, "model", "use each layer once", layer)
                if tensor is not None:
                    done.add(id(tensor))
                    tensor.mul_(scale)
                    finite = bool(tensor.isfinite().all())
                    _check.require(finite, "beta_from / beta_to", f"keep the weights of {layer} finite", ratio)
    for module in modules.values():
        if isinstance(module, nn.Softplus):
            module.beta = beta_to
    return model


def _factors(
    graph: fx.Graph, modules: dict[str, nn.Module], ratio: float, beta: float
) -> list[tuple[nn.Module, float, float]]:
    """Return (layer, factor of its weight, factor of its bias) of every layer, in order.

    The scale of a value is what the copy has in place of 1 times it: 1 for the input and the scores, the ratio between.
    """
    scales: dict[fx.Node, float] = {}
    closing = _closing(graph, modules)
    factors = []
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        read = {scales[parent] for parent in node.all_input_nodes if parent in scales}
        where = f"{type(module).__name__} at {node.target!r}" if module is not None else _name(node.target)
        _check.require(len(read) < 2, "model", "scale alike what it joins", f"{where} of the input or the scores")
        scale = read.pop() if read else 1.0
        if node.op == "output":
            _check.require(scale == 1, "model", "end with a layer", "an activation before the scores")
        elif isinstance(module, _LAYERS):
            plain = module._parameters.get("weight") is not None
            _check.require(plain, "model", "have plain weights", f"a parametrised one in {where}")
            scales[node] = 1.0 if node in closing else ratio
            factors.append((module, scales[node] / scale, scales[node]))
        elif isinstance(module, (nn.Softplus, nn.ReLU)) or _name(node.target) in ("relu", "relu_"):
            told = not isinstance(module, nn.Softplus) or module.beta == beta
            _check.require(told, "model", f"have softplus of beta {beta} (beta_from)", getattr(module, "beta", None))
            fits = scale == ratio and node not in closing
            _check.require(fits, "model", "have layers before and behind each activation", where)
            scales[node] = scale
        elif node.op == "placeholder":
            scales[node] = 1.0
        elif node.op == "get_attr" or _name(node.target) not in _SIZES:
            known = isinstance(module, _HOMOGENEOUS) if module is not None else _is_homogeneous(node, scales)
            _check.require(known, "model", "commute with a positive factor between its layers", where)
            scales[node] = scale
    return factors


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _is_homogeneous(node: fx.Node, scales: dict[fx.Node, float]) -> bool:
    """Return True for functions and methods that are known, all of whose summands come from the input."""
    if node.op == "get_attr":
        return False
    if _name(node.target) in _SUMS:
        summands = [one for part in node.args for one in (part if isinstance(part, (list, tuple)) else [part])]
        axis = _name(node.target) in ("cat", "concat")
        return all(one in scales if isinstance(one, fx.Node) else axis for one in summands)
    return _name(node.target) in _HOMOGENEOUS_CALLS


def _closing(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Return the nodes from which the output is reached without a layer in between, those layers included."""
    found: set[fx.Node] = set()
    stack = [parent for node in graph.nodes if node.op == "output" for parent in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if node.op != "call_module" or not isinstance(modules[str(node.target)], _LAYERS):
                stack += node.all_input_nodes
    return found
