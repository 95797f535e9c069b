"""Checkpoints: the state of a run as one safetensors file and one JSON file, written whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastxai import _check
from fastxai._files import write_tensors, written_aside
from fastxai.training.objective import Objective

__all__ = ["Checkpoint"]

NAME = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Attributes:
        tensors: of the objective ("model. ...") and of the optimizer ("optimizer. ...").
        state: JSON values: the epoch that comes next, settings, history.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @classmethod
    def of(cls, objective: Objective, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Checkpoint:
        """Take the state of a run."""
        tensors = {f"objective.{name}": t for name, t in objective.state_dict().items()}
        for number, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
        return cls(tensors, state)

    def save(self, folder: str | Path) -> None:
        """Write both files aside, then rename them; the JSON, which names its tensors' file, last."""
        folder = Path(folder)
        epoch = self.state["epoch"]
        file = folder / f"{NAME}-{epoch}.safetensors"
        write_tensors(file, self.tensors)
        text = json.dumps({**self.state, "file": file.name}, indent=1)
        with written_aside(folder / f"{NAME}.json") as aside:
            aside.write_text(text + "\n")
        for old in folder.glob(f"{NAME}-*.safetensors"):
            if old != file:
                old.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint | None:
        """Return the checkpoint of a folder, or None if it has none.

        Raises:
            ValueError: a file is corrupt or missing.
        """
        file = Path(folder) / f"{NAME}.json"
        if not file.is_file():
            return None
        try:
            state = json.loads(file.read_text())
            return cls(load_file(file.with_name(state.pop("file"))), state)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ValueError(f"{file} must be a whole checkpoint, got {type(error).__name__}: {error}") from error

    def restore(self, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        """Put the run's state back.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        mine = {name.removeprefix("objective."): t for name, t in self.tensors.items() if name.startswith("objective.")}
        try:
            objective.load_state_dict(mine)
        except RuntimeError as error:
            raise ValueError(f"checkpoint must be of this model: {error}") from error
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer."):
                _, number, entry = name.split(".", 2)
                state.setdefault(int(number), {})[entry] = tensor
        groups = optimizer.state_dict()["param_groups"]
        _check.require(len(groups) == 1, "optimizer", "have one group of parameters", len(groups))
        optimizer.load_state_dict({"state": state, "param_groups": groups})
