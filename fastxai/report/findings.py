"""The rows of one study, asked by experiment, method and value."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastxai.report.draw import COLOURS
from fastxai.results import ResultStore, Row

__all__ = ["Findings"]

_SHOWN = "example."


class Findings:
    """The rows of a study, chunks of pairs put together.

    A pair that is in several rows of a method counts once.

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
        self.rows = store.rows(study=study)

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

    def over_pairs(self, experiment: str, method: str, name: str) -> np.ndarray:
        """Return a value that is a list over pairs, [pairs, ...], in the order of ``pairs``."""
        found = {n: v for row in self._of(experiment, method)[::-1] for n, v in _by_pair(row, name)}
        return np.array([found[number] for number in sorted(found)], dtype=float)

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


def _by_pair(row: Row, name: str) -> list[tuple[int, Any]]:
    return list(zip(row.key["pairs"], row.values[name], strict=True))
