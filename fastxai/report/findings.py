"""The rows of one study, asked by experiment, method and value."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastxai._check import require
from fastxai.report.draw import COLOURS
from fastxai.results import ResultStore, Row

__all__ = ["Findings"]

_SHOWN = "example."


class Findings:
    """The rows of a study, chunks of pairs put together.

    A pair that is in several rows of a method counts once. Asking a row for what it does not hold is a ValueError that
    names its file.

    Attributes:
        store: where the rows are.
        study: the study's name.
        titles: of the methods, by name, in the report's order.
    """

    def __init__(self, store: ResultStore, study: str, titles: Mapping[str, str]) -> None:
        """Read the rows.

        Raises:
            ValueError: a file among the rows is corrupt or foreign.
        """
        self.store, self.study, self.titles = store, study, dict(titles)
        self.rows = [self._named(row) for row in store.rows(study=study)]

    def _named(self, row: Row) -> Row:
        file = self._file(row)
        return replace(row, config=_Held(row.config, file), values=_Held(row.values, file))

    def _file(self, row: Row) -> Path:
        return self.store.folder / f"{row.name}.json"

    @cached_property
    def paper(self) -> dict[str, dict[str, Any]]:
        """What the paper says: tables with "value", "text", "claim" and "source", by name."""
        file = Path(__file__).parent / "paper" / f"{self.study}.toml"
        return tomllib.loads(file.read_text()) if file.is_file() else {}

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each method, by its title: the same in every diagram."""
        return {title: COLOURS[i % len(COLOURS)] for i, title in enumerate(self.titles.values())}

    def rows_of(self, experiment: str) -> list[Row]:
        """Return the rows of an experiment."""
        return [row for row in self.rows if row.experiment == experiment]

    def _of(self, experiment: str, method: str) -> list[Row]:
        mine = [row for row in self.rows_of(experiment) if row.key["method"] == method]
        return sorted(mine, key=lambda row: min(row.key["pairs"]))

    def methods(self, experiment: str) -> list[str]:
        """Return the methods that have rows of an experiment, in the report's order."""
        return [method for method in self.titles if self._of(experiment, method)]

    def pairs(self, experiment: str, method: str) -> list[int]:
        """Return the numbers of the pairs that there are, ascending."""
        return sorted({number for row in self._of(experiment, method) for number in row.key["pairs"]})

    def counted(self, experiment: str, one: str = "pair") -> str:
        """Return what the rows of an experiment rest on: "16 pairs", method by method where they differ.

        Args:
            experiment: whose rows they are.
            one: what is counted.
        """
        counts = {method: len(self.pairs(experiment, method)) for method in self.methods(experiment)}
        said = {method: f"{count} {one}{'s' * (count != 1)}" for method, count in counts.items()}
        if len(set(counts.values())) == 1:
            return next(iter(said.values()))
        return ", ".join(f"{self.titles[method]} {words}" for method, words in said.items())

    def over_pairs(self, experiment: str, method: str, name: str) -> np.ndarray:
        """Return a value that is a list over pairs, [pairs, ...], in the order of ``pairs``."""
        found: dict[int, Any] = {}
        for row in self._of(experiment, method)[::-1]:
            values, pairs = row.values[name], row.key["pairs"]
            fits = isinstance(values, list) and len(values) == len(pairs)
            require(fits, f"{self._file(row)}", f"hold a list of {len(pairs)} values as {name}", values)
            found.update(zip(pairs, values, strict=True))
        return np.array([found[number] for number in sorted(found)], dtype=float)

    def holds(self, experiment: str, method: str, name: str) -> bool:
        """Return whether all rows of a method hold a value: what older rows and other maps have not is left out."""
        return all(name in row.values for row in self._of(experiment, method))

    def common(self, experiment: str, method: str, name: str) -> Any:
        """Return a value that is the same in all rows of a method, such as the betas of a sweep."""
        return self._of(experiment, method)[0].values[name]

    def every(self, experiment: str, method: str, name: str) -> np.ndarray:
        """Return a value that is a list in each row, end to end."""
        return np.concatenate([np.array(row.values[name], dtype=float) for row in self._of(experiment, method)])

    def settings(self, experiment: str, method: str) -> Mapping[str, Any]:
        """Return the settings of an experiment and method."""
        return self._of(experiment, method)[0].config["settings"]

    def seconds(self, experiment: str, method: str) -> float:
        """Return how long one pair took, in the mean."""
        rows = self._of(experiment, method)
        return sum(row.seconds for row in rows) / sum(len(row.key["pairs"]) for row in rows)

    def pictures(self, experiment: str, method: str) -> dict[int, dict[str, Tensor]]:
        """Return the images and maps that were kept of the first pairs, by pair and by name."""
        found: dict[int, dict[str, Tensor]] = {}
        for row in self._of(experiment, method):
            kept = {k.removeprefix(_SHOWN): v for k, v in self.store.tensors(row, _SHOWN).items()}
            for i in range(min((len(values) for values in kept.values()), default=0)):
                found.setdefault(sorted(row.key["pairs"])[i], {k: v[i] for k, v in kept.items()})
        return found

    @property
    def run(self) -> Mapping[str, Any]:
        """What all rows share: the model, the images, the space, the seed."""
        return self.rows[0].config["run"] if self.rows else {}


class _Held(dict[str, Any]):
    """Entries of a row, at any depth; one that is not there is named with the row's file."""

    def __init__(self, entries: Mapping[str, Any], file: Path) -> None:
        super().__init__({k: _Held(v, file) if isinstance(v, dict) else v for k, v in entries.items()})
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.file} must hold {name}, got {', '.join(self) or 'nothing'}")
