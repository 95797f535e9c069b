"""What sections about attributional robustness share: a network's figures, and how far its training is from [F]'s."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fastxai.report import draw
from fastxai.report.blocks import Text
from fastxai.report.findings import Findings
from fastxai.report.sections._networks import Network, beside

__all__ = ["HEAD", "NAMES", "Figures", "cells", "conditions", "figures", "line", "settings_of"]

HEAD = ("NA %", "AA %", "IN", "CO")
# What [F] calls the ways of training; the longer ones are ours.
NAMES = {
    "natural": "Nat",
    "adv": "Adv",
    "align": "Align",
    "align_s": "Align (s.)",
    "ig_sum_norm": "IG-SN",
    "aat": "AAT",
    "adv_aat": "AdvAAT",
    "aat_long": "AAT, longer",
    "adv_aat_long": "AdvAAT, longer",
}


@dataclass(frozen=True)
class Figures:
    """What [F]'s tables say of a network.

    Attributes:
        natural, adversarial: accuracy in per cent, NA and AA.
        top_k, tau: means over the images that were attacked, IN and CO.
        moved: share of these whose map the attack moved.
        images: how many were measured.
    """

    natural: float
    adversarial: float
    top_k: float
    tau: float
    moved: float
    images: int

    @property
    def four(self) -> tuple[float, float, float, float]:
        """NA, AA, IN, CO."""
        return self.natural, self.adversarial, self.top_k, self.tau


def figures(one: Network, experiment: str, **which: Any) -> Figures | None:
    """Return a network's figures from the rows of an experiment; None if there are none."""
    values = {name: one.over_images(experiment, name, **which) for name in ("correct", "withstood", "moved")}
    right = values["correct"] == 1
    if not len(right):
        return None
    maps = [one.over_images(experiment, name, **which)[right] for name in ("top_k", "tau")]
    top_k, tau, moved = (float(each.mean()) if len(each) else math.nan for each in (*maps, values["moved"][right]))
    natural, adversarial = (100 * float(each.mean()) for each in (right, values["withstood"]))
    return Figures(natural, adversarial, top_k, tau, moved, len(right))


def cells(found: Figures | None, theirs: Sequence[float] | None) -> list[str]:
    """Return NA, AA, IN and CO as tables print them, the paper's in brackets."""
    mine = (math.nan,) * 4 if found is None else found.four
    return [beside(a, b) for a, b in zip(mine, theirs or (math.nan,) * 4, strict=True)]


def settings_of(one: Network) -> dict[str, Any]:
    """Return the settings of a training, those of a term by "terms.NAME.KEY"."""
    flat: dict[str, Any] = {}
    for name, value in one.trained.config["settings"].items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def _deviations(one: Network, paper: Mapping[str, Any]) -> list[str]:
    """Return where a training differs from the paper's, and what the paper does not give."""
    mine = settings_of(one)
    theirs = dict(paper["shared"])
    for name, table in paper["networks"].items():
        theirs |= table if fnmatch(one.name, name) else {}
    said = []
    for term, names in paper["terms"].items():
        if f"terms.{term}.eps" in mine:
            theirs |= {f"terms.{term}.{name}": paper["attack"][name] for name in names}
    for name, value in theirs.items():
        if name in mine and mine[name] != value:
            own, other = (f"{_short(each)}{_each(name, each, mine, paper)}" for each in (mine[name], value))
            said.append(f"{_words(name)} {own} ({other})")
    for term, names in paper["silent"].items():
        known = [name for name in names if f"terms.{term}.{name}" in mine]
        said += [f"{_words(name)} {_short(mine[f'terms.{term}.{name}'])} (not given)" for name in known]
    return said


def _each(name: str, steps: int, mine: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """Return how long the steps of a training attack are, if that is what the setting is about."""
    table = name.rpartition(".")[0]
    given = any(f"{table}.{size}" in mine for size in ("alpha", "rel_stepsize"))
    return f" of {paper['attack']['reach'] / steps:.3f} eps" if name.endswith(".steps") and not given else ""


def _words(name: str) -> str:
    """Return what a setting is called."""
    short = name.rpartition(".")[2]
    known = {"epoch": "images an epoch", "n_steps": "points", "steps": "attack steps", "lr": "learning rate"}
    return known.get(short, short.replace("_", " "))


def _short(value: Any) -> str:
    return draw.short(value) if isinstance(value, float) and value else f"{value}"


def conditions(findings: Findings, found: Iterable[Network]) -> Text:
    """Return how the networks were trained and measured, and each way in which that is not the paper's."""
    found, paper = list(found), findings.paper["training"]
    each = {one.name: _deviations(one, paper) for one in found}
    shared = [said for said in next(iter(each.values()), []) if all(said in others for others in each.values())]
    alike: dict[str, list[str]] = {}
    for name, deviations in each.items():
        alike.setdefault(", ".join(said for said in deviations if said not in shared), []).append(name)
    parts = [f"all: {', '.join(shared)}"] if shared else []
    parts += [f"{', '.join(names)}: {said}" for said, names in alike.items() if said]
    counts = sorted({int(row.key["images"][1]) for one in found for row in one.rows if "preset" in row.key})
    images = f"the first {counts[-1]} test images ({paper['samples']})" if counts else "no test images yet"
    seeds = sorted({one.setting("fit.seed") for one in found})
    starts = sorted({start for one in found if (start := one.setting("model.start"))})
    begun = f" All others started from the weights of {', '.join(starts)}." if starts else ""
    made_with = [made for one in found for made in one.trained.values.get("made_with", {}).values()]
    outer = sorted({made["outer"] for made in made_with if "outer" in made})
    bent = f" The surrogate of the outer step is {' or '.join(outer)}." if outer else ""
    machines = sorted({one.trained.machine for one in found})
    return Text(
        f"Trained here, with the paper's settings in brackets where they differ ({paper['source']}). "
        f"{'; '.join(parts) or 'none does'}.{begun} Measured on {images}, seed {' or '.join(map(str, seeds))} "
        f"(means over {paper['seeds']} seeds and splits). Weights are rounded to float16. The network, the points of "
        f"the integral and that the best image of the attack counts, not the last, are ours.{bent} "
        f"Computed on {'; '.join(machines)}."
    )


def line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, place: int) -> None:
    """Draw a curve; ``place`` among the colours."""
    colour = draw.COLOURS[place % len(draw.COLOURS)]
    axes.plot(np.array(x), np.array(y), color=colour, linewidth=1.5, marker="o", markersize=2.5, label=label)
