"""A study at work: what it runs on, which rows are missing, one row."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastxai import evaluation
from fastxai._check import require
from fastxai.cli import _common, _rows, _study_asked
from fastxai.cli._common import UsageError
from fastxai.data.collection import Collection, open_collection
from fastxai.engine import compile as compile_net
from fastxai.explainers import Explainer
from fastxai.metrics.ssim import WINDOW
from fastxai.results import ResultStore, Row, digest
from fastxai.studies import Experiment, Study

__all__ = ["Bench", "Job", "bench", "jobs", "missing", "run"]


@dataclass(frozen=True)
class Bench:
    """What all rows of one run of a study share.

    Attributes:
        study: the study, without experiments that do not fit the model.
        space: where the network takes its inputs from.
        images: all of them.
        pairs: numbers of images, pair by pair.
        choose: returns the first so many pairs, of which ``pairs`` are those that were asked for.
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
    choose: Callable[[int], Sequence[tuple[int, int]]]
    methods: Mapping[str, Explainer]
    told: Mapping[str, Any]
    device: str
    patterns: str
    overrides: Mapping[str, Any]

    def images_of(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return the numbers of the images of some pairs; a row made again may hold pairs beyond those asked for."""
        pairs = self.pairs if max(numbers) < len(self.pairs) else self.choose(max(numbers) + 1)
        return [pairs[number] for number in numbers]

    def task(
        self, experiment: Experiment, method: str, numbers: Sequence[int], given: Mapping[str, Tensor]
    ) -> evaluation.Task:
        """Return the task of some pairs."""
        which = self.images_of(numbers)
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
    network = _common.network(options, smallest=WINDOW)
    space = network.space
    try:
        images = open_collection(options.images, network.size, network.shorter)
    except (OSError, ValueError) as error:
        raise UsageError(f"--images: {error}") from error

    def classify(numbers: Sequence[int]) -> list[int]:
        parts = [numbers[i : i + options.batch] for i in range(0, len(numbers), options.batch)]
        inputs = ((images.load(part).to(options.device), [images.names[n] for n in part]) for part in parts)
        return [k for x, names in inputs for k in network.scores(x, names).argmax(1).tolist()]

    def choose(count: int) -> list[tuple[int, int]]:
        return evaluation.choose_pairs(len(images), count, options.seed, classify)

    try:
        pairs = choose(options.pairs)
    except (OSError, ValueError) as error:
        raise UsageError(f"--images, --pairs: {error}") from error
    # The study works on what the model itself takes: the normalised input.
    net = compile_net(network.net.model)
    patterns, digits = _rows.patterns(options)
    x = space.enter(images.load(pairs[0][:1])).to(options.device)
    preset = options.preset or ("cifar10" if options.images.startswith("cifar10:") else "imagenet")
    attack = {} if options.steps is None else {"attack": {"steps": options.steps}}
    return Bench(
        study=replace(study, experiments=_study_asked.experiments(options, study, net, x)),
        space=space,
        images=images,
        pairs=pairs,
        choose=choose,
        methods=_study_asked.explainers(options, study, net, x, space, patterns),
        told={
            "model": options.model,
            "weights": _rows.digits_of(network.net.model),
            "images": images.identity,
            "size": network.size,
            "space": space.described(),
            "seed": options.seed,
            "preset": preset,
            "steps": options.steps,
        },
        device=options.device,
        patterns=digits,
        overrides={"preset": preset, **attack},
    )


def jobs(options: argparse.Namespace, made: Bench, rows: Iterable[Row]) -> tuple[list[Job], int]:
    """Return the rows that are missing, in order, and how many there are already.

    A row that another one builds on is missing too where its tensors are.
    """
    rows = [row for row in rows if row.study == made.study.name]
    _rows.agree(options, rows, run=made.told)
    asked = [e for e in made.study.experiments.values() if not options.only or e.name in options.only]
    wanted: list[Job] = []
    again: dict[str, str] = {}
    there = 0
    for experiment in asked:
        count = min(options.pairs, experiment.pairs or options.pairs)
        for method in experiment.methods:
            if method not in made.methods:
                continue
            mine, settings = _agreeing(options, made, experiment, method, rows)
            there += len(mine)
            done = {number for row in mine for number in row.key["pairs"]}
            left = [number for number in range(count) if number not in done]
            if experiment.needs:
                base = made.study.experiments[experiment.needs]
                lost = _lost(options, _agreeing(options, made, base, method, rows)[0], left)
                # The settings are the row's own, so that the row is replaced and gets no second one beside it.
                wanted += [
                    Job(base, method, row.config["settings"], row.key["pairs"]) for row in lost if row.name not in again
                ]
                again |= {row.name: base.name for row in lost}
            wanted += [Job(experiment, method, settings, part) for part in evaluation.chunks(left, options.batch)]
    return wanted, there - sum(name in [e.name for e in asked] for name in again.values())


def _agreeing(
    options: argparse.Namespace, made: Bench, experiment: Experiment, method: str, rows: Iterable[Row]
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of an experiment and method, and the settings that they agree with; UsageError if one differs."""
    try:
        settings = evaluation.resolved(experiment.run, made.task(experiment, method, [0], {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{experiment.name}, {method}: {error}") from error
    options_of_map = {k: v for k, v in made.study.methods[method].items() if k != "title"}
    told = {"patterns": made.patterns} if method == "pattern_attribution" else {}
    settings = {**settings, "explainer": options_of_map, **told}
    mine = [row for row in rows if row.experiment == experiment.name and row.key["method"] == method]
    _rows.agree(options, mine, settings=settings)
    return mine, settings


def _lost(options: argparse.Namespace, rows: Iterable[Row], pairs: Iterable[int]) -> list[Row]:
    """Return those rows that alone hold some of the pairs and whose tensors are not there."""
    kept, lost = [], []
    for row in rows:
        (kept if (options.out / "rows" / f"{row.name}.safetensors").is_file() else lost).append(row)
    needed = set(pairs) - {number for row in kept for number in row.key["pairs"]}
    return [row for row in lost if needed & set(row.key["pairs"])]


def missing(store: ResultStore, made: Bench, job: Job) -> dict[str, Tensor]:
    """Return the tensors that a job builds on, [N, ...] in its pairs' order; UsageError if there are none yet."""
    if not job.experiment.needs:
        return {}
    found: dict[int, dict[str, Tensor]] = {}
    for row in store.rows(study=made.study.name, experiment=job.experiment.needs, method=job.method):
        numbers = row.key["pairs"]
        if set(numbers) & set(job.pairs):
            found |= dict(zip(numbers, _kept(store, row), strict=False))
    lacking = [number for number in job.pairs if not found.get(number)]
    if lacking:
        raise UsageError(
            f"{job.experiment.name} builds on {job.experiment.needs}, which has no rows of {job.method} for the pairs "
            f"{', '.join(map(str, lacking))}: run that first (--only {job.experiment.needs})"
        )
    return {k: torch.stack([found[n][k] for n in job.pairs]) for k in found[job.pairs[0]]}


def _kept(store: ResultStore, row: Row) -> list[dict[str, Tensor]]:
    """Return the tensors beside a row pair by pair, pictures left out; UsageError if the file is corrupt."""
    file, count = store.folder / f"{row.name}.safetensors", len(row.key["pairs"])
    try:
        tensors = {k: v for k, v in store.tensors(row).items() if not k.startswith("example.")}
        for name, values in tensors.items():
            require(values.shape[:1] == (count,), f"{file}", f"hold {name} of {count} pairs", list(values.shape))
    except ValueError as error:
        raise UsageError(f"--out {store.folder.parent}: {error}; delete it, and it is made again") from error
    return [{k: v[i] for k, v in tensors.items()} for i in range(count if tensors else 0)]


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
            "images": [[made.images.names[n] for n in pair] for pair in made.images_of(job.pairs)],
        },
        values=outcome.values,
        seconds=time.perf_counter() - began,
        machine=_common.machine(made.device),
        version=_rows.versions(),
    )
    store.write(row, outcome.tensors)
    return row
