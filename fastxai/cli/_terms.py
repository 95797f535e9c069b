"""The table "terms" of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastxai import _check
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
}
# What a term's maps may be compared with in place of S(x).
TARGETS = {"masks": masks}


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
        if kind is not CrossEntropy:
            settings.setdefault("seed", seed)
        if issubclass(kind, FAR):
            settings.setdefault("bounds", _bounds(data))
        if weight:
            found.append(weight * kind(**settings))
    return found


def _bounds(data: Dataset) -> tuple[Any, Any]:
    """Return the lowest and the highest value of an image, as the network sees it."""
    if data.mean is None or data.std is None:
        return 0.0, 1.0
    pairs = list(zip(data.mean, data.std, strict=True))
    return [-mean / std for mean, std in pairs], [(1 - mean) / std for mean, std in pairs]
