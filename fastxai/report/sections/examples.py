"""Images and maps of the first pairs ([M] figs. 1 and 2, [M1] figs. 25-30)."""

from __future__ import annotations

from fastxai.report.blocks import Picture, Section
from fastxai.report.draw import number
from fastxai.report.findings import Findings
from fastxai.report.sections import _pictures
from fastxai.viz import Panel, Row, grid

__all__ = ["build"]

EXPERIMENT = "manipulation"


def build(findings: Findings) -> Section:
    """Return for each kept pair a grid with one row a method."""
    kept = {method: findings.pictures(EXPERIMENT, method) for method in findings.methods(EXPERIMENT)}
    pairs = sorted({number for shown in kept.values() for number in shown})
    blocks = [
        Picture(
            grid([_row(findings, method, pair) for method in kept if pair in kept[method]], f"Pair {pair}", side=1.7)
        )
        for pair in pairs
    ]
    first = [row for row in findings.rows_of(EXPERIMENT) if 0 in row.key["pairs"]]
    return Section("Examples", [EXPERIMENT], blocks, _pictures.lost(findings, EXPERIMENT, first))


def _row(findings: Findings, method: str, pair: int) -> Row:
    shown = findings.pictures(EXPERIMENT, method)[pair]
    place = findings.pairs(EXPERIMENT, method).index(pair)
    before, after, image = (
        number(float(findings.over_pairs(EXPERIMENT, method, name)[place]))
        for name in ("map_to_target_before.pcc", "map_to_target.pcc", "image.mse")
    )
    return Row(
        [
            Panel(shown["image"], "original"),
            Panel(shown["map"], "its map", f"PCC to target {before}"),
            Panel(shown["manipulated"], "manipulated", f"MSE {image}"),
            Panel(shown["manipulated_map"], "its map", f"PCC to target {after}"),
            Panel(shown["target_map"], "target map"),
            Panel(shown["target_image"], "target image"),
        ],
        findings.titles[method],
    )
