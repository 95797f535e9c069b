"""Patterns: the directions in which a layer's signal lies, learned from data in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from fastxai import _check
from fastxai._files import write_tensors
from fastxai.engine import Net, compile
from fastxai.engine.explain import LayerSample
from fastxai.engine.rules import weight_name

__all__ = ["PatternTrainer", "Patterns"]

ESTIMATORS = ("auto", "positive", "linear")
_KIND = "fastxai patterns"
_SUMS = "sums of a fastxai pattern trainer"


def _read(file: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} must be a safetensors file, got {error}") from error
    _check.require(metadata.get("kind") == kind, str(file), f"hold {kind}", metadata.get("kind", "something else"))
    return tensors, metadata


@dataclass(frozen=True)
class Patterns:
    """One pattern per layer, of its weight's shape, under the weight's parameter name.

    They belong to the effective weights: where a batch norm follows a layer, to those with the batch norm folded in.

    >>> fastxai.explainers.Patterns({"0.weight": torch.ones(3, 4)}).tensors["0.weight"].shape
    torch.Size([3, 4])
    """

    tensors: Mapping[str, Tensor]

    def save(self, file: str | Path) -> None:
        """Write the patterns as .safetensors, whole or not at all."""
        write_tensors(file, self.tensors, {"kind": _KIND})

    @classmethod
    def load(cls, file: str | Path) -> Patterns:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no safetensors file, or holds something else.
        """
        return cls(_read(Path(file), _KIND)[0])


class _Moments:
    """Sums over samples and positions, per output feature: of 1, y, x and x y, where y counts; in float64."""

    NAMES = ("count", "y", "x", "xy")

    def __init__(self, sums: Sequence[Tensor]) -> None:
        self.sums = list(sums)

    @classmethod
    def of(cls, sample: LayerSample, *, positive: bool) -> _Moments:
        """Return the sums of one batch; a weight's gradient is what sums x (x) mu over samples and positions."""
        node, weight, x, y = sample.site.node, sample.site.weight, sample.inputs, sample.outputs
        counts = (y > 0).to(y.dtype) if positive else torch.ones_like(y)
        sums = (
            node.bias_grad(counts),
            node.bias_grad(counts * y),
            node.weight_grad(weight, counts, x),
            node.weight_grad(weight, counts * y, x),
        )
        return cls([total.double() for total in sums])

    def add(self, other: _Moments) -> None:
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]

    def pattern(self, weight: Tensor) -> Tensor:
        """Return cov(x, y) / (w . cov(x, y)) per output feature; zeros where that has no value."""
        wide = (-1, *[1] * (weight.dim() - 1))
        count, y = (total.view(wide) for total in self.sums[:2])
        x, xy = (total / count.clamp(min=1) for total in self.sums[2:])
        covariance = xy - x * (y / count.clamp(min=1))
        along, scale = (f.flatten(1).sum(1).view(wide) for f in (weight * covariance, (weight * covariance).abs()))
        known = along.abs() > 1e-9 * scale
        return torch.where(known, covariance / torch.where(known, along, 1), 0)


class PatternTrainer:
    """Learns patterns from data in one streaming pass: a = cov(x, y) / (w . cov(x, y)) per output feature.

    x are a layer's inputs (patches, for convolutions) and y its outputs. "linear" takes all of them, "positive" those
    with y > 0 (the two-component estimator of Kindermans et al. 2017), "auto" is positive where an activation reads the
    layer and linear elsewhere, as [M]'s code. A feature that never varies (or is never positive) gets zeros: it carries
    no signal.

    Attributes:
        net: the network.
        estimator: "auto", "positive" or "linear".
        batches: how many batches were seen.

    >>> trainer = fastxai.explainers.PatternTrainer(torch.nn.Linear(4, 3))
    >>> sorted(trainer.fit([torch.randn(16, 4), torch.randn(16, 4)]).tensors), trainer.batches
    (['weight'], 2)
    """

    def __init__(self, net: Net | nn.Module, estimator: str = "auto") -> None:
        """Start without data.

        Raises:
            TypeError: net is neither a compiled net nor a module.
            ValueError: the estimator is unknown.
        """
        fits = isinstance(net, (Net, nn.Module))
        _check.require(fits, "net", "be a compiled net or a torch.nn.Module", type(net).__name__, TypeError)
        self.net = net if isinstance(net, Net) else compile(net)
        self.estimator = _check.one_of(estimator, "estimator", ESTIMATORS)
        self.batches = 0
        self._moments: dict[str, _Moments] = {}
        self._weights: dict[str, Tensor] = {}

    def update(self, x: Tensor) -> None:
        """Add a batch [N, ...].

        Raises:
            TypeError: x is no floating point tensor.
            ValueError: x has the wrong shape, dtype or device.
            RuntimeError: the engine cannot run the model.
        """
        new: dict[str, _Moments] = {}
        for sample in self.net.layers(x):
            name = weight_name(sample.site.node, self.net.model)
            positive = sample.gated if self.estimator == "auto" else self.estimator == "positive"
            moments = _Moments.of(sample, positive=positive)
            if name in new:
                new[name].add(moments)
            else:
                new[name] = moments
            self._weights[name] = sample.weight.double()
        for name, moments in new.items():
            if name in self._moments:
                moments.add(self._moments[name])
        self._moments.update(new)
        self.batches += 1

    def fit(
        self,
        loader: Iterable[Any],
        *,
        checkpoint: str | Path | None = None,
        every: int = 100,
        progress: bool = False,
    ) -> Patterns:
        """Add all batches of a loader and return the patterns.

        Args:
            loader: gives batches x, or tuples that start with x.
            checkpoint: .safetensors file of the sums, written every ``every`` batches, at the end and at Ctrl-C. If it
                exists, fitting goes on behind the batches it has seen: the loader must give the same order again.
            every: batches between two writes.
            progress: show a progress bar.

        Raises:
            ValueError: the checkpoint is of another model or estimator, or no batch came.
        """
        file = None if checkpoint is None else Path(checkpoint)
        if file is not None and file.exists():
            self._restore(file)
        total = len(loader) if isinstance(loader, Sized) else None
        batches = islice(loader, self.batches, None)
        device = next(self.net.model.parameters(), torch.empty(0)).device
        try:
            for batch in tqdm(batches, "patterns", total, initial=self.batches, unit="batch", disable=not progress):
                self.update((batch if isinstance(batch, Tensor) else batch[0]).to(device))
                if file is not None and self.batches % every == 0:
                    self._store(file)
        finally:
            if file is not None and self.batches:
                self._store(file)
        return self.patterns()

    def patterns(self) -> Patterns:
        """Return the patterns of the data so far, in the weights' dtype.

        Raises:
            ValueError: there is no data.
        """
        _check.require(self.batches > 0, "loader", "give at least one batch", self.batches)
        dtype = next(self.net.model.parameters()).dtype
        return Patterns({name: m.pattern(self._weights[name]).to(dtype) for name, m in self._moments.items()})

    def _store(self, file: Path) -> None:
        tensors = {
            f"{name}:{kind}": total
            for name, moments in self._moments.items()
            for kind, total in zip(moments.NAMES, moments.sums, strict=True)
        }
        tensors |= {f"{name}:weight": weight for name, weight in self._weights.items()}
        write_tensors(file, tensors, {"kind": _SUMS, "estimator": self.estimator, "batches": str(self.batches)})

    def _restore(self, file: Path) -> None:
        tensors, metadata = _read(file, _SUMS)
        _check.require(
            metadata["estimator"] == self.estimator,
            str(file),
            f"be of estimator {self.estimator!r}",
            metadata["estimator"],
        )
        names = {key.rpartition(":")[0] for key in tensors}
        known = dict(self.net.model.named_parameters())
        strange = sorted(names - known.keys())
        _check.require(not strange, str(file), "hold parameters of this model", strange)
        place = next(iter(known.values())).device
        tensors = {key: t.to(place) for key, t in tensors.items()}
        self._moments = {n: _Moments([tensors[f"{n}:{kind}"] for kind in _Moments.NAMES]) for n in names}
        self._weights = {n: tensors[f"{n}:weight"] for n in names}
        self.batches = int(metadata["batches"])
