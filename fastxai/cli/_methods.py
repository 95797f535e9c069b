"""The maps that ``--method`` names, and how each is built from the options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastxai.cli._common import UsageError
from fastxai.engine import Net
from fastxai.explainers import (
    LRP,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    Patterns,
    Saliency,
    SmoothGrad,
)

__all__ = ["ALL", "METHODS", "Method", "add_method", "chosen", "explainer"]

ALL = "all"


@dataclass(frozen=True)
class Method:
    """A map of the command line.

    Attributes:
        title: its name in pictures.
        build: makes the explainer of a net from the command's options.
        needs: the option that names the file without which it cannot be built; "" if it needs none.
    """

    title: str
    build: Callable[[Net, argparse.Namespace], Explainer]
    needs: str = ""


def _pattern_attribution(net: Net, options: argparse.Namespace) -> Explainer:
    try:
        return PatternAttribution(net, Patterns.load(options.patterns))
    except (OSError, ValueError) as error:
        raise UsageError(f"--patterns: {error}") from error


METHODS = {
    "gradient": Method("Gradient", lambda net, _: Gradient(net)),
    "saliency": Method("Saliency", lambda net, _: Saliency(net)),
    "input_x_gradient": Method("Input \N{MULTIPLICATION SIGN} Gradient", lambda net, _: InputXGradient(net)),
    "integrated_gradients": Method("Integrated Gradients", lambda net, _: IntegratedGradients(net)),
    "smooth_grad": Method("SmoothGrad", lambda net, options: SmoothGrad(Gradient(net), seed=options.seed)),
    "guided_backprop": Method("Guided Backprop", lambda net, _: GuidedBackprop(net)),
    "lrp": Method("LRP", lambda net, _: LRP(net, "zplus_zb", low=0.0, high=1.0)),
    "pattern_attribution": Method("PatternAttribution", _pattern_attribution, needs="patterns"),
}


def add_method(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add ``--method`` and the options of single methods."""
    parser.add_argument(
        "--patterns",
        type=Path,
        metavar="FILE",
        help="patterns of the model, as Patterns.save writes them: for pattern_attribution",
    )
    if several:
        parser.add_argument(
            "--method",
            choices=[*METHODS, ALL],
            action="append",
            help="the map, repeat for several; all: those that fit the model and need no file (default: gradient)",
        )
    else:
        parser.add_argument("--method", choices=METHODS, default="gradient", help="the map (default: gradient)")


def chosen(options: argparse.Namespace) -> dict[str, bool]:
    """Return what the repeated ``--method`` stands for, in the order of first mention: whether it was asked by name."""
    complete = [name for name, method in METHODS.items() if not method.needs or getattr(options, method.needs)]
    named = options.method or ["gradient"]
    return {one: one in named for name in named for one in (complete if name == ALL else [name])}


def explainer(name: str, net: Net, options: argparse.Namespace) -> Explainer:
    """Return the explainer of this name; UsageError names the option that it lacks."""
    method = METHODS[name]
    if method.needs and not getattr(options, method.needs):
        raise UsageError(f"--method {name} needs --{method.needs} FILE")
    return method.build(net, options)
