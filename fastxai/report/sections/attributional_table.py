"""Accuracy and robustness of maps, each way of training beside the paper's ([F] table 1)."""

from __future__ import annotations

from fastxai.report.blocks import Block, Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections import _attributional, _networks
from fastxai.report.sections._attributional import HEAD, NAMES

__all__ = ["build"]

EXPERIMENT = "robustness"
TITLE = "Predictions and maps under attack"
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def build(findings: Findings) -> Section:
    """Return how the networks were trained, and the table."""
    known = _networks.trained(findings)
    paper = findings.paper["accuracy_and_maps"]
    rows, shown = [], []
    for data, title in DATA.items():
        for method, said in NAMES.items():
            name = f"{data}_{method}"
            if name not in known:
                continue
            one = known[name]
            found = _attributional.figures(one, EXPERIMENT, preset=data)
            star = "*" * (name in paper["quoted"])
            figures = _attributional.cells(found, paper["rows"].get(name))
            moved = "\N{EN DASH}" if found is None else f"{found.moved:.1%}"
            values = one.trained.values
            rows.append([f"{title}, {said}{star}", *figures, moved, f"{values['steps']}", f"{one.trained.seconds:.0f}"])
            shown.append(one)
    if not shown:
        return Section(TITLE, ["train", EXPERIMENT])
    caption = (
        f"In brackets: {paper['source']}; * the paper quotes these. NA and AA: accuracy on the images as they are and "
        "under PGD. IN and CO: top-k intersection and Kendall's tau of the maps before and after the attack, means "
        "over the images that the network gets right; moved: the share of them where the attack found something."
    )
    head = ["network", *HEAD, "moved", "steps", "training s"]
    blocks: list[Block] = [_attributional.conditions(findings, shown), Table(head, rows, caption)]
    return Section(TITLE, ["train", EXPERIMENT], blocks)
