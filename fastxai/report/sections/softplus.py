"""The softplus network's map beside that of the network as given ([M1] figs. 7-9, [M] fig. 6)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Picture, Section
from fastxai.report.findings import Findings
from fastxai.viz import Panel, Row, grid

__all__ = ["build"]

EXPERIMENT = "softplus"
BETA = "\N{GREEK SMALL LETTER BETA}"


def build(findings: Findings) -> Section:
    """Return similarity over beta, and the maps of the first image."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Softplus in place of ReLU", [EXPERIMENT])
    panels = Panels(
        [_curves(findings, metric) for metric in ("mse", "ssim", "pcc")],
        "Map on softplus and map on the network as given. Lines: medians over "
        f"{findings.counted(EXPERIMENT, 'image')}; bands: 10th to 90th percentile.",
    )
    pictures = [_picture(findings, method) for method in methods if findings.pictures(EXPERIMENT, method)]
    return Section("Softplus in place of ReLU", [EXPERIMENT], [panels, *pictures])


def _curves(findings: Findings, metric: str) -> Figure:
    figure, axes = draw.panel(metric.upper(), 3.2)
    everything = []
    for method in findings.methods(EXPERIMENT):
        colour = findings.colours[findings.titles[method]]
        betas = findings.common(EXPERIMENT, method, "betas")
        values = findings.over_pairs(EXPERIMENT, method, f"to_plain.{metric}")
        draw.bands(axes, betas, values, findings.titles[method], colour)
        draw.decades(axes, "x", np.array(betas))
        everything.append(values.ravel())
    if metric == "mse":
        draw.decades(axes, "y", np.concatenate(everything))
    axes.set(xlabel=BETA)
    draw.legend(axes)
    return figure


def _picture(findings: Findings, method: str) -> Picture:
    kept = findings.pictures(EXPERIMENT, method)
    shown, betas = kept[min(kept)], findings.common(EXPERIMENT, method, "betas")
    chosen = np.unique(np.linspace(0, len(betas) - 1, min(5, len(betas))).astype(int))[::-1]
    panels = [Panel(shown["image"], "image"), Panel(shown["map"], "as given")]
    panels += [Panel(shown["maps"][i], f"{BETA} = {betas[i]:g}") for i in chosen]
    return Picture(grid([Row(panels, f"{findings.titles[method]} as beta falls.")], side=1.5))
