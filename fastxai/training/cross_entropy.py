"""The cross-entropy of the scores."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fastxai import _check
from fastxai.training.objective import Batch, Term

__all__ = ["CrossEntropy"]


class CrossEntropy(Term):
    """mean_i -log softmax(g(x_i))_{y_i}; free of charge beside a term that runs the engine."""

    last = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Raises ValueError unless ``label_smoothing`` lies in 0 .. 1."""
        _check.require(0 <= label_smoothing <= 1, "label_smoothing", "lie in 0 .. 1", label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        return functional.cross_entropy(batch.scores, batch.y, label_smoothing=self.label_smoothing)
