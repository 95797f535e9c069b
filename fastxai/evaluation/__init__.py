"""Experiments on tensors, each a ``Task`` to an ``Outcome``; and what is measured of a network on a whole test set."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastxai._check import require
from fastxai.evaluation.methods import METHODS as METHODS
from fastxai.evaluation.methods import explainer as explainer
from fastxai.evaluation.network import accuracy as accuracy
from fastxai.evaluation.network import correct as correct
from fastxai.evaluation.network import hessian_norms as hessian_norms
from fastxai.evaluation.network import mean_norm as mean_norm
from fastxai.evaluation.network import weight_norms as weight_norms
from fastxai.evaluation.pairs import choose_pairs as choose_pairs
from fastxai.evaluation.pairs import chunks as chunks
from fastxai.evaluation.robustness import Robustness as Robustness
from fastxai.evaluation.robustness import adversary as adversary
from fastxai.evaluation.robustness import robustness as robustness
from fastxai.evaluation.stability import Perturbation as Perturbation
from fastxai.evaluation.stability import Stability as Stability
from fastxai.evaluation.stability import stability as stability
from fastxai.evaluation.task import Outcome as Outcome
from fastxai.evaluation.task import Space as Space
from fastxai.evaluation.task import Task as Task

__all__ = [
    "METHODS",
    "Outcome",
    "Perturbation",
    "Robustness",
    "Space",
    "Stability",
    "Task",
    "accuracy",
    "adversary",
    "choose_pairs",
    "chunks",
    "correct",
    "experiment",
    "explainer",
    "hessian_norms",
    "mean_norm",
    "resolved",
    "robustness",
    "stability",
    "weight_norms",
]


def experiment(name: str) -> Callable[[Task], Outcome]:
    """Return an experiment by its name "module.function", the module being one of this package.

    Raises:
        ValueError: there is no such experiment.

    >>> fastxai.evaluation.experiment("curves.softplus_map").__name__
    'softplus_map'
    """
    module, function = _module(name)
    require(function in module.__all__, "experiment", "name a module of fastxai.evaluation and its function", name)
    return getattr(module, function)


def resolved(name: str, task: Task) -> dict[str, Any]:
    """Return the settings that an experiment will use on a task: the task's own, and defaults that it looks up.

    Raises:
        TypeError, ValueError: there is no such experiment, or a setting is unknown or out of range.
    """
    resolve = getattr(_module(name)[0], "resolve", None)
    return dict(task.settings) if resolve is None else resolve(task)


def _module(name: str) -> tuple[ModuleType, str]:
    module, _, function = name.partition(".")
    try:
        return importlib.import_module(f"{__name__}.{module}"), function
    except ModuleNotFoundError as error:
        raise ValueError(f"experiment must name a module of fastxai.evaluation, got {name}") from error
