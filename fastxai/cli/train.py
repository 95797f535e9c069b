"""Train a network whose maps are hard to move: Hessian penalty, softplus, weight decay, attributional training."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fastxai import models
from fastxai.cli import _common
from fastxai.cli._common import Stopped, UsageError
from fastxai.cli._terms import TERMS, terms
from fastxai.data import labelled
from fastxai.engine import compile as compile_net
from fastxai.models import DEMO_MEAN, DEMO_STD
from fastxai.training import Dataset, FitConfig, Objective, fit

__all__ = ["add_arguments", "run"]

TABLES = {
    "data": ("place", "mean", "std", "pad", "flip", "samples"),
    "model": ("network", "activation", "beta", "initialise"),
    "terms": tuple(TERMS),
    "fit": None,
}
_ROWS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run, as a TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change a setting; repeat for several"
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of the processor (default: PyTorch's)")
    parser.add_argument("--board", action="store_true", help="write TensorBoard logs too")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of checkpoints, log and weights")


def run(options: argparse.Namespace) -> None:
    """Train, or go on with what is in the folder; write the weights, and print the last row of the log."""
    settings = _settings(options.config, options.set)
    where = _common.device(options.device)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    try:
        config = FitConfig.of(settings.get("fit", {}))
        train, test = (_dataset(settings.get("data", {}), part).to(where) for part in ("train", "test"))
        model = _model(settings.get("model", {}), config.seed).to(where)
        summands = terms(settings.get("terms", {"cross_entropy": 1.0}), config.seed, train)
        objective = Objective(compile_net(model), summands)
        rows = fit(
            objective,
            train,
            config,
            out=options.out,
            measure=lambda trained: {"accuracy": accuracy(trained.net.model, test)},
            board=options.board,
            progress=not options.json,
        )
    except (OSError, ValueError, TypeError, ModuleNotFoundError) as error:
        raise UsageError(f"--config {options.config}: {error}") from error
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped; the same command goes on from {options.out}") from error
    file = options.out / "model.safetensors"
    aside = file.with_suffix(".part")
    save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}, aside)
    aside.replace(file)
    if options.json:
        print(json.dumps({"rows": rows, "weights": str(file)}))
    else:
        last = rows[-1]
        print(f"{file}: accuracy {100 * last['accuracy']:.2f} % after {len(rows)} epochs, {_words(last)}")


def _words(row: Mapping[str, float]) -> str:
    hidden = ("epoch", "accuracy", "lr")
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items() if name not in hidden)


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    """Return the share of images whose highest score is their label's."""
    model.eval()
    index = torch.arange(len(data), device=data.labels.device)
    right = [(model(data.plain(part)).argmax(1) == data.labels[part]).sum() for part in index.split(_ROWS)]
    return int(torch.stack(right).sum()) / len(data)


def _settings(file: Path, changes: list[str]) -> dict[str, dict[str, Any]]:
    """Read the file, apply ``--set``, refuse unknown names."""
    try:
        found = tomllib.loads(file.read_text())
        for change in changes:
            place, _, value = change.partition("=")
            table, _, key = place.partition(".")
            found.setdefault(table, {})[key] = tomllib.loads(f"value = {value}")["value"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {file}: {error}") from error
    for table, entries in found.items():
        if table not in TABLES or not isinstance(entries, dict):
            raise UsageError(f"--config {file}: [{table}] must be one of {' '.join(f'[{name}]' for name in TABLES)}")
        known = TABLES[table]
        unknown = [key for key in entries if known is not None and key not in known]
        if unknown:
            raise UsageError(f"--config {file}: [{table}] {unknown[0]} must be one of {' '.join(known or ())}")
    return found


def _dataset(table: Mapping[str, Any], part: str) -> Dataset:
    if "place" not in table:
        raise ValueError("[data] place must say where the images are, such as cifar10:FOLDER")
    found = labelled(table["place"], part)
    count = table.get("samples", len(found.labels)) if part == "train" else len(found.labels)
    cifar = table["place"].startswith("cifar10:")
    mean, std = (table.get(name, value if cifar else None) for name, value in (("mean", DEMO_MEAN), ("std", DEMO_STD)))
    options = {"pad": table.get("pad", 0), "flip": table.get("flip", False)} if part == "train" else {}
    return Dataset(found.images[:count], found.labels[:count], mean, std, **options)


def _model(table: Mapping[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    name, activation, beta = table.get("network", "cnn"), table.get("activation", "relu"), table.get("beta", 1.0)
    if name != "cnn":
        return _common.imported(name, "[model] network")
    if activation not in ("relu", "softplus"):
        raise ValueError(f"[model] activation must be relu or softplus, got {activation}")
    model = models.CNN(nn.ReLU if activation == "relu" else lambda: nn.Softplus(beta))
    return models.he(model) if table.get("initialise", "he") == "he" else model
