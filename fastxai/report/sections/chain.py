"""The theory's chain along the attacks' paths ([M] theorem 1, [R] eq. 4 and 5)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section, Table
from fastxai.report.findings import Findings

__all__ = ["build"]

EXPERIMENT = "chain"
LINKS = {
    "moved": "change of the gradient",
    "total": "\N{INTEGRAL} \N{DOUBLE VERTICAL LINE}H \N{GREEK SMALL LETTER GAMMA}'\N{DOUBLE VERTICAL LINE} dt",
    "spectral": "max \N{DOUBLE VERTICAL LINE}H\N{DOUBLE VERTICAL LINE}\N{SUBSCRIPT TWO} L",
    "frobenius": "max \N{DOUBLE VERTICAL LINE}H\N{DOUBLE VERTICAL LINE} Frobenius L",
}
BETA = "\N{GREEK SMALL LETTER BETA}"


def build(findings: Findings) -> Section:
    """Return boxes of each link for each beta, and medians of what is lost from link to link."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Curvature along the path", [EXPERIMENT])
    figures, rows = [], []
    for method in methods:
        for place, beta in enumerate(findings.common(EXPERIMENT, method, "betas")):
            links = {
                name: findings.over_pairs(EXPERIMENT, method, name)[:, place] for name in (*LINKS, "jumps", "closure")
            }
            figures.append(_boxes(f"{findings.titles[method]}, {BETA} = {beta:g}", links))
            rows.append(
                [
                    f"{findings.titles[method]}, {BETA} = {beta:g}",
                    draw.summary(draw.ratio(links["moved"], links["total"] + links["jumps"])),
                    draw.summary(draw.ratio(links["total"], links["spectral"])),
                    draw.summary(draw.ratio(links["spectral"], links["frobenius"])),
                    draw.summary(draw.ratio(links["jumps"], links["moved"])),
                    draw.summary(links["closure"]),
                ]
            )
    head = ["network", "change / (integral + jumps)", "integral / spectral", "spectral / Frobenius", "jumps / change"]
    said = (
        "Along the attack's path on the softplus network: the gradient moves by the integral and the jumps at most, "
        "and each link is below the next. Jumps are what the Hessian at the path's points does not see: max-pools that "
        "change their winner, and the error of the quadrature. The norms' maxima are over some points of the path, "
        "those where the Hessian turns the path's direction most and others evenly along it: lower bounds. "
        f"Line: median over {findings.counted(EXPERIMENT)}; box: quartiles; whiskers: 10th and 90th percentile."
    )
    below = f"Medians over {findings.counted(EXPERIMENT)}, quartiles in brackets; 1 is a tight link."
    table = Table([*head, "eq. 4 missed by"], rows, below)
    return Section("Curvature along the path", [EXPERIMENT], [Panels(figures, said), table])


def _boxes(title: str, links: dict[str, np.ndarray]) -> Figure:
    groups = {said: links[name] for name, said in LINKS.items()}
    figure, axes = draw.panel(title)
    draw.decades_of(axes, groups)
    draw.boxes(axes, groups, dict(zip(groups, draw.COLOURS, strict=False)))
    return figure
