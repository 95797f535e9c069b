"""Robustness over the weight of the maps' term ([F] fig. 3)."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _attributional, _networks
from fastxai.report.sections._attributional import NAMES, Figures
from fastxai.report.sections._networks import LAMBDA, Network

__all__ = ["build"]

EXPERIMENT, DATA = "robustness", "fashion_mnist"
TITLE = "The weight of the maps' term"


def build(findings: Findings) -> Section:
    """Return NA, AA, IN and CO over lambda, for AAT and AdvAAT, those with less than two networks left out."""
    known = _networks.trained(findings)
    figures, shown = [], []
    for method in ("aat", "adv_aat"):
        course = _course(known, method)
        if len(course) > 1:
            figures.append(_curves(NAMES[method], {weight: found for weight, (_, found) in course.items()}))
            shown += [one for one, _ in course.values()]
    if not figures:
        return Section(TITLE, [f"{EXPERIMENT} of two networks that differ in {LAMBDA}"])
    paper = findings.paper["lambda"]
    caption = f"Fashion-MNIST. {paper['source']}: {paper['text']}."
    return Section(TITLE, [EXPERIMENT], [_attributional.conditions(findings, shown), Panels(figures, caption)])


def _course(known: dict[str, Network], method: str) -> dict[float, tuple[Network, Figures]]:
    """Return the networks of one way of training and their figures by lambda, ascending."""
    found = {}
    for name, one in known.items():
        weight = _attributional.settings_of(one).get(f"terms.{method}.lambda")
        measured = _attributional.figures(one, EXPERIMENT, preset=DATA)
        if name.startswith(f"{DATA}_{method}") and weight is not None and measured is not None:
            found[weight] = one, measured
    return dict(sorted(found.items()))


def _curves(title: str, course: dict[float, Figures]) -> Figure:
    figure, axes = draw.panel(title, 3.1)
    values = {
        "IN": [found.top_k for found in course.values()],
        "CO": [found.tau for found in course.values()],
        "NA": [found.natural / 100 for found in course.values()],
        "AA": [found.adversarial / 100 for found in course.values()],
    }
    for place, (name, each) in enumerate(values.items()):
        _attributional.line(axes, list(course), each, name, place)
    axes.set(xlabel=LAMBDA)
    draw.legend(axes)
    return figure
