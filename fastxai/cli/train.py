"""Train a network whose maps are hard to move: Hessian penalty, softplus, weight decay, attributional training."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastxai import _check, models
from fastxai._files import write_tensors, written_aside
from fastxai.cli import _common, _models
from fastxai.cli._errors import Stopped, UsageError, first_line
from fastxai.cli._terms import TERMS, terms
from fastxai.data import Labelled, labelled
from fastxai.engine import compile as compile_net
from fastxai.evaluation import accuracy
from fastxai.models import DEMO_MEAN, DEMO_STD
from fastxai.training import Dataset, FitConfig, Objective, fit

__all__ = ["add_arguments", "changed", "dataset", "network", "run", "trained"]

TABLES = {
    "data": ("place", "mean", "std", "pad", "flip", "samples", "epoch"),
    "model": ("network", "activation", "beta", "initialisation", "weights"),
    "terms": tuple(TERMS),
    "fit": None,
}
NETWORKS = {"cnn": models.CNN, "mnist_cnn": models.MNISTCNN}
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
        FitConfig.of(settings.get("fit", {}))
        data, test = (_dataset(settings.get("data", {}), part).to(where) for part in ("train", "test"))
        model, rows = trained(settings, data, test, options.out, board=options.board, progress=not options.json)
    except (OSError, ValueError, TypeError, ModuleNotFoundError) as error:
        raise UsageError(f"--config {options.config}: {error}") from error
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped; the same command goes on from {options.out}") from error
    file = options.out / "model.safetensors"
    write_tensors(file, model.state_dict())
    if options.json:
        print(json.dumps({"rows": rows, "weights": str(file)}))
    else:
        last = rows[-1]
        print(f"{file}: accuracy {100 * last['accuracy']:.2f} % after {len(rows)} epochs, {_words(last)}")


def trained(
    settings: Mapping[str, Any], data: Dataset, test: Dataset, out: Path, *, board: bool = False, progress: bool = True
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train the network of some settings, or go on with what is in a folder; return it and the rows of the log.

    Args:
        settings: tables "model", "terms" and "fit".
        data: what it is trained on; decides on which device.
        test: what its accuracy is measured on after every epoch.
        out: the folder.
        board: write TensorBoard logs.
        progress: show a bar.

    Raises:
        OSError, ValueError, TypeError, ModuleNotFoundError: a setting is wrong, or the folder holds another run.
    """
    config = FitConfig.of(settings.get("fit", {}))
    model = network(settings.get("model", {}), config.seed).to(data.labels.device)
    _check_fit(model, data, test)
    objective = Objective(compile_net(model), terms(settings.get("terms", {"cross_entropy": 1.0}), config.seed, data))
    _check_run(out, settings)
    every = torch.arange(len(test), device=test.labels.device)

    def measure(_: Objective) -> dict[str, float]:
        model.eval()
        return {"accuracy": accuracy(lambda numbers: model(test.plain(numbers)), every, test.labels, chunk=_ROWS)}

    return model, fit(objective, data, config, out=out, measure=measure, board=board, progress=progress)


def _check_run(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the folder holds a run whose settings differ beyond those that ``fit`` compares."""
    file = out / "settings.json"
    # Files may move between two starts of one run.
    moving = {"data": "place", "model": "weights"}
    mine = {
        table: {name: value for name, value in entries.items() if name != moving.get(table)}
        for table, entries in settings.items()
        if table != "fit"
    }
    if file.is_file() and (out / "checkpoint.json").is_file():
        theirs = json.loads(file.read_text())
        differ = [name for name in TABLES if theirs.get(name, {}) != mine.get(name, {})]
        if differ:
            name = differ[0]
            there, here = theirs.get(name, {}), mine.get(name, {})
            raise ValueError(f"{out} holds a run with [{name}] {there}, this one has {here}; choose another folder")
    with written_aside(file) as aside:
        aside.write_text(json.dumps(mine, indent=1) + "\n")


@torch.no_grad()
def _check_fit(model: nn.Module, data: Dataset, test: Dataset) -> None:
    """Raise ValueError unless the model takes these images and has a score for every label."""
    if not (len(data) and len(test)):
        raise ValueError("[data] must hold images to train on, and images to test with")
    x = data.plain(torch.arange(1, device=data.labels.device))
    try:
        scores = model.eval()(x)
    except RuntimeError as error:
        raise ValueError(f"[model] does not take images {list(x.shape)}: {first_line(error)}") from error
    highest = max(int(one.labels.max()) for one in (data, test))
    if highest >= scores.shape[1]:
        raise ValueError(f"[model] has {scores.shape[1]} scores, [data] the label {highest}")


def _words(row: Mapping[str, float]) -> str:
    hidden = ("epoch", "accuracy", "lr")
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items() if name not in hidden)


def _settings(file: Path, changes: list[str]) -> dict[str, dict[str, Any]]:
    """Read the file, apply ``--set``, refuse unknown names."""
    try:
        found = tomllib.loads(file.read_text())
        return changed(found, changes)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {file}: {error}") from error


def changed(found: Mapping[str, Any], changes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the settings with each TABLE.KEY=VALUE put into them.

    Raises:
        ValueError: a table or a key is unknown, or a value is none of TOML's.
    """
    found = {table: dict(entries) if isinstance(entries, Mapping) else entries for table, entries in found.items()}
    for change in changes:
        place, _, value = change.partition("=")
        table, _, key = place.partition(".")
        entries = found.setdefault(table, {})
        if isinstance(entries, dict):
            entries[key] = tomllib.loads(f"value = {value}")["value"]
    for table, entries in found.items():
        if table not in TABLES or not isinstance(entries, dict):
            raise ValueError(f"[{table}] must be one of {' '.join(f'[{name}]' for name in TABLES)}")
        known = TABLES[table]
        unknown = [key for key in entries if known is not None and key not in known]
        if unknown:
            raise ValueError(f"[{table}] {unknown[0]} must be one of {' '.join(known or ())}")
    return found


def _dataset(table: Mapping[str, Any], part: str) -> Dataset:
    if not isinstance(table.get("place"), str):
        raise ValueError("[data] place must say where the images are, such as cifar10:FOLDER")
    return dataset(labelled(table["place"], part), table, part)


def dataset(found: Labelled, table: Mapping[str, Any], part: str) -> Dataset:
    """Return labelled images as the table "data" asks for them."""
    count = table.get("samples", len(found.labels)) if part == "train" else len(found.labels)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"[data] samples must be an int of at least 1, got {count}")
    cifar = table["place"].startswith("cifar10:")
    mean, std = (table.get(name, value if cifar else None) for name, value in (("mean", DEMO_MEAN), ("std", DEMO_STD)))
    masks = None if found.masks is None else found.masks[:count]
    options = {name: table[name] for name in ("pad", "flip", "epoch") if name in table} if part == "train" else {}
    return Dataset(found.images[:count], found.labels[:count], mean, std, masks=masks, **options)


def network(table: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the network that the table "model" asks for, with the weights that its training begins with.

    Raises:
        UsageError: it cannot be imported, or the file of weights does not fit.
        ValueError: a setting is unknown, or two exclude each other.
    """
    torch.manual_seed(seed)
    name, activation, beta = table.get("network", "cnn"), table.get("activation", "relu"), table.get("beta", 1.0)
    if activation not in ("relu", "softplus"):
        raise ValueError(f"[model] activation must be relu or softplus, got {activation}")
    if not isinstance(name, str):
        raise ValueError(f"[model] network must be one of {', '.join(NETWORKS)} or package.module:function, got {name}")
    _check.positive(beta, "[model] beta")
    drawn, given = table.get("initialisation"), table.get("weights")
    if drawn is not None and given is not None:
        raise ValueError(f"[model] initialisation {drawn} and weights {given} exclude each other: give one of them")
    if drawn is not None and drawn not in models.INITIALISATIONS:
        raise ValueError(f"[model] initialisation must be one of {', '.join(models.INITIALISATIONS)}, got {drawn}")
    make = nn.ReLU if activation == "relu" else lambda: nn.Softplus(beta)
    if name in NETWORKS:
        model, drawn = NETWORKS[name](make), drawn or "he_normal"
    else:
        model = _models.imported(name, "[model] network")
        model = _activated(model, make) if "activation" in table else model
    if given is not None:
        _models.load(model, Path(given), "[model] weights")
        return model
    return model if drawn is None else models.initialise(model, drawn)


def _activated(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Put a new activation in the place of every ReLU and softplus module."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.Softplus)):
                setattr(parent, name, make())
    return model
