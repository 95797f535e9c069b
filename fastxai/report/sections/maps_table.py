"""Five maps on the plain and on the robust network ([R] table 1)."""

from __future__ import annotations

from fastxai.report.blocks import Section, Table
from fastxai.report.draw import number
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import NU

__all__ = ["build"]

LEVEL = 0.025
NETWORKS = {"wd0_relu_hess0": "original", "wd5e-4_beta10_hess1e-6": "robust"}
METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "guided_backprop", "lrp")
TITLE = "Original and robust network"


def build(findings: Findings) -> Section:
    """Return mean and standard deviation of the PCC of each map, beside the paper's."""
    found = [one for one in _networks.networks(findings) if one.name in NETWORKS]
    paper = findings.paper.get("maps", {})
    rows = []
    for one in found:
        values = [one.stable(LEVEL, method) for method in METHODS]
        if not any(map(len, values)):
            continue
        name = f"{NETWORKS[one.name]}, {_networks.described(one)}"
        rows.append([name, *map(_networks.spread, values)])
        if one.name in paper:
            said = [
                f"{number(mean)} \N{PLUS-MINUS SIGN} {number(std)}" for mean, std in map(paper[one.name].get, METHODS)
            ]
            rows.append([f"{paper['source']}, {NETWORKS[one.name]}", *said])
    if not rows:
        return Section(TITLE, ["noise", "maps"])
    caption = f"PCC at {NU} = {LEVEL:g}, mean \N{PLUS-MINUS SIGN} standard deviation over the images."
    table = Table(["network", *(findings.titles[method] for method in METHODS)], rows, caption)
    return Section(TITLE, ["noise", "maps"], [_networks.conditions(findings, found), table])
