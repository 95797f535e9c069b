"""Both backends that the activations run on here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from fastxai import _backend


@pytest.fixture(params=["default", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if request.param == "default" else _backend.backend("reference"):
        yield
