"""Studies as data: one TOML file each, beside this module."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Experiment", "Study", "load", "names"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """One experiment of a study.

    Attributes:
        name: within the study.
        run: "module.function" of fastxai.evaluation.
        methods: the maps it is done with.
        settings: of every method.
        per_method: what a method has beside or instead, merged into the settings.
        needs: the experiment whose tensors it builds on; "" for none.
        pairs: how many pairs at most; None is as many as the study has.
    """

    name: str
    run: str
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    per_method: Mapping[str, Mapping[str, Any]]
    needs: str
    pairs: int | None

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
        defaults: pairs, batch, seed, examples.
        methods: options of each map, in the report's order, "title" among them.
        experiments: by name, in order.
        sections: of the report, by name, in order.
    """

    name: str
    title: str
    source: str
    defaults: Mapping[str, int]
    methods: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Experiment]
    sections: tuple[str, ...]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the entries of ``over`` put over it, tables within tables.

    >>> fastxai.studies.merged({"attack": {"steps": 3, "lr": 1}}, {"attack": {"lr": 2}})
    {'attack': {'steps': 3, 'lr': 2}}
    """
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


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
    methods = content["methods"]
    experiments = {
        each: Experiment(
            name=each,
            run=table["run"],
            methods=tuple(table.get("methods", methods)),
            settings=table.get("settings", {}),
            per_method=table.get("method", {}),
            needs=table.get("needs", ""),
            pairs=table.get("pairs"),
        )
        for each, table in content["experiments"].items()
    }
    return Study(
        name=name,
        title=content["title"],
        source=content["source"],
        defaults=content["defaults"],
        methods=methods,
        experiments=experiments,
        sections=tuple(content["sections"]),
    )
