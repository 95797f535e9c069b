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
from matplotlib.text import Text
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
        title: one line above it; what does not fit is left out in the middle.
        note: lines below it, separated by newlines; long ones are wrapped.
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
    # DejaVu Sans fills about 14 letters an inch at 10.5 points, 17 at 8.5.
    captions = [textwrap.wrap(row.caption, int((width - 2 * MARGIN) * 14)) for row in rows]
    notes = [[_wrapped(panel.note, int(side * 17)) for panel in row.panels] for row in rows]
    depths = [max(map(len, row)) for row in notes]
    heights = [
        TITLE + side + 0.08 + lines * NOTE + len(caption) * CAPTION + GAP
        for lines, caption in zip(depths, captions, strict=True)
    ]
    height = 2 * MARGIN + (HEADING if heading else 0) + sum(heights) - GAP
    figure = Figure((width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, **style: Any) -> Text:
        return figure.text(x / width, 1 - y / height, text, fontsize=size, va="top", parse_math=False, **style)

    y = MARGIN
    if heading:
        write(MARGIN, y, heading, 14, color=INK, weight="bold")
        y += HEADING
    for row, below_row, lines, caption, row_height in zip(rows, notes, depths, captions, heights, strict=True):
        for column, (panel, note) in enumerate(zip(row.panels, below_row, strict=True)):
            x = MARGIN + column * (side + GAP)
            _fit(write(x, y, panel.title, 10.5, color=INK, weight="bold"), side * figure.dpi)
            below = y + TITLE + side
            axes = figure.add_axes((x / width, 1 - below / height, side / width, side / height))
            axes.imshow(panel.pixels(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#bbbbbb")
            for line, text in enumerate(note):
                write(x, below + 0.08 + line * NOTE, text, 8.5, color=FAINT)
        for line, text in enumerate(caption):
            write(MARGIN, y + TITLE + side + 0.16 + lines * NOTE + line * CAPTION, text, 10.5, color=INK)
        y += row_height
    return figure


def _wrapped(note: str, letters: int) -> list[str]:
    return [line for given in note.split("\n") for line in textwrap.wrap(given, letters) or [""]] if note else []


def _fit(text: Text, pixels: float) -> None:
    """Leave out letters in the middle until the text is this narrow."""
    whole, kept = text.get_text(), len(text.get_text()) - 1
    while kept > 1 and text.get_window_extent().width > pixels:
        text.set_text(f"{whole[: (kept + 1) // 2]}\N{HORIZONTAL ELLIPSIS}{whole[-(kept // 2) :]}")
        kept -= 1


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
