"""Recovering the original map by beta-smoothing ([M] fig. 4)."""

from __future__ import annotations

from fastxai.report.blocks import Section
from fastxai.report.findings import Findings
from fastxai.report.sections._sweep import sweep

__all__ = ["build"]


def build(findings: Findings) -> Section:
    """Return similarity over beta."""
    return sweep(
        findings, "Undoing the manipulation by beta-smoothing", "beta_sweep", "betas", "\N{GREEK SMALL LETTER BETA}"
    )
