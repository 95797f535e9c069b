"""Pixel flipping beside a random order ([M] fig. 7)."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings

__all__ = ["build"]

EXPERIMENT = "flipping"


def build(findings: Findings) -> Section:
    """Return the share of images whose class stands over the share of pixels flipped, and the areas below."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Pixel flipping", [EXPERIMENT])
    names = _names(findings, methods[0])
    rows = [
        [
            findings.titles[method],
            *(draw.number(findings.over_pairs(EXPERIMENT, method, f"{name}.correct").mean(), 3) for name in names),
        ]
        for method in methods
    ]
    counted = findings.counted(EXPERIMENT, "image")
    return Section(
        "Pixel flipping",
        [EXPERIMENT],
        [
            Panels(
                [_curves(findings, method) for method in methods],
                "Share of images whose predicted class stands as the most relevant pixels become 0: the lower the "
                f"curve, the better the map. The random order is there for comparison. {counted}.",
            ),
            Table(
                ["method", *map(draw.smoothing, names)],
                rows,
                f"Mean over the curve; the lower, the better the map; random is there for comparison. {counted}.",
            ),
        ],
    )


def _names(findings: Findings, method: str) -> list[str]:
    return [*findings.settings(EXPERIMENT, method)["defences"], "random"]


def _curves(findings: Findings, method: str) -> Figure:
    figure, axes = draw.panel(findings.titles[method], 3.2)
    x = findings.common(EXPERIMENT, method, "fractions")
    for name, colour in zip(_names(findings, method), (*draw.COLOURS[:3], draw.INK), strict=False):
        share = findings.over_pairs(EXPERIMENT, method, f"{name}.correct").mean(0)
        axes.plot(
            x,
            share,
            color=colour,
            linewidth=1.5,
            label=draw.smoothing(name),
            linestyle=":" if name == "random" else "-",
        )
    axes.set(xlabel="share of pixels flipped", ylabel="class stands", ylim=(-0.03, 1.03))
    draw.legend(axes)
    return figure
