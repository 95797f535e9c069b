"""The figure of the demo: an explanation is manipulated, then recovered."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from fastxai.metrics import pcc, ssim
from fastxai.viz.grid import Panel, Row, grid

__all__ = ["Exhibit", "demo_figure"]


@dataclass(frozen=True)
class Exhibit:
    """A photo, its map and what the network says.

    Args:
        image: [3, H, W] in [0, 1].
        map: [H, W], not negative.
        says: the predicted class with its probability, as it shall read: "cat, 93 %".
    """

    image: Tensor
    map: Tensor
    says: str


def demo_figure(
    original: Exhibit,
    target: Exhibit,
    manipulated: Exhibit,
    recovered: Tensor,
    beta: float,
    method: str = "gradient",
    smoothed: Tensor | None = None,
) -> Figure:
    """Eight pictures in two rows: before the manipulation, and after it with the map that smoothing recovers.

    Args:
        original: the photo to be manipulated.
        target: the photo whose map is to be imitated.
        manipulated: the original after the attack.
        recovered: the manipulated photo's map [H, W] on the network with softplus of this beta.
        beta: of that softplus.
        method: what the map is called.
        smoothed: the original photo's map [H, W] on that same network; if given, the recovered map is compared with it
            too.

    Returns:
        A matplotlib figure. The similarities are computed here, maps with maps and images with images, and the second
        caption says which of the two maps the recovered one is closer to.

    Raises:
        ValueError: shapes do not agree, or an image is below 7x7.

    [M] figures 1 and 5.
    """
    change = (manipulated.image - original.image).detach()
    visible = ssim(original.image[None], manipulated.image[None], 1.0).detach()
    back = bool(pcc(recovered[None], original.map[None]) > pcc(recovered[None], target.map[None]))
    before = Row(
        [
            Panel(original.image, "Original photo", f"network says: {original.says}"),
            Panel(original.map, "Its map", _alike("target map", original.map, target.map)),
            Panel(target.image, "Target photo", f"network says: {target.says}"),
            Panel(target.map, "Its map", "what the manipulation imitates"),
        ],
        f"Before: each {method} map shows the pixels that the network's decision rests on (bright = important).",
    )
    after = Row(
        [
            Panel(
                manipulated.image,
                "Manipulated photo",
                f"network says: {manipulated.says}\nvs original photo: SSIM {float(visible):.3f}",
            ),
            Panel(
                manipulated.map,
                "Its map",
                _alike("target map", manipulated.map, target.map)
                + "\n"
                + _alike("original map", manipulated.map, original.map),
            ),
            Panel(
                (0.5 + 10 * change).clamp(0, 1),
                "Change of the photo \N{MULTIPLICATION SIGN} 10",
                f"grey = unchanged\nlargest: {255 * float(change.abs().max()):.1f} of 255 levels",
            ),
            Panel(
                recovered,
                f"Smoothed map, \N{GREEK SMALL LETTER BETA} = {beta:g}",
                _alike("target map", recovered, target.map)
                + "\n"
                + _alike("original map", recovered, original.map)
                + (
                    ""
                    if smoothed is None
                    else f"\nvs smoothed original: PCC {float(pcc(recovered[None], smoothed[None])):.2f}"
                ),
            ),
        ],
        "After: a small change of the photo gave it another map; the smoothed network's map of that photo is closer to "
        f"the {'original' if back else 'target'} map.",
    )
    return grid([before, after], "Manipulating an explanation, and smoothing the network against it")


def _alike(name: str, a: Tensor, b: Tensor) -> str:
    """Similarity of two maps [H, W] in words."""
    a, b = a.detach()[None], b.detach()[None]
    return f"vs {name}: PCC {float(pcc(a, b)):.2f}, SSIM {float(ssim(a, b)):.2f}"
