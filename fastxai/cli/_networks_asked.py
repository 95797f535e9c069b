"""What the options of a study of networks ask for: data sets, networks, settings of their training, maps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fastxai import studies
from fastxai.cli import train
from fastxai.cli._attributional import ATTACKS
from fastxai.cli._common import UsageError
from fastxai.studies import Experiment, Network, Study
from fastxai.training import FitConfig

__all__ = ["chosen", "measures_maps", "methods", "places", "settings_of"]


def places(options: argparse.Namespace, study: Study) -> dict[str, str]:
    """Return where each of the study's data sets is; a study that names none has one."""
    names = list(dict.fromkeys(network.data for network in study.networks))
    if names == [""]:
        if len(options.data) > 1:
            raise UsageError(f"--data must be one place for {study.name}, got {' '.join(options.data)}")
        return {"": options.data[0]}
    found = {}
    for given in options.data:
        name, _, place = given.partition("=")
        if name not in names or not place:
            raise UsageError(f"--data must be NAME=KIND:FOLDER, NAME one of {' '.join(names)}, got {given}")
        found[name] = place
    return found


def chosen(
    options: argparse.Namespace, study: Study, places: Mapping[str, str]
) -> tuple[list[Network], frozenset[str]]:
    """Return the networks that are needed, and the names of those that were asked for."""
    known = [network for network in study.networks if network.data in places]
    for pattern in options.networks or []:
        if studies.chosen(known, [pattern]):
            continue
        elsewhere = studies.chosen(study.networks, [pattern])
        if elsewhere:
            raise UsageError(f"--data {elsewhere[0].data}=KIND:FOLDER is needed for {elsewhere[0].name}")
        first, last = study.networks[0].name, study.networks[-1].name
        raise UsageError(f"--networks must match names such as {first} and {last}, got {pattern}")
    found = studies.chosen(known, options.networks or ["*"])
    asked = frozenset(network.name for network in found)
    needed = asked | {network.start for network in found}
    return [network for network in known if network.name in needed], asked


def settings_of(
    options: argparse.Namespace, study: Study, network: Network, places: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings of a network's training: the study's, the network's, then the user's; defaults filled in."""
    # The demo network is a trained CNN of [R], which is what the study itself trains.
    given: dict[str, Any] = {"data": {"place": places[network.data]}, "fit": {"seed": options.seed}}
    given |= {} if options.model == "demo" else {"model": {"network": options.model}}
    given["data"] |= {name: value for name in ("mean", "std") if (value := getattr(options, name)) is not None}
    found = train.changed(studies.merged(studies.merged(study.train, given), network.settings), options.set or [])
    found["fit"] |= {} if options.epochs is None else {"epochs": options.epochs}
    terms = {
        name: studies.merged(study.terms[name], value if isinstance(value, Mapping) else {"weight": value})
        if name in study.terms
        else value
        for name, value in found.get("terms", {"cross_entropy": 1.0}).items()
    }
    return {"model": {}, **found, "terms": terms, "fit": FitConfig.of(found["fit"]).table()}


def methods(options: argparse.Namespace, study: Study) -> None:
    """UsageError if a map is asked for that the study does not make."""
    known = [m for m in study.methods if any(m in e.methods for e in study.experiments.values() if measures_maps(e))]
    unknown = [name for name in options.methods if name not in (*known, "all")]
    if unknown:
        raise UsageError(f"--methods must be all or some of {' '.join(known)}, got {' '.join(unknown)}")


def measures_maps(experiment: Experiment) -> bool:
    """Return whether an experiment explains images."""
    return experiment.run in ("stability", "pictures", *ATTACKS)
