"""What ends a command with one line in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Stopped", "UsageError", "first_line", "naming"]


class UsageError(Exception):
    """An argument is wrong: one line that names it."""


class Stopped(Exception):
    """The user pressed Ctrl-C and what there was has been written: one line that says where."""


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def naming(label: str, folder: Path) -> Iterator[None]:
    """Raise what does not fit as UsageError that names what was at work, and where the rows are that were finished."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{label}: {first_line(error)}; finished rows stay in {folder}") from error
