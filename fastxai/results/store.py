"""A folder of rows: written whole, found by their key, read back as they were."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastxai._check import require
from fastxai._files import write_tensors, written_aside

__all__ = ["ResultStore", "Row", "digest"]


@dataclass(frozen=True)
class Row:
    """One result and all that it takes to get it again.

    Attributes:
        study: the study's name.
        experiment: the experiment's name within the study.
        key: what identifies the row within the experiment: text, numbers and lists of them.
        config: every setting behind the values.
        values: the result: numbers, truth values, text, and (nested) lists of them.
        seconds: how long it took.
        machine: what computed, in one line.
        version: of the packages that matter, by name.

    >>> fastxai.results.Row("demo", "noise", {"method": "lrp"}, values={"pcc": [0.5, 0.7]}).name
    'noise-lrp-ec5b646dc8b176d5'
    """

    study: str
    experiment: str
    key: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""
    version: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stem of the row's files, which depends on study, experiment and key alone."""
        words = [self.experiment, *(value for value in self.key.values() if isinstance(value, str))]
        readable = re.sub(r"[^a-z0-9_]+", "-", "-".join(words).lower()).strip("-")[:80]
        return f"{readable}-{digest([self.study, self.experiment, dict(self.key)])}"


_FIELDS = {one.name for one in fields(Row)}


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that stand for a JSON value: equal values, equal digits, on every machine.

    Raises:
        TypeError, ValueError: the content is no JSON value.

    >>> fastxai.results.digest({"steps": 3, "lr": 0.1}) == fastxai.results.digest({"lr": 0.1, "steps": 3})
    True
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ResultStore:
    """Rows as files of one folder.

    A row is written aside and renamed, so that a reader finds it whole or not at all, and several processes may write
    into one folder. A row may have tensors (images, maps) beside it, in a .safetensors of the same name. JSON knows no
    NaN or infinity: such values become null in the file and NaN when read back.

    Attributes:
        folder: where the files are; made when the first row is written.

    >>> import tempfile
    >>> store = fastxai.results.ResultStore(tempfile.mkdtemp())
    >>> row = fastxai.results.Row("demo", "noise", {"method": "lrp"}, values={"pcc": [0.5, 0.7]})
    >>> file = store.write(row)
    >>> store.has(row), store.rows(experiment="noise") == [row]
    (True, True)
    """

    def __init__(self, folder: str | Path) -> None:
        """Use this folder."""
        self.folder = Path(folder)

    def has(self, row: Row) -> bool:
        """Return whether there is a row of the same study, experiment and key, whatever its values.

        Raises:
            ValueError: the file that should hold it is corrupt or foreign.
        """
        file = self._file(row)
        return file.is_file() and bool(_read(file).key)

    def write(self, row: Row, tensors: Mapping[str, Tensor] | None = None) -> Path:
        """Write a row, and tensors beside it; an older row of the same key is replaced.

        Args:
            row: its config, key and values must be JSON values.
            tensors: by name; read back by ``tensors``.

        Returns:
            The path of the JSON file.

        Raises:
            TypeError: something in the row is no JSON value.
            OSError: the folder does not take files.
        """
        file = self._file(row)
        text = json.dumps(_finite(asdict(row)), indent=1, allow_nan=False)
        if tensors:
            write_tensors(file.with_suffix(".safetensors"), tensors)
        # The row comes last: whoever finds it finds its tensors.
        with written_aside(file) as aside:
            aside.write_text(text + "\n")
        return file

    def rows(self, **wanted: Any) -> list[Row]:
        """Return all rows, or those with the wanted fields or key entries, sorted by file name.

        Args:
            wanted: such as ``experiment="noise", method="lrp"``: a field of ``Row``, or an entry of its key.

        Raises:
            ValueError: a file of the folder is corrupt or foreign; the message names it.
        """
        found = [_read(file) for file in sorted(self.folder.glob("*.json"))]
        return [
            row
            for row in found
            if all((getattr(row, k) if k in _FIELDS else row.key.get(k)) == value for k, value in wanted.items())
        ]

    def tensors(self, row: Row, prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors beside a row whose names begin with ``prefix``; none if it was written without.

        Raises:
            ValueError: the file is corrupt.
        """
        file = self._file(row).with_suffix(".safetensors")
        if not file.is_file():
            return {}
        try:
            with safe_open(file, "pt") as stored:
                names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
                return {name: stored.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(f"{file} must be a safetensors file, got {error}") from error

    def _file(self, row: Row) -> Path:
        return self.folder / f"{row.name}.json"


def _read(file: Path) -> Row:
    contract = "be a row as fastxai.results writes it"
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} must {contract}, got {error}") from error
    fits = isinstance(content, dict) and content.keys() == _FIELDS
    require(fits, str(file), contract, f"{sorted(content)}" if isinstance(content, dict) else type(content).__name__)
    kinds = {"study": str, "experiment": str, "key": dict, "config": dict, "values": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(content[name], kind)]
    require(not wrong, str(file), contract, f"another kind of {', '.join(wrong)}")
    row = Row(**{**content, "values": _with_nan(content["values"])})
    require(row.name == file.stem, str(file), f"be named {row.name}.json, after its key", file.name)
    return row


def _finite(value: Any) -> Any:
    """Return the value with None for every float that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    """Return the value with NaN for every None."""
    if isinstance(value, dict):
        return {name: _with_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return math.nan if value is None else value
