"""The training loop."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from fastxai import _check
from fastxai._files import written_aside
from fastxai.training._step import Samples, Step
from fastxai.training.checkpoint import Checkpoint
from fastxai.training.config import FitConfig
from fastxai.training.dataset import Dataset
from fastxai.training.objective import Objective

__all__ = ["fit"]

Measure = Callable[[Objective], dict[str, float]]
# Keys of random numbers: what they are for.
_ORDER, _CROPS = 1, 2


def fit(
    objective: Objective,
    data: Dataset,
    config: FitConfig,
    *,
    out: str | Path | None = None,
    measure: Measure | None = None,
    board: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train an objective's model in place.

    Order, crops and probes are functions of (seed, epoch, sample): a run that was stopped and goes on ends with the
    same weights as one that was not.

    Args:
        objective: what to minimise.
        data: images and labels, on the model's device.
        config: the settings.
        out: a folder for checkpoints and log.csv; a run found there goes on.
        measure: called after every epoch; its numbers join the log.
        board: write TensorBoard logs into ``out`` too; needs the package tensorboard.
        progress: show a bar.

    Returns:
        One row an epoch: epoch, loss, the terms by name, lr, seconds, and what ``measure`` gave.

    Raises:
        ValueError: out holds a run with other settings, the data is smaller than a batch, or the loss is not finite.
        ModuleNotFoundError: board without tensorboard.
    """
    _check.require(data.per_epoch >= config.batch, "data", f"hold a batch of {config.batch} at least", data.per_epoch)
    _check.require(out is not None or not board, "board", "come with out", board)
    step, rows, start = Step(objective, config, data.images), [], 0
    terms = {term.name: term.weight for term in objective.terms}
    made_with = {term.name: term.made_with() for term in objective.terms}
    found = None if out is None else Checkpoint.load(out)
    if found is not None:
        same = {**found.state["config"], "epochs": 0} == {**config.table(), "epochs": 0}
        same = same and (config.schedule == "constant" or found.state["config"]["epochs"] == config.epochs)
        _check.require(same, "config", f"be that of the run in {out}: {found.state['config']}", config.table())
        theirs = found.state.get("terms", terms)
        _check.require(theirs == terms, "objective", f"have the terms of the run in {out}: {theirs}", terms)
        for name, there in found.state.get("made_with", {}).items():
            here, contract = made_with[name], f"have the settings of the run in {out}: {there}"
            _check.require(here == there, f"objective's {name}", contract, here)
        found.restore(objective, step.optimizer)
        rows, start = found.state["rows"], found.state["epoch"]
    for epoch in range(start, config.epochs):
        row = _epoch(step, data, epoch, progress)
        if measure is not None:
            row |= measure(objective)
        rows.append(row)
        if out is not None:
            done = epoch + 1
            if done % config.checkpoint_every == 0 or done == config.epochs:
                state = {"epoch": done, "config": config.table(), "terms": terms, "made_with": made_with, "rows": rows}
                Checkpoint.of(objective, step.optimizer, state).save(out)
            _log(Path(out), rows, board=board)
    return rows


def _samples(data: Dataset, index: Tensor, crops: tuple[int, ...]) -> Samples:
    return data.augmented(index, crops), data.labels[index], index, data.augmented_masks(index, crops)


def _epoch(step: Step, data: Dataset, epoch: int, progress: bool) -> dict[str, float]:
    config = step.config
    step.objective.train()
    began, steps = time.perf_counter(), data.per_epoch // config.batch // config.accumulate
    _check.require(steps > 0, "accumulate", f"leave one step of {data.per_epoch} samples", config.accumulate)
    order = data.order(config.batch, (config.seed, epoch, _ORDER))
    total: dict[str, Tensor] = {}
    rate, crops = config.lr, (config.seed, epoch, _CROPS)
    bar = tqdm(range(steps), desc=f"epoch {epoch + 1}/{config.epochs}", leave=False, disable=not progress)
    for number in bar:
        rate = config.rate((epoch + number / steps) / config.epochs)
        chosen = (next(order) for _ in range(config.accumulate))
        try:
            found = step(rate, (_samples(data, index, crops) for index in chosen))
        except _check.NotFiniteError as error:
            contract = f"stay finite; lower lr or set clip (epoch {epoch + 1})"
            raise ValueError(f"loss must {contract}, got from an attack: {error}") from error
        for values in found:
            for name, value in values.items():
                total[name] = total.get(name, 0) + value
    row: dict[str, Any] = {"epoch": epoch + 1}
    row |= {name: float(value) / (steps * config.accumulate) for name, value in total.items()}
    finite = row["loss"] == row["loss"] and abs(row["loss"]) != float("inf")
    _check.require(finite, "loss", f"stay finite; lower lr or set clip (epoch {epoch + 1})", row["loss"])
    return {**row, "lr": rate, "seconds": time.perf_counter() - began}


def _log(folder: Path, rows: list[dict[str, float]], *, board: bool) -> None:
    with written_aside(folder / "log.csv") as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if board:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            for name, value in rows[-1].items():
                writer.add_scalar(name, value, int(rows[-1]["epoch"]))
