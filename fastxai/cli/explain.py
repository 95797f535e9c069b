"""Show which pixels of your images decide the class."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from fastxai import viz
from fastxai.cli import _common, _methods
from fastxai.engine import Net

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    _methods.add_method(parser, several=True)
    parser.add_argument(
        "--class", dest="target", type=int, metavar="K", help="class to explain (default: the predicted)"
    )
    parser.add_argument("--beta", type=float, help="smooth the network: softplus of this beta in place of ReLU")
    parser.add_argument(
        "--signed", action="store_true", help="show what is positive and what is negative, not the magnitude alone"
    )
    _common.add_model(parser)
    _common.add_common(parser, "fastxai-explain.png")


def run(options: argparse.Namespace) -> None:
    """Explain the images, print what was predicted and write the outputs."""
    out = options.out or [Path("fastxai-explain.png")]
    _common.check_outputs(out)
    network = _common.network(options)
    x = _common.images(options.images, "IMAGE", network, options.device)
    predicted = network.predict(x)
    net = network.smooth(options.beta)
    network.check_class(options.target)
    maps = _maps(options, net, x)

    rows = [{"file": str(file), **row} for file, row in zip(options.images, predicted, strict=True)]
    says = [f"{row['class']}, {row['probability']:.1%}" for row in rows]
    if options.target is not None:
        says = [f"{one}\nexplained: {network.label(options.target)}" for one in says]
    heat = {name: shown for name, (_, shown) in maps.items()}
    _common.write_figure(out, lambda: _draw(options, x, heat, says))
    raw = {f"attributions.{name}": attributions for name, (attributions, _) in maps.items()}
    _common.write_tensors(out, {"images": x, **raw, **{f"maps.{name}": shown for name, shown in heat.items()}})
    result = {
        "command": "explain",
        "model": options.model,
        "methods": list(maps),
        "signed": options.signed,
        "beta": options.beta,
        "explained_class": options.target,
        "images": rows,
        "written": [str(file) for file in out],
    }
    text = "\n".join([*(f"{r['file']}: {r['class']} ({r['probability']:.1%})" for r in rows), _common.written(out)])
    _common.show(options, result, text)


def _maps(options: argparse.Namespace, net: Net, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the raw map and the shown one by each method; one that does not fit the model only if it was named."""
    chosen = _methods.chosen(options)
    explainers = {name: _methods.explainer(name, net, options) for name in chosen}
    maps = {}
    for name, by_name in chosen.items():
        try:
            maps[name] = _common.maps(explainers[name], x, options.target, signed=options.signed)
        except _common.UsageError as error:
            if by_name:
                raise
            print(f"fastxai: {name} is left out: {error}", file=sys.stderr)
    if not maps:
        raise _common.UsageError("--method all: none fits the model")
    return maps


def _draw(options: argparse.Namespace, x: Tensor, heat: dict[str, Tensor], says: list[str]) -> Figure:
    return viz.maps_figure(
        x,
        {_methods.METHODS[name].title: shown for name, shown in heat.items()},
        [file.name for file in options.images],
        says,
        signed=options.signed,
        overlays=len(heat) == 1,
    )
