"""Diagrams of distributions over pairs, in colours that read on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

__all__ = [
    "COLOURS",
    "INK",
    "UNKNOWN",
    "bands",
    "boxes",
    "decades",
    "decades_of",
    "legend",
    "number",
    "panel",
    "ratio",
    "scatter",
    "share",
    "short",
    "smoothing",
    "summary",
]

# What has this colour takes that of the page's text.
INK = "#012345"
# Four of Okabe and Ito's colours, a red and a violet: told apart by colour-blind readers too.
COLOURS = ("#0082c8", "#e08a00", "#00a078", "#d32f2f", "#c065a0", "#7c3aed")
SIZE = 8.5


def panel(title: str, height: float = 2.9) -> tuple[Figure, Axes]:
    """Return a figure with one diagram, as wide as a phone's page."""
    figure = Figure((4.1, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, fontsize=SIZE + 1, color=INK, loc="left", weight="bold")
    axes.tick_params(labelsize=SIZE - 0.5, colors=INK, which="both", width=0.6)
    axes.spines[:].set_color(INK)
    axes.spines[:].set_linewidth(0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set(color=INK, fontsize=SIZE)
    axes.yaxis.label.set(color=INK, fontsize=SIZE)
    return figure, axes


def decades(axes: Axes, which: str, values: np.ndarray) -> None:
    """Make an axis logarithmic if the values are positive and span more than a factor of 5."""
    known = values[np.isfinite(values)]
    if not len(known) or known.min() <= 0 or known.max() <= 5 * known.min():
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if known.max() < 30 * known.min() else (1,), numticks=6))
    # Labels of the ticks between would run into one another.
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """Return 0.02, 5, 1000 or 1e-7."""
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    return f"{digits}e{int(power)}"


def decades_of(axes: Axes, groups: Mapping[str, np.ndarray]) -> None:
    """Make the x axis logarithmic where the values of all groups together ask for it."""
    decades(axes, "x", np.concatenate(list(groups.values())))


def boxes(axes: Axes, groups: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> None:
    """Draw a lying box for each group: median, quartiles, and a line from the 10th to the 90th percentile."""
    names = [name for name, values in groups.items() if np.isfinite(values).any()]
    for place, name in enumerate(names):
        values = groups[name][np.isfinite(groups[name])]
        low, first, middle, third, high = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9))
        colour = colours[name]
        axes.plot((low, high), (place, place), color=colour, linewidth=1.2, solid_capstyle="butt")
        axes.fill_between((first, third), place - 0.3, place + 0.3, color=colour, alpha=0.45, linewidth=0)
        axes.plot((middle, middle), (place - 0.3, place + 0.3), color=INK, linewidth=1.6, solid_capstyle="butt")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def bands(axes: Axes, x: Sequence[float], values: np.ndarray, label: str, colour: str) -> None:
    """Draw the median of values [pairs, len(x)] as a line, the 10th to 90th percentile as a band."""
    low, middle, high = np.nanquantile(values, (0.1, 0.5, 0.9), axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=colour, linewidth=1.5, marker="o", markersize=2.5, label=label)


def scatter(
    axes: Axes,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    colours: Mapping[str, str],
    *,
    logarithmic: bool = False,
) -> None:
    """Draw a point a pair, a colour a group, and the diagonal; both axes have one scale."""
    for name, (x, y) in groups.items():
        axes.scatter(x, y, s=12, color=colours[name], alpha=0.65, linewidths=0, label=name)
    together = np.concatenate([np.concatenate(pair) for pair in groups.values()])
    known = together[np.isfinite(together)]
    if not len(known):
        return
    for which in ("x", "y") if logarithmic else ():
        decades(axes, which, known)
    low, high = known.min(), known.max()
    axes.plot((low, high), (low, high), color=INK, linewidth=0.7, linestyle="--")


def legend(axes: Axes) -> None:
    """Name what is drawn, below the diagram where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=2,
        fontsize=SIZE - 1,
        frameon=False,
        labelcolor=INK,
        handlelength=1.4,
    )


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)


BETA_SMOOTHING = "\N{GREEK SMALL LETTER BETA}-smoothing"
MORE = {"matched": "plain budget", "fixed": "fixed noise", "10": "10 samples", "50": "50 samples"}
UNKNOWN = "\N{EN DASH}"


def smoothing(name: str) -> str:
    """Return what a report calls a way of smoothing: "beta_smoothing" is beta-smoothing."""
    if name in ("none", "manipulation"):
        return "plain"
    kind, _, more = name.replace("beta_smoothing", BETA_SMOOTHING).replace("smooth_grad", "SmoothGrad").partition("_")
    return f"{kind}, {MORE.get(more, more.replace('_', ' '))}" if more else kind


def number(value: float, places: int = 2) -> str:
    """Return a number as a report prints it, with two digits that count: 0.93, 0.011, 1.2e-05, or a dash for NaN."""
    if not np.isfinite(value):
        return UNKNOWN
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    leading = 0 if value == 0 else math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 1 - leading)}f}"


def share(kept: np.ndarray) -> str:
    """Return the share of what is true in per cent: 100% where all is, and never by a rounding."""
    mean = float(kept.mean())
    return "100%" if mean == 1 else f"{min(mean, 0.999):.1%}"


def summary(values: np.ndarray, places: int = 2) -> str:
    """Return the median and, in brackets, the quartiles."""
    known = values[np.isfinite(values)]
    if not len(known):
        return UNKNOWN
    first, middle, third = np.quantile(known, (0.25, 0.5, 0.75))
    return f"{number(middle, places)} ({number(first, places)} .. {number(third, places)})"
