"""Images and maps under noise, a plain network beside robust ones ([R] fig. 6)."""

from __future__ import annotations

from torch import Tensor

from fastxai.report.blocks import Block, Picture, Section
from fastxai.report.draw import number
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks, _pictures
from fastxai.results import Row as Found
from fastxai.viz import Panel, Row, grid

__all__ = ["build"]

EXPERIMENT = "pictures"


def build(findings: Findings) -> Section:
    """Return a grid an image: it and its noisy versions, then a row of maps for each network."""
    kept: dict[int, list[Row]] = {}
    for one in _networks.networks(findings):
        for row in sorted(one.rows, key=lambda row: row.key.get("images", [0])):
            if row.experiment != EXPERIMENT:
                continue
            tensors = findings.store.tensors(row)
            for place, image in enumerate(range(*row.key["images"])):
                if not tensors:
                    continue
                rows = kept.setdefault(image, [_images(tensors["images"][place], row)])
                rows.append(_maps(tensors["maps"][place], row.values["pcc"][place], _networks.described(one)))
    blocks: list[Block] = [Picture(grid(kept[image], f"Image {image}", side=1.7)) for image in sorted(kept)]
    lost = _pictures.lost(findings, EXPERIMENT, findings.rows_of(EXPERIMENT))
    return Section("Maps under noise", [EXPERIMENT], blocks, lost)


def _images(images: Tensor, row: Found) -> Row:
    noisy = f"{_networks.NU} = {row.key['level']:g}"
    return Row([Panel(image, "original" if i == 0 else noisy) for i, image in enumerate(images)])


def _maps(maps: Tensor, alike: list[float], network: str) -> Row:
    notes = ["", *(f"PCC {number(value)}" for value in alike)]
    return Row([Panel(h, note="" if i == 0 else notes[i]) for i, h in enumerate(maps)], network)
