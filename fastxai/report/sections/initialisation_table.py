"""What the initialisation of the weights makes of the maps' robustness ([F] table 4, fig. 4)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections import _attributional, _networks
from fastxai.report.sections._attributional import HEAD, NAMES, Figures

__all__ = ["build"]

EXPERIMENT = "saliency"
TITLE = "Initialisation"
INITIALISATIONS = ("ptd", "cust", "uni", "hu", "hn", "gu", "gn")
METHODS = ("natural", "adv", "aat")


def build(findings: Findings) -> Section:
    """Return the table and, for two initialisations or more, IN and CO over them."""
    known, paper = _networks.trained(findings), findings.paper["initialisations"]
    rows, shown = [], []
    measured: dict[str, dict[str, Figures]] = {method: {} for method in METHODS}
    for initialisation in INITIALISATIONS:
        for method in METHODS:
            # PyTorch's own is that of the networks of table 1.
            name = f"mnist_{method}" if initialisation == "ptd" else f"mnist_{initialisation}_{method}"
            found = _attributional.figures(known[name], EXPERIMENT) if name in known else None
            if found is None:
                continue
            measured[method][initialisation] = found
            rows.append([initialisation.upper(), NAMES[method], *_attributional.cells(found, paper["rows"].get(name))])
            shown.append(known[name])
    if not shown:
        return Section(TITLE, [EXPERIMENT])
    caption = f"MNIST, |gradient|. In brackets: {paper['source']}."
    table = Table(["initialisation", "network", *HEAD], rows, caption)
    courses = {NAMES[method]: course for method, course in measured.items() if len(course) > 1}
    text = findings.paper["initialisation"]
    drawn = [_curves(name, courses) for name in ("IN", "CO")] if courses else []
    panels = [Panels(drawn, f"{text['source']}: {text['text']}.")] if drawn else []
    return Section(TITLE, [EXPERIMENT], [_attributional.conditions(findings, shown), table, *panels])


def _curves(which: str, courses: dict[str, dict[str, Figures]]) -> Figure:
    figure, axes = draw.panel(which, 3.1)
    for place, (name, course) in enumerate(courses.items()):
        values = [course[each].four[HEAD.index(which)] if each in course else np.nan for each in INITIALISATIONS]
        _attributional.line(axes, range(len(values)), values, name, place)
    axes.set_xticks(range(len(INITIALISATIONS)), [name.upper() for name in INITIALISATIONS])
    draw.legend(axes)
    return figure
