"""Recovering the original map by SmoothGrad ([M1] fig. 18)."""

from __future__ import annotations

from fastxai.report.blocks import Section
from fastxai.report.findings import Findings
from fastxai.report.sections._sweep import sweep

__all__ = ["build"]


def build(findings: Findings) -> Section:
    """Return similarity over the noise level."""
    return sweep(findings, "Undoing the manipulation by SmoothGrad", "sigma_sweep", "noises", "noise")
