"""Attacks on plain maps beside attacks on smoothed maps, pair by pair ([M] fig. 5, [M1] figs. 19-23)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections.similarity import METRICS, compared

__all__ = ["build"]

EXPERIMENTS = ("manipulation", "beta_smoothing", "smooth_grad")
AGAINST = (("manipulation", "beta_smoothing"), ("manipulation", "smooth_grad"), ("beta_smoothing", "smooth_grad"))


def build(findings: Findings) -> Section:
    """Return scatter diagrams of two kinds of attack each, boxes of the smoothed one, and medians."""
    blocks: list[Block] = []
    for what, said in (
        ("map_to_target", "manipulated map and target map"),
        ("image", "manipulated and original image"),
    ):
        figures = [
            figure for metric in METRICS for x, y in AGAINST if (figure := _scatter(findings, x, y, what, metric))
        ]
        if figures:
            blocks.append(
                Panels(figures, f"Similarity of {said}, one point a pair. The attacks are on the maps named.")
            )
    if blocks and findings.methods("beta_smoothing"):
        figures = [compared(findings, "beta_smoothing", w, m) for w in ("map_to_target", "image") for m in METRICS]
        blocks.append(Panels(figures, "Attacks on beta-smoothed maps, all methods."))
    return Section("Attacks on smoothed maps", EXPERIMENTS[1:], [_medians(findings), *blocks] if blocks else [])


def _shared(findings: Findings, experiments: tuple[str, str], method: str, name: str) -> list[np.ndarray]:
    """Return a value of the pairs that two experiments share, from each."""
    found = []
    both = set.intersection(*(set(findings.pairs(experiment, method)) for experiment in experiments))
    for experiment in experiments:
        values = findings.over_pairs(experiment, method, name)
        found.append(values[[i for i, n in enumerate(findings.pairs(experiment, method)) if n in both]])
    return found


def _scatter(findings: Findings, x: str, y: str, what: str, metric: str) -> Figure | None:
    groups = {}
    for method in findings.methods(x):
        if method in findings.methods(y):
            first, second = _shared(findings, (x, y), method, f"{what}.{metric}")
            if len(first):
                groups[findings.titles[method]] = first, second
    if not groups:
        return None
    figure, axes = draw.panel(f"{metric.upper()}, {'images' if what == 'image' else 'maps'}", 3.6)
    draw.scatter(axes, groups, findings.colours, logarithmic=metric == "mse")
    axes.set(xlabel=draw.smoothing(x), ylabel=draw.smoothing(y))
    draw.legend(axes)
    return figure


def _medians(findings: Findings) -> Table:
    experiments = [experiment for experiment in EXPERIMENTS if findings.methods(experiment)]
    rows = [
        [
            findings.titles[method],
            *(
                draw.number(float(np.nanmedian(findings.over_pairs(experiment, method, f"map_to_target.{metric}"))))
                if method in findings.methods(experiment)
                else "\N{EN DASH}"
                for metric in ("pcc", "ssim")
                for experiment in experiments
            ),
        ]
        for method in findings.titles
        if any(method in findings.methods(experiment) for experiment in experiments)
    ]
    head = [f"{metric}, {draw.smoothing(experiment)}" for metric in ("PCC", "SSIM") for experiment in experiments]
    return Table(
        ["method", *head], rows, "Manipulated map and target map, medians: the lower, the more robust the map."
    )
