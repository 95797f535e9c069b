"""The settings of [M], from presets.toml, in the terms of ``Manipulation``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from fastxai import _check
from fastxai.explainers import BetaSmoothing, Explainer, SmoothGrad

__all__ = ["DATA", "networks", "settings", "weight"]

DATA = ("imagenet", "cifar10")
_WRAPPERS = (SmoothGrad, BetaSmoothing)
# |.| over the channels makes them one map.
_SAME = {"Saliency": "Gradient"}


def weight(factor: float, pixels: int) -> float:
    """Return c of c P^2 mean_p (h - h_t)^2 for the factor of [M], which weighs mean_p (h - h_t)^2 at P pixels.

    >>> from fastxai.attacks._presets import weight
    >>> f"{weight(1e11, 224 * 224):.1f} {weight(1e7, 32 * 32):.1f}"
    '39.7 9.5'
    """
    return factor / pixels**2


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text())


def networks(data: str) -> tuple[str, ...]:
    """Return the names of the networks that have a row for the Gradient map."""
    return tuple(_tables()[data].get("networks", ()))


def _row(explainer: Explainer, data: str, network: str | None) -> dict[str, Any]:
    table, inner, group = _tables()[data], explainer, "maps"
    for wrapper in _WRAPPERS:
        if isinstance(explainer, wrapper):
            inner, group = explainer.explainer, wrapper.__name__
    kinds = [_SAME.get(kind.__name__, kind.__name__) for kind in type(inner).__mro__]
    if network is not None:
        known = networks(data) if group == "maps" and "Gradient" in kinds else ()
        contract = f"be None or one of {', '.join(known)}" if known else "be None: [M] has other networks' Gradient map"
        _check.require(network in known, "network", contract, repr(network))
        return table["networks"][network]
    rows = _tables()["imagenet"][group] | table.get(group, {})
    found = [rows[kind] for kind in kinds if kind in rows]
    around = "" if group == "maps" else f" inside {group}"
    _check.require(bool(found), "explainer", f"be one of [M]'s{around}: {', '.join(rows)}", type(inner).__name__)
    return found[0]


def _channels(values: Any) -> list[float]:
    """Return one number a channel as a list; none where these are not finite numbers."""
    numbers = _check.numbers(values)
    return [] if numbers is None or numbers.dim() != 1 or not numbers.isfinite().all() else numbers.tolist()


def settings(
    explainer: Explainer,
    data: str,
    network: str | None,
    mean: Sequence[float] | Tensor | None,
    std: Sequence[float] | Tensor | None,
) -> dict[str, Any]:
    """Return the arguments of ``Manipulation``; arguments as in ``Manipulation.preset``."""
    _check.one_of(data, "data", DATA)
    table = _tables()[data]
    row = table | _row(explainer, data, network)
    net = explainer.net
    if net.normalises:
        given = mean is None and std is None
        _check.require(given, "mean, std", "be None for a net that normalises itself", (mean, std))
        bounds: tuple[Any, Any] = (0.0, 1.0)
        scale = 1.0 if net.std is None else float(net.std.mean())
    else:
        means, stds = (_channels(table.get(name) if v is None else v) for name, v in (("mean", mean), ("std", std)))
        known = len(means) == len(stds) > 0 and min(stds) > 0
        _check.require(known, "mean, std", "be given, one finite number a channel, std positive", (mean, std))
        low, high = ([(value - m) / s for m, s in zip(means, stds, strict=True)] for value in (0, 1))
        bounds = (low, high)
        scale = 1.0
    return {
        "steps": row["steps"],
        "lr": row["lr"] * scale,
        "beta": tuple(row["beta"]) if row["beta"] else None,
        "c": weight(row["factors"][0], table["pixels"]),
        "gamma": row["factors"][1],
        "output": row["output"],
        "bounds": bounds,
    }
