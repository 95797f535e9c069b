"""Show which pixels of your images decide the class."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from fastxai import viz
from fastxai.cli import _common
from fastxai.explainers import Gradient, InputXGradient, Saliency
from fastxai.viz import Panel, Row

__all__ = ["METHODS", "add_arguments", "run"]

METHODS = {"gradient": Gradient, "saliency": Saliency, "input_x_gradient": InputXGradient}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--method", choices=METHODS, default="gradient", help="the map (default: gradient)")
    parser.add_argument(
        "--class", dest="target", type=int, metavar="K", help="class to explain (default: the predicted)"
    )
    parser.add_argument("--beta", type=float, help="smooth the network: softplus of this beta in place of ReLU")
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
    raw, heat = _common.maps(METHODS[options.method](net), x, options.target)

    _common.write_figure(out, lambda: _draw(x, heat, [file.name for file in options.images], predicted))
    _common.write_tensors(out, {"images": x, "attributions": raw, "maps": heat})
    rows = [{"file": str(file), **row} for file, row in zip(options.images, predicted, strict=True)]
    result = {
        "command": "explain",
        "model": options.model,
        "method": options.method,
        "beta": options.beta,
        "explained_class": options.target,
        "images": rows,
        "written": [str(file) for file in out],
    }
    text = "\n".join([*(f"{r['file']}: {r['class']} ({r['probability']:.1%})" for r in rows), _common.written(out)])
    _common.show(options, result, text)


def _draw(x: Tensor, heat: Tensor, titles: list[str], predicted: list[dict[str, Any]]) -> Figure:
    """One row an image: the image, its map, and the map over the image."""
    shown = viz.overlay(x, heat, quantile=0.99)
    rows = [
        Row(
            [
                Panel(image, title, f"{p['class']}, {p['probability']:.1%}"),
                Panel(one, "map"),
                Panel(over, "map over image"),
            ]
        )
        for image, one, over, title, p in zip(x, heat, shown, titles, predicted, strict=True)
    ]
    return viz.grid(rows)
