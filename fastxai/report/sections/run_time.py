"""What smoothing costs ([M] fig. 5, right)."""

from __future__ import annotations

import numpy as np

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings

__all__ = ["build"]

EXPERIMENT = "run_time"


def build(findings: Findings) -> Section:
    """Return milliseconds an image for each method and defence, and what they cost in plain maps."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Run time", [EXPERIMENT])
    names = list(dict.fromkeys(name for m in methods for name in findings.settings(EXPERIMENT, m)["defences"]))
    medians = {
        m: {
            name: 1e3 * float(np.median(findings.every(EXPERIMENT, m, f"{name}.seconds")))
            for name in findings.settings(EXPERIMENT, m)["defences"]
        }
        for m in methods
    }
    figure, axes = draw.panel("Milliseconds an image", 0.9 + 0.28 * len(methods) * len(names))
    for i, name in enumerate(names):
        places = [place + (i + 0.5) / len(names) * 0.8 - 0.4 for place, m in enumerate(methods) if name in medians[m]]
        values = [medians[m][name] for m in methods if name in medians[m]]
        axes.barh(
            places, values, 0.7 / len(names), color=draw.COLOURS[i % len(draw.COLOURS)], label=draw.smoothing(name)
        )
    draw.decades(axes, "x", np.array([value for each in medians.values() for value in each.values()]))
    axes.set_yticks(range(len(methods)), [findings.titles[m] for m in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    draw.legend(axes)
    rows = [
        [
            findings.titles[m],
            f"{medians[m]['none']:.3g} ms",
            *(f"{medians[m][n] / medians[m]['none']:.1f}x" if n in medians[m] else "\N{EN DASH}" for n in names[1:]),
        ]
        for m in methods
    ]
    claim = findings.paper.get("smooth_grad_cost")
    said = f" {claim['source']}: {claim['claim']} is {claim['text']}." if claim else ""
    batch = findings.common(EXPERIMENT, methods[0], "images")
    machine = findings.rows_of(EXPERIMENT)[0].machine
    caption = f"One map, in multiples of the plain one; medians, in batches of {batch}, on {machine}.{said}"
    return Section(
        "Run time", [EXPERIMENT], [Panels([figure]), Table(["method", *map(draw.smoothing, names)], rows, caption)]
    )
