"""What the commands that make rows share: what is there, what disagrees, what a row tells of weights and versions."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastxai.cli._common import UsageError
from fastxai.explainers import Patterns
from fastxai.results import ResultStore, Row, digest

__all__ = ["agree", "digits_of", "found", "patterns", "versions"]

# Settings that rows were written without at first: there they are not compared.
_LATER = ("patterns",)


def agree(options: argparse.Namespace, rows: Iterable[Row], **config: Mapping[str, Any]) -> None:
    """Raise UsageError unless the rows were made like those to come, whose config has these entries."""
    for row in rows:
        for what, mine in config.items():
            theirs = row.config.get(what, {})
            compared = [name for name in {**theirs, **mine} if name in theirs or name not in _LATER]
            differ = [name for name in compared if digest(theirs.get(name)) != digest(mine.get(name))]
            if differ:
                name = differ[0]
                raise UsageError(
                    f"--out {options.out}: {row.name}.json was made with {name} {theirs.get(name)}, this run has "
                    f"{mine.get(name)}; choose another folder"
                )


def digits_of(model: nn.Module) -> str:
    """Return digits that stand for the weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def found(options: argparse.Namespace, store: ResultStore) -> list[Row]:
    """Return the rows that ``--out`` holds, making the folder where there is none."""
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        return store.rows()
    except (OSError, ValueError) as error:
        raise UsageError(f"--out {options.out}: {error}") from error


def patterns(options: argparse.Namespace) -> tuple[Patterns | None, str]:
    """Return what ``--patterns`` holds, and digits that stand for the file; (None, "") if there is none."""
    if options.patterns is None:
        return None, ""
    try:
        return Patterns.load(options.patterns), hashlib.sha256(options.patterns.read_bytes()).hexdigest()[:16]
    except (OSError, ValueError) as error:
        raise UsageError(f"--patterns: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions that a row names."""
    return {
        "fastxai": importlib.metadata.version("fastxai"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
