"""Every network in numbers, beside the paper's ([R] table 2)."""

from __future__ import annotations

import math

from fastxai.report.blocks import Section, Table
from fastxai.report.findings import Findings
from fastxai.report.sections import _networks
from fastxai.report.sections._networks import BETA, LAMBDA, LEVELS, NU, ZETA

__all__ = ["build"]


def build(findings: Findings) -> Section:
    """Return how the networks were trained, and the table."""
    found = _networks.networks(findings)
    if not found:
        return Section("Networks", ["train"])
    paper = findings.paper.get("networks", {})
    space = findings.run["space"]["name"]
    # [R] does not say in which space its Hessian norm counts.
    norms = [f"mean ||H||, {space}"] + ["mean ||H||, [0, 1]"] * (space != "image")
    head = [LAMBDA, "activation", ZETA, "accuracy %", *(f"PCC, {NU} = {level:g}" for level in LEVELS), "mean ||W||"]
    rows = []
    for one in found:
        theirs = paper.get("rows", {}).get(one.name, [math.nan] * 6)
        measured = [
            one.accuracy,
            *(float(v.mean()) if len(v := one.stable(level)) else math.nan for level in LEVELS),
            one.weight_norm,
            one.hessian_norm(space),
        ]
        cells = [_networks.beside(mine, value) for mine, value in zip(measured, theirs, strict=True)]
        cells += [_networks.beside(one.hessian_norm("image"), math.nan)] * (len(norms) - 1)
        rows.append([*_networks.settings(one), *cells, str(one.trained.values["epochs"]), f"{one.trained.seconds:.0f}"])
    caption = (
        f"In brackets: {paper['source']}, where the paper has a number; it does not say in which space ||H|| counts. "
        if paper
        else ""
    )
    caption += f"Activation: ReLU, or the {BETA} of the softplus. PCC of the Gradient map, means over the images."
    table = Table([*head, *norms, "epochs", "training s"], rows, caption)
    return Section("Networks", ["train"], [_networks.conditions(findings, found), table])
