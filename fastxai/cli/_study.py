"""A study at work: what it runs on, which rows are missing, one row."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastxai import evaluation
from fastxai.cli import _common, _rows
from fastxai.cli._common import UsageError
from fastxai.data.collection import Collection, open_collection
from fastxai.engine import compile as compile_net
from fastxai.explainers import Explainer, Patterns
from fastxai.results import ResultStore, Row, digest
from fastxai.studies import Experiment, Study

__all__ = ["Bench", "Job", "bench", "jobs", "missing", "run"]


@dataclass(frozen=True)
class Bench:
    """What all rows of one run of a study share.

    Attributes:
        study: the study.
        space: where the network takes its inputs from.
        images: all of them.
        pairs: numbers of images, pair by pair.
        methods: the explainers by name.
        told: what a row says of the run; equal for all rows of a folder.
        device: where it computes.
        patterns: digits that stand for those of pattern_attribution.
        overrides: settings that every experiment gets.
    """

    study: Study
    space: evaluation.Space
    images: Collection
    pairs: Sequence[tuple[int, int]]
    methods: Mapping[str, Explainer]
    told: Mapping[str, Any]
    device: str
    patterns: str
    overrides: Mapping[str, Any]

    def task(
        self, experiment: Experiment, method: str, numbers: Sequence[int], given: Mapping[str, Tensor]
    ) -> evaluation.Task:
        """Return the task of some pairs."""
        which = [self.pairs[number] for number in numbers]
        x, target_x = (
            self.space.enter(self.images.load([pair[side] for pair in which])).to(self.device) for side in (0, 1)
        )
        low, high = (torch.tensor(v).view(-1, 1, 1).to(x) for v in (self.space.low, self.space.high))
        return evaluation.Task(
            explainer=self.methods[method],
            space=self.space,
            # An image of 0 or 1 may leave the box by a rounding.
            x=x.clamp(low, high),
            target_x=target_x.clamp(low, high),
            pairs=numbers,
            settings={**experiment.settings_of(method), **self.overrides},
            seed=self.told["seed"],
            given=given,
            keep=self.study.defaults["examples"],
        )


@dataclass(frozen=True)
class Job:
    """One row that is to be made."""

    experiment: Experiment
    method: str
    settings: Mapping[str, Any] = field(repr=False)
    pairs: Sequence[int]

    rows = 1

    @property
    def label(self) -> str:
        """What a progress bar says of it."""
        return f"{self.experiment.name} {self.method}"

    def key(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return what identifies the row."""
        config = {"run": told, "settings": self.settings}
        return {
            "model": told["model"],
            "method": self.method,
            "pairs": list(self.pairs),
            "settings": digest(config),
        }


def bench(options: argparse.Namespace, study: Study) -> Bench:
    """Build what the options name; UsageError says which option is wrong."""
    network = _common.network(options)
    mean, std = (None if v is None else tuple(v.tolist()) for v in (network.net.mean, network.net.std))
    space = evaluation.Space(mean or (0.0,) * 3, std or (1.0,) * 3)
    try:
        images = open_collection(options.images, network.size, network.shorter)
    except (OSError, ValueError) as error:
        raise UsageError(f"--images: {error}") from error

    def classify(numbers: Sequence[int]) -> list[int]:
        parts = [numbers[i : i + options.batch] for i in range(0, len(numbers), options.batch)]
        found = [network.net(images.load(part).to(options.device)).argmax(1).tolist() for part in parts]
        return [k for part in found for k in part]

    try:
        pairs = evaluation.choose_pairs(len(images), options.pairs, options.seed, classify)
    except (OSError, ValueError) as error:
        raise UsageError(f"--images, --pairs: {error}") from error
    # The study works on what the model itself takes: the normalised input.
    net = compile_net(network.net.model)
    patterns, digits = _rows.patterns(options)
    made = Bench(
        study=study,
        space=space,
        images=images,
        pairs=pairs,
        methods=_methods(options, study, net, space, patterns),
        told={
            "model": options.model,
            "weights": _rows.digits_of(network.net.model),
            "images": images.identity,
            "size": network.size,
            "space": space.described(),
            "seed": options.seed,
            "preset": options.preset or ("cifar10" if options.images.startswith("cifar10:") else "imagenet"),
            "steps": options.steps,
        },
        device=options.device,
        patterns=digits,
        overrides={},
    )
    attack = {} if options.steps is None else {"attack": {"steps": options.steps}}
    overrides = {"preset": made.told["preset"], **attack}
    return _fitting(options, replace(made, overrides=overrides))


def _methods(
    options: argparse.Namespace, study: Study, net: Any, space: evaluation.Space, patterns: Patterns | None
) -> dict[str, Explainer]:
    made = {}
    for name in _chosen(options, study):
        if name == "pattern_attribution" and patterns is None:
            if _all(options):
                print(f"fastxai: {name} is left out: it needs --patterns FILE", file=sys.stderr)
                continue
            raise UsageError(f"--methods {name} needs --patterns FILE")
        settings = {k: v for k, v in study.methods[name].items() if k != "title"}
        made[name] = evaluation.explainer(name, net, space, settings, patterns)
    return made


def _all(options: argparse.Namespace) -> bool:
    return options.methods == ["all"]


def _chosen(options: argparse.Namespace, study: Study) -> list[str]:
    unknown = [name for name in options.methods if name not in (*study.methods, "all")]
    if unknown:
        raise UsageError(f"--methods must be all or some of {' '.join(study.methods)}, got {' '.join(unknown)}")
    return [name for name in study.methods if name in options.methods or "all" in options.methods]


def _fitting(options: argparse.Namespace, made: Bench) -> Bench:
    """Return the bench without the methods that do not fit the model; UsageError if one was asked for by name."""
    kept = {}
    for name, explainer in made.methods.items():
        x = made.space.enter(made.images.load([0])).to(made.device)
        try:
            explainer.attribute(x)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            if not _all(options):
                raise UsageError(f"--methods {name} does not fit the model: {reason}") from error
            print(f"fastxai: {name} is left out: {reason}", file=sys.stderr)
        else:
            kept[name] = explainer
    if not kept:
        raise UsageError("--methods: none fits the model")
    return replace(made, methods=kept)


def jobs(options: argparse.Namespace, made: Bench, rows: Iterable[Row]) -> tuple[list[Job], int]:
    """Return the rows that are missing, in order, and how many there are already."""
    rows = [row for row in rows if row.study == made.study.name]
    wanted: list[Job] = []
    there = 0
    for experiment in made.study.experiments.values():
        if options.only and experiment.name not in options.only:
            continue
        count = min(options.pairs, experiment.pairs or options.pairs)
        for method in experiment.methods:
            if method not in made.methods:
                continue
            try:
                settings = evaluation.resolved(experiment.run, made.task(experiment, method, [0], {}))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{experiment.name}, {method}: {error}") from error
            options_of_map = {k: v for k, v in made.study.methods[method].items() if k != "title"}
            told = {"patterns": made.patterns} if method == "pattern_attribution" else {}
            settings = {**settings, "explainer": options_of_map, **told}
            mine = [row for row in rows if row.experiment == experiment.name and row.key["method"] == method]
            _rows.agree(options, mine, run=made.told, settings=settings)
            there += len(mine)
            done = {number for row in mine for number in row.key["pairs"]}
            left = [number for number in range(count) if number not in done]
            wanted += [Job(experiment, method, settings, part) for part in evaluation.chunks(left, options.batch)]
    return wanted, there


def missing(store: ResultStore, made: Bench, job: Job) -> dict[str, Tensor]:
    """Return the tensors that a job builds on, [N, ...] in its pairs' order; UsageError if there are none yet."""
    if not job.experiment.needs:
        return {}
    found: dict[int, dict[str, Tensor]] = {}
    for row in store.rows(study=made.study.name, experiment=job.experiment.needs, method=job.method):
        numbers = row.key["pairs"]
        if set(numbers) & set(job.pairs):
            tensors = {k: v for k, v in store.tensors(row).items() if not k.startswith("example.")}
            found |= {n: {k: v[i] for k, v in tensors.items()} for i, n in enumerate(numbers)}
    lacking = [number for number in job.pairs if not found.get(number)]
    if lacking:
        raise UsageError(
            f"{job.experiment.name} builds on {job.experiment.needs}, which has no rows of {job.method} for the pairs "
            f"{', '.join(map(str, lacking))}: run that first (--only {job.experiment.needs})"
        )
    return {k: torch.stack([found[n][k] for n in job.pairs]) for k in found[job.pairs[0]]}


def run(store: ResultStore, made: Bench, job: Job) -> Row:
    """Make one row and write it."""
    given = missing(store, made, job)
    began = time.perf_counter()
    outcome = evaluation.experiment(job.experiment.run)(made.task(job.experiment, job.method, job.pairs, given))
    row = Row(
        study=made.study.name,
        experiment=job.experiment.name,
        key=job.key(made.told),
        config={
            "run": dict(made.told),
            "settings": dict(job.settings),
            "images": [[made.images.names[n] for n in made.pairs[number]] for number in job.pairs],
        },
        values=outcome.values,
        seconds=time.perf_counter() - began,
        machine=_common.machine(made.device),
        version=_rows.versions(),
    )
    store.write(row, outcome.tensors)
    return row
