"""What sections about trained networks share: which there are, their numbers, how they were trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastxai.report import draw
from fastxai.report.blocks import Text
from fastxai.report.findings import Findings
from fastxai.results import Row

__all__ = ["BETA", "LAMBDA", "LEVELS", "NU", "ZETA", "Course", "Network"]
__all__ += [
    "beside",
    "conditions",
    "courses",
    "curves",
    "described",
    "networks",
    "over",
    "settings",
    "spread",
    "trained",
]

LAMBDA, BETA, ZETA, NU = (
    "\N{GREEK SMALL LETTER LAMDA}",
    "\N{GREEK SMALL LETTER BETA}",
    "\N{GREEK SMALL LETTER ZETA}",
    "\N{GREEK SMALL LETTER NU}",
)
# [R] section 4: where PCC is compared.
LEVELS = (0.005, 0.01, 0.025)

# Settings that the tables have columns for, or that change no result.
VARIED = ("fit.weight_decay", "model.activation", "model.beta", "terms.hessian_norm", "fit.checkpoint_every")
# Settings that go without saying.
PLAIN = {"fit.accumulate": "1", "fit.clip": "0.0", "fit.precision": "fp32", "terms.cross_entropy": "1.0"}


@dataclass(frozen=True)
class Network:
    """A trained network and its rows.

    Attributes:
        name: in the study.
        trained: the row of its training.
        rows: all others.
    """

    name: str
    trained: Row
    rows: Sequence[Row]

    def setting(self, name: str) -> Any:
        """Return a setting of the training by "table.key"; None if there is none."""
        return self.trained.config["settings"].get(name)

    @property
    def weight_decay(self) -> float:
        """Lambda."""
        return self.setting("fit.weight_decay")

    @property
    def beta(self) -> float:
        """Of the softplus; infinity for ReLU."""
        return math.inf if self.setting("model.activation") == "relu" else self.setting("model.beta")

    @property
    def penalty(self) -> float:
        """Zeta."""
        given = self.setting("terms.hessian_norm") or 0.0
        return given["weight"] if isinstance(given, Mapping) else given

    @property
    def activation(self) -> str:
        """ReLU, or the beta of the softplus."""
        return "ReLU" if math.isinf(self.beta) else f"{self.beta:g}"

    def over_images(self, experiment: str, name: str, **which: Any) -> np.ndarray:
        """Return a value of every image that has one; an image that is in two rows counts once."""
        found: dict[int, Any] = {}
        for row in self.rows:
            if row.experiment == experiment and all(row.key.get(k) == v for k, v in which.items()):
                found.update(zip(range(*row.key["images"]), row.values.get(name, []), strict=False))
        return np.array([found[image] for image in sorted(found)], dtype=float)

    def mean(self, experiment: str, name: str, **which: Any) -> float:
        """Return the mean over the images, NaN of none."""
        values = self.over_images(experiment, name, **which)
        return float(values.mean()) if len(values) else math.nan

    @cached_property
    def accuracy(self) -> float:
        """In per cent."""
        return 100 * self.mean("accuracy", "correct")

    @cached_property
    def weight_norm(self) -> float:
        """The mean over the layers."""
        found = [row.values["norms"] for row in self.rows if row.experiment == "weights"]
        return float(np.mean(found[0])) if found else math.nan

    def hessian_norm(self, space: str) -> float:
        """Return the mean over the images in "normalised" or "image" space; NaN where the network has no Hessian."""
        return math.nan if math.isinf(self.beta) else self.mean("hessian", space)

    def stable(
        self, level: float, method: str = "gradient", metric: str = "pcc", noise: str = "gaussian"
    ) -> np.ndarray:
        """Return the similarity of a map to that under noise, for every image."""
        experiment = "noise_kinds" if noise != "gaussian" else "noise" if method == "gradient" else "maps"
        return self.over_images(experiment, metric, method=method, noise=noise, level=level)


@dataclass(frozen=True)
class Course:
    """Networks that differ in one setting ([R] figs. 3-5).

    Attributes:
        title: what is varied.
        symbol: of the setting.
        networks: in the order of the setting, the plainest first.
        place: of the setting among ``settings``.
    """

    title: str
    symbol: str
    networks: Sequence[Network]
    place: int

    @property
    def labels(self) -> list[str]:
        """The setting of each network."""
        return [settings(one)[self.place] for one in self.networks]


def trained(findings: Findings) -> dict[str, Network]:
    """Return all trained networks by their names."""
    trainings = {row.key["model"]: row for row in findings.rows_of("train")}
    others: dict[str, list[Row]] = {name: [] for name in trainings}
    for row in findings.rows:
        if row.experiment != "train" and row.key.get("model") in others:
            others[row.key["model"]].append(row)
    return {name: Network(name, row, others[name]) for name, row in trainings.items()}


def networks(findings: Findings) -> list[Network]:
    """Return all trained networks: by lambda, then the activation, ReLU first, then zeta."""
    return sorted(trained(findings).values(), key=lambda one: (one.weight_decay, -one.beta, one.penalty))


def courses(found: Sequence[Network]) -> list[Course]:
    """Return the three that [R] shows, those with less than two networks left out.

    Lambda with ReLU; the activation with lambda = 5e-4; zeta with lambda = 5e-4 and beta = 10.
    """
    plain = [one for one in found if one.penalty == 0]
    decayed = [one for one in found if one.weight_decay == 5e-4]
    three = [
        Course("weight decay", LAMBDA, [one for one in plain if math.isinf(one.beta)], 0),
        Course("softplus", BETA, [one for one in decayed if one.penalty == 0], 1),
        Course("Hessian penalty", ZETA, [one for one in decayed if one.beta == 10], 2),
    ]
    return [course for course in three if len(course.networks) > 1]


def conditions(findings: Findings, found: Sequence[Network]) -> Text:
    """Return how the networks were trained and measured, beside the paper's way."""
    training = findings.paper.get("training", {})
    same: dict[str, set[str]] = {}
    for one in found:
        for name, value in one.trained.config["settings"].items():
            same.setdefault(name, set()).add(f"{value}")
    said = ", ".join(
        f"{name.partition('.')[2].replace('_', ' ')} {' or '.join(sorted(values))}"
        for name, values in sorted(same.items())
        if name not in VARIED and values != {PLAIN.get(name)}
    )
    counts = sorted({len(one.over_images("accuracy", "correct")) for one in found} - {0})
    measured = f"measured on {' or '.join(map(str, counts))} test images" if counts else "not measured yet"
    machines = sorted({one.trained.machine for one in found})
    paper = f" {training['source']}: {training['text']}; {training['samples']} test images." if training else ""
    return Text(
        f"Trained here with {said}; {measured}. Input space {findings.run['space']['name']}. "
        f"Computed on {'; '.join(machines)}.{paper}"
    )


def settings(one: Network) -> list[str]:
    """Return lambda, the activation and zeta of a network, as tables print them."""
    decay, penalty = (draw.short(value) if value else "0" for value in (one.weight_decay, one.penalty))
    return [decay, one.activation, penalty]


def described(one: Network) -> str:
    """Return the settings of a network in words."""
    decay, activation, penalty = settings(one)
    soft = "" if activation == "ReLU" else f"{BETA} = "
    return f"{LAMBDA} = {decay}, {soft}{activation}, {ZETA} = {penalty}"


def curves(
    course: Course, method: str = "gradient", metric: str = "pcc", noise: str = "gaussian", title: str = ""
) -> Figure | None:
    """Return mean +/- standard deviation over the images, a line a noise level, over the setting of a course."""
    figure, axes = draw.panel(title or f"{metric.upper()}, {course.title}", 3.1)
    for level, colour in zip(LEVELS, draw.COLOURS, strict=False):
        found = [one.stable(level, method, metric, noise) for one in course.networks]
        known = [place for place, values in enumerate(found) if len(values)]
        if not known:
            continue
        middle = np.array([np.nanmean(found[place]) for place in known])
        width = np.array([np.nanstd(found[place]) for place in known])
        axes.fill_between(known, middle - width, middle + width, color=colour, alpha=0.2, linewidth=0)
        axes.plot(known, middle, color=colour, linewidth=1.5, marker="o", markersize=2.5, label=f"{NU} = {level:g}")
    if not axes.lines:
        return None
    over(axes, course)
    draw.legend(axes)
    return figure


def over(axes: Axes, course: Course) -> None:
    """Name the networks of a course below the diagram."""
    axes.set_xticks(range(len(course.labels)), course.labels)
    axes.set(xlabel=course.symbol)


def spread(values: np.ndarray) -> str:
    """Return mean +/- standard deviation over the images (of these: no Bessel correction), or a dash."""
    known = values[np.isfinite(values)]
    return f"{known.mean():.2f} \N{PLUS-MINUS SIGN} {known.std():.2f}" if len(known) else "\N{EN DASH}"


def beside(measured: float, theirs: float) -> str:
    """Return a number and, in brackets, the paper's where there is one."""
    said = draw.number(measured)
    return said if math.isnan(theirs) else f"{said} ({theirs:.2f})"
