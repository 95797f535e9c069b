"""What tests of commands that write into a working folder begin with; each module has a ``folder`` of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastxai import evaluation
from fastxai.cli import study


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module's folder as the working directory."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without their page, which takes seconds and is tested by itself."""
    monkeypatch.setattr(study, "_report", lambda *arguments: None)


@pytest.fixture
def unfit_lrp(monkeypatch: pytest.MonkeyPatch) -> None:
    """LRP fits no model."""
    build = evaluation.METHODS["lrp"]

    def broken(*arguments: Any) -> Any:
        explainer = build(*arguments)

        def attribute(x: Any, target: Any = None) -> Any:
            raise RuntimeError("no rule for this operation\nand more")

        explainer.attribute = attribute  # type: ignore[method-assign]
        return explainer

    monkeypatch.setitem(evaluation.METHODS, "lrp", broken)
