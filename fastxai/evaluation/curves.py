"""How the map of the softplus network approaches that of the network as given ([M1] figs. 7-9, [M] fig. 6)."""

from __future__ import annotations

import torch

from fastxai.attacks import Similarity
from fastxai.evaluation.task import Outcome, Task, listed, shown_map
from fastxai.explainers import BetaSmoothing

__all__ = ["softplus_map"]


def softplus_map(task: Task) -> Outcome:
    """Compare the map on softplus_beta with the map on the network as given, over "betas".

    Values: ``betas``; ``to_plain`` with .pcc, .ssim and .mse, lists over pairs (their first images) of lists over
    betas. Tensors: the kept images with their maps at every beta.
    """
    betas = task.settings["betas"]
    classes = task.explainer.net.base(task.x).argmax(1)
    plain = shown_map(task.explainer, task.x, classes)
    maps = [shown_map(BetaSmoothing(task.explainer, beta), task.x, classes) for beta in betas]
    compared = [listed(to_plain=Similarity.between(h, plain)) for h in maps]
    values = {name: [list(over) for over in zip(*(one[name] for one in compared), strict=True)] for name in compared[0]}
    shown = {"example.image": task.space.leave(task.x), "example.map": plain, "example.maps": torch.stack(maps, 1)}
    return Outcome({"betas": betas, **values}, task.kept(shown))
