"""How many points integrated gradients take, in the attack and in the training: what [F] does not say."""

from __future__ import annotations

from fastxai.report import draw
from fastxai.report.blocks import Block, Panels, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections import _attributional, _networks
from fastxai.report.sections._attributional import HEAD, Figures
from fastxai.report.sections._networks import Network

__all__ = ["build"]

EXPERIMENT, PLAIN, TRAINED = "points", "robustness", "mnist_aat"
TITLE = "Points of the integral"


def build(findings: Findings) -> Section:
    """Return IN and CO over the points of the evaluation, and the networks that were trained with other numbers."""
    known = _networks.trained(findings)
    figures = []
    shown: dict[str, Network] = {}
    for name, one in known.items():
        course = _measured(one)
        if len(course) < 2:
            continue
        figure, axes = draw.panel(name, 3.1)
        for place, (said, which) in enumerate((("IN", "top_k"), ("CO", "tau"))):
            _attributional.line(axes, list(course), [getattr(found, which) for found in course.values()], said, place)
        axes.set(xlabel="points")
        draw.legend(axes)
        figures.append(figure)
        shown[name] = one
    blocks: list[Block] = [Panels(figures, "Points of the attacked map, Gauss-Legendre.")] if figures else []
    rows = []
    for name, one in known.items():
        count = _attributional.settings_of(one).get("terms.aat.n_steps")
        found = _attributional.figures(one, PLAIN)
        if (name == TRAINED or name.startswith(f"{TRAINED}_points")) and found is not None and count is not None:
            rows.append((count, [f"{count}", *_attributional.cells(found, None), f"{one.trained.seconds:.0f}"]))
            shown[name] = one
    if len(rows) > 1:
        head = ["points in training", *HEAD, "training s"]
        caption = "MNIST, AAT trained with so many points, midpoints; measured as in the first table."
        blocks.append(Table(head, [cells for _, cells in sorted(rows)], caption))
    if not blocks:
        return Section(TITLE, [EXPERIMENT])
    return Section(TITLE, [EXPERIMENT], [_attributional.conditions(findings, shown.values()), *blocks])


def _measured(one: Network) -> dict[int, Figures]:
    """Return the figures by number of points, ascending, those of the plain evaluation among them."""
    counts = {row.key["n_steps"] for row in one.rows if row.experiment == EXPERIMENT}
    found = {count: _attributional.figures(one, EXPERIMENT, n_steps=count) for count in counts}
    plain = [row.config["settings"]["explainer"]["n_steps"] for row in one.rows if row.experiment == PLAIN]
    if counts and plain:
        found[plain[0]] = _attributional.figures(one, PLAIN)
    return {count: each for count, each in sorted(found.items()) if each is not None}
