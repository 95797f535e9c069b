"""How far the attack gets with each sharpness of ReLU's second derivative ([F] fig. 5)."""

from __future__ import annotations

import numpy as np

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _attributional, _networks
from fastxai.report.sections._networks import BETA

__all__ = ["build"]

EXPERIMENT = "surrogate"
TITLE = "The second derivative of ReLU"


def build(findings: Findings) -> Section:
    """Return IN, CO and the share of moved maps over beta, for each network that was attacked so."""
    figures, shown = [], []
    for name, one in _networks.trained(findings).items():
        betas = sorted({row.key["beta"] for row in one.rows if row.experiment == EXPERIMENT})
        found = [_attributional.figures(one, EXPERIMENT, beta=beta) for beta in betas]
        known = [each for each in found if each is not None]
        if not known:
            continue
        figure, axes = draw.panel(name, 3.1)
        for place, what in enumerate(("top_k", "tau", "moved")):
            said = {"top_k": "IN", "tau": "CO", "moved": "moved"}[what]
            _attributional.line(axes, betas, [getattr(each, what) for each in known], said, place)
        draw.decades(axes, "x", np.array(betas))
        axes.set(xlabel=BETA)
        draw.legend(axes)
        figures.append(figure)
        shown.append(one)
    if not figures:
        return Section(TITLE, [EXPERIMENT])
    paper = findings.paper["surrogate"]
    caption = f"|gradient|; moved: the share of images where the attack found something. {paper['source']}: "
    panels = Panels(figures, f"{caption}{paper['text']}.")
    return Section(TITLE, [EXPERIMENT], [_attributional.conditions(findings, shown), panels])
