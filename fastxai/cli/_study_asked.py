"""What the options of a study of pairs ask for, and what of it fits the model: maps and experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fastxai import evaluation
from fastxai.cli._common import UsageError
from fastxai.cli._errors import first_line
from fastxai.engine import Net
from fastxai.explainers import Explainer, Patterns
from fastxai.studies import Experiment, Study

__all__ = ["experiments", "explainers", "methods"]

SMOOTHING = "beta_smoothing"
# Settings of experiments that are about nothing but the beta of softplus.
BETAS = {"betas", "courses"}


def methods(options: argparse.Namespace, study: Study) -> None:
    """UsageError if a map is asked for that the study does not make, or none that an experiment named is done with."""
    unknown = [name for name in options.methods if name not in (*study.methods, "all")]
    if unknown:
        raise UsageError(f"--methods must be all or some of {' '.join(study.methods)}, got {' '.join(unknown)}")
    for experiment in (study.experiments[name] for name in options.only or ()):
        if not {"all", *experiment.methods} & set(options.methods):
            raise UsageError(
                f"--methods must be all or some of {' '.join(experiment.methods)} for --only {experiment.name}, got "
                f"{' '.join(options.methods)}"
            )


def explainers(
    options: argparse.Namespace, study: Study, net: Net, x: Tensor, space: evaluation.Space, patterns: Patterns | None
) -> dict[str, Explainer]:
    """Return the maps that were asked for, without those that do not fit; UsageError if one was asked for by name.

    Args:
        options: of the command.
        study: says which maps there are, and their options.
        net: takes inputs of the space.
        x: an input [1, C, H, W].
        space: gives LRP its box.
        patterns: for pattern_attribution.
    """
    everything = options.methods == ["all"]
    kept = {}
    for name, explainer in _made(options, study, net, space, patterns).items():
        try:
            explainer.attribute(x)
        except (RuntimeError, ValueError, TypeError) as error:
            if not everything:
                raise UsageError(f"--methods {name} does not fit the model: {first_line(error)}") from error
            _left_out([name], first_line(error))
        else:
            kept[name] = explainer
    if not kept:
        raise UsageError("--methods: none fits the model")
    return kept


def _made(
    options: argparse.Namespace, study: Study, net: Net, space: evaluation.Space, patterns: Patterns | None
) -> dict[str, Explainer]:
    made = {}
    for name in study.methods:
        if not {"all", name} & set(options.methods):
            continue
        if name == "pattern_attribution" and patterns is None:
            if options.methods == ["all"]:
                _left_out([name], "it needs --patterns FILE")
                continue
            raise UsageError(f"--methods {name} needs --patterns FILE")
        settings = {k: v for k, v in study.methods[name].items() if k != "title"}
        made[name] = evaluation.explainer(name, net, space, settings, patterns)
    return made


def _left_out(what: Sequence[str], why: str) -> None:
    print(f"fastxai: {', '.join(what)} {'is' if len(what) == 1 else 'are'} left out: {why}", file=sys.stderr)


def experiments(options: argparse.Namespace, study: Study, net: Net, x: Tensor) -> dict[str, Experiment]:
    """Return the study's experiments, without those about softplus where that changes nothing of the net.

    Beta-smoothed maps beside others are left out of theirs.

    Raises:
        UsageError: an experiment that was asked for by name is about softplus alone.
    """
    if net.smooths(x):
        return dict(study.experiments)
    kept = {name: _without_softplus(one) for name, one in study.experiments.items()}
    named = [study.experiments[name] for name in options.only or study.experiments]
    asked = [one for one in named if {"all", *one.methods} & set(options.methods)]
    whole = [one.name for one in asked if kept[one.name] is None]
    why = "the model has no ReLU-like units, so softplus changes nothing"
    if options.only and whole:
        raise UsageError(f"--only {whole[0]} does not fit the model: {why}")
    parts = [f"{SMOOTHING} of {one.name}" for one in asked if kept[one.name] not in (None, one)]
    if whole or parts:
        _left_out([*whole, *parts], why)
    return {name: one for name, one in kept.items() if one is not None}


def _without_softplus(experiment: Experiment) -> Experiment | None:
    """Return an experiment without its beta-smoothed maps; None if it is about softplus alone."""
    settings = experiment.settings
    if BETAS & settings.keys() or settings.get("defence") == SMOOTHING:
        return None
    if "defences" not in settings:
        return experiment
    others = {name: one for name, one in settings["defences"].items() if one.get("defence") != SMOOTHING}
    return replace(experiment, settings={**settings, "defences": others})
