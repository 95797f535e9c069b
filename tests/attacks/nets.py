"""What the tests of attacks share: a small network, pairs of images and maps, the loop in plain autograd."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from fastxai.explainers import reduce_map

REPOSITORY = Path(__file__).parents[2]
CHANNELS = ([-2.0, -1.5, -1.0], [2.0, 2.5, 3.0])


def load(path: Path) -> ModuleType:
    if not path.is_file():
        pytest.skip(f"needs {path}")
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def plain_loop() -> ModuleType:
    """The loop in plain autograd."""
    return load(REPOSITORY / "bench" / "references" / "manipulation.py")


def cnn(act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    act = act or nn.ReLU()
    return (
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            act,
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            act,
            nn.Flatten(),
            nn.Linear(128, 16),
            act,
            nn.Linear(16, 5),
        )
        .double()
        .eval()
    )


def pairs(n: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images within CHANNELS, and target maps of sum 1."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, side, side, dtype=torch.float64, generator=generator) * 2 - 1
    return x, reduce_map(torch.rand(n, side, side, dtype=torch.float64, generator=generator), None)
