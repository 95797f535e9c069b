"""Smoothed maps of manipulated images, and what smoothing costs ([M] section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastxai.attacks import Similarity
from fastxai.evaluation.methods import smoothed
from fastxai.evaluation.task import Outcome, Task, listed, shown_map
from fastxai.explainers import BetaSmoothing, Explainer, SmoothGrad

__all__ = ["beta_sweep", "run_time", "sigma_sweep"]


def beta_sweep(task: Task) -> Outcome:
    """Compare beta-smoothed maps of manipulated images with what they should be, over "betas" ([M] fig. 4).

    Given: "manipulated". Values: ``betas``, and those of ``_sweep`` for each.
    """
    betas = task.settings["betas"]
    found = _sweep(task, [BetaSmoothing(task.explainer, beta) for beta in betas])
    return Outcome({"betas": betas, **found.values}, found.tensors)


def sigma_sweep(task: Task) -> Outcome:
    """Compare SmoothGrad maps of manipulated images with what they should be, over "noises" ([M1] fig. 18).

    sigma = noise (x_max - x_min), over the valid inputs. Given: "manipulated". Values: ``noises``, and those of
    ``_sweep`` for each.
    """
    noises, samples = task.settings["noises"], task.settings["n_samples"]
    found = _sweep(
        task, [SmoothGrad(task.explainer, samples, seed=task.seed, stdev=noise * task.space.span) for noise in noises]
    )
    return Outcome({"noises": noises, **found.values}, found.tensors)


def _sweep(task: Task, explainers: list[Explainer]) -> Outcome:
    """Compare the map of the manipulated image by each explainer with four others.

    Values, lists over pairs of lists over explainers, .pcc, .ssim and .mse each: ``to_target`` and ``to_original``
    (the plain maps of the partner and of the original image), ``to_smoothed_target`` and ``to_smoothed_original``
    (theirs by the same explainer). The explained class of each image is that of the model as given.
    """
    manipulated = task.given["manipulated"].to(task.x)
    net = task.explainer.net.base
    # One batch of three images a pair: a smoothed map costs one call.
    images = torch.cat([manipulated, task.x, task.target_x])
    classes = net(images).argmax(1)
    plain, plain_target = shown_map(task.explainer, images, classes)[len(task.x) :].chunk(2)
    columns: dict[str, list[list[float]]] = {}
    maps: list[Tensor] = []
    for one in explainers:
        h, original, target = shown_map(one, images, classes).chunk(3)
        compared = listed(
            to_target=Similarity.between(h, plain_target),
            to_original=Similarity.between(h, plain),
            to_smoothed_target=Similarity.between(h, target),
            to_smoothed_original=Similarity.between(h, original),
        )
        for name, numbers in compared.items():
            columns.setdefault(name, []).append(numbers)
        maps.append(h)
    values = {name: [list(over) for over in zip(*numbers, strict=True)] for name, numbers in columns.items()}
    return Outcome(values, task.kept({"example.maps": torch.stack(maps, 1)}))


def run_time(task: Task) -> Outcome:
    """Time one map of the batch: plain, beta-smoothed and by SmoothGrad ([M] fig. 5, right).

    Settings: "defences" (name -> settings of ``smoothed``), "repeats". Values: ``images`` in the batch, and for each
    defence ``NAME.seconds`` an image, one for each repeat, taken in turns after one call that does not count.
    """
    explainers = {
        name: smoothed(task.explainer, task.space, settings, task.seed)
        for name, settings in task.settings["defences"].items()
    }
    classes = task.explainer.net.base(task.x).argmax(1)
    calls: dict[str, Callable[[], Tensor]] = {
        name: lambda one=one: shown_map(one, task.x, classes) for name, one in explainers.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(task.settings["repeats"] + 1):
        for name, call in calls.items():
            began = _now(task.x)
            call()
            if repeat:
                seconds[name].append((_now(task.x) - began) / len(task.x))
    return Outcome({"images": len(task.x), **{f"{name}.seconds": each for name, each in seconds.items()}})


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
