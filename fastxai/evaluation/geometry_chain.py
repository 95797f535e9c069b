"""How much of a manipulation the curvature along its path explains ([M] theorem 1, [R] eq. 4 and 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastxai.evaluation.manipulation import attack, finished, resolve
from fastxai.evaluation.task import Outcome, Task, shown_map
from fastxai.evaluation.watched import Watched
from fastxai.theory import path_change
from fastxai.theory.path import maps_jump

__all__ = ["chain", "resolve"]

_LINKS = ("moved", "total", "jumps", "length", "distance", "closure")


def chain(task: Task) -> Outcome:
    """Measure every link of the chain along the attack's own path, on the softplus network of each of "betas".

    ||h(x_adv) - h(x)|| <= int ||H gamma'|| dt <= max ||H||_2 L <= max ||H||_F L, h the gradient of the class score.
    The path is the polyline through every so many iterates, up to the best one.

    Settings: those of an attack, "betas", "points" of the path, and "nodes", "samples", "steps", "probes" and
    "tolerance" of ``path_change``, the last where maps do not jump. Values: ``betas``; lists over pairs of lists over
    betas of the change of the map (``moved``), the integral (``total``), the jumps that max-pools make, the norms'
    maxima times the length (``spectral`` and ``frobenius``), ``length``, ``distance``, and by how much [R] eq. 4 is
    missed (``closure``).
    """
    settings = task.settings
    attacking = attack(task.explainer, task.space, settings)
    every = max(1, attacking.steps // settings["points"])
    seen: list[Tensor] = []
    watched = Watched(task.explainer, seen.append, every)
    result = finished(replace(attacking, explainer=watched).perturb(task.x, shown_map(task.explainer, task.target_x)))
    # The path ends at the best iterate: there it stays, whatever the attack tried later.
    best = result.images
    later = [(result.best_step <= i * every)[:, None, None, None] for i in range(len(seen))]
    points = torch.stack([*(torch.where(over, best, x) for over, x in zip(later, seen, strict=True)), best])
    net = task.explainer.net.base
    classes = net(task.x).argmax(1)
    columns: dict[str, list[Any]] = {}
    for beta in settings["betas"]:
        view = net.with_activation("softplus", beta)
        tolerance = None if maps_jump(view, task.x) else settings["tolerance"]
        counts = {name: settings[name] for name in ("nodes", "samples", "steps", "probes")}
        found = path_change(view, points, classes, **counts, tolerance=tolerance)
        links = {name: getattr(found, name) for name in _LINKS}
        links |= {"spectral": found.spectral * found.length, "frobenius": found.frobenius * found.length}
        for name, value in links.items():
            columns.setdefault(name, []).append(value.tolist())
    values = {name: [list(over) for over in zip(*each, strict=True)] for name, each in columns.items()}
    return Outcome({"betas": list(settings["betas"]), **values})
