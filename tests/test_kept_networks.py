"""The networks that results/models keeps load by name and are the trained ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastxai.data import cifar10

MODELS = Path(__file__).resolve().parents[1] / "results" / "models"
CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="../shared/data/cifar10 is absent")
@pytest.mark.parametrize("name", [file.stem for file in sorted(MODELS.glob("*.safetensors"))])
def test_kept_networks_load_by_name(name: str) -> None:
    spec = importlib.util.spec_from_file_location("nets", MODELS / "nets.py")
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    images, labels = (part[:200] for part in cifar10(CIFAR))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (nets.MEAN, nets.STD))
    with torch.no_grad():
        scores = getattr(nets, name)()((images.float() / 255 - mean) / std)
    assert float((scores.argmax(1) == labels).double().mean()) > 0.75
