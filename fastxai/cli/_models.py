"""The models that ``--model`` names, with their weights, and what they take."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastxai import models
from fastxai.cli._errors import UsageError, first_line

__all__ = ["Recipe", "imported", "load", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """A model and what it takes.

    Attributes:
        model: as it is.
        mean: per channel, subtracted from [0, 1] images; None for a model that takes the images themselves.
        std: per channel, divided by; None likewise.
        size: side of the square that it takes.
        shorter: what the shorter side of an image becomes before the central square is cut out.
        classes: their names; empty if unknown.
    """

    model: nn.Module
    mean: Sequence[float] | None
    std: Sequence[float] | None
    size: int
    shorter: int
    classes: tuple[str, ...] = ()


def _demo(weights: Path | None) -> Recipe:
    model = models.demo() if weights is None else models.CNN()
    return Recipe(model, models.DEMO_MEAN, models.DEMO_STD, 32, 32, models.CLASSES)


def _torchvision(name: str, weights: Path | None, *, pretrained: bool) -> Recipe:
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
    return Recipe(model, preset.mean, preset.std, size, shorter, classes)


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
            f"--pretrained: torchvision could not load {known.url}, kept as {file}: {first_line(error)}; "
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
            raise UsageError(f"{name} {spec} cannot be imported: {first_line(error)}") from error
        try:
            model = make()
        except TypeError as error:
            raise UsageError(f"{name} {spec} must be callable without arguments: {first_line(error)}") from error
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
        raise UsageError(f"{name} {weights} is no safetensors file: {first_line(error)}") from error
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


def recipe(options: argparse.Namespace) -> Recipe:
    """Build and load the model that the options name; UsageError says which option is wrong."""
    kind, _, rest = options.model.partition(":")
    if options.pretrained and kind != "torchvision":
        raise UsageError(f"--pretrained goes with --model torchvision:NAME, got --model {options.model}")
    if options.pretrained and options.weights is not None:
        raise UsageError(f"--pretrained and --weights {options.weights} exclude each other: give one of them")
    if options.model == "demo":
        found = _demo(options.weights)
    elif kind == "torchvision":
        found = _torchvision(rest, options.weights, pretrained=options.pretrained)
    elif kind and rest:
        found = Recipe(imported(options.model), None, None, 224, 256)
    else:
        raise UsageError(f"--model must be demo, torchvision:NAME or package.module:function, got {options.model}")
    if options.weights is not None:
        load(found.model, options.weights)
    return found
