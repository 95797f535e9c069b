"""Runs that write rows: what they are given, how they are made whole or stopped, and what is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from evaluation.small import coloured
from torch import nn

from fastxai import report, studies
from fastxai.cli import main
from fastxai.data import Labelled
from fastxai.results import ResultStore, Row


def data(count: int = 9, channels: int = 3) -> Labelled:
    images = (coloured(count)[:, :channels] * 255).byte()
    labels = torch.arange(count) % 3
    labels[1] = 2
    return Labelled(images, labels, ("red", "green", "blue"))


def grey_net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


def made_whole(folder: Path, words: str) -> Path:
    """Run a command in a folder and return where its results are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(f"{words} --out whole".split()) == 0
    return folder / "whole"


@contextmanager
def interrupted(module: ModuleType, after: int) -> Iterator[None]:
    """``module.run`` works some times; the next one is as if Ctrl-C were pressed."""
    original, made = module.run, 0

    def run(*arguments: Any) -> Any:
        nonlocal made
        if made == after:
            raise KeyboardInterrupt
        made += 1
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", run)
        yield


def rows(folder: str | Path, **wanted: Any) -> list[Row]:
    return ResultStore(Path(folder) / "rows").rows(**wanted)


def findings(folder: Path, study: str) -> report.Findings:
    """What a study's sections are made of, from the rows in a folder."""
    titles = {name: str(table["title"]) for name, table in studies.load(study).methods.items()}
    return report.Findings(ResultStore(folder), study, titles)


def drawn(sections: dict[str, report.Section]) -> dict[str, list[int]]:
    """How many figures each panel of each section has."""
    return {
        name: [len(block.figures) for block in section.blocks if isinstance(block, report.Panels)]
        for name, section in sections.items()
    }
