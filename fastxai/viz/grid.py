"""Rows of images and maps with titles, as one figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fastxai._check import positive, require, tensor
from fastxai.data.images import save_png
from fastxai.viz.heatmap import heatmap

__all__ = ["Panel", "Row", "grid", "save_figure"]

INK, FAINT = "#1a1a1a", "#555555"
# Inches: room above the first row, between things, and the height of one line of each kind of text.
MARGIN, GAP = 0.3, 0.3
HEADING, TITLE, NOTE, CAPTION = 0.42, 0.26, 0.165, 0.22


@dataclass(frozen=True)
class Panel:
    """One picture of a grid.

    Args:
        picture: an image [3, H, W] in [0, 1], or a map [H, W], coloured by ``heatmap`` with quantile 0.99.
        title: one short line above it.
        note: lines below it, separated by newlines.
        signed: whether a map's sign is shown.
    """

    picture: Tensor
    title: str = ""
    note: str = ""
    signed: bool = False

    def pixels(self) -> np.ndarray:
        """RGB [H, W, 3] in [0, 1]."""
        tensor(self.picture, "picture")
        if self.picture.dim() == 2:
            image = heatmap(self.picture[None], signed=self.signed, quantile=0.99)[0]
        else:
            image = self.picture.detach().cpu().float().clamp(0, 1)
            require(image.dim() == 3 and len(image) == 3, "picture", "be [3, H, W] or [H, W]", list(image.shape))
        return image.permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Row:
    """Panels side by side, with one sentence below that says what they show."""

    panels: Sequence[Panel]
    caption: str = ""


def grid(rows: Sequence[Row], heading: str = "", *, side: float = 2.3) -> Figure:
    """Lay out rows of panels: each with its title above and its note below, a caption under each row.

    Args:
        rows: at least one row with at least one panel; rows may differ in length.
        heading: one line at the top.
        side: width of a panel in inches; a picture that is not square is fitted into the square.

    Returns:
        A matplotlib figure of its own, unknown to pyplot.

    Raises:
        ValueError: no panel, or a side that is not positive.

    >>> from fastxai.viz import Panel, Row, grid
    >>> figure = grid([Row([Panel(torch.rand(3, 8, 8), "image"), Panel(torch.rand(8, 8), "map")], "An example.")])
    >>> len(figure.axes)
    2
    """
    positive(side, "side")
    require(len(rows) > 0 and all(row.panels for row in rows), "rows", "hold at least one panel each", list(rows))
    columns = max(len(row.panels) for row in rows)
    width = 2 * MARGIN + columns * side + (columns - 1) * GAP
    # DejaVu Sans at 10.5 points fills about 14 letters an inch.
    captions = [textwrap.wrap(row.caption, int((width - 2 * MARGIN) * 14)) for row in rows]
    notes = [max(panel.note.count("\n") + 1 if panel.note else 0 for panel in row.panels) for row in rows]
    heights = [
        TITLE + side + 0.08 + lines * NOTE + len(caption) * CAPTION + GAP
        for lines, caption in zip(notes, captions, strict=True)
    ]
    height = 2 * MARGIN + (HEADING if heading else 0) + sum(heights) - GAP
    figure = Figure((width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=size, va="top", **style)

    y = MARGIN
    if heading:
        write(MARGIN, y, heading, 14, color=INK, weight="bold")
        y += HEADING
    for row, lines, caption, row_height in zip(rows, notes, captions, heights, strict=True):
        for column, panel in enumerate(row.panels):
            x = MARGIN + column * (side + GAP)
            write(x, y, panel.title, 10.5, color=INK, weight="bold")
            below = y + TITLE + side
            axes = figure.add_axes((x / width, 1 - below / height, side / width, side / height))
            axes.imshow(panel.pixels(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#bbbbbb")
            for line, text in enumerate(panel.note.split("\n")):
                write(x, below + 0.08 + line * NOTE, text, 8.5, color=FAINT)
        for line, text in enumerate(caption):
            write(MARGIN, y + TITLE + side + 0.16 + lines * NOTE + line * CAPTION, text, 10.5, color=INK)
        y += row_height
    return figure


def save_figure(figure: Figure, file: str | Path, dpi: int = 150) -> Path:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: what ``grid`` or ``demo_figure`` returned.
        file: where to; its folder is made if missing.
        dpi: pixels an inch.

    Returns:
        The path written.
    """
    positive(dpi, "dpi")
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])
    return save_png(pixels.permute(2, 0, 1).float() / 255, file)
