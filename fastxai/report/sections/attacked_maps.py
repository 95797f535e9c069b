"""Images and maps before and after the attack, network by network ([F] fig. 4(b))."""

from __future__ import annotations

from fastxai import results
from fastxai.report.blocks import Picture, Section
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._pictures import lost
from fastxai.viz import Panel, Row, grid

__all__ = ["build"]

EXPERIMENT = "pictures"
TITLE = "Maps under attack"
_WHEN = ("", ", attacked")


def build(findings: Findings) -> Section:
    """Return a grid an image: a row of images and maps for each network."""
    kept: dict[int, list[Row]] = {}
    without: list[results.Row] = []
    for name, one in _networks.trained(findings).items():
        for row in (row for row in one.rows if row.experiment == EXPERIMENT):
            tensors = findings.store.tensors(row)
            without += [] if tensors else [row]
            for place, image in enumerate(range(*row.key["images"]) if tensors else ()):
                pairs = zip(_WHEN, tensors["images"][place], tensors["maps"][place], strict=True)
                panels = [
                    panel
                    for when, x, h in pairs
                    for panel in (Panel(x.expand(3, -1, -1), f"image{when}"), Panel(h, f"map{when}"))
                ]
                said = f"{name}: top-k intersection {row.values['top_k'][place]:.2f}"
                kept.setdefault(image, []).append(Row(panels, said))
    source = findings.paper["initialisation"]["source"]
    pictures = [Picture(grid(kept[image], f"Image {image}", side=1.7), f"|gradient| ({source}).") for image in kept]
    return Section(TITLE, [EXPERIMENT], pictures, lost(findings, EXPERIMENT, without))
