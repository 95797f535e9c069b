"""What a section of pictures says where the rows are there and their images and maps are not."""

from __future__ import annotations

from collections.abc import Sequence

from fastxai.report.findings import Findings
from fastxai.results import Row

__all__ = ["lost"]


def lost(findings: Findings, experiment: str, rows: Sequence[Row]) -> str:
    """Return what is missing and which command brings it; "" without rows.

    Args:
        findings: all rows.
        experiment: whose pictures they are.
        rows: those that keep pictures.
    """
    if not rows:
        return ""
    folder = findings.store.folder.name
    files = ", ".join(f"{folder}/{row.name}.json" for row in rows)
    return (
        f"Images and maps are missing: the rows of {experiment} are there, their {folder}/*.safetensors are not. "
        f"Delete {files} and run fastxai study {findings.study} --only {experiment} with the options of these rows: it "
        "makes them again, images and maps beside them."
    )
