"""An evaluation at work: what it runs on, which rows are missing, one row, what all rows say."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastxai import evaluation, studies
from fastxai.attacks import IFIA
from fastxai.cli import _attributional, _common, _rows
from fastxai.cli._errors import UsageError, first_line
from fastxai.data import Labelled, fit, labelled, noisy
from fastxai.engine import Net
from fastxai.engine import compile as compile_net
from fastxai.evaluation.task import shown_map
from fastxai.explainers import Explainer
from fastxai.metrics import pcc
from fastxai.metrics.ssim import WINDOW
from fastxai.results import ResultStore, Row, digest

__all__ = ["NAME", "Bench", "Job", "Part", "bench", "collected", "image_space", "jobs", "missing", "parts", "run"]

NAME = "evaluate"


@dataclass(frozen=True)
class Bench:
    """What all rows of one evaluation share.

    Attributes:
        net: the network on the model's own input, a point of the space.
        image_net: the same network on [0, 1] images.
        space: where the network takes its inputs from.
        data: the images and their labels.
        size: side of the square that the model takes.
        methods: the explainers by name.
        made_with: what each was made with, its options and a digest of its patterns.
        told: what a row says of the run; equal for all rows of a folder.
        device: where it computes.
        study: what its rows say they are of.
        attacked: explainers on the [0, 1] image, whose maps are attacked.
    """

    net: Net
    image_net: Net
    space: evaluation.Space
    data: Labelled
    size: int
    methods: Mapping[str, Explainer]
    made_with: Mapping[str, Mapping[str, Any]]
    told: Mapping[str, Any]
    device: str
    study: str = NAME
    attacked: Mapping[str, Explainer] = field(default_factory=dict)

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return some images in [0, 1], and the inputs that they are in the space."""
        images = fit(self.data.images[rows].float() / 255, self.size).to(self.device)
        # Grey becomes RGB where the network takes that, as for photos.
        images = images.expand(-1, len(self.space.mean), -1, -1)
        low, high = (torch.tensor(v).view(-1, 1, 1).to(images) for v in (self.space.low, self.space.high))
        # An image of 0 or 1 may leave the box by a rounding.
        return images, self.space.enter(images).clamp(low, high)

    def settings(self, part: Part) -> dict[str, Any]:
        """Return all settings behind a part, the explainer's included, and those of attacks."""
        return part.settings(self.made_with)

    def attack(self, part: Part) -> IFIA:
        """Return the attack on maps behind a part."""
        name = part.which["method"]
        explainer = self.attacked[name]
        if "n_steps" in part.which:
            made = {**self.made_with[name], "n_steps": part.which["n_steps"]}
            explainer = evaluation.explainer(name, self.image_net, image_space(len(self.space.mean)), made)
        return _attributional.preset(explainer, part.which, part.attack, self.told["seed"])


@dataclass(frozen=True)
class Part:
    """One result that is wanted of every image, or of the network as a whole.

    Attributes:
        experiment: of its rows.
        which: what tells it from others of the experiment, by the name in the row's key.
        run: "weights", "accuracy", "hessian", "stability", "pictures", "robustness" or "attacked"; by default the name
            of the experiment.
        attack: settings in place of the preset's, beside those that tell it from others.
        most: images at most; None is as many as there are.
    """

    experiment: str
    which: Mapping[str, Any]
    run: str = ""
    attack: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None

    @property
    def kind(self) -> str:
        """What is measured."""
        return self.run or self.experiment

    def settings(self, made_with: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return all settings behind it, those that its explainer was made with included."""
        method = self.which.get("method")
        made = {} if method is None else {"explainer": made_with[method]}
        attacks = _attributional.described(self.which, self.attack) if self.kind in _attributional.ATTACKS else {}
        return {**self.which, **made, **attacks}

    def has(self, row: Row) -> bool:
        """Return whether a row is of this part."""
        return row.experiment == self.experiment and all(row.key.get(k) == v for k, v in self.which.items())


@dataclass(frozen=True)
class Job:
    """Rows that are made together, one a part: noises of one method share the maps of the images as they are."""

    parts: Sequence[Part]
    numbers: Sequence[int]

    @property
    def label(self) -> str:
        """What a progress bar says of it."""
        return f"{self.parts[0].experiment} {self.parts[0].which.get('method', '')}".strip()


def bench(options: argparse.Namespace) -> Bench:
    """Build what the options name; UsageError says which option is wrong."""
    # Attacked maps are compared by other metrics.
    network = _common.network(options, (3, 1), WINDOW if options.robustness is None else 1)
    data = _data(options, network.size)
    if data.images.shape[1] not in (1, network.channels):
        found, wanted = data.images.shape[1], network.channels
        raise UsageError(f"--data has images of {found} channels, --model {options.model} takes {wanted}")
    highest = int(data.labels.max())
    if highest >= network.count:
        raise UsageError(f"--data has the label {highest}, --model {options.model} only {network.count} classes")
    space = network.space
    net = compile_net(network.net.model)
    told = {
        "model": options.model,
        "weights": _rows.digits_of(network.net.model),
        "data": data.identity,
        "size": network.size,
        "space": space.described(),
        "seed": options.seed,
    }
    if options.robustness is None:
        methods, made_with = _methods(options, net, space)
    else:
        # [F]'s radii count in the [0, 1] image, and its zero baseline is black.
        methods, made_with = _methods(options, network.net, image_space(network.channels))
    made = Bench(
        net, network.net, space, data, network.size, methods, made_with, told, options.device, attacked=methods
    )
    for name, explainer in methods.items():
        images, x = made.batch(slice(1))
        try:
            if options.robustness is None:
                explainer.attribute(x)
            else:
                which = {"preset": options.robustness}
                _attributional.check(_attributional.preset(explainer, which, options.changes), images)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UsageError(f"--methods {name} does not fit the model: {first_line(error)}") from error
    return made


def image_space(channels: int) -> evaluation.Space:
    """Return the space of [0, 1] images."""
    return evaluation.Space((0.0,) * channels, (1.0,) * channels)


def _data(options: argparse.Namespace, size: int) -> Labelled:
    sized = options.data.startswith(("folder:", "torchvision:"))
    try:
        data = labelled(options.data, options.part, size if sized else None)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--data: {error}") from error
    if options.images is not None and options.images > len(data):
        raise UsageError(f"--images must be at most {len(data)}, got {options.images}")
    return data


def _methods(
    options: argparse.Namespace, net: Net, space: evaluation.Space
) -> tuple[dict[str, Explainer], dict[str, dict[str, Any]]]:
    """Return the explainers by name, and what each was made with."""
    patterns, digits = _rows.patterns(options)
    if "pattern_attribution" in options.methods and patterns is None:
        raise UsageError("--methods pattern_attribution needs --patterns FILE")
    # The settings of [M]'s study: [R] takes its maps from there. [F] has its own.
    known = dict(studies.load("geometry").methods)
    if options.robustness is not None:
        known |= studies.load("far").methods
    if options.points is not None:
        known["integrated_gradients"] = {**known["integrated_gradients"], "n_steps": options.points}
    tables = {name: known[name] for name in options.methods}
    made_with = {name: {k: v for k, v in table.items() if k != "title"} for name, table in tables.items()}
    methods = {name: evaluation.explainer(name, net, space, made, patterns) for name, made in made_with.items()}
    if "pattern_attribution" in made_with:
        made_with["pattern_attribution"] |= {"patterns": digits}
    return methods, made_with


def parts(options: argparse.Namespace) -> list[Part]:
    """Return what the options ask for."""
    if options.robustness is not None:
        which = {"preset": options.robustness}
        return [Part(_attributional.NAME, {"method": m, **which}, attack=options.changes) for m in options.methods]
    return [
        Part("weights", {}),
        Part("accuracy", {}),
        Part("hessian", {"probes": options.probes}),
        *(
            Part("stability", {"method": method, "noise": options.noise, "level": level})
            for method in options.methods
            for level in options.levels
        ),
    ]


def jobs(options: argparse.Namespace, made: Bench, rows: Iterable[Row]) -> list[Job]:
    """Return what is missing, in order."""
    rows = [row for row in rows if row.study == NAME]
    count = options.images or len(made.data)
    wanted = parts(options)
    for part in wanted:
        mine = [row for row in rows if part.has(row)]
        _rows.agree(options, mine, run=made.told, settings=made.settings(part))
    return missing(rows, wanted, count, options.batch)


def missing(rows: Sequence[Row], wanted: Iterable[Part], count: int, batch: int) -> list[Job]:
    """Return the jobs, in batches, of those of the first ``count`` images that the wanted parts have no rows of."""
    groups: dict[Any, tuple[list[Part], list[int]]] = {}
    for part in wanted:
        mine = [row for row in rows if part.has(row)]
        done = {number for row in mine for number in range(*row.key["images"])}
        most = count if part.most is None else min(part.most, count)
        left = [number for number in range(most) if number not in done]
        # The weights are one row, whatever the images.
        chunks = evaluation.chunks(left, batch) if part.kind != "weights" else [[]] * (not mine)
        # Attacks share nothing.
        shared = repr(part.which) if part.kind in _attributional.ATTACKS else part.which.get("method")
        for numbers in chunks:
            groups.setdefault((part.experiment, shared, *numbers), ([], numbers))[0].append(part)
    return [Job(together, numbers) for together, numbers in groups.values()]


def run(store: ResultStore, made: Bench, job: Job) -> int:
    """Make the rows of a job, write them and return how many there are."""
    began = time.perf_counter()
    outcomes = _outcomes(made, job)
    seconds = (time.perf_counter() - began) / len(job.parts)
    for part, found in zip(job.parts, outcomes, strict=True):
        config = {"run": dict(made.told), "settings": made.settings(part)}
        images = [job.numbers[0], job.numbers[-1] + 1] if job.numbers else [0, 0]
        row = Row(
            study=made.study,
            experiment=part.experiment,
            key={"model": made.told["model"], **part.which, "images": images, "settings": digest(config)},
            config=config,
            values=found.values,
            seconds=seconds,
            machine=_common.machine(made.device),
            version=_rows.versions(),
        )
        store.write(row, found.tensors)
    return len(job.parts)


def _noise(made: Bench, part: Part, sample: int = 0) -> Callable[..., Tensor]:
    """Return the noise of a part; other samples of it are others of the same kind and level."""
    seed, bounds = made.told["seed"] + sample, {"low": made.space.low, "high": made.space.high}
    return partial(noisy, level=part.which["level"], kind=part.which["noise"], seed=seed, **bounds)


def _pictures(made: Bench, part: Part, x: Tensor, index: Tensor) -> evaluation.Outcome:
    """Return images and maps, as they are and under samples of noise, [n, 1 + samples, ...], and the PCC of each."""
    explainer, classes = made.methods[part.which["method"]], made.net(x).argmax(1)
    versions = [x, *(_noise(made, part, i)(x, index=index) for i in range(part.which["samples"]))]
    maps = [shown_map(explainer, version, classes) for version in versions]
    images = [made.space.leave(version) for version in versions]
    alike = torch.stack([pcc(h, maps[0]) for h in maps[1:]], 1)
    return evaluation.Outcome({"pcc": alike.tolist()}, {"images": torch.stack(images, 1), "maps": torch.stack(maps, 1)})


def _outcomes(made: Bench, job: Job) -> list[evaluation.Outcome]:
    """Return what was found of a job's parts."""
    first = job.parts[0]
    if first.kind == "weights":
        norms = evaluation.weight_norms(made.net.model)
        return [evaluation.Outcome({"layers": list(norms), "norms": list(norms.values())})]
    rows = slice(job.numbers[0], job.numbers[-1] + 1)
    images, x = made.batch(rows)
    labels, index = made.data.labels[rows].to(x.device), torch.arange(rows.start, rows.stop, device=x.device)
    if first.kind == "accuracy":
        return [evaluation.Outcome({"correct": evaluation.correct(made.net, x, labels).tolist()})]
    if first.kind == "hessian":
        spaces = {made.space.name: (made.net, x), "image": (made.image_net, images)}
        # No directions at all stands for all basis vectors.
        return [
            evaluation.Outcome(
                {
                    name: evaluation.hessian_norms(
                        *inputs, probes=part.which["probes"] or None, seed=made.told["seed"], index=index
                    ).tolist()
                    for name, inputs in spaces.items()
                }
            )
            for part in job.parts
        ]
    if first.kind == "pictures":
        return [_pictures(made, part, x, index) for part in job.parts]
    if first.kind in _attributional.ATTACKS:
        return [_attributional.outcome(first.kind, made.attack(first), images, labels, index)]
    noises = [_noise(made, part) for part in job.parts]
    found = evaluation.stability(made.methods[first.which["method"]], x, noises, index=index, chunk=len(x))
    return [
        evaluation.Outcome(
            {
                **{name: getattr(one.similarity, name).tolist() for name in ("pcc", "ssim", "mse")},
                "changed": one.changed.tolist(),
                "correct": (one.perturbed_classes == labels).tolist(),
            }
        )
        for one in found
    ]


def collected(rows: Iterable[Row], part: Part, count: int) -> dict[str, list[Any]]:
    """Return each value of a part as a list over the first ``count`` images."""
    found: dict[str, dict[int, Any]] = {}
    for row in rows:
        if part.has(row):
            for name, values in row.values.items():
                found.setdefault(name, {}).update(zip(range(*row.key["images"]), values, strict=True))
    return {name: [values[number] for number in range(count)] for name, values in found.items()}
