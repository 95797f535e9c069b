"""What the commands share: options, the model, the images, files written whole, and the words for a result."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastxai import _files
from fastxai.cli import _models
from fastxai.cli._errors import Stopped, UsageError, first_line
from fastxai.cli._words import machine, table
from fastxai.data import load_images
from fastxai.engine import Net
from fastxai.engine import compile as compile_net
from fastxai.evaluation import Space
from fastxai.explainers import Explainer, reduce_map

__all__ = [
    "Network",
    "Stopped",
    "UsageError",
    "add_common",
    "add_model",
    "check_outputs",
    "check_seed",
    "device",
    "images",
    "machine",
    "maps",
    "network",
    "show",
    "table",
    "write_figure",
    "write_tensors",
    "written",
]

FIGURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
TENSORS = (".safetensors",)
# Every seed is below: pixel flipping takes no larger one, and would say so after hours.
_SEEDS = 2**31


@dataclass(frozen=True)
class Network:
    """A compiled network and how to feed it.

    Attributes:
        net: takes images in [0, 1].
        size: side of the square that it takes.
        shorter: what the shorter side of an image becomes before the central square is cut out.
        count: number of classes.
        classes: their names; empty if unknown.
        channels: of the images.
    """

    net: Net
    size: int
    shorter: int
    count: int
    classes: tuple[str, ...]
    channels: int = 3

    @property
    def space(self) -> Space:
        """Where the model takes its inputs from: normalised images, or those in [0, 1] as they are."""
        mean, std = (None if v is None else tuple(v.tolist()) for v in (self.net.mean, self.net.std))
        return Space(mean or (0.0,) * self.channels, std or (1.0,) * self.channels)

    def label(self, k: int) -> str:
        """Return the name of class k."""
        return self.classes[k] if k < len(self.classes) else f"class {k}"

    def smooth(self, beta: float | None) -> Net:
        """Return the net with softplus of this beta in place of ReLU, or as given for None."""
        if beta is None:
            return self.net
        if not 0 < beta < float("inf"):
            raise UsageError(f"--beta must be finite and positive, got {beta}")
        return self.net.with_activation("softplus", beta)

    def check_class(self, k: int | None) -> None:
        """Raise UsageError unless k is None or one of the classes."""
        if k is not None and not 0 <= k < self.count:
            raise UsageError(f"--class must lie in 0 .. {self.count - 1}, got {k}")

    def scores(self, x: Tensor, names: Iterable[object]) -> Tensor:
        """Return the scores [N, K] of images of these names; UsageError names one whose scores are not finite."""
        found = self.net(x)
        broken = [name for name, fine in zip(names, found.isfinite().all(1).tolist(), strict=True) if not fine]
        if broken:
            raise UsageError(f"--model must have finite scores, got inf or nan for {broken[0]}")
        return found

    def predict(self, x: Tensor) -> list[dict[str, Any]]:
        """Return for each image [N, 3, H, W] its class, the class's number and probability."""
        best = self.net(x).softmax(1).max(1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"class": self.label(k), "index": k, "probability": p} for k, p in pairs]


def add_common(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the options that every command has."""
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"a picture ({' '.join(FIGURES)}) or the numbers ({' '.join(TENSORS)}); repeat for both (default: {out})",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which network, and how images get into it."""
    parser.add_argument(
        "--model", default="demo", help="demo, torchvision:NAME or package.module:function (default: demo)"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the model's state dict, as .safetensors")
    parser.add_argument(
        "--pretrained", action="store_true", help="torchvision's own weights, which torchvision downloads once"
    )
    parser.add_argument("--size", type=int, help="side of the square that the model takes (default: the model's)")
    for name, what in (("mean", "subtracted from"), ("std", "divided into")):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs="+",
            metavar="VALUE",
            help=f"{what} the [0, 1] image, one value a channel (default: the model's)",
        )


def device(name: str) -> torch.device:
    """Return the device of this name if tensors can live there; UsageError otherwise."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} is not usable here: {first_line(error)}") from error
    return torch.device(name)


def check_seed(seed: int) -> None:
    """Raise UsageError unless everything random takes this seed."""
    if not 0 <= seed < _SEEDS:
        raise UsageError(f"--seed must lie in 0 .. {_SEEDS - 1}, got {seed}")


def network(options: argparse.Namespace, channels: Sequence[int] = (3,), smallest: int = 1) -> Network:
    """Build, load and compile the network that the options name; UsageError says which option is wrong.

    Of the numbers of ``channels`` that images may have it gets the first that it takes. ``smallest`` is the least side
    of an image that the command can work with.
    """
    where = device(options.device)
    check_seed(options.seed)
    torch.manual_seed(options.seed)
    recipe = _models.recipe(options)
    size, shorter = (recipe.size, recipe.shorter) if options.size is None else (options.size, options.size)
    if size < smallest:
        raise UsageError(f"--size must be at least {smallest}, got {size}")
    mean = recipe.mean if options.mean is None else options.mean
    std = recipe.std if options.std is None else options.std
    for name, values, least in (("mean", mean, -math.inf), ("std", std, 0.0)):
        if values is not None:
            if not all(least < value < math.inf for value in values):
                above = "finite" if least < 0 else "finite and positive"
                raise UsageError(f"--{name} must be {above}, got {' '.join(map(str, values))}")
            channels = [number for number in channels if number == len(values)]
            if not channels:
                raise UsageError(f"--{name} must have one value a channel, got {' '.join(map(str, values))}")
    said = ""
    for number in channels:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            # A net that met a wrong shape stays with autograd, so each number of channels gets its own.
            net = compile_net(recipe.model.to(where), mean=mean, std=std)
            try:
                count = net(torch.zeros(1, number, size, size, device=where)).shape[1]
            except (RuntimeError, ValueError) as error:
                said = first_line(error)
                continue
        for note in notes:
            print(f"fastxai: {note.message}", file=sys.stderr)
        return Network(net, size, shorter, count, recipe.classes, number)
    tried = " or ".join(f"[1, {number}, {size}, {size}]" for number in channels)
    raise UsageError(f"--model {options.model} does not take images {tried} (--size): {said}")


def images(files: Sequence[Path], name: str, network: Network, where: str) -> Tensor:
    """Read images into [N, 3, H, W] in [0, 1]; UsageError names the argument and the file."""
    try:
        return load_images(files, network.size, network.shorter).to(where)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: {first_line(error)}") from error


@torch.no_grad()
def maps(explainer: Explainer, x: Tensor, target: int | None = None, *, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Return the raw map [N, 3, H, W] and the one that is shown and compared [N, H, W]; UsageError if none is had."""
    try:
        raw = explainer.attribute(x, target)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--method: {first_line(error)}") from error
    # The values of a signed map may add up to anything near zero: it is not divided by its sum.
    return raw, reduce_map(raw, "sum", None) if signed else reduce_map(raw)


def check_outputs(files: Sequence[Path]) -> None:
    """Raise UsageError unless every output has a known ending and its folder takes new files."""
    for file in files:
        if file.suffix.lower() not in FIGURES + TENSORS:
            raise UsageError(f"--out {file} must end in one of {' '.join(FIGURES + TENSORS)}")
        if file.is_dir():
            raise UsageError(f"--out {file} is a folder")
        with _writing(file):
            tempfile.TemporaryFile(dir=file.parent).close()


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Raise what the system says of a file as UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out {file} cannot be written: {error.strerror or error}") from error


def write_figure(files: Sequence[Path], draw: Callable[[], Any]) -> None:
    """Draw once and write each picture among the files."""
    pictures = [file for file in files if file.suffix.lower() in FIGURES]
    if pictures:
        figure = draw()
        for file in pictures:
            with _writing(file), _files.written_aside(file) as aside:
                figure.savefig(aside, dpi=150, format=file.suffix[1:].lower())


def write_tensors(files: Sequence[Path], tensors: dict[str, Tensor]) -> None:
    """Write the tensors to each .safetensors among the files."""
    for file in files:
        if file.suffix.lower() in TENSORS:
            with _writing(file):
                _files.write_tensors(file, tensors)


def written(files: Sequence[Path]) -> str:
    """Return the line that says where the output is."""
    return f"wrote {', '.join(map(str, files))}"


def show(options: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Print the result for people, or as one JSON object, with null for what is no number."""
    finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
    print(json.dumps(finite, indent=2) if options.json else text)
