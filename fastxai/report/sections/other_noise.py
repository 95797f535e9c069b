"""Other kinds of noise over each of the three defences ([R] figs. 19, 20)."""

from __future__ import annotations

from fastxai.report.blocks import Block, Panels, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks

__all__ = ["build"]

KINDS = {"laplace": "Laplace noise ([R] fig. 19)", "salt_and_pepper": "salt and pepper ([R] fig. 20)"}


def build(findings: Findings) -> Section:
    """Return diagrams of the Gradient map's PCC for each kind of noise and defence."""
    courses = _networks.courses(_networks.networks(findings))
    blocks: list[Block] = []
    for noise, said in KINDS.items():
        drawn = [_networks.curves(course, noise=noise) for course in courses]
        figures = [figure for figure in drawn if figure is not None]
        if figures:
            blocks.append(Panels(figures, f"Gradient map, {said}."))
    return Section("Other noise", ["noise_kinds"], blocks)
