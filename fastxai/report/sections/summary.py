"""One line a method, beside what the paper says."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fastxai.report.blocks import Block, Section, Table, Text
from fastxai.report.draw import UNKNOWN, number, share
from fastxai.report.findings import Findings

__all__ = ["build", "kept"]

EXPERIMENT = "manipulation"


def build(findings: Findings) -> Section:
    """Return the medians over the pairs of each method, and the paper's claims."""
    methods = findings.methods(EXPERIMENT)
    if not methods:
        return Section("Summary", [EXPERIMENT])
    blocks: list[Block] = [_medians(findings, methods), _claims(findings, methods), _conditions(findings)]
    return Section("Summary", [EXPERIMENT], blocks)


def kept(
    findings: Findings,
    experiment: str,
    method: str,
    name: str = "last_class_kept",
    pairs: Collection[int] | None = None,
) -> str:
    """Return in how many of the pairs (None: all) the last iterate keeps the class; a dash unless every row says."""
    if not findings.holds(experiment, method, name):
        return UNKNOWN
    held = findings.over_pairs(experiment, method, name)
    return share(held if pairs is None else held[[n in pairs for n in findings.pairs(experiment, method)]])


def _median(findings: Findings, method: str, name: str) -> float:
    return float(np.nanmedian(findings.over_pairs(EXPERIMENT, method, name)))


def _medians(findings: Findings, methods: list[str]) -> Table:
    head = ["method", "pairs", "class kept to the end", "map: PCC before", "map: PCC after", "map: SSIM", "map: MSE"]
    head += ["image: SSIM", "image: MSE", "softmax change", "seconds a pair"]
    rows = [
        [
            findings.titles[method],
            str(len(findings.pairs(EXPERIMENT, method))),
            kept(findings, EXPERIMENT, method),
            *(
                number(_median(findings, method, name), 3 if "image" in name else 2)
                for name in (
                    "map_to_target_before.pcc",
                    "map_to_target.pcc",
                    "map_to_target.ssim",
                    "map_to_target.mse",
                    "image.ssim",
                    "image.mse",
                    "softmax_change",
                )
            ),
            f"{findings.seconds(EXPERIMENT, method):.2g}",
        ]
        for method in methods
    ]
    caption = (
        "Medians over the pairs. Maps are compared with the target map, images with the original; "
        "softmax change is the norm of g(x_adv) - g(x). Class kept to the end: by the attack's last iterate; the image "
        "returned, which all else is about, is the one with the best map among those judged that keep the class."
    )
    return Table(head, rows, caption)


def _claims(findings: Findings, methods: list[str]) -> Table:
    rows = []
    for name, claim in findings.paper.items():
        if name == "pairs":
            counts = {len(findings.pairs(EXPERIMENT, method)) for method in methods}
            measured = " .. ".join(map(str, sorted({min(counts), max(counts)})))
        elif name in ("last_class_kept", "softmax_change"):
            known = [method for method in methods if findings.holds(EXPERIMENT, method, name)]
            each = [findings.over_pairs(EXPERIMENT, method, name) for method in known]
            each.sort(key=np.mean if name == "last_class_kept" else np.median)
            said = [share(v) if name == "last_class_kept" else f"{np.median(v):.1e}" for v in (*each[:1], *each[-1:])]
            measured = " .. ".join(dict.fromkeys(said)) or UNKNOWN
        else:
            continue
        rows.append([claim["claim"], claim["text"], measured, claim["source"]])
    return Table(["claim", "paper", "here", "source"], rows, "Here: lowest and highest of the methods.")


def _conditions(findings: Findings) -> Text:
    run = findings.run
    rows = [row for row in findings.rows if row.experiment == EXPERIMENT]
    steps = "as in the paper" if run["steps"] is None else f"{run['steps']} (not the paper's)"
    machines = sorted({row.machine for row in rows})
    return Text(
        f"Model {run['model']}, {run['size']} pixels, attacked in the {run['space']['name']} input space; preset "
        f"{run['preset']}; iterations {steps}; seed {run['seed']}. Computed on {'; '.join(machines)}."
    )
