"""Accuracy and curvature against stability: a point a network, from the rows of [R] table 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import BETA, NU, ZETA, Network

__all__ = ["build"]

LEVEL = 0.025


def build(findings: Findings) -> Section:
    """Return scatter diagrams of accuracy, Hessian norm and weight norm over one another and the PCC."""
    found = [one for one in _networks.networks(findings) if len(one.stable(LEVEL))]
    if not found:
        return Section("Robustness, accuracy and curvature", ["accuracy", "weights", "hessian", "noise"])
    space = findings.run["space"]["name"]
    pcc = f"PCC, {NU} = {LEVEL:g}"
    values: dict[str, Callable[[Network], float]] = {
        pcc: lambda one: float(one.stable(LEVEL).mean()),
        "accuracy %": lambda one: one.accuracy,
        "mean ||H||": lambda one: one.hessian_norm(space),
        "mean ||W||": lambda one: one.weight_norm,
    }
    pairs = (("accuracy %", pcc), ("mean ||H||", pcc), ("mean ||W||", "mean ||H||"))
    drawn = [_scatter(found, (x, values[x]), (y, values[y])) for x, y in pairs]
    figures = [figure for figure in drawn if figure is not None]
    caption = f"A point a network; colours are activations, rings have {ZETA} > 0. ||H|| on the {space} input."
    return Section(
        "Robustness, accuracy and curvature", ["accuracy", "weights", "hessian", "noise"], [Panels(figures, caption)]
    )


def _scatter(
    found: list[Network], x: tuple[str, Callable[[Network], float]], y: tuple[str, Callable[[Network], float]]
) -> Figure | None:
    points = np.array([(x[1](one), y[1](one)) for one in found])
    known = np.isfinite(points).all(1)
    if not known.any():
        return None
    figure, axes = draw.panel(f"{y[0]} over {x[0]}", 3.4)
    kinds = list(dict.fromkeys(one.activation for one in found))
    for i, kind in enumerate(kinds):
        colour = draw.COLOURS[i % len(draw.COLOURS)]
        for ringed in (False, True):
            mine = known & np.array([one.activation == kind and (one.penalty > 0) == ringed for one in found])
            label = None if ringed else kind if kind == "ReLU" else f"{BETA} = {kind}"
            face = "none" if ringed else colour
            axes.scatter(*points[mine].T, s=16, facecolors=face, edgecolors=colour, linewidths=1.0, label=label)
    for which, (name, _), column in zip("xy", (x, y), points[known].T, strict=True):
        if "||" in name:
            draw.decades(axes, which, column)
    axes.set(xlabel=x[0], ylabel=y[0])
    draw.legend(axes)
    return figure
