"""The attack with growing and with constant beta ([M1] fig. 6)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections.summary import kept

__all__ = ["build"]

EXPERIMENT = "growth"


def build(findings: Findings) -> Section:
    """Return MSE of images and maps over the iterations, and at the end."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Growing beta", [EXPERIMENT])
    figures = [
        _curves(findings, method, name, what)
        for method in methods
        for name, what in (("image_mse", "MSE of the image"), ("map_mse", "MSE of the map"))
    ]
    rows = [
        [
            findings.titles[method],
            _said(findings, method, course),
            *(
                draw.summary(findings.over_pairs(EXPERIMENT, method, f"{course}.best_{w}_mse"))
                for w in ("image", "map")
            ),
            kept(findings, EXPERIMENT, method, f"{course}.last_class_kept"),
        ]
        for method in methods
        for course in findings.settings(EXPERIMENT, method)["courses"]
    ]
    return Section(
        "Growing beta",
        [EXPERIMENT],
        [
            Panels(
                figures,
                f"Iterates of the attack, measured on the network as given; {findings.counted(EXPERIMENT)}. "
                "Lines: medians; bands: 10th to 90th percentile.",
            ),
            Table(
                ["method", "beta", "image MSE", "map MSE", "class kept to the end"],
                rows,
                f"The best iterates: medians over {findings.counted(EXPERIMENT)}, quartiles in brackets.",
            ),
        ],
    )


def _said(findings: Findings, method: str, course: str) -> str:
    beta = findings.settings(EXPERIMENT, method)["courses"][course]
    return f"{beta[0]:g} \N{RIGHTWARDS ARROW} {beta[1]:g}" if isinstance(beta, list) else f"{beta:g}"


def _curves(findings: Findings, method: str, name: str, what: str) -> Figure:
    figure, axes = draw.panel(f"{findings.titles[method]}, {what}", 3.4)
    everything = []
    for course, colour in zip(findings.settings(EXPERIMENT, method)["courses"], draw.COLOURS, strict=False):
        values = findings.over_pairs(EXPERIMENT, method, f"{course}.{name}")
        steps = findings.common(EXPERIMENT, method, "steps")
        # At step 0 nothing has moved: an MSE of 0 has no place on a logarithmic axis.
        values = np.where(values > 0, values, np.nan)
        known = np.isfinite(values).any(0)
        draw.bands(axes, np.array(steps)[known].tolist(), values[:, known], _said(findings, method, course), colour)
        everything.append(values.ravel())
    draw.decades(axes, "y", np.concatenate(everything))
    axes.set(xlabel="iteration")
    draw.legend(axes)
    return figure
