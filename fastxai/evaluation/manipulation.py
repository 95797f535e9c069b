"""Attacks on a batch of pairs: what became of the maps, the images and the output ([M] section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.attacks import AttackResult, Manipulation, Similarity
from fastxai.evaluation.methods import smoothed
from fastxai.evaluation.task import Outcome, Space, Task, listed, shown_map
from fastxai.evaluation.watched import Watched
from fastxai.explainers import Explainer, Gradient, SmoothGrad
from fastxai.metrics import mse

__all__ = ["attack", "finished", "growth", "manipulate", "resolve"]

# Of an attack: what a row says of it, beside the space.
_SAID = ("steps", "lr", "beta", "c", "gamma", "output", "optimizer", "judge_every")
# What "plain" takes from the plain map's attack; c comes with the data.
_BUDGET = ("steps", "lr", "output", "gamma")
# What the attack's own noise does not reach: another seed of SmoothGrad.
_FRESH = 1


def attack(explainer: Explainer, space: Space, settings: Mapping[str, Any]) -> Manipulation:
    """Return [M]'s attack on this map, within the space's valid images.

    Args:
        explainer: the map under attack, by a net that takes inputs of the space.
        space: gives the bounds.
        settings: "preset" is "imagenet" or "cifar10", or "imagenet:NETWORK" with the name of a network, whose row then
            holds for the Gradient map; "attack" replaces arguments of the preset. "budget" is "plain" if a smoothed map
            is attacked with the iterations, the step size and the output term of the plain one, "own" (if absent) if
            with its own; "redraw" is Manipulation's.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument is out of range, or there is no such preset.
    """
    data, _, network = settings["preset"].partition(":")
    changes = settings.get("attack", {})

    def preset(explainer: Explainer, changes: Mapping[str, Any]) -> Manipulation:
        row = network if network and isinstance(explainer, Gradient) else None
        return Manipulation.preset(explainer, data, row, mean=space.mean, std=space.std, **changes)

    if _check.one_of(settings.get("budget", "own"), "budget", ("own", "plain")) == "plain":
        plain = preset(getattr(explainer, "explainer", explainer), {})
        changes = {name: getattr(plain, name) for name in _BUDGET} | dict(changes)
    return preset(explainer, {"redraw": settings.get("redraw", False), **changes})


def resolve(task: Task) -> dict[str, Any]:
    """Return the task's settings with every argument of the attack, the preset's included; beta if it has an effect."""
    made = attack(smoothed(task.explainer, task.space, task.settings, task.seed), task.space, task.settings)
    said = {name: getattr(made, name) for name in _SAID}
    said["beta"] = list(made.beta) if isinstance(made.beta, tuple) else made.beta
    if not task.explainer.net.smooths(task.x):
        said["beta"] = None
    return {**task.settings, "attack": {**task.settings.get("attack", {}), **said}}


def manipulate(task: Task) -> Outcome:
    """Give each image the map of its partner, [M] eq. 4.

    Settings: those of ``attack``, and "defence" with its own ones: the map that is attacked and judged is then the
    smoothed one.

    Values, a list over pairs each: ``map_to_target``, ``map_to_target_before``, ``map_to_original`` and ``image`` with
    .pcc, .ssim and .mse; class and confidence before and after; norms of the change on softmax and logits; the step
    of the best iterate; class and PCC with the target map of the last one. Of
    SmoothGrad also ``fresh_to_target`` and ``fresh_to_original``: the map by noise that the attack has not seen,
    against the target map, and the original image's by that noise. Tensors: "manipulated" of all pairs, and the kept
    pairs' images and maps.
    """
    method = smoothed(task.explainer, task.space, task.settings, task.seed)
    attacking = attack(method, task.space, task.settings)
    result = finished(attacking.perturb(task.x, shown_map(method, task.target_x)))
    change = result.output_change
    values = {
        **listed(
            map_to_target=result.metrics.to_target,
            map_to_target_before=Similarity.between(result.original_maps, result.target_maps),
            map_to_original=result.metrics.to_original,
            image=result.metrics.image,
        ),
        "class_before": change.original_classes.tolist(),
        "class_after": change.classes.tolist(),
        "confidence_before": change.original_confidence.tolist(),
        "confidence_after": change.confidence.tolist(),
        "softmax_change": change.softmax.tolist(),
        "logit_change": change.logits.tolist(),
        "best_step": result.best_step.tolist(),
        "last_class_kept": result.last_class_kept.tolist(),
        "last_pcc": result.last_pcc.tolist(),
    }
    if isinstance(method, SmoothGrad):
        fresh = smoothed(task.explainer, task.space, task.settings, task.seed + _FRESH)
        classes = change.original_classes
        h, h_0 = (shown_map(fresh, images, classes) for images in (result.images, task.x))
        values |= listed(
            fresh_to_target=Similarity.between(h, result.target_maps), fresh_to_original=Similarity.between(h, h_0)
        )
    shown = task.kept(
        {
            "example.image": task.space.leave(task.x),
            "example.target_image": task.space.leave(task.target_x),
            "example.manipulated": task.space.leave(result.images),
            "example.map": result.original_maps,
            "example.target_map": result.target_maps,
            "example.manipulated_map": result.maps,
        }
    )
    return Outcome(values, {"manipulated": result.images, **shown})


def growth(task: Task) -> Outcome:
    """Follow the attack with several courses of beta, judged on the network as given ([M1] fig. 6).

    Settings: those of ``attack``, "courses" (name -> [first, last] or one value) and "points", how many iterates are
    judged.

    Values: ``steps``; for each course ``NAME.image_mse`` and ``NAME.map_mse``, a list over pairs of lists over steps,
    of the iterates as they come; of what the attack returns ``NAME.best_image_mse`` and ``NAME.best_map_mse``; of its
    last iterate ``NAME.last_class_kept``.
    """
    target_map = shown_map(task.explainer, task.target_x)
    classes = task.explainer.net.base(task.x).argmax(1)
    values: dict[str, Any] = {}
    for name, beta in task.settings["courses"].items():
        attacking = attack(task.explainer, task.space, task.settings)
        every = max(1, attacking.steps // task.settings["points"])
        seen: list[tuple[Tensor, Tensor]] = []

        def judge(x: Tensor, seen: list[tuple[Tensor, Tensor]] = seen) -> None:
            images = (task.space.leave(one) for one in (x, task.x))
            seen.append((mse(*images), mse(shown_map(task.explainer, x, classes), target_map)))

        watched = Watched(task.explainer, judge, every)
        course = tuple(beta) if isinstance(beta, list) else beta
        result = finished(replace(attacking, explainer=watched, beta=course).perturb(task.x, target_map))
        values["steps"] = list(range(0, attacking.steps, every))
        for what, column in zip(("image_mse", "map_mse"), zip(*seen, strict=True), strict=True):
            values[f"{name}.{what}"] = torch.stack(column, 1).tolist()
        values[f"{name}.best_image_mse"] = result.metrics.image.mse.tolist()
        values[f"{name}.best_map_mse"] = result.metrics.to_target.mse.tolist()
        values[f"{name}.last_class_kept"] = result.last_class_kept.tolist()
    return Outcome(values)


def finished(result: AttackResult) -> AttackResult:
    """Return the result; where Ctrl-C cut it short, pass that on: half an attack is no result."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result
