"""fastxai: explanation maps, attacks on them and training against the attacks, on compiled second-order kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastxai._backend import available, backend
from fastxai.attacks import IFIA, PGD, AdversarialIFIA, Manipulation
from fastxai.engine import Net, compile
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    PatternTrainer,
    Saliency,
    SmoothGrad,
    reduce_map,
)
from fastxai.kernels._memory import empty_cache

if TYPE_CHECKING:
    from fastxai import cli as cli
    from fastxai import data as data
    from fastxai import evaluation as evaluation
    from fastxai import metrics as metrics
    from fastxai import models as models
    from fastxai import ops as ops
    from fastxai import report as report
    from fastxai import results as results
    from fastxai import studies as studies
    from fastxai import theory as theory
    from fastxai import training as training
    from fastxai import viz as viz

__all__ = [
    "IFIA",
    "LRP",
    "PGD",
    "AdversarialIFIA",
    "BetaSmoothing",
    "Gradient",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "Manipulation",
    "Net",
    "PatternAttribution",
    "PatternTrainer",
    "Saliency",
    "SmoothGrad",
    "available",
    "backend",
    "compile",
    "empty_cache",
    "reduce_map",
]

# Imported at first use: they need matplotlib, scikit-image or a registration with torch.
_LAZY = (
    "cli",
    "data",
    "evaluation",
    "metrics",
    "models",
    "ops",
    "report",
    "results",
    "studies",
    "theory",
    "training",
    "viz",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"fastxai.{name}")
    raise AttributeError(f"module 'fastxai' has no attribute {name!r}")
