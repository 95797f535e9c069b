"""Attacks on plain maps beside attacks on smoothed maps, pair by pair ([M] fig. 5, [M1] figs. 19-23)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections.similarity import METRICS, compared
from fastxai.report.sections.summary import kept

__all__ = ["build"]

EXPERIMENTS = ("manipulation", "beta_smoothing", "beta_smoothing_matched", "smooth_grad", "smooth_grad_fixed")
AGAINST = (("manipulation", "beta_smoothing"), ("manipulation", "smooth_grad"), ("beta_smoothing", "smooth_grad"))


def build(findings: Findings) -> Section:
    """Return medians, scatter diagrams of two kinds of attack each, and boxes of the smoothed one."""
    if not any(findings.methods(experiment) for experiment in EXPERIMENTS[1:]):
        return Section("Attacks on smoothed maps", EXPERIMENTS[1:])
    blocks: list[Block] = [_medians(findings)]
    for what, said in (
        ("map_to_target", "manipulated map and target map"),
        ("image", "manipulated and original image"),
    ):
        figures = [
            figure for metric in METRICS for x, y in AGAINST if (figure := _scatter(findings, x, y, what, metric))
        ]
        if figures:
            points = "one point a pair that both attacks have"
            blocks.append(Panels(figures, f"Similarity of {said}, {points}. The attacks are on the maps named."))
    if findings.methods("beta_smoothing"):
        figures = [compared(findings, "beta_smoothing", w, m) for w in ("map_to_target", "image") for m in METRICS]
        counted = findings.counted("beta_smoothing")
        blocks.append(Panels(figures, f"Attacks on beta-smoothed maps, all methods; {counted}."))
    return Section("Attacks on smoothed maps", EXPERIMENTS[1:], blocks)


def _shared(findings: Findings, experiments: Sequence[str], method: str) -> set[int]:
    """Return the pairs that all of some experiments have."""
    return set.intersection(*(set(findings.pairs(experiment, method)) for experiment in experiments))


def _values(findings: Findings, experiment: str, method: str, name: str, pairs: set[int]) -> np.ndarray:
    """Return a value of some pairs."""
    values = findings.over_pairs(experiment, method, name)
    return values[[number in pairs for number in findings.pairs(experiment, method)]]


def _scatter(findings: Findings, x: str, y: str, what: str, metric: str) -> Figure | None:
    groups = {}
    for method in findings.methods(x):
        if both := _shared(findings, (x, y), method):
            first, second = (_values(findings, one, method, f"{what}.{metric}", both) for one in (x, y))
            groups[findings.titles[method]] = first, second
    if not groups:
        return None
    figure, axes = draw.panel(f"{metric.upper()}, {'images' if what == 'image' else 'maps'}", 3.6)
    draw.scatter(axes, groups, findings.colours, logarithmic=metric == "mse")
    axes.set(xlabel=draw.smoothing(x), ylabel=draw.smoothing(y))
    draw.legend(axes)
    return figure


def _medians(findings: Findings) -> Table:
    """Return what each attack on a map did and what it cost, on the pairs that all attacks on this map have."""
    rows = []
    for method in findings.titles:
        attacks = [experiment for experiment in EXPERIMENTS if method in findings.methods(experiment)]
        if not set(attacks) & set(EXPERIMENTS[1:]):
            continue
        pairs = _shared(findings, attacks, method)
        rows += [_line(findings, experiment, method, pairs) for experiment in attacks if pairs]
    head = ["method", "attacked map", "pairs", "class kept to the end", "softmax change", "image: SSIM"]
    head += [f"map: {metric} {when}" for metric in ("PCC", "SSIM") for when in ("before", "after")]
    head += ["map: PCC, other noise"]
    caption = (
        "Medians over the pairs that every attack on a map has. Map: similarity of the attacked map to its target "
        "before and after the attack. A smoothed map may be near its target before, so what tells is the step from "
        "before to after: the smaller, the more robust the map; what the step cost is beside it. Class and softmax "
        "output are those of the network as given. Plain budget: iterations and step size of the attack on the plain "
        "map. SmoothGrad draws other noise at every step, or the same (fixed noise); other noise is what no attack saw."
    )
    return Table(head, rows, caption)


def _line(findings: Findings, experiment: str, method: str, pairs: set[int]) -> list[str]:
    def median(name: str, places: int = 2) -> str:
        return draw.number(float(np.nanmedian(_values(findings, experiment, method, name, pairs))), places)

    maps = [f"map_to_target{when}.{metric}" for metric in ("pcc", "ssim") for when in ("_before", "")]
    return [
        findings.titles[method],
        draw.smoothing(experiment),
        str(len(pairs)),
        kept(findings, experiment, method, pairs=pairs),
        median("softmax_change"),
        median("image.ssim", 3),
        *map(median, maps),
        median("fresh_to_target.pcc") if findings.holds(experiment, method, "fresh_to_target.pcc") else draw.UNKNOWN,
    ]
