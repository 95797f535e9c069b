"""What the manipulation does to the output: class, winning confidence, norms ([M1] figs. 10 and 11)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections.summary import kept

__all__ = ["build"]

EXPERIMENT = "manipulation"


def build(findings: Findings) -> Section:
    """Return a table of the three numbers and boxes of each."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Change of the output", [EXPERIMENT])
    changes = {m: _change_of_confidence(findings, m) for m in methods}
    table = Table(
        ["method", "class kept to the end", "confidence change", "softmax norm", "logit norm"],
        [
            [
                findings.titles[m],
                kept(findings, EXPERIMENT, m),
                draw.summary(changes[m], 3),
                draw.summary(findings.over_pairs(EXPERIMENT, m, "softmax_change"), 3),
                draw.summary(findings.over_pairs(EXPERIMENT, m, "logit_change"), 3),
            ]
            for m in methods
        ],
        "Medians, quartiles in brackets. Confidence: probability of the winning class, after minus before.",
    )
    figures = [_boxes("Change of confidence", {findings.titles[m]: changes[m] for m in methods}, findings.colours)]
    for title, name in (("Norm of the change, softmax", "softmax_change"), ("... of the logits", "logit_change")):
        groups = {findings.titles[m]: findings.over_pairs(EXPERIMENT, m, name) for m in methods}
        figures.append(_boxes(title, groups, findings.colours, logarithmic=True))
    return Section("Change of the output", [EXPERIMENT], [table, Panels(figures)])


def _change_of_confidence(findings: Findings, method: str) -> np.ndarray:
    after, before = (findings.over_pairs(EXPERIMENT, method, f"confidence_{when}") for when in ("after", "before"))
    return after - before


def _boxes(title: str, groups: dict[str, np.ndarray], colours: dict[str, str], *, logarithmic: bool = False) -> Figure:
    figure, axes = draw.panel(title)
    if logarithmic:
        draw.decades_of(axes, groups)
    draw.boxes(axes, groups, colours)
    return figure
