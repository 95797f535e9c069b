"""An explainer whose network, or baseline, is known only when a batch comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fastxai import _check
from fastxai.explainers import Explainer
from fastxai.training.objective import Batch

__all__ = ["PerBatch"]


class PerBatch(Explainer):
    """A function (batch) -> explainer in the place of one: an attack can then be described without a network.

    Attributes:
        make: the function; the explainer's net must be ``batch.net``, or a view of it.

    >>> from fastxai.training import FAR, PerBatch
    >>> term = FAR("eq5", PerBatch(lambda batch: fastxai.IntegratedGradients(batch.net, batch.x.mean(0))), eps=0.1)
    """

    def __init__(self, make: Callable[[Batch], Explainer]) -> None:
        """Raises TypeError unless ``make`` is callable."""
        _check.require(callable(make), "make", "be callable", make, TypeError)
        self.make = make

    @property
    def net(self) -> NoReturn:  # type: ignore[override]
        """There is none outside an objective: RuntimeError."""
        raise RuntimeError("PerBatch has no net outside an objective; attack make(batch) instead")

    def map_and_scores(self, *_: Any, **__: Any) -> NoReturn:
        """Raise RuntimeError: only a training term has batches."""
        raise RuntimeError("PerBatch has no map outside an objective; attack make(batch) instead")
