"""How weight norms and Hessian norms go together ([R] fig. 21), and layer by layer ([R] fig. 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import BETA, LAMBDA, ZETA, Course, Network

__all__ = ["build"]

NEEDS = ("weights", "hessian")


def build(findings: Findings) -> Section:
    """Return the two norms over each setting, means over the networks that share it; each layer's weight norm."""
    found = [one for one in _networks.networks(findings) if math.isfinite(one.weight_norm)]
    space = findings.run["space"]["name"] if found else ""
    bent = [one for one in found if math.isfinite(one.hessian_norm(space))]
    plain = [one for one in bent if one.penalty == 0]
    penalised = [one for one in bent if one.penalty > 0]
    drawn = [
        _norms(LAMBDA, _grouped(plain, lambda one: one.weight_decay), 0, space),
        _norms(BETA, _grouped(plain, lambda one: -one.beta), 1, space),
        _norms(ZETA, _grouped(penalised, lambda one: one.penalty), 2, space),
    ]
    figures = [figure for figure in drawn if figure is not None]
    blocks: list[Block] = []
    if figures:
        caption = (
            f"Mean \N{PLUS-MINUS SIGN} standard deviation over the softplus networks, {ZETA} = 0 on the left and in "
            f"the middle, {ZETA} > 0 on the right; ||H|| on the {space} input ([R] fig. 21)."
        )
        blocks.append(Panels(figures, caption))
    layers = [_layers(course) for course in _networks.courses(found)]
    if layers:
        blocks.append(Panels(layers, "||W|| of each layer ([R] fig. 10, its weights)."))
    return Section("Weight norms and Hessian norms", NEEDS, blocks)


def _grouped(found: Sequence[Network], setting: Callable[[Network], float]) -> dict[float, list[Network]]:
    values = sorted({setting(one) for one in found})
    return {value: [one for one in found if setting(one) == value] for value in values}


def _norms(symbol: str, groups: Mapping[float, Sequence[Network]], place: int, space: str) -> Figure | None:
    if len(groups) < 2:
        return None
    figure, axes = draw.panel(f"Norms over {symbol}", 3.1)
    values = {
        "||W||": [np.array([one.weight_norm for one in group]) for group in groups.values()],
        "||H||": [np.array([one.hessian_norm(space) for one in group]) for group in groups.values()],
    }
    for (name, each), colour in zip(values.items(), draw.COLOURS, strict=False):
        middle, width = (np.array([function(one) for one in each]) for function in (np.mean, np.std))
        axes.errorbar(
            range(len(each)), middle, width, color=colour, linewidth=1.5, marker="o", markersize=2.5, label=name
        )
    draw.decades(axes, "y", np.array([one.mean() for each in values.values() for one in each]))
    axes.set_xticks(range(len(groups)), [_networks.settings(group[0])[place] for group in groups.values()])
    axes.set(xlabel=symbol)
    draw.legend(axes)
    return figure


def _layers(course: Course) -> Figure:
    figure, axes = draw.panel(f"Layers, {course.title}", 3.1)
    for i, (one, label) in enumerate(zip(course.networks, course.labels, strict=True)):
        [row] = [row for row in one.rows if row.experiment == "weights"]
        colour = draw.COLOURS[i % len(draw.COLOURS)]
        style = "--" if i >= len(draw.COLOURS) else "-"
        axes.plot(row.values["norms"], style, color=colour, linewidth=1.2, label=f"{course.symbol} = {label}")
        axes.set_xticks(range(len(row.values["layers"])), row.values["layers"])
    axes.tick_params(axis="x", labelrotation=30)
    draw.legend(axes)
    return figure
