"""Similarity over a parameter of smoothing: what the two sweeps share."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Picture, Section
from fastxai.report.findings import Findings
from fastxai.viz import Panel, Row, grid

__all__ = ["sweep"]

KINDS = {
    ("to_target", "to_original"): "plain maps of the target and of the original image",
    ("to_smoothed_target", "to_smoothed_original"): "smoothed maps of the target and of the original image",
}


def sweep(findings: Findings, title: str, experiment: str, over: str, symbol: str) -> Section:
    """Return curves over a parameter for each method, and what the maps look like.

    Args:
        findings: the rows.
        title: of the section.
        experiment: whose rows they are.
        over: the name of the parameter's values.
        symbol: of the parameter.
    """
    blocks: list[Block] = []
    for names, said in KINDS.items():
        figures = [
            _curves(findings, experiment, method, over, symbol, names, metric)
            for method in findings.methods(experiment)
            for metric in ("pcc", "ssim")
        ]
        if figures:
            compared = f"Smoothed map of the manipulated image beside the {said}."
            lines = f"Lines: medians over {findings.counted(experiment)}; bands: 10th to 90th percentile."
            blocks.append(Panels(figures, f"{compared} {lines}"))
    pictures = [
        p for method in findings.methods(experiment) if (p := _picture(findings, experiment, method, over, symbol))
    ]
    return Section(title, [experiment], [*blocks, *pictures])


def _curves(
    findings: Findings, experiment: str, method: str, over: str, symbol: str, names: tuple[str, str], metric: str
) -> Figure:
    x = findings.common(experiment, method, over)
    figure, axes = draw.panel(f"{findings.titles[method]}, {metric.upper()}", 3.2)
    for name, label, colour in zip(names, ("target", "original"), draw.COLOURS[3::-3], strict=True):
        draw.bands(axes, x, findings.over_pairs(experiment, method, f"{name}.{metric}"), label, colour)
    draw.decades(axes, "x", np.array(x))
    axes.set(xlabel=symbol)
    draw.legend(axes)
    return figure


def _picture(findings: Findings, experiment: str, method: str, over: str, symbol: str) -> Picture | None:
    """The maps of the first kept pair over the parameter."""
    kept = findings.pictures(experiment, method)
    base = findings.pictures("manipulation", method)
    if not kept or min(kept) not in base:
        return None
    maps, shown, x = kept[min(kept)]["maps"], base[min(kept)], findings.common(experiment, method, over)
    order = np.argsort(x)[:: -1 if over == "betas" else 1]
    chosen = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(5, len(order))).astype(int))]
    panels = [Panel(shown["map"], "original"), Panel(shown["target_map"], "target")]
    panels += [Panel(maps[i], f"{symbol} = {x[i]:g}") for i in chosen]
    return Picture(
        grid(
            [Row(panels, f"{findings.titles[method]}: maps of one manipulated image, beside the two plain maps.")],
            side=1.5,
        )
    )
