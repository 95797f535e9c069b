"""PCC, SSIM, MSE and accuracy over each of the three defences ([R] figs. 3-5, 12-14)."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import BETA, LAMBDA, ZETA, Course

__all__ = ["build"]

FIGURES = {LAMBDA: "[R] figs. 3, 12", BETA: "[R] figs. 4, 13", ZETA: "[R] figs. 5, 14"}
HELD = {LAMBDA: "ReLU", BETA: f"{LAMBDA} = 5e-4", ZETA: f"{LAMBDA} = 5e-4, {BETA} = 10"}


def build(findings: Findings) -> Section:
    """Return diagrams of the Gradient map's stability, and of accuracy, for each defence with two networks or more."""
    blocks: list[Block] = []
    for course in _networks.courses(_networks.networks(findings)):
        figures = [_networks.curves(course, metric=metric) for metric in ("pcc", "ssim", "mse")]
        known = [figure for figure in figures if figure is not None]
        if known:
            caption = (
                f"Gradient map, {HELD[course.symbol]}: mean \N{PLUS-MINUS SIGN} standard deviation over the images "
                f"({FIGURES[course.symbol]})."
            )
            blocks.append(Panels([known[0], _accuracy(course), *known[1:]], caption))
    return Section("Three defences", ["accuracy", "noise of two networks that differ in one setting"], blocks)


def _accuracy(course: Course) -> Figure:
    figure, axes = draw.panel(f"Accuracy in %, {course.title}", 3.1)
    values = [one.accuracy for one in course.networks]
    axes.plot(range(len(values)), values, color=draw.INK, linewidth=1.5, marker="o", markersize=2.5)
    _networks.over(axes, course)
    return figure
