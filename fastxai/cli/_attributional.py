"""Attributional robustness in the evaluate command: the settings behind a row, its values, what all rows say."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastxai import evaluation
from fastxai.attacks import IFIA
from fastxai.cli import _common
from fastxai.cli._common import UsageError
from fastxai.evaluation import Outcome, Robustness
from fastxai.explainers import Explainer, Gradient
from fastxai.metrics import top_k_intersection

__all__ = [
    "ATTACKS",
    "CHANGES",
    "NAME",
    "PRESETS",
    "add_arguments",
    "changes",
    "check",
    "described",
    "outcome",
    "preset",
    "settings",
    "summary",
    "text",
]

NAME = "robustness"
# [F] table 2.
PRESETS = ("mnist", "fashion_mnist", "cifar10", "gtsrb", "restricted_imagenet")
# Settings of the attacks that an option may change: type, placeholder, meaning.
CHANGES = {
    "eps": (float, "E", "radius of both attacks in the [0, 1] image"),
    "k": (int, "K", "how many of a map's largest values IN compares, and the attack lowers"),
    "steps": (int, "T", "steps of the attack on maps, of 1.2/T eps each"),
    "restarts": (int, "R", "restarts of the attack on maps"),
    "beta": (float, "B", "sharpness of the attack's surrogate"),
}
_SHARED = ("eps", "norm", "bounds", "steps", "step_size", "restarts")
_OF_MAPS = ("dissimilarity", "k", "beta")
_FIGURES = ("natural_accuracy", "adversarial_accuracy", "top_k", "kendall_tau", "attack_success", "skipped")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a preset's attack."""
    for name, (kind, metavar, what) in CHANGES.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{what} (default: that of --robustness)")
    parser.add_argument("--points", type=int, metavar="N", help="points of integrated gradients (default: 10)")


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the options put in place of the preset's; UsageError names what is wrong."""
    given = {name: getattr(options, name) for name in CHANGES if getattr(options, name) is not None}
    try:
        described({"preset": options.robustness}, given)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    return given


def settings(attack: IFIA) -> dict[str, Any]:
    """Return what a row says of both attacks."""
    return {
        "attack": {name: getattr(attack, name) for name in (*_SHARED, *_OF_MAPS)},
        "adversary": {name: getattr(evaluation.adversary(attack), name) for name in _SHARED},
    }


def preset(explainer: Explainer, which: Mapping[str, Any], changes: Mapping[str, Any], seed: int = 0) -> IFIA:
    """Return the attack on the explainer's maps: a preset, with other settings where ``changes`` or a beta say so."""
    beta = {"beta": which["beta"]} if "beta" in which else {}
    return IFIA.preset(explainer, which["preset"], seed=seed, **{**changes, **beta})


def described(which: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row says of both attacks, which no network has a part in."""
    return settings(preset(Gradient(nn.Linear(1, 1)), which, changes))


def check(attack: IFIA, images: Tensor) -> None:
    """Run a short attack on images [N, C, H, W]; what it raises says that explainer, model and preset do not fit."""
    labels = attack.explainer.net.base(_within(images)).argmax(1)
    evaluation.robustness(replace(attack, steps=1, restarts=1), _within(images), labels)


def _within(images: Tensor) -> Tensor:
    # Resizing may leave the box by a rounding.
    return images.clamp(0, 1)


def _values(attack: IFIA, images: Tensor, labels: Tensor, index: Tensor) -> Outcome:
    """Return the figures of images [N, C, H, W], a list over them each."""
    found = evaluation.robustness(attack, images, labels, index=index)
    return Outcome({one.name: getattr(found, one.name).tolist() for one in fields(Robustness)})


def _pictures(attack: IFIA, images: Tensor, labels: Tensor, index: Tensor) -> Outcome:
    """Return images and maps of the label before and after, [N, 2, ...], and what is left of the k largest values."""
    found = attack.perturb(images, labels, index=index)
    maps = found.original_maps, found.maps
    pairs = {"images": torch.stack([images, found.images], 1), "maps": torch.stack(maps, 1)}
    return Outcome({"top_k": top_k_intersection(*maps, attack.k).tolist()}, pairs)


# What is done with an attack.
ATTACKS = {NAME: _values, "attacked": _pictures}


def outcome(kind: str, attack: IFIA, images: Tensor, labels: Tensor, index: Tensor) -> Outcome:
    """Return what an attack did to images [N, C, H, W] with these labels and numbers [N]; kind, of ``ATTACKS``."""
    return ATTACKS[kind](attack, _within(images), labels, index)


def summary(values: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Return the figures over all images; None for what no image has, as JSON knows no NaN."""
    found = Robustness(**{one.name: torch.tensor(values[one.name]) for one in fields(Robustness)}).summary()
    return {name: None if value != value else value for name, value in found.items()}


def text(result: Mapping[str, Any]) -> str:
    """Return the figures for people."""
    shares = ("natural_accuracy", "adversarial_accuracy", "attack_success", "skipped")
    rows = [
        [row["method"], *(_cell(row[name], ".2%" if name in shares else ".3f") for name in _FIGURES)]
        for row in result[NAME]
    ]
    about = result["settings"]
    attack, adversary = about["attack"], about["adversary"]
    return "\n\n".join(
        [
            f"{result['images']} images, eps {attack['eps']:g} ({about['preset']})\n"
            f"NA, AA  accuracy, as they are and under PGD: {adversary['steps']} steps of {adversary['step_size']:.3g}\n"
            f"IN, CO  top-{attack['k']} intersection and Kendall's tau of maps under IFIA: {attack['steps']} steps of "
            f"{attack['step_size']:.3g}, {attack['restarts']} restarts, beta {attack['beta']:g}",
            _common.table(["map", "NA", "AA", "IN", "CO", "moved", "skipped"], rows),
            f"rows in {result['written']}",
        ]
    )


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
