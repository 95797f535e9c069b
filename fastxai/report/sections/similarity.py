"""How alike the maps are to their targets, and the images to the originals ([M] fig. 3)."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Panels, Section
from fastxai.report.findings import Findings

__all__ = ["METRICS", "build", "compared"]

METRICS = ("ssim", "pcc", "mse")


def build(findings: Findings) -> Section:
    """Return boxes over the pairs for each metric, maps first, and each pair before and after."""
    return Section(
        "Similarity of maps and images",
        ["manipulation"],
        [
            Panels(
                [compared(findings, "manipulation", "map_to_target", metric) for metric in METRICS],
                "Manipulated map and target map. Line: median; box: quartiles; whiskers: 10th and 90th percentile; "
                f"{findings.counted('manipulation')}.",
            ),
            Panels(
                [compared(findings, "manipulation", "image", metric) for metric in METRICS],
                "Manipulated and original image, in [0, 1].",
            ),
            Panels(
                [_before_after(findings, metric) for metric in METRICS],
                "Map and target map before and after the manipulation, one point a pair.",
            ),
        ]
        if findings.methods("manipulation")
        else [],
    )


def compared(findings: Findings, experiment: str, what: str, metric: str) -> Figure:
    """Return boxes of one metric, one for each method."""
    groups = {
        findings.titles[method]: findings.over_pairs(experiment, method, f"{what}.{metric}")
        for method in findings.methods(experiment)
    }
    figure, axes = draw.panel(f"{metric.upper()}, {'images' if what == 'image' else 'maps'}")
    if metric == "mse":
        draw.decades_of(axes, groups)
    draw.boxes(axes, groups, findings.colours)
    return figure


def _before_after(findings: Findings, metric: str) -> Figure:
    groups = {
        findings.titles[method]: (
            findings.over_pairs("manipulation", method, f"map_to_target_before.{metric}"),
            findings.over_pairs("manipulation", method, f"map_to_target.{metric}"),
        )
        for method in findings.methods("manipulation")
    }
    figure, axes = draw.panel(f"{metric.upper()} to the target map", 3.6)
    draw.scatter(axes, groups, findings.colours, logarithmic=metric == "mse")
    axes.set(xlabel="before", ylabel="after")
    draw.legend(axes)
    return figure
