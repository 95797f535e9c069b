"""Words for a result: tables, and what computed it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["machine", "table"]


def machine(where: str) -> str:
    """Return one line that says what computed."""
    place = torch.cuda.get_device_name(where) if torch.device(where).type == "cuda" else _processor()
    count = torch.get_num_threads()
    return f"{place}, {count} thread{'s' * (count > 1)}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    names = listing.read_text().splitlines() if listing.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text with aligned columns: the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
