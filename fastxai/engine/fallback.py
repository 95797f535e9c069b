"""Autograd fallback: the same results, at autograd's speed, for what the engine cannot trace or has no node for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isinf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fastxai import _check
from fastxai.engine.heads import Head
from fastxai.engine.trace import evaluation
from fastxai.kernels import activation as kernel
from fastxai.kernels.activation import Activation

__all__ = ["Fallback"]


class _Replace(TorchFunctionMode):
    """Run ReLU-like functions as another activation while the model runs; nothing in the model changes.

    Attributes:
        rule: from the model's activation to the one that runs.
        relu: what runs in place of ReLU.
        replaced: how many calls were replaced.
    """

    def __init__(self, rule: Callable[[Activation], Activation]) -> None:
        super().__init__()
        self.rule, self.relu, self.replaced = rule, rule(Activation("relu")), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        a = args[0] if args else kwargs.get("input")
        other = self._other(name.removesuffix("_"), args, kwargs)
        if other is None:
            return func(*args, **kwargs)
        self.replaced += 1
        # The model may use what an in-place call wrote and not what it returned.
        in_place = name.endswith("_") or kwargs.get("inplace") or any(arg is True for arg in args[1:])
        return a.copy_(other(a.clone())) if in_place else other(a)

    def _other(self, name: str, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor] | None:
        """Return what runs in place of a call, or None for the call itself."""
        relu = self.relu
        act = _relu_like(name, args, kwargs)
        if act is not None:
            return _bounded(relu, 0, 6) if act.name == "relu6" else lambda a: smooth(self.rule(act), a)
        if name == "prelu":
            # max(a, 0) + w min(a, 0), w one for all channels or one each.
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return lambda a: (w := weight.view(-1, *[1] * max(0, a.dim() - 2))) * a + (1 - w) * smooth(relu, a)
        if name == "hardtanh":
            return _bounded(relu, *_pair(args, kwargs, ("min_val", "max_val"), (-1.0, 1.0)))
        return None


def _bounded(relu: Activation, low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Return low + s(a - low) - s(a - high), the smooth form of what is a between the bounds."""
    if isinf(low):
        return lambda a: a if isinf(high) else high - smooth(relu, high - a)
    if isinf(high):
        return lambda a: low + smooth(relu, a - low)

    def bounded(a: Tensor) -> Tensor:
        # Odd about the middle: above it the two terms, both large, would cancel.
        above = a > (low + high) / 2
        b = torch.where(above, low + high - a, a)
        below = low + smooth(relu, b - low) - smooth(relu, b - high)
        return torch.where(above, low + high - below, below)

    return bounded


def _pair(args: Any, kwargs: Any, names: tuple[str, str], defaults: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the second and the third argument of a call."""
    second = args[1] if len(args) > 1 else kwargs.get(names[0], defaults[0])
    return second, args[2] if len(args) > 2 else kwargs.get(names[1], defaults[1])


def _relu_like(name: str, args: Any, kwargs: Any) -> Activation | None:
    if name in ("relu", "relu6"):
        return Activation(name)
    if name in ("threshold", "_threshold"):
        return Activation("relu") if _pair(args, kwargs, ("threshold", "value"), (None, None)) == (0, 0) else None
    if name == "hardtanh":
        return Activation("relu6") if _pair(args, kwargs, ("min_val", "max_val"), (-1.0, 1.0)) == (0, 6) else None
    if name in ("clamp", "clip", "clamp_min"):
        low, high = _pair(args, kwargs, ("min", "max"), (None, None))
        known = not isinstance(low, Tensor) and low == 0 and not isinstance(high, Tensor) and high in (None, 6)
        return Activation("relu" if high is None else "relu6") if known else None
    if name == "leaky_relu":
        return Activation(name, alpha=float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)))
    return None


class _Surrogate(torch.autograd.Function):
    """s with its first derivative; the first derivative's own derivative is the activation's s''."""

    @staticmethod
    def forward(ctx: Any, act: Activation, a: Tensor) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(a)
        return kernel.value(act, a)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0] * _Slope.apply(ctx.act, ctx.saved_tensors[0])


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, act: Activation, a: Tensor) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(a)
        return kernel.derivatives(act, a)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0] * kernel.derivatives(ctx.act, ctx.saved_tensors[0])[1]


def smooth(act: Activation, a: Tensor) -> Tensor:
    """Return s(a) as autograd can differentiate it: the formula itself, or the surrogate's decreed derivatives."""
    return kernel.value(act, a) if act.second == "own" else _Surrogate.apply(act, a)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Give batch norms in training mode copies of their statistics inside the block, where autograd records.

    A training forward that comes before the backward writes the statistics themselves, which autograd does not see.
    """
    moving = [m for m in model.modules() if m.training and "num_batches_tracked" in m._buffers]
    tables = [(m._buffers, dict(m._buffers)) for m in moving if torch.is_grad_enabled()]
    try:
        for table, own in tables:
            table.update({name: None if t is None else t.clone() for name, t in own.items()})
        yield
    finally:
        for table, own in tables:
            table.update(own)


def _ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that autograd may save if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _gradient(value: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    """Return the gradient, zero where the value does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, create_graph=create_graph, materialize_grads=True)[0]


class Fallback:
    """The runtime's interface over ``torch.autograd``. ``acts`` is a rule from the model's activation to the view's."""

    def __init__(self, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        self.model, self.prepare = model, prepare

    def present(self, x: Tensor, rule: Callable[[Activation], Activation]) -> Tensor:
        """Return g(x) [N, K] with a graph, the model being in its present mode."""
        return self._forward(x, _Replace(rule))

    def _forward(self, x: Tensor, replace: _Replace) -> Tensor:
        fed = self.prepare(x)
        # A copy, for a model that writes into its input.
        with nullcontext() if replace.relu == Activation("relu") else replace:
            return self._checked(self.model(fed.clone() if fed is x else fed), x)

    def _run(self, x: Tensor, rule: Callable[[Activation], Activation]) -> Tensor:
        return self._evaluated(x, _Replace(rule))

    def _evaluated(self, x: Tensor, replace: _Replace) -> Tensor:
        # The one attention kernel that has a second derivative.
        with _still(self.model), evaluation(self.model), sdpa_kernel(SDPBackend.MATH):
            return self._forward(x, replace)

    @torch.no_grad()
    def smooths(self, x: Tensor) -> bool:
        """Return whether softplus takes the place of anything on the way of x."""
        replace = _Replace(lambda act: act.smoothed(1.0))
        self._evaluated(x, replace)
        return replace.replaced > 0

    @staticmethod
    def _checked(scores: Any, x: Tensor) -> Tensor:
        _check.require(isinstance(scores, Tensor), "model", "return scores [N, K]", type(scores).__name__, TypeError)
        good = scores.dim() == 2 and scores.shape[0] == x.shape[0]
        _check.require(good, "model", "return scores [N, K]", list(scores.shape))
        return scores

    @torch.no_grad()
    def scores(self, x: Tensor, acts: Any) -> Tensor:
        """Return g(x) [N, K]."""
        return self._run(x, acts)

    def gradient(self, x: Tensor, target: Tensor | None, acts: Any) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)), detached."""
        with torch.inference_mode(False), torch.enable_grad():
            x = _ordinary(x).detach().requires_grad_()
            gradient, scores = self._map(x, target, acts, create_graph=False)
        return gradient.detach(), scores.detach()

    def products(self, head: Head, target: Tensor | None, acts: Any) -> _Products:
        """Return what multiplies by the Hessian of a function of the scores, as ``engine.products``."""
        return _Products(self, head, target, acts)

    def explain(self, x: Tensor, target: Tensor | None, acts: Any, *, parameters: bool) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)) with a graph, differentiable any number of times."""
        if not torch.is_grad_enabled():
            return self.gradient(x, target, acts)
        wanted = x.requires_grad or (parameters and any(p.requires_grad for p in self.model.parameters()))
        if not wanted:
            return self.gradient(x, target, acts)
        return self._map(x if x.requires_grad else x.detach().requires_grad_(), target, acts, create_graph=True)

    def integrate(
        self,
        x: Tensor,
        baseline: Tensor,
        points: tuple[Tensor, Tensor],
        head: Head,
        target: Tensor | None,
        acts: Any,
        *,
        parameters: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return (the integrated gradient, g(x)) as ``engine.path``, differentiable any number of times."""
        leaves = (x, baseline, *(self.model.parameters() if parameters else ()))
        graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        with torch.inference_mode(False), torch.enable_grad():
            x, baseline = (_ordinary(t) if graph else _ordinary(t).detach() for t in (x, baseline))
            scores = self._run(x, acts)
            chosen = scores.detach().argmax(1) if target is None else _ordinary(target)
            d, total = x - baseline, torch.zeros_like(x)
            # Point by point: a model that mixes the samples of a batch must not see the points mixed.
            for t, w in zip(*(value.tolist() for value in points), strict=True):
                point = baseline + t * d
                point = point if point.requires_grad else point.requires_grad_()
                value = head.value(self._run(point, acts), chosen).sum()
                total = total + w * _gradient(value, point, create_graph=graph)
        return (d * total, scores) if graph else ((d * total).detach(), scores.detach())

    def _map(self, x: Tensor, target: Tensor | None, acts: Any, *, create_graph: bool) -> tuple[Tensor, Tensor]:
        scores = self._run(x, acts)
        chosen = scores.argmax(1) if target is None else _ordinary(target)
        return _gradient(scores.gather(1, chosen[:, None]).sum(), x, create_graph=create_graph), scores


@dataclass
class _Products:
    """``engine.products.Products`` on autograd."""

    run: Fallback
    head: Head
    target: Tensor | None
    acts: Any

    def differentiable(self, x: Tensor, v: Tensor, *, parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H v [S, N, ...], nabla f(x), g(x)), with a graph where one is wanted."""
        leaves = (x, v, *(self.run.model.parameters() if parameters else ()))
        graph = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        with torch.inference_mode(False), torch.enable_grad():
            x, v = (_ordinary(t) if graph else _ordinary(t).detach() for t in (x, v))
            point = x if x.requires_grad else x.detach().requires_grad_()
            scores = self.run._run(point, self.acts)
            chosen = scores.detach().argmax(1) if self.target is None else _ordinary(self.target)
            gradient = _gradient(self.head.value(scores, chosen).sum(), point, create_graph=True)
            rows = [torch.zeros_like(x)] * len(v)
            if gradient.requires_grad:
                options = {"retain_graph": True, "create_graph": graph, "materialize_grads": True}
                rows = [torch.autograd.grad(gradient, point, w, **options)[0] for w in v]
        made = torch.stack(rows) if rows else torch.zeros_like(v), gradient, scores
        return made if graph else (made[0].detach(), gradient.detach(), scores.detach())
