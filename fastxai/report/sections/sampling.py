"""What a few random directions say of the Hessian's norm ([R] fig. 22)."""

from __future__ import annotations

import numpy as np

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks

__all__ = ["build"]

EXPERIMENT = "sampling"


def build(findings: Findings) -> Section:
    """Return the relative error of the sampled norm over the number of directions, a diagram a network."""
    figures = []
    for one in _networks.networks(findings):
        counts = sorted({row.key["probes"] for row in one.rows if row.experiment == EXPERIMENT} - {0})
        exact = one.over_images(EXPERIMENT, findings.run["space"]["name"], probes=0)
        if not counts or not exact.size or not exact.all():
            continue
        sampled = [one.over_images(EXPERIMENT, findings.run["space"]["name"], probes=count) for count in counts]
        errors = [np.abs(values - exact) / exact for values in sampled if len(values) == len(exact)]
        if len(errors) < len(counts):
            continue
        middle, width = (np.array([function(each) for each in errors]) for function in (np.mean, np.std))
        figure, axes = draw.panel(_networks.described(one), 3.1)
        axes.errorbar(counts, middle, width, color=draw.COLOURS[0], linewidth=1.5, marker="o", markersize=2.5)
        draw.decades(axes, "x", np.array(counts))
        axes.set(xlabel="directions", ylabel="relative error")
        figures.append(figure)
    caption = (
        "||H|| from random directions against the exact norm, mean \N{PLUS-MINUS SIGN} standard deviation over the "
        "images ([R] fig. 22, appendix E: about 6 % with one direction)."
    )
    return Section("Sampling the Hessian norm", [EXPERIMENT], [Panels(figures, caption)] if figures else [])
