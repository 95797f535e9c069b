"""Settings of every test run: reproducible, poisoned memory, one thread, the names that doctests use."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `python -m pytest` puts the checkout first on sys.path, where `fastxai` has no compiled module beside it.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import pytest  # noqa: E402
import torch  # noqa: E402

import fastxai  # noqa: E402


class Everywhere:
    """Fixtures for the doctests of the installed package too, which lie outside this directory."""

    @pytest.fixture(autouse=True)
    def _names(self, doctest_namespace: dict[str, object]) -> None:
        doctest_namespace.update(fastxai=fastxai, torch=torch)

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Everywhere(), "fastxai-everywhere")
    # Fills torch.empty with NaN, so that an output element left unwritten fails its test.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Small tensors on cores that others use too: a second thread costs up to ten times the time at its barriers.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data sets and weights beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: this test reads real data from there")
    return path
