"""The figure that compares maps: one row an image, one column a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from fastxai._check import require, shape, tensor
from fastxai.viz.grid import Panel, Row, grid
from fastxai.viz.heatmap import overlay

__all__ = ["maps_figure"]

_LEGENDS = {
    False: "The brighter a pixel, the more it matters to the class; black: not at all. Each map has its own scale.",
    True: "Red: positive, for the class. Blue: negative, against it. White: zero. Each map has its own scale.",
}


def maps_figure(
    images: Tensor,
    maps: Mapping[str, Tensor],
    titles: Sequence[str] = (),
    notes: Sequence[str] = (),
    *,
    signed: bool = False,
    overlays: bool = False,
) -> Figure:
    """Draw images and their maps by one or several methods.

    Args:
        images: [N, 3, H, W] in [0, 1], N at least 1.
        maps: [N, H, W] by the method's name, in the order of the columns.
        titles: of the images, N or none.
        notes: what stands below the images, N or none.
        signed: whether the sign of the maps is shown.
        overlays: whether each map is shown over a grey copy of its image too.

    Returns:
        A matplotlib figure: the image first, then the maps, each coloured on its own scale.

    Raises:
        TypeError: not floating point tensors.
        ValueError: shapes do not agree, or there is nothing to draw.

    >>> from fastxai.viz import maps_figure
    >>> figure = maps_figure(torch.rand(2, 3, 8, 8), {"Gradient": torch.rand(2, 8, 8), "LRP": torch.rand(2, 8, 8)})
    >>> len(figure.axes)
    6
    """
    tensor(images, "images")
    fits = images.dim() == 4 and images.shape[1] == 3 and len(images) > 0
    require(fits, "images", "have shape [N, 3, H, W], N at least 1", list(images.shape))
    require(len(maps) > 0, "maps", "hold at least one method", dict(maps))
    for name, one in maps.items():
        shape(tensor(one, f"maps[{name!r}]"), f"maps[{name!r}]", (len(images), *images.shape[2:]))
    for values, what in ((titles, "titles"), (notes, "notes")):
        require(len(values) in (0, len(images)), what, f"be {len(images)} or none", len(values))
    over = {name: overlay(images, one, signed=signed, quantile=0.99) for name, one in maps.items() if overlays}
    rows = []
    for i, image in enumerate(images):
        panels = [Panel(image, titles[i] if titles else f"Image {i + 1}", notes[i] if notes else "")]
        for name, one in maps.items():
            panels.append(Panel(one[i], name, signed=signed))
            if overlays:
                panels.append(Panel(over[name][i], "over the image"))
        rows.append(Row(panels, _LEGENDS[signed] if i == len(images) - 1 else ""))
    return grid(rows)
