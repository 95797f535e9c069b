"""Pixel flipping of plain and smoothed maps beside a random order ([M] fig. 7)."""

from __future__ import annotations

from typing import Any

from fastxai.evaluation.methods import smoothed
from fastxai.evaluation.task import Outcome, Task, shown_map
from fastxai.metrics import pixel_flipping

__all__ = ["flipping"]


def flipping(task: Task) -> Outcome:
    """Set the most relevant pixels to 0 and follow the network: it fails sooner the better the map.

    0 is that of the study's space: the mean colour where the input is normalised. The target is the predicted class of
    each image; the random order of an image depends on the seed and its pair's number alone.

    Settings: "fractions" and "defences" (name -> settings of ``smoothed``). Values: ``fractions``; for each defence and
    for "random" ``NAME.correct`` and ``NAME.scores``, lists over pairs of lists over fractions, and ``NAME.area``.
    """
    net, first = task.explainer.net.base, min(task.pairs)
    target = net(task.x).argmax(1)
    values: dict[str, Any] = {}
    for name, settings in task.settings["defences"].items():
        h = shown_map(smoothed(task.explainer, task.space, settings, task.seed), task.x, target)
        found = pixel_flipping(
            net, task.x, h, target, fractions=task.settings["fractions"], value=0.0, seed=(task.seed, first)
        )
        values["fractions"] = found.fractions.tolist()
        for curve, what in ((found.relevant, name), (found.random, "random")):
            values[f"{what}.correct"] = curve.correct.tolist()
            values[f"{what}.scores"] = curve.scores.tolist()
            values[f"{what}.area"] = curve.area.tolist()
    return Outcome(values)
