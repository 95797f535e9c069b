"""A study of networks at work: which are to be trained, which rows are missing, one row."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fastxai import evaluation, studies
from fastxai._files import write_tensors
from fastxai.cli import _common, _evaluate, _rows, train
from fastxai.cli._common import UsageError
from fastxai.cli._evaluate import Part
from fastxai.data import Labelled, labelled
from fastxai.engine import compile as compile_net
from fastxai.results import ResultStore, Row, digest
from fastxai.studies import Experiment, Network, Study
from fastxai.training import Dataset, FitConfig

__all__ = ["Bench", "Job", "bench", "jobs", "run"]

TRAIN = "train"
# What a file of weights says of itself: the row of its training.
ROW = "row"


@dataclass(frozen=True)
class Bench:
    """What all rows of one run of a study share.

    Attributes:
        study: the study.
        networks: those that were asked for.
        settings: of the training of each, by its name.
        data: what they are trained on.
        test: the images and labels that they are measured on.
        space: where the networks take their inputs from.
        told: what a row says of the run, beside its network.
        options: of the command.
        seen: the network that was used last, by name.
    """

    study: Study
    networks: Sequence[Network]
    settings: Mapping[str, Mapping[str, Any]]
    data: Dataset
    test: Labelled
    space: evaluation.Space
    told: Mapping[str, Any]
    options: argparse.Namespace
    seen: dict[str, _evaluate.Bench] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images every network is measured on."""
        return min(self.options.samples, len(self.test))

    @property
    def made_with(self) -> dict[str, dict[str, Any]]:
        """What each explainer is made with, by name."""
        return {name: {k: v for k, v in table.items() if k != "title"} for name, table in self.study.methods.items()}

    def weights(self, network: str) -> Path:
        """Return the file of a trained network."""
        return self.options.out / "models" / f"{network}.safetensors"

    def network(self, name: str) -> _evaluate.Bench:
        """Return a trained network, ready to be measured."""
        if name not in self.seen:
            self.seen.clear()
            model = self.built(name)
            net = compile_net(model)
            wanted = [part.which for one in self.study.experiments.values() for part in _parts(self, one)]
            methods = {which["method"] for which in wanted if "method" in which}
            self.seen[name] = _evaluate.Bench(
                net=net,
                image_net=compile_net(model, mean=self.space.mean, std=self.space.std),
                space=self.space,
                data=self.test,
                size=self.test.images.shape[-1],
                methods={m: evaluation.explainer(m, net, self.space, self.made_with[m]) for m in sorted(methods)},
                made_with=self.made_with,
                told=self.told_of(name, _rows.digits_of(model)),
                device=self.options.device,
                study=self.study.name,
            )
        return self.seen[name]

    def built(self, name: str) -> nn.Module:
        """Return the model of a file of weights; UsageError if they do not fit."""
        model = train.network(self.settings[name]["model"], self.told["seed"]).to(self.options.device).eval()
        try:
            model.load_state_dict(load_file(self.weights(name)))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UsageError(f"--out {self.options.out}: {self.weights(name)}: {error}") from error
        return model

    def told_of(self, network: str, weights: str) -> dict[str, Any]:
        """Return what a row says of the run."""
        return {**self.told, "model": network, "weights": weights}


@dataclass(frozen=True)
class Job:
    """Rows that are made together: the training of a network, or what is measured of some images."""

    network: str
    measured: _evaluate.Job | None = None

    @property
    def rows(self) -> int:
        """How many."""
        return 1 if self.measured is None else len(self.measured.parts)

    @property
    def label(self) -> str:
        """What a progress bar says of it."""
        if self.measured is None:
            return f"{TRAIN} {self.network}"
        first = self.measured.parts[0]
        return " ".join([first.experiment, self.network, *([first.which["method"]] if "method" in first.which else [])])


def bench(options: argparse.Namespace, study: Study) -> Bench:
    """Build what the options name; UsageError says which option is wrong."""
    where = _common.device(options.device)
    networks = _chosen(options, study)
    _methods(options, study)
    # The demo network is a trained CNN of [R], which is what the study itself trains.
    given: dict[str, Any] = {"data": {"place": options.data}, "fit": {"seed": options.seed}}
    given |= {} if options.model == "demo" else {"model": {"network": options.model}}
    given["data"] |= {name: value for name in ("mean", "std") if (value := getattr(options, name)) is not None}
    given["fit"] |= {} if options.epochs is None else {"epochs": options.epochs}
    try:
        base = train.changed(studies.merged(study.train, given), options.set or [])
        settings = {network.name: _complete(studies.merged(base, network.settings)) for network in networks}
        table = base["data"]
        parts = {part: labelled(table["place"], part) for part in ("train", "test")}
        data = train.dataset(parts["train"], table, "train").to(where)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UsageError(f"--data, --set: {error}") from error
    if parts["test"].images.shape[1] != 3:
        raise UsageError(f"--data must hold images of 3 channels, got {parts['test'].images.shape[1]}")
    space = evaluation.Space(tuple(data.mean or (0.0,) * 3), tuple(data.std or (1.0,) * 3))
    told = {
        "data": parts["test"].identity,
        "training_data": parts["train"].identity,
        "size": parts["test"].images.shape[-1],
        "space": space.described(),
        "seed": options.seed,
    }
    return Bench(study, networks, settings, data, parts["test"], space, told, options)


def _chosen(options: argparse.Namespace, study: Study) -> tuple[Network, ...]:
    found = studies.chosen(study.networks, options.networks or ["*"])
    for pattern in options.networks or []:
        if not studies.chosen(study.networks, [pattern]):
            raise UsageError(
                f"--networks must match names such as {study.networks[0].name} and {study.networks[-1].name}, "
                f"got {pattern}"
            )
    return found


def _methods(options: argparse.Namespace, study: Study) -> None:
    """UsageError if a map is asked for that the study does not make."""
    known = [m for m in study.methods if any(m in e.methods for e in study.experiments.values() if _measures_maps(e))]
    unknown = [name for name in options.methods if name not in (*known, "all")]
    if unknown:
        raise UsageError(f"--methods must be all or some of {' '.join(known)}, got {' '.join(unknown)}")


def _measures_maps(experiment: Experiment) -> bool:
    return experiment.run == "stability"


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the defaults of the training."""
    return {**settings, "fit": FitConfig.of(settings["fit"]).table()}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as "table.key"; the data's place, which may move, is told by its digits instead."""
    found = {f"{table}.{key}": value for table, entries in settings.items() for key, value in entries.items()}
    return {name: value for name, value in found.items() if name != "data.place"}


def _parts(made: Bench, experiment: Experiment) -> list[Part]:
    """Return what an experiment measures of a network with the methods that were asked for."""
    if experiment.run == TRAIN:
        return []
    if not _measures_maps(experiment):
        return [Part(experiment.name, experiment.settings, experiment.run)]
    settings, asked = experiment.settings, made.options.methods
    return [
        Part(experiment.name, {"method": method, "noise": noise, "level": level}, experiment.run)
        for method in experiment.methods
        if "all" in asked or method in asked
        for noise in settings["noises"]
        for level in settings["levels"]
    ]


def jobs(options: argparse.Namespace, made: Bench, rows: Iterable[Row]) -> tuple[list[Job], int]:
    """Return the rows that are missing, in order, and how many there are already."""
    rows = [row for row in rows if row.study == made.study.name]
    wanted: list[Job] = []
    there = 0
    asked = [e for e in made.study.experiments.values() if not options.only or e.name in options.only]
    for network in made.networks:
        mine = [row for row in rows if row.key["model"] == network.name]
        trained = [row for row in mine if row.experiment == TRAIN]
        settings = _flat(made.settings[network.name])
        # Rows of a network whose training has no row cannot be told from those of another one.
        told = made.told_of(network.name, trained[0].config["run"]["weights"] if trained else "")
        _rows.agree(options, trained, run=told, settings=settings)
        ours = [experiment for experiment in asked if studies.chosen([network], experiment.networks)]
        parts = [part for experiment in ours for part in _parts(made, experiment)]
        for part in parts:
            rows_of = [row for row in mine if part.has(row)]
            _rows.agree(options, rows_of, run=told, settings=part.settings(made.made_with))
            there += len(rows_of)
        there += len(trained)
        wanted += [] if trained else [Job(network.name)]
        wanted += [Job(network.name, job) for job in _evaluate.missing(mine, parts, made.count, options.batch)]
    return wanted, there


def run(store: ResultStore, made: Bench, job: Job) -> None:
    """Make the rows of a job and write them."""
    if job.measured is None:
        store.write(_trained(made, job.network))
        # The file of weights and the row say all that is left to say.
        shutil.rmtree(_folder(made, job.network), ignore_errors=True)
        return
    _evaluate.run(store, made.network(job.network), job.measured)


def _folder(made: Bench, network: str) -> Path:
    return made.options.out / "training" / network


def _trained(made: Bench, network: str) -> Row:
    """Return the row of a network that lies there, or train it."""
    file = made.weights(network)
    if file.is_file():
        return _loaded(made, network)
    settings = made.settings[network]
    test = train.dataset(made.test, settings["data"], "test").to(made.options.device)
    progress = sys.stderr.isatty() and not made.options.json
    began = time.perf_counter()
    try:
        model, log = train.trained(settings, made.data, test, _folder(made, network), progress=progress)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{network}: {error}") from error
    half = {k: v.detach().cpu().half() if v.is_floating_point() else v.cpu() for k, v in model.state_dict().items()}
    # What is measured is what the file holds.
    model.load_state_dict(half)
    row = _row(made, network, _rows.digits_of(model), log, time.perf_counter() - began)
    write_tensors(file, half, {ROW: json.dumps(dataclasses.asdict(row))})
    return row


def _row(made: Bench, network: str, weights: str, log: Sequence[Mapping[str, float]], measured: float) -> Row:
    settings = _flat(made.settings[network])
    # A run that went on knows how long its earlier epochs took.
    seconds = max(measured, sum(epoch["seconds"] for epoch in log))
    last = {name: value for name, value in log[-1].items() if math.isfinite(value)}
    return Row(
        study=made.study.name,
        experiment=TRAIN,
        key={"model": network, "settings": digest(settings)},
        config={"run": made.told_of(network, weights), "settings": settings},
        values={**last, "epochs": len(log), "seed": settings["fit.seed"], "losses": [one["loss"] for one in log]},
        seconds=seconds,
        machine=_common.machine(made.options.device),
        version=_rows.versions(),
    )


def _loaded(made: Bench, network: str) -> Row:
    """Return the row that a file of weights carries; UsageError unless it is of this study and these settings."""
    file = made.weights(network)
    try:
        with safe_open(file, "pt") as stored:
            row = Row(**json.loads((stored.metadata() or {})[ROW]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--out {made.options.out}: {file} must be a network that this study trained") from error
    told = made.told_of(network, _rows.digits_of(made.built(network)))
    _rows.agree(made.options, [row], run=told, settings=_flat(made.settings[network]))
    return row
