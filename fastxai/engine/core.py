"""Core: what all views of one model share: input preparation, and the compiled graphs by input shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai._warn import warn
from fastxai.engine.capture import Graphs
from fastxai.engine.explain import RuleRuntime
from fastxai.engine.fallback import Fallback
from fastxai.engine.graph import Graph, build
from fastxai.engine.passes import simplify, simplify_for_rules
from fastxai.engine.path import Path
from fastxai.engine.rules import Composite
from fastxai.engine.runtime import Runtime
from fastxai.engine.trace import Unsupported, trace

__all__ = ["Core", "Report", "Statistics"]

Statistics = Sequence[float] | Tensor | None

# Composites whose graphs are kept, the last ones used.
_COMPOSITES = 16


@dataclass(frozen=True)
class Report:
    """Where each operation of a model runs.

    Attributes:
        rows: (module path, operation, "engine" or the reason for the fallback).
        reason: why the whole model runs on autograd; "" if it runs on the engine.
    """

    rows: tuple[tuple[str, str, str], ...]
    reason: str

    @property
    def engine(self) -> bool:
        """True if every operation runs on the engine."""
        return not self.reason

    def __str__(self) -> str:
        head = "every operation runs on the engine" if self.engine else f"autograd fallback: {self.reason}"
        width = max([len(path) for path, _, _ in self.rows], default=0)
        kind = max([len(name) for _, name, _ in self.rows], default=0)
        return "\n".join([head, *(f"{path:<{width}}  {name:<{kind}}  {where}" for path, name, where in self.rows)])


class Core:
    """What all views of one model share: its traces and runtimes by input shape, and its input preparation."""

    def __init__(
        self, model: nn.Module, mean: Statistics, std: Statistics, *, fallback: bool, capture: bool | None = None
    ) -> None:
        self.model, self.graphs = model, Graphs() if capture else None
        # What nobody asked for is recorded where it pays at once, and nothing is said where it cannot be.
        self.unasked = Graphs(quiet=True) if capture is None else None
        # Where they came: of tensors on the device a recorded step copies nothing from the host.
        self.mean = None if mean is None else torch.as_tensor(mean, dtype=torch.float64).detach()
        self.std = None if std is None else torch.as_tensor(std, dtype=torch.float64).detach()
        self.reason = "asked for by fallback=True" if fallback else ""
        self.autograd = Fallback(model, self.prepare)
        self.runtimes: dict[Any, tuple[Runtime | None, Report]] = {}
        self.paths: dict[Runtime, Path] = {}
        self.rule_runtimes: OrderedDict[Composite, dict[Any, RuleRuntime]] = OrderedDict()
        self.last: Any = None
        self.announced: set[str] = set()
        # Shapes of samples that softplus is known to change something for, on the fallback.
        self.smooth: set[tuple[int, ...]] = set()

    def prepare(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std per channel."""
        if self.mean is not None:
            x = x - self._constant(self.mean, x)
        return x if self.std is None else x / self._constant(self.std, x)

    def check_channels(self, x: Tensor) -> Tensor:
        """Return x [N, C, ...]; ValueError if mean or std is neither one number nor one a channel of it."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and values.numel() not in (1, x.shape[1]):
                contract = f"hold one number, or one for each of x's {x.shape[1]} channels"
                _check.require(False, name, contract, values.tolist())
        return x

    def _constant(self, values: Tensor, x: Tensor) -> Tensor:
        return values.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 2))

    def runtime(self, shape: tuple[int, ...], dtype: torch.dtype, second: str) -> tuple[Runtime | None, Report]:
        """Return the runtime for inputs of this shape (None: autograd) and its report."""
        key = (shape, dtype, second == "curvature")
        if key not in self.runtimes:
            self.runtimes[key] = self._compile(shape, dtype, second)
        self.last = key
        return self.runtimes[key]

    def path(self, run: Runtime) -> Path:
        """Return what integrates over a runtime's graph."""
        if run not in self.paths:
            self.paths[run] = Path(run)
        return self.paths[run]

    @torch.inference_mode(False)
    def _compile(self, shape: tuple[int, ...], dtype: torch.dtype, second: str) -> tuple[Runtime | None, Report]:
        if self.reason:
            return None, Report((), self.reason)
        try:
            recorded = trace(self.model, shape, dtype, self.prepare)
        except Unsupported as error:
            return self._fall_back((), str(error))
        start, output, rows = build(recorded)
        missing = [f"{name} at {path!r}: {reason}" for path, name, reason in rows if reason]
        table = tuple((path, name, reason or "engine") for path, name, reason in rows)
        if missing:
            return self._fall_back(table, "; ".join(dict.fromkeys(missing)))
        return Runtime(Graph(start, simplify(output, pools_first=second != "curvature"))), Report(table, "")

    @torch.inference_mode(False)
    def rule_runtime(self, shape: tuple[int, ...], dtype: torch.dtype, composite: Composite) -> RuleRuntime:
        """Return the runtime that explains inputs of this shape by a composite's rules.

        Raises:
            RuntimeError: the model, or a part of it, has no node or no rule.
        """
        known = self.rule_runtimes.setdefault(composite, {})
        self.rule_runtimes.move_to_end(composite)
        if len(self.rule_runtimes) > _COMPOSITES:
            self.rule_runtimes.popitem(last=False)
        if (shape, dtype) not in known:
            try:
                start, output, rows = build(trace(self.model, shape, dtype, self.prepare))
                missing = [f"{name} at {path!r}: {reason}" for path, name, reason in rows if reason]
                if missing:
                    raise Unsupported("; ".join(dict.fromkeys(missing)))
                known[shape, dtype] = RuleRuntime(start, simplify_for_rules(output), composite)
            except Unsupported as error:
                kind = type(self.model).__name__
                raise RuntimeError(
                    f"{kind} cannot be explained by rules, which have no autograd fallback: {error}"
                ) from error
        return known[shape, dtype]

    def launch(
        self, name: str, run: Any, acts: Any, function: Callable[..., Any], x: Tensor, *others: Tensor | None
    ) -> Any:
        """Return ``function(x, *others)``, which uses a runtime's weights: by a captured graph, if there are such."""
        if self.graphs is None or not isinstance(run, Runtime) or not self.graphs.serves(x):
            return function(x, *others)
        return self.graphs(name, function, (x, *others), (run, acts), run.weights.tensors(x))

    def refresh(self) -> None:
        """Rebuild every derived weight at the next call."""
        for runtime, _ in self.runtimes.values():
            if runtime is not None:
                runtime.weights.refresh()
        for runtimes in self.rule_runtimes.values():
            for runtime in runtimes.values():
                runtime.weights.refresh()

    def _fall_back(self, rows: tuple[tuple[str, str, str], ...], reason: str) -> tuple[None, Report]:
        if reason not in self.announced:
            self.announced.add(reason)
            warn(
                f"{type(self.model).__name__} runs on the autograd fallback: same results, autograd's speed. "
                f"Cause: {reason}. Cure: rewrite that operation, or pass fallback=True to accept it silently.",
            )
        return None, Report(rows, reason)
