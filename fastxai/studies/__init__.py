"""Studies as data: one TOML file each, beside this module."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastxai.studies.grid import Network as Network
from fastxai.studies.grid import chosen as chosen
from fastxai.studies.grid import grid as grid
from fastxai.studies.grid import merged as merged

__all__ = ["Experiment", "Network", "Study", "chosen", "grid", "load", "merged", "names"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """One experiment of a study.

    Attributes:
        name: within the study.
        run: "module.function" of fastxai.evaluation; in a study of networks what is done with each of them: "train",
            "accuracy", "weights", "hessian", "stability", "pictures", "robustness" or "attacked".
        methods: the maps it is done with.
        settings: of every method.
        per_method: what a method has beside or instead, merged into the settings.
        needs: the experiment whose tensors it builds on; "" for none.
        pairs: how many pairs at most; None is as many as the study has.
        networks: patterns of the names of those that it is done with.
        images: how many at most; None is as many as the study has.
    """

    name: str
    run: str
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    per_method: Mapping[str, Mapping[str, Any]]
    needs: str
    pairs: int | None
    networks: tuple[str, ...] = ("*",)
    images: int | None = None

    def settings_of(self, method: str) -> dict[str, Any]:
        """Return the settings of one method."""
        return merged(self.settings, self.per_method.get(method, {}))


@dataclass(frozen=True)
class Study:
    """A study: what is run, in which order, and what its report shows.

    Attributes:
        name: of the file.
        title: of the report.
        source: of the paper, as fastxai quotes it.
        defaults: of the command's options, and of a study of pairs "examples".
        methods: options of each map, in the report's order, "title" among them.
        experiments: by name, in order.
        sections: of the report, by name, in order.
        kind: what its rows are about: "pairs" of images, or "networks" that it trains.
        train: settings that all networks are trained with, as ``fastxai train`` reads them.
        terms: settings that a term of the objective has, by its name, wherever a network is trained with it.
        networks: what the study trains, in order.
    """

    name: str
    title: str
    source: str
    defaults: Mapping[str, int]
    methods: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Experiment]
    sections: tuple[str, ...]
    kind: str = "pairs"
    train: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: tuple[Network, ...] = ()


def names() -> list[str]:
    """Return the names of all studies.

    >>> "geometry" in fastxai.studies.names()
    True
    """
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def load(name: str) -> Study:
    """Return a study by its name.

    Raises:
        ValueError: there is no such study.

    >>> fastxai.studies.load("geometry").source
    '[M]'
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}")
    content = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
    # A study may take the maps of another one.
    methods = load(content["methods"]).methods if isinstance(content["methods"], str) else content["methods"]
    experiments = {
        each: Experiment(
            name=each,
            run=table["run"],
            methods=tuple(table.get("methods", methods)),
            settings=table.get("settings", {}),
            per_method=table.get("method", {}),
            needs=table.get("needs", ""),
            pairs=table.get("pairs"),
            networks=tuple(table.get("networks", ["*"])),
            images=table.get("images"),
        )
        for each, table in content["experiments"].items()
    }
    # One grid needs no name.
    grids = {"": content.get("grid", []), **content.get("grids", {})}
    return Study(
        name=name,
        title=content["title"],
        source=content["source"],
        defaults=content["defaults"],
        methods=methods,
        experiments=experiments,
        sections=tuple(content["sections"]),
        kind=content.get("kind", "pairs"),
        train=content.get("train", {}),
        terms=content.get("terms", {}),
        networks=tuple(network for axes in grids.values() for network in grid(axes, content.get("exclude", []))),
    )
