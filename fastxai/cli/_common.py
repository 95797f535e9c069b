"""What the commands share: options, the model, the images, files written whole, and the words for a result."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastxai import _files, models
from fastxai.cli._words import machine, table
from fastxai.data import load_images
from fastxai.engine import Net
from fastxai.engine import compile as compile_net
from fastxai.explainers import Explainer, reduce_map

__all__ = [
    "Network",
    "Stopped",
    "UsageError",
    "add_common",
    "add_model",
    "check_outputs",
    "device",
    "images",
    "imported",
    "load",
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


class UsageError(Exception):
    """An argument is wrong: one line that names it."""


class Stopped(Exception):
    """The user pressed Ctrl-C and what there was has been written: one line that says where."""


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
        raise UsageError(f"--device {name} is not usable here: {_first_line(error)}") from error
    return torch.device(name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass(frozen=True)
class _Recipe:
    model: nn.Module
    mean: Sequence[float] | None
    std: Sequence[float] | None
    size: int
    shorter: int
    classes: tuple[str, ...] = ()


def _demo(weights: Path | None) -> _Recipe:
    model = models.demo() if weights is None else models.CNN()
    return _Recipe(model, models.DEMO_MEAN, models.DEMO_STD, 32, 32, models.CLASSES)


def _torchvision(name: str, weights: Path | None, *, pretrained: bool) -> _Recipe:
    try:
        from torchvision import models as zoo
    except ImportError as error:
        raise UsageError(
            f"--model torchvision:{name} needs the package torchvision: pip install torchvision"
        ) from error
    if name not in zoo.list_models(module=zoo):
        raise UsageError(f"--model torchvision:{name} is unknown; torchvision.models.list_models() lists the names")
    known = zoo.get_model_weights(name)["DEFAULT"]
    if pretrained:
        model = _pretrained(known, lambda: zoo.get_model(name, weights=known))
    elif weights is not None:
        model = zoo.get_model(name, weights=None)
    else:
        raise UsageError(f"--model torchvision:{name} needs weights: --pretrained to download them, or --weights FILE")
    preset = known.transforms()
    size, shorter, classes = preset.crop_size[0], preset.resize_size[0], tuple(known.meta["categories"])
    return _Recipe(model, preset.mean, preset.std, size, shorter, classes)


def _pretrained(known: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model with torchvision's weights ``known``; UsageError if they cannot be had."""
    try:
        # torchvision announces a download on stdout, which is the result's.
        with redirect_stdout(sys.stderr):
            # Downloads, and refuses a file that holds more than tensors, which the builder would run.
            known.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
            # The builder knows what the file does not say: older names of layers, inputs scaled inside the model.
            return build()
    # What a damaged file raises depends on its bytes.
    except Exception as error:
        file = Path(torch.hub.get_dir(), "checkpoints", known.url.rpartition("/")[2])
        raise UsageError(
            f"--pretrained: torchvision could not load {known.url}, kept as {file}: {_first_line(error)}; "
            "remove that file if it is damaged, or give --weights FILE (.safetensors) in place of --pretrained"
        ) from error


@contextmanager
def _importable_here() -> Iterator[None]:
    """Let imports see the current folder, as ``python -m`` does and an installed script does not."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def imported(spec: str, name: str = "--model") -> nn.Module:
    """Return what package.module:function makes; UsageError names the option."""
    place, _, function = spec.partition(":")
    with _importable_here():
        try:
            make = getattr(importlib.import_module(place), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{name} {spec} cannot be imported: {_first_line(error)}") from error
        try:
            model = make()
        except TypeError as error:
            raise UsageError(f"{name} {spec} must be callable without arguments: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} {spec} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def load(model: nn.Module, weights: Path, name: str = "--weights") -> None:
    """Load a state dict; UsageError names the option and lists what does not fit."""
    if not weights.is_file():
        raise UsageError(f"{name} {weights}: no such file")
    try:
        found = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{name} {weights} is no safetensors file: {_first_line(error)}") from error
    wanted = model.state_dict()
    problems = [
        ("missing", sorted(wanted.keys() - found.keys())),
        ("unexpected", sorted(found.keys() - wanted.keys())),
        (
            "of another shape",
            [
                f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}"
                for key in sorted(wanted.keys() & found.keys())
                if found[key].shape != wanted[key].shape
            ],
        ),
    ]
    listed = [f"{kind}: {', '.join(names)}" for kind, names in problems if names]
    if listed:
        raise UsageError(f"{name} {weights} does not fit the model; {'; '.join(listed)}")
    # Buffers, such as a mask of attention, may be infinite.
    parameters = {key for key, _ in model.named_parameters()}
    broken = [
        key
        for key, value in sorted(found.items())
        if value.isnan().any() or (key in parameters and value.isinf().any())
    ]
    if broken:
        raise UsageError(f"{name} {weights} must hold finite numbers, got others in {', '.join(broken)}")
    model.load_state_dict(found)


def network(options: argparse.Namespace, channels: Sequence[int] = (3,)) -> Network:
    """Build, load and compile the network that the options name; UsageError says which option is wrong.

    Of the numbers of ``channels`` that images may have it gets the first that it takes.
    """
    where = device(options.device)
    torch.manual_seed(options.seed)
    kind, _, rest = options.model.partition(":")
    if options.pretrained and kind != "torchvision":
        raise UsageError(f"--pretrained goes with --model torchvision:NAME, got --model {options.model}")
    if options.pretrained and options.weights is not None:
        raise UsageError(f"--pretrained and --weights {options.weights} exclude each other: give one of them")
    if options.model == "demo":
        recipe = _demo(options.weights)
    elif kind == "torchvision":
        recipe = _torchvision(rest, options.weights, pretrained=options.pretrained)
    elif kind and rest:
        recipe = _Recipe(imported(options.model), None, None, 224, 256)
    else:
        raise UsageError(f"--model must be demo, torchvision:NAME or package.module:function, got {options.model}")
    if options.weights is not None:
        load(recipe.model, options.weights)
    size, shorter = (recipe.size, recipe.shorter) if options.size is None else (options.size, options.size)
    if size < 1:
        raise UsageError(f"--size must be at least 1, got {size}")
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
                said = _first_line(error)
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
        raise UsageError(f"{name}: {_first_line(error)}") from error


@torch.no_grad()
def maps(explainer: Explainer, x: Tensor, target: int | None = None, *, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Return the raw map [N, 3, H, W] and the one that is shown and compared [N, H, W]; UsageError if none is had."""
    try:
        raw = explainer.attribute(x, target)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--method: {_first_line(error)}") from error
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
