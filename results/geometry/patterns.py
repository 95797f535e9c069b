"""Learns the patterns of the study's CIFAR-10 networks: patterns_cnn.safetensors and patterns_resnet20.safetensors.

From the first 10,000 training images, normalised as the network's input: python patterns.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from nets20 import MEAN, STD, resnet20

from fastxai import data, models
from fastxai.explainers import PatternTrainer

HERE = Path(__file__).resolve().parent
IMAGES, BATCH = 10000, 100


def main() -> None:
    images, _ = data.cifar10(HERE.parents[2] / "shared" / "data" / "cifar10", "train")
    networks = {
        "cnn": (models.demo(), models.DEMO_MEAN, models.DEMO_STD),
        "resnet20": (resnet20(), MEAN, STD),
    }
    for name, (model, mean, std) in networks.items():
        shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        batches = [(chunk.float() / 255 - shift) / scale for chunk in images[:IMAGES].split(BATCH)]
        PatternTrainer(model.eval()).fit(batches, progress=True).save(HERE / f"patterns_{name}.safetensors")


if __name__ == "__main__":
    main()
