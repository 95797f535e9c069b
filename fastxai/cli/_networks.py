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
from fastxai.cli import _common, _evaluate, _networks_asked, _rows, train
from fastxai.cli._attributional import ATTACKS
from fastxai.cli._common import UsageError
from fastxai.cli._evaluate import Part
from fastxai.cli._terms import terms
from fastxai.data import Labelled, labelled
from fastxai.engine import compile as compile_net
from fastxai.explainers import Explainer
from fastxai.results import ResultStore, Row, digest
from fastxai.studies import Experiment, Network, Study
from fastxai.training import Dataset

__all__ = ["Bench", "Job", "bench", "jobs", "run"]

TRAIN = "train"
# What a file of weights says of itself: the row of its training.
ROW = "row"


@dataclass(frozen=True)
class Bench:
    """What all rows of one run of a study share.

    Attributes:
        study: the study.
        networks: those that were asked for, and those that they start from, in the study's order.
        asked: the names of those that are measured.
        settings: of the training of each, by its name.
        data: both parts of each data set, by the name that the study gives it.
        options: of the command.
        seen: the network that was used last, by name.
    """

    study: Study
    networks: Sequence[Network]
    asked: frozenset[str]
    settings: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Mapping[str, Labelled]]
    options: argparse.Namespace
    seen: dict[str, _evaluate.Bench] = field(default_factory=dict)

    @property
    def made_with(self) -> dict[str, dict[str, Any]]:
        """What each explainer is made with, by name."""
        return {name: {k: v for k, v in table.items() if k != "title"} for name, table in self.study.methods.items()}

    def part(self, network: Network, part: str) -> Labelled:
        """Return the images and labels that a network is trained on ("train"), or measured on ("test")."""
        return self.data[network.data][part]

    def inputs(self, network: Network, part: str) -> Dataset:
        """Return the same as the network takes them, on the device."""
        settings = self.settings[network.name]["data"]
        return train.dataset(self.part(network, part), settings, part).to(self.options.device)

    def space(self, network: Network) -> evaluation.Space:
        """Return where a network takes its inputs from."""
        data = train.dataset(self.part(network, "test"), self.settings[network.name]["data"], "test")
        plain = _evaluate.image_space(data.images.shape[1])
        return plain if data.mean is None or data.std is None else evaluation.Space(tuple(data.mean), tuple(data.std))

    def weights(self, network: str) -> Path:
        """Return the file of a trained network."""
        return self.options.out / "models" / f"{network}.safetensors"

    def network(self, network: Network) -> _evaluate.Bench:
        """Return a trained network, ready to be measured."""
        if network.name not in self.seen:
            self.seen.clear()
            model, space, test = self.built(network), self.space(network), self.part(network, "test")
            net, image_net = compile_net(model), compile_net(model, mean=space.mean, std=space.std)
            wanted = [part for one in self.study.experiments.values() for part in _parts(self, network, one)]
            made: dict[bool, dict[str, Explainer]] = {False: {}, True: {}}
            image = _evaluate.image_space(len(space.mean))
            for method, attacked in sorted(
                {(p.which["method"], p.kind in ATTACKS) for p in wanted if "method" in p.which}
            ):
                where = (image_net, image) if attacked else (net, space)
                made[attacked][method] = evaluation.explainer(method, *where, self.made_with[method])
            self.seen[network.name] = _evaluate.Bench(
                net=net,
                image_net=image_net,
                space=space,
                data=test,
                size=test.images.shape[-1],
                methods=made[False],
                made_with=self.made_with,
                told=self.told_of(network, _rows.digits_of(model)),
                device=self.options.device,
                study=self.study.name,
                attacked=made[True],
            )
        return self.seen[network.name]

    def built(self, network: Network) -> nn.Module:
        """Return the model of a file of weights; UsageError if they do not fit."""
        file = self.weights(network.name)
        model = train.network(self.settings[network.name]["model"], self.options.seed)
        try:
            model.load_state_dict(load_file(file))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UsageError(f"--out {self.options.out}: {file}: {error}") from error
        return model.to(self.options.device).eval()

    def told_of(self, network: Network, weights: str) -> dict[str, Any]:
        """Return what a row says of the run."""
        test = self.part(network, "test")
        return {
            "data": test.identity,
            "training_data": self.part(network, "train").identity,
            "size": test.images.shape[-1],
            "space": self.space(network).described(),
            "seed": self.options.seed,
            "model": network.name,
            "weights": weights,
        }

    def trained_with(self, network: Network) -> dict[str, Any]:
        """Return the settings as "table.key"; the data's place, which may move, is told by its digits instead."""
        tables = self.settings[network.name]
        found = {f"{table}.{key}": value for table, entries in tables.items() for key, value in entries.items()}
        about = {"data.name": network.data, "model.start": network.start}
        del found["data.place"]
        return {**found, **{name: value for name, value in about.items() if value}}


@dataclass(frozen=True)
class Job:
    """Rows that are made together: the training of a network, or what is measured of some images."""

    network: Network
    measured: _evaluate.Job | None = None

    @property
    def rows(self) -> int:
        """How many."""
        return 1 if self.measured is None else len(self.measured.parts)

    @property
    def label(self) -> str:
        """What a progress bar says of it."""
        if self.measured is None:
            return f"{TRAIN} {self.network.name}"
        first = self.measured.parts[0]
        return " ".join([first.experiment, self.network.name, *filter(None, [first.which.get("method")])])


def bench(options: argparse.Namespace, study: Study) -> Bench:
    """Build what the options name; UsageError says which option is wrong."""
    _common.device(options.device)
    _common.check_seed(options.seed)
    places = _networks_asked.places(options, study)
    networks, asked = _networks_asked.chosen(options, study, places)
    _networks_asked.methods(options, study)
    try:
        settings = {network.name: _networks_asked.settings_of(options, study, network, places) for network in networks}
        sets = dict.fromkeys(network.data for network in networks)
        data = {name: {part: labelled(places[name], part) for part in ("train", "test")} for name in sets}
        made = Bench(study, networks, asked, settings, data, options)
        for network in networks:
            made.inputs(network, "train")
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UsageError(f"--data, --set: {error}") from error
    for network in {
        (network.data, settings[network.name]["model"].get("network")): network for network in networks
    }.values():
        _try(made, network)
    return made


def _try(made: Bench, network: Network) -> None:
    """UsageError unless a network takes the images."""
    one = made.part(network, "test").images[:1].float().to(made.options.device)
    model = train.network(made.settings[network.name]["model"], made.options.seed).to(one.device).eval()
    try:
        model(one)
    except RuntimeError as error:
        shape = list(one.shape[1:])
        raise UsageError(f"--data holds images {shape}, which the network does not take: {error}") from error


def _parts(made: Bench, network: Network, experiment: Experiment) -> list[Part]:
    """Return what an experiment measures of a network with the methods that were asked for."""
    if experiment.run == TRAIN or not studies.chosen([network], experiment.networks):
        return []
    if not _networks_asked.measures_maps(experiment):
        counts = experiment.settings.get("probes")
        varied = [{"probes": count} for count in counts] if isinstance(counts, list) else [experiment.settings]
        return [Part(experiment.name, one, experiment.run, most=experiment.images) for one in varied]
    settings, asked = experiment.settings, made.options.methods
    methods = [method for method in experiment.methods if "all" in asked or method in asked]
    if experiment.run in ATTACKS:
        varied = [
            *({"beta": beta} for beta in settings.get("betas", ())),
            *({"n_steps": count} for count in settings.get("points", ())),
        ]
        return [
            Part(experiment.name, which, experiment.run, settings["attack"], experiment.images)
            for method in methods
            for which in ({"method": method, "preset": network.data, **one} for one in varied or [{}])
        ]
    more = {name: settings[name] for name in ("samples",) if name in settings}
    noises = [{"noise": noise, "level": level, **more} for noise in settings["noises"] for level in settings["levels"]]
    return [
        Part(experiment.name, {"method": method, **noise}, experiment.run, most=experiment.images)
        for method in methods
        for noise in noises
    ]


def jobs(options: argparse.Namespace, made: Bench, rows: Iterable[Row]) -> tuple[list[Job], int]:
    """Return the rows that are missing, in order, and how many there are already."""
    rows = [row for row in rows if row.study == made.study.name]
    wanted: list[Job] = []
    there = 0
    experiments = [e for e in made.study.experiments.values() if not options.only or e.name in options.only]
    done = {row.key["model"] for row in rows if row.experiment == TRAIN}
    left = [network for network in made.networks if network.name in made.asked and network.name not in done]
    starts = {network.start for network in left if not made.weights(network.name).is_file()}
    for network in made.networks:
        if network.name not in made.asked | starts:
            continue
        mine = [row for row in rows if row.key["model"] == network.name]
        trained = [row for row in mine if row.experiment == TRAIN]
        # Rows of a network whose training has no row cannot be told from those of another one.
        told = made.told_of(network, trained[0].config["run"]["weights"] if trained else "")
        _rows.agree(options, trained, run=told, settings=made.trained_with(network))
        there += len(trained)
        wanted += [] if trained else [Job(network)]
        if network.name not in made.asked:
            continue
        parts = [part for experiment in experiments for part in _parts(made, network, experiment)]
        for part in parts:
            rows_of = [row for row in mine if part.has(row)]
            _rows.agree(options, rows_of, run=told, settings=part.settings(made.made_with))
            there += len(rows_of)
        count = min(options.samples, len(made.part(network, "test")))
        wanted += [Job(network, job) for job in _evaluate.missing(mine, parts, count, options.batch)]
    return wanted, there


def run(store: ResultStore, made: Bench, job: Job) -> None:
    """Make the rows of a job and write them."""
    if job.measured is None:
        store.write(_trained(made, job.network))
        # The file of weights and the row say all that is left to say.
        shutil.rmtree(_folder(made, job.network.name), ignore_errors=True)
        return
    _evaluate.run(store, made.network(job.network), job.measured)


def _folder(made: Bench, network: str) -> Path:
    return made.options.out / "training" / network


def _trained(made: Bench, network: Network) -> Row:
    """Return the row of a network that lies there, or train it."""
    file = made.weights(network.name)
    if file.is_file():
        return _loaded(made, network)
    settings = dict(made.settings[network.name])
    if network.start:
        own = {name: value for name, value in settings["model"].items() if name != "initialisation"}
        settings["model"] = {**own, "weights": str(made.weights(network.start))}
    progress = sys.stderr.isatty() and not made.options.json
    began = time.perf_counter()
    data, test = (made.inputs(network, part) for part in ("train", "test"))
    try:
        model, log = train.trained(settings, data, test, _folder(made, network.name), progress=progress)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{network.name}: {error}") from error
    half = {k: v.detach().cpu().half() if v.is_floating_point() else v.cpu() for k, v in model.state_dict().items()}
    # What is measured is what the file holds.
    model.load_state_dict(half)
    row = _row(made, network, _rows.digits_of(model), log, time.perf_counter() - began)
    write_tensors(file, half, {ROW: json.dumps(dataclasses.asdict(row))})
    return row


def _row(made: Bench, network: Network, weights: str, log: Sequence[Mapping[str, float]], measured: float) -> Row:
    settings = made.trained_with(network)
    # A run that went on knows how long its earlier epochs took.
    seconds = max(measured, sum(epoch["seconds"] for epoch in log))
    last = {name: value for name, value in log[-1].items() if math.isfinite(value)}
    steps = made.inputs(network, "train").per_epoch // settings["fit.batch"] // settings["fit.accumulate"]
    return Row(
        study=made.study.name,
        experiment=TRAIN,
        key={"model": network.name, "settings": digest(settings)},
        config={"run": made.told_of(network, weights), "settings": settings},
        values={
            **last,
            "epochs": len(log),
            "steps": len(log) * steps,
            "seed": settings["fit.seed"],
            "losses": [one["loss"] for one in log],
            "made_with": _made_with(made, network),
        },
        seconds=seconds,
        machine=_common.machine(made.options.device),
        version=_rows.versions(),
    )


def _made_with(made: Bench, network: Network) -> dict[str, Any]:
    """Return all that the terms were made with, what the settings leave to defaults included."""
    settings = made.settings[network.name]
    found = terms(settings["terms"], settings["fit"]["seed"], made.inputs(network, "train"))
    return {term.name: term.made_with() for term in found}


def _loaded(made: Bench, network: Network) -> Row:
    """Return the row that a file of weights carries; UsageError unless it is of this study and these settings."""
    file = made.weights(network.name)
    try:
        with safe_open(file, "pt") as stored:
            row = Row(**json.loads((stored.metadata() or {})[ROW]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--out {made.options.out}: {file} must be a network that this study trained") from error
    told = made.told_of(network, _rows.digits_of(made.built(network)))
    _rows.agree(made.options, [row], run=told, settings=made.trained_with(network))
    return row
