"""The other maps over each of the three defences ([R] figs. 15-18)."""

from __future__ import annotations

from fastxai.report.blocks import Block, Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks

__all__ = ["build"]

METHODS = {
    "input_x_gradient": "[R] fig. 15",
    "integrated_gradients": "[R] fig. 16",
    "guided_backprop": "[R] fig. 17",
    "lrp": "[R] fig. 18",
}


def build(findings: Findings) -> Section:
    """Return diagrams of the PCC for each map and defence."""
    courses = _networks.courses(_networks.networks(findings))
    blocks: list[Block] = []
    for method, source in METHODS.items():
        drawn = [_networks.curves(course, method) for course in courses]
        figures = [figure for figure in drawn if figure is not None]
        if figures:
            blocks.append(Panels(figures, f"{findings.titles[method]} ({source})."))
    return Section("Other maps", ["maps"], blocks)
