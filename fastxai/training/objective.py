"""Objectives: a weighted sum of terms that share their passes through the network."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from numbers import Real
from types import CellType, CodeType, FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai.engine import Net
from fastxai.explainers import Explainer

__all__ = ["Batch", "Objective", "Term"]


@cache
def _modal(kind: type[nn.Module]) -> bool:
    """Return whether modules of this class may compute something else in training mode: their code asks for it.

    Batch norms and dropouts do, stochastic depth, attention, and ``functional.dropout(x, training=self.training)``.
    """
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    own = (vars(base).values() for base in kind.__mro__ if base not in nn.Module.__mro__)
    codes = (getattr(one, "__code__", None) for values in own for one in values)
    return any(code is not None and "training" in code.co_names for code in codes)


class Batch:
    """One batch on its way through an objective.

    Attributes:
        net: the network.
        x: inputs [N, ...].
        y: labels [N].
        index: the samples' numbers [N], which key random numbers.
        step: how many training batches came before, a number or a LongTensor [].
        masks: what the maps should be, [N, ...]; None where the data does not say.
    """

    def __init__(self, net: Net, x: Tensor, y: Tensor, index: Tensor, step: Any, masks: Tensor | None = None) -> None:
        self.net, self.x, self.y, self.index, self.step, self.masks = net, x, y, index, step, masks
        self._scores: Tensor | None = None
        self._kept: dict[int, Any] = {}

    def offer(self, scores: Tensor) -> None:
        """Let other terms use the scores of a pass in eval mode, where the model's own mode would give the same."""
        if self.alike:
            self._scores = scores

    @property
    def alike(self) -> bool:
        """Whether the model's present mode computes what eval mode does."""
        return not any(module.training and _modal(type(module)) for module in self.net.model.modules())

    @property
    def scores(self) -> Tensor:
        """g(x) [N, K] with a graph, the model being in its present mode."""
        if self._scores is None:
            self._scores = self.net.differentiable_scores(self.x)
        return self._scores

    def keep(self, term: Term, made: Any) -> None:
        """Hold what a term's ``prepare`` made until the term is evaluated."""
        self._kept[id(term)] = made

    def kept(self, term: Term) -> Any:
        """Return what ``keep`` got from this term, which prepares it now if it did not before."""
        if id(term) not in self._kept:
            term.prepare(self)
        return self._kept[id(term)]


class Term(ABC):
    """One summand of an objective; ``0.1 * term`` is the same term with another weight.

    Attributes:
        weight: the factor.
        last: it runs the model's own forward, if any, so it is evaluated after those that run the engine.
    """

    weight: float = 1.0
    # A forward of the model's own moves batch norm's statistics, which the engine's passes read: they come before.
    last: bool = False

    def __mul__(self, factor: float) -> Self:
        """Return the term with its weight multiplied."""
        _check.require(isinstance(factor, (int, float)), "factor", "be a number", factor, TypeError)
        _check.require(abs(factor) < float("inf"), "factor", "be finite", factor)
        term = copy.copy(self)
        term.weight = self.weight * factor
        return term

    __rmul__ = __mul__

    @property
    def name(self) -> str:
        """The class's name in lower case, such as hessian_norm."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    def made_with(self) -> dict[str, Any]:
        """Return the public attributes beside the weight as JSON values: what checkpoints compare and results record.

        An object is its class's name with its own settings, a function its name (a ``partial``'s with the arguments, a
        lambda's with all that it uses), a tensor its shape and digest.
        """
        return {name: _told(value) for name, value in vars(self).items() if name != "weight" and name[0] != "_"}

    def prepare(self, batch: Batch) -> None:  # noqa: B027 (most terms have nothing to share)
        """Run what other terms may share; called for every term before the first is evaluated.

        Terms hold no tensors of their own: what is made here goes to ``batch.keep``.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return the unweighted value, a scalar with a graph: a mean over the batch."""


def _told(value: Any) -> Any:
    """Return a setting as a JSON value."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _told(one) for name, one in value.items()}
    if isinstance(value, Tensor):
        return [list(value.shape), sha256(value.detach().double().cpu().numpy().tobytes()).hexdigest()[:16]]
    if isinstance(value, Net):
        return [value.activation, value.beta, value.surrogate]
    kind = type(value).__name__
    if is_dataclass(value):
        return {"kind": kind, **{one.name: _told(getattr(value, one.name)) for one in fields(value)}}
    if isinstance(value, Explainer):
        return {"kind": kind, **{name: _told(one) for name, one in vars(value).items() if not name.startswith("_")}}
    if isinstance(value, partial):
        named = {name: _told(one) for name, one in value.keywords.items()}
        return {"kind": _told(value.func), "args": _told(value.args), **named}
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
        return {"kind": "<lambda>", "uses": _used(value)}
    return getattr(value, "__qualname__", kind)


def _used(function: FunctionType) -> list[Any]:
    """Return what a lambda is made of, as JSON values: defaults, names, constants, operations, what it closes over."""
    told: list[Any] = [_told(function.__defaults__), _told(function.__kwdefaults__)]
    codes = [function.__code__]
    for code in codes:
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
        told += [[*code.co_names], [_told(one) for one in code.co_consts if not isinstance(one, CodeType)]]
        told.append(sha256(code.co_code).hexdigest()[:16])
    for cell in function.__closure__ or ():
        filled = cell != CellType()
        inner = cell.cell_contents if filled else None
        told.append(inner.__qualname__ if isinstance(inner, FunctionType) else _told(inner))
    return told


class Objective(nn.Module):
    """sum_i weight_i term_i(x, y), as a module: what DDP, torch.compile and Lightning wrap.

    Its parameters are the model's. Terms that need the engine's passes share them with the cross-entropy wherever no
    module in training mode asks for its mode, as batch norm and dropout do.

    Attributes:
        net: the network.
        terms: the summands.
        step: how many batches were seen in training mode; part of ``state_dict``.
        parts: the last batch's unweighted terms by name, detached.

    >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softplus(), torch.nn.Linear(3, 2)))
    >>> from fastxai.training import CrossEntropy, HessianNorm, Objective
    >>> objective = Objective(net, [CrossEntropy(), 1e-3 * HessianNorm()])
    >>> objective(torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])).backward()
    """

    def __init__(self, net: Net, terms: Sequence[Term]) -> None:
        """Sum the terms over ``net``.

        Raises:
            TypeError: net comes not from ``fastxai.compile``, or terms are no terms.
            ValueError: there is no term, or two share a name.
        """
        super().__init__()
        _check.require(isinstance(net, Net), "net", "come from fastxai.compile", type(net).__name__, TypeError)
        terms = list(terms)
        _check.require(len(terms) > 0, "terms", "hold one term at least", terms)
        for term in terms:
            _check.require(isinstance(term, Term), "terms", "hold training.Term objects", term, TypeError)
        names = [term.name for term in terms]
        _check.require(len(set(names)) == len(names), "terms", "have different names", names)
        self.net, self.terms, self.step = net, terms, 0
        self.model = net.model
        self.parts: dict[str, Tensor] = {}

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        masks: Tensor | None = None,
        *,
        step: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar with a graph.

        Args:
            x: inputs [N, ...], N > 0.
            y: labels, LongTensor [N].
            index: the samples' numbers [N], which key random numbers; by default their places in the batch.
            masks: what the maps should be, [N, ...], with channels or without, of any dtype; for terms that compare
                maps with it.
            step: the number of the batch, LongTensor [], in place of ``self.step``, which does not count this one then:
                for recorded calls.

        Raises:
            TypeError: x is no floating point tensor, y or index hold no integers, masks are no tensor.
            ValueError: the batch is empty, shapes do not belong together, or masks are complex or on another device.
        """
        _check.require(_check.tensor(x, "x").dim() >= 2 and len(x) > 0, "x", "have shape [N > 0, ...]", list(x.shape))
        index = _check.index_of(index, x)
        whole = not _check.tensor(y, "y", False).is_floating_point()
        _check.require(whole, "y", "hold integers", y.dtype, TypeError)
        _check.shape(y, "y", (len(x),))
        masks = None if masks is None else _as_maps(masks, x)
        batch = Batch(self.net, x, y, index, self.step if step is None else step, masks)
        for term in self.terms:
            term.prepare(batch)
        found = {id(term): term(batch) for term in sorted(self.terms, key=lambda term: term.last)}
        values = [found[id(term)] for term in self.terms]
        self.step += self.training and step is None
        self.parts = {term.name: value.detach() for term, value in zip(self.terms, values, strict=True)}
        return torch.stack([term.weight * value for term, value in zip(self.terms, values, strict=True)]).sum()

    def get_extra_state(self) -> Tensor:
        """Return the step, for ``state_dict``."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Any) -> None:
        """Take the step from a ``state_dict``."""
        self.step = int(state)


def _as_maps(masks: Tensor, x: Tensor) -> Tensor:
    """Return masks in the dtype of inputs x [N, C, ...]: of its shape, or without the channels where it has others."""
    shape, allowed = list(_check.tensor(masks, "masks", False).shape), [list(x.shape)]
    if x.dim() > 2:
        allowed.append([len(x), *x.shape[2:]])
    _check.require(shape in allowed, "masks", f"have shape {' or '.join(map(str, allowed))}", shape)
    _check.require(not masks.is_complex(), "masks", "be real", masks.dtype)
    _check.require(masks.device == x.device, "masks", f"be on x's device {x.device}", masks.device)
    return masks.to(x.dtype)
