"""What smoothing costs ([M] fig. 5, right)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings

__all__ = ["build"]

EXPERIMENT = "run_time"
PLAIN = "none"


def build(findings: Findings) -> Section:
    """Return milliseconds an image for each method and defence, and what they cost in plain maps."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Run time", [EXPERIMENT])
    times = {
        findings.titles[m]: {
            name: 1e3 * findings.every(EXPERIMENT, m, f"{name}.seconds")
            for name in findings.settings(EXPERIMENT, m)["defences"]
        }
        for m in methods
    }
    names = [name for name in dict.fromkeys(name for each in times.values() for name in each) if name != PLAIN]
    head = ["method", "plain, ms"]
    for name in names:
        head += [f"{draw.smoothing(name)}, ms", f"{draw.smoothing(name)} / plain"]
    rows = [[title, *_cells(each, names)] for title, each in times.items()]
    claim = findings.paper.get("smooth_grad_cost")
    said = f" {claim['source']}: {claim['claim']} is {claim['text']}." if claim else ""
    found = findings.rows_of(EXPERIMENT)
    batch = _either(row.values["images"] for row in found)
    repeats = _either(len(each[PLAIN]) for each in times.values())
    caption = (
        f"One map, in batches of {batch}, on {_either(row.machine for row in found)}: medians over {repeats} repeats. "
        f"A ratio is that of the two times of one repeat: its median, quartiles in brackets.{said}"
    )
    panels = Panels([_points(times, [PLAIN, *names])], "Points: medians; lines: quartiles over the repeats.")
    return Section("Run time", [EXPERIMENT], [panels, Table(head, rows, caption)])


def _either(found: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(map(str, found)))


def _points(times: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]) -> Figure:
    """Draw the time of each method and defence: lengths would say nothing on a logarithmic axis."""
    figure, axes = draw.panel("Milliseconds an image", 0.9 + 0.28 * len(times) * len(names))
    for i, name in enumerate(names):
        known = {place: each[name] for place, each in enumerate(times.values()) if name in each}
        first, middle, third = zip(*(np.quantile(values, (0.25, 0.5, 0.75)) for values in known.values()), strict=True)
        places = [place + (i + 0.5) / len(names) * 0.8 - 0.4 for place in known]
        colour = draw.COLOURS[i % len(draw.COLOURS)]
        axes.hlines(places, first, third, color=colour, linewidth=1.2)
        axes.plot(middle, places, "o", color=colour, markersize=5, label=draw.smoothing(name))
    draw.decades(axes, "x", np.array([np.median(values) for each in times.values() for values in each.values()]))
    axes.set_yticks(range(len(times)), list(times))
    axes.set_ylim(len(times) - 0.4, -0.6)
    draw.legend(axes)
    return figure


def _cells(times: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """Return the plain time, and of each defence the time and how many plain ones it is."""
    plain, dash = times[PLAIN], "\N{EN DASH}"
    cells = [f"{np.median(plain):.3g}"]
    for name in names:
        found = times.get(name)
        cells += [dash, dash] if found is None else [f"{np.median(found):.3g}", draw.summary(found / plain)]
    return cells
