"""Maps change before the accuracy does ([R] fig. 2)."""

from __future__ import annotations

import numpy as np

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import NU

__all__ = ["build"]

EXPERIMENT = "drop"


def build(findings: Findings) -> Section:
    """Return PCC and accuracy of each network over the noise level."""
    figures = []
    for one in _networks.networks(findings):
        levels = sorted({row.key["level"] for row in one.rows if row.experiment == EXPERIMENT})
        if not levels:
            continue
        alike = [one.over_images(EXPERIMENT, "pcc", level=level) for level in levels]
        middle, width = (np.array([function(values) for values in alike]) for function in (np.mean, np.std))
        figure, axes = draw.panel(_networks.described(one), 3.1)
        axes.fill_between(levels, middle - width, middle + width, color=draw.COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(levels, middle, color=draw.COLOURS[0], linewidth=1.5, marker="o", markersize=2.5, label="PCC")
        right = [one.mean(EXPERIMENT, "correct", level=level) for level in levels]
        axes.plot(levels, right, color=draw.COLOURS[1], linewidth=1.5, marker="o", markersize=2.5, label="accuracy")
        draw.decades(axes, "x", np.array(levels))
        axes.set(xlabel=NU)
        draw.legend(axes)
        figures.append(figure)
    caption = "PCC of the Gradient map, mean \N{PLUS-MINUS SIGN} standard deviation, and accuracy ([R] fig. 2)."
    return Section("Maps and accuracy under noise", [EXPERIMENT], [Panels(figures, caption)] if figures else [])
