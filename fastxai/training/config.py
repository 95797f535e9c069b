"""The settings of a training run, as a TOML file spells them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastxai import _check

__all__ = ["FitConfig"]

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("one_cycle", "cosine", "step", "constant")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        epochs: passes over the data.
        batch: samples a step.
        optimizer: "sgd" (with ``momentum``, Nesterov's form) or "adam".
        lr: the highest learning rate.
        momentum: of SGD.
        weight_decay: lambda, added as lambda theta to the gradient ([R] eq. 15: half the factor of ||theta||^2).
        schedule: "one_cycle" (a quarter of the way up in a line, then a cosine to zero), "cosine", "step" (a tenth
            after each half and three quarters of the epochs) or "constant".
        accumulate: batches whose gradients are averaged in one step.
        clip: largest norm of a step's gradient; 0 leaves it.
        precision: "fp32", or "bf16": autocast for the model's own passes. The engine's stay in float32.
        seed: of order, augmentation and probes.
        checkpoint_every: epochs between checkpoints.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.

    >>> fastxai.training.FitConfig(epochs=2).batch
    128
    """

    epochs: int = 10
    batch: int = 128
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one_cycle"
    accumulate: int = 1
    clip: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
            _check.require(fits, one.name, f"be {kind.__name__}", value, TypeError)
        for name in ("epochs", "batch", "accumulate", "checkpoint_every"):
            _check.require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        for name in ("lr", "momentum", "weight_decay", "clip"):
            _check.not_negative(getattr(self, name), name)
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            _check.one_of(getattr(self, name), name, known)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> FitConfig:
        """Return the settings of a table such as a TOML file's [fit].

        Raises:
            TypeError, ValueError: a name is unknown, or a setting is wrong.
        """
        for name in table:
            _check.one_of(name, "[fit]", tuple(one.name for one in fields(cls)))
        return cls(**table)

    @classmethod
    def load(cls, file: str | Path) -> FitConfig:
        """Read the [fit] table of a TOML file."""
        return cls.of(tomllib.loads(Path(file).read_text()).get("fit", {}))

    def table(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    def rate(self, progress: float) -> float:
        """Return the learning rate after this share of the run."""
        match self.schedule:
            case "one_cycle":
                rise = progress / 0.25
                return self.lr * (rise if rise < 1 else (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2)
            case "cosine":
                return self.lr * (1 + math.cos(math.pi * progress)) / 2
            case "step":
                return self.lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        return self.lr
