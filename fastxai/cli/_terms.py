"""The table "terms" of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastxai import _check
from fastxai.engine import Net
from fastxai.evaluation import Space
from fastxai.evaluation.methods import METHODS, explainer
from fastxai.explainers import Explainer
from fastxai.training import (
    AAT,
    FAR,
    AdvAAT,
    Align,
    CrossEntropy,
    Dataset,
    HessianNorm,
    IGNorm,
    IGSumNorm,
    PGDAdversarial,
    Term,
    masks,
    zeros,
)

__all__ = ["TERMS", "terms"]

TERMS: dict[str, type[Term]] = {
    "cross_entropy": CrossEntropy,
    "hessian_norm": HessianNorm,
    "aat": AAT,
    "adv_aat": AdvAAT,
    "ig_norm": IGNorm,
    "ig_sum_norm": IGSumNorm,
    "align": Align,
    "pgd_adversarial": PGDAdversarial,
    "far": FAR,
}
# Patterns are those of one network, and would have to be learnt again while it is trained.
MAPS = tuple(name for name in METHODS if name != "pattern_attribution")
# What a term's maps may be compared with in place of S(x).
TARGETS = {"masks": masks, "zeros": zeros}


def terms(table: Mapping[str, Any], seed: int, data: Dataset) -> list[Term]:
    """Return the terms of an objective on this data.

    Args:
        table: by name a weight, or the term's settings, weight among them.
        seed: of random numbers whose settings have none.
        data: its normalisation says between which values an attack's images lie.

    Raises:
        TypeError, ValueError: a setting is unknown or wrong.
    """
    found = []
    for name, given in table.items():
        kind = TERMS[name]
        settings = dict(given) if isinstance(given, dict) else {"weight": given}
        # In Python lambda is a keyword.
        settings = {"lambda_" if key == "lambda" else key: value for key, value in settings.items()}
        weight = settings.pop("weight", 1.0)
        if "target_map" in settings:
            asked = _check.one_of(settings["target_map"], f"[terms] {name}.target_map", TARGETS)
            settings["target_map"] = TARGETS[asked]
        if kind is FAR:
            settings["attribution"] = _attribution(settings.get("attribution"), data)
        if kind is not CrossEntropy:
            settings.setdefault("seed", seed)
        if issubclass(kind, FAR):
            settings.setdefault("bounds", _bounds(data))
        if weight:
            found.append(weight * kind(**settings))
    return found


def _attribution(asked: Any, data: Dataset) -> partial[Explainer]:
    """Return what makes the map of a net: asked for by name, or a table of method and the explainer's options."""
    options = dict(asked) if isinstance(asked, Mapping) else {"method": asked}
    method = _check.one_of(options.pop("method", None), "[terms] far.attribution", MAPS)
    channels = data.images.shape[1]
    mean, std = (data.mean or [0.0] * channels), (data.std or [1.0] * channels)
    return partial(_explained, method=method, space=Space(tuple(mean), tuple(std)), options=options)


def _explained(net: Net, *, method: str, space: Space, options: Mapping[str, Any]) -> Explainer:
    return explainer(method, net, space, options)


def _bounds(data: Dataset) -> tuple[Any, Any]:
    """Return the lowest and the highest value of an image, as the network sees it."""
    if data.mean is None or data.std is None:
        return 0.0, 1.0
    pairs = list(zip(data.mean, data.std, strict=True))
    return [-mean / std for mean, std in pairs], [(1 - mean) / std for mean, std in pairs]
