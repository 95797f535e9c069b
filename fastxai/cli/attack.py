"""Change your images so that they look the same and their maps become those of others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from fastxai import viz
from fastxai.attacks import AttackResult, Ball, Manipulation, Similarity, target_maps
from fastxai.attacks._presets import DATA, networks
from fastxai.cli import _common, _methods
from fastxai.cli._errors import UsageError, first_line
from fastxai.explainers import Explainer, SmoothGrad
from fastxai.metrics.ssim import WINDOW
from fastxai.viz import Panel, Row

__all__ = ["add_arguments", "compared", "run", "tensors"]

# [M]: the weights of map and output, on CIFAR-10 and on ImageNet.
SMALL, IMAGENET = (10.0, 1e2), (40.0, 1e6)
STEPS, LR, BETA = 500, 1e-3, (10.0, 100.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="images to manipulate")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--target",
        type=Path,
        action="append",
        metavar="IMAGE",
        help="the image whose map to imitate: one for all, or repeated, one for each",
    )
    goal.add_argument("--text", metavar="WORDS", help="write these words into the map")
    _methods.add_method(parser)
    parser.add_argument(
        "--preset", choices=DATA, help="the settings of the paper for this map; options given here replace them"
    )
    parser.add_argument("--steps", type=int, help=f"iterations (default: {STEPS})")
    parser.add_argument("--lr", type=float, help=f"step size (default: {LR:g})")
    parser.add_argument(
        "--beta",
        type=float,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="during the attack softplus stands for ReLU; its beta grows from the first to the last "
        f"(default: {BETA[0]:g} {BETA[1]:g}; none for lrp, which needs none)",
    )
    parser.add_argument("--c", type=float, help="weight of the map (default: 10; 40 for torchvision models)")
    parser.add_argument("--gamma", type=float, help="weight of the output (default: 100; 1e6 for torchvision models)")
    parser.add_argument("--eps", type=float, help="keep the image this close to the original (default: no limit)")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf", help="in what --eps counts (default: linf)")
    parser.add_argument("--stop", type=float, metavar="PCC", help="be done with an image once its map is this alike")
    _common.add_model(parser)
    _common.add_common(parser, "fastxai-attack.png")


def run(options: argparse.Namespace) -> None:
    """Attack the images, print how alike maps and images are and write the outputs."""
    out = options.out or [Path("fastxai-attack.png")]
    count = len(options.images)
    if options.target and len(options.target) not in (1, count):
        raise UsageError(f"--target must be given once or {count} times, once an IMAGE, got {len(options.target)}")
    _common.check_outputs(out)
    network = _common.network(options, smallest=WINDOW)
    explainer = _methods.explainer(options.method, network.net, options)
    attack = _attack(explainer, network, options)
    x = _common.images(options.images, "IMAGE", network, options.device)
    network.scores(x, options.images)
    target_map = _target_maps(explainer, x, network, options)
    try:
        result = attack.perturb(x, target_map, progress=True)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--method {options.method}: {first_line(error)}") from error

    before, after = network.predict(x), network.predict(result.images)
    files = zip(options.images, compared(result, before, after), strict=True)
    rows = [{"file": str(file), **row} for file, row in files]
    _common.write_figure(out, lambda: _draw(x, result, rows))
    _common.write_tensors(out, tensors(x, result))
    report = {
        "command": "attack",
        "model": options.model,
        "method": options.method,
        "steps": len(result.history["map"]),
        "interrupted": result.interrupted,
        "images": rows,
        "written": [str(file) for file in out],
    }
    _common.show(options, report, f"{_table(rows)}\n{_common.written(out)}")
    if result.interrupted:
        raise _common.Stopped(f"stopped after {report['steps']} of {attack.steps} steps; {_common.written(out)}")


def _attack(explainer: Explainer, network: _common.Network, options: argparse.Namespace) -> Manipulation:
    """Return the attack of the options: a preset or the defaults, and what was given."""
    given = {name: getattr(options, name) for name in ("steps", "lr", "c", "gamma", "stop")}
    given["beta"] = None if options.beta is None else tuple(options.beta)
    try:
        given["ball"] = None if options.eps is None else Ball(options.eps, options.norm)
        # Noise of one seed would be all that the map is moved for.
        given["redraw"] = isinstance(explainer, SmoothGrad) or None
        given = {name: value for name, value in given.items() if value is not None}
        if options.preset is not None:
            name = options.model.partition(":")[2]
            row = name if options.method in ("gradient", "saliency") and name in networks(options.preset) else None
            # The preset knows by itself what a net takes that normalises.
            space = {} if network.net.normalises else {"mean": network.space.mean, "std": network.space.std}
            return Manipulation.preset(explainer, options.preset, row, **space, **given)
        c, gamma = IMAGENET if options.model.startswith("torchvision:") else SMALL
        beta = None if options.method == "lrp" else BETA
        return Manipulation(explainer, **({"steps": STEPS, "lr": LR, "beta": beta, "c": c, "gamma": gamma} | given))
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _target_maps(explainer: Explainer, x: Tensor, network: _common.Network, options: argparse.Namespace) -> Tensor:
    """Return the maps to imitate [N, H, W]."""
    if options.text is not None:
        try:
            return target_maps.text((len(x), *x.shape[2:]), options.text).to(x)
        except ValueError as error:
            raise UsageError(f"--text: {error}") from error
    others = _common.images(options.target, "--target", network, options.device)
    network.scores(others, options.target)
    return _common.maps(explainer, others.expand(len(x), -1, -1, -1))[1]


def compared(result: AttackResult, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each image the predictions and similarities, as plain numbers."""
    pairs = {
        "map_to_target_before": Similarity.between(result.original_maps, result.target_maps),
        "map_to_target": result.metrics.to_target,
        "map_to_original": result.metrics.to_original,
        "image": result.metrics.image,
    }
    listed = {
        name: [dict(zip(("pcc", "ssim", "mse"), values, strict=True)) for values in zip(*_numbers(pair), strict=True)]
        for name, pair in pairs.items()
    }
    listed |= {name: getattr(result, name).tolist() for name in ("class_kept", "last_class_kept", "last_pcc")}
    return [
        {"before": b, "after": a, **{name: rows[i] for name, rows in listed.items()}}
        for i, (b, a) in enumerate(zip(before, after, strict=True))
    ]


def _numbers(pair: Similarity) -> list[list[float]]:
    return [pair.pcc.tolist(), pair.ssim.tolist(), pair.mse.tolist()]


def tensors(x: Tensor, result: AttackResult) -> dict[str, Tensor]:
    """Return what a .safetensors output holds."""
    return {
        "images": x,
        "manipulated": result.images,
        "maps": result.maps,
        "original_maps": result.original_maps,
        "target_maps": result.target_maps,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    # The image that is returned keeps the class by choice.
    head = ["image", "class", "kept to the end", "map to target: PCC", "after", "SSIM", "after", "image MSE"]
    return _common.table(
        head,
        [
            [
                row["file"],
                row["before"]["class"],
                "yes" if row["last_class_kept"] else "no",
                *(
                    f"{row[key][name]:.2f}"
                    for name in ("pcc", "ssim")
                    for key in ("map_to_target_before", "map_to_target")
                ),
                f"{row['image']['mse']:.1e}",
            ]
            for row in rows
        ],
    )


def _draw(x: Tensor, result: AttackResult, rows: list[dict[str, Any]]) -> Figure:
    """One row an image: image and map before, the map to imitate, image and map after, and what changed."""
    change = (0.5 + 10 * (result.images - x)).clamp(0, 1)
    parts = zip(rows, x, result.original_maps, result.target_maps, result.images, result.maps, change, strict=True)
    return viz.grid(
        [
            Row(
                [
                    Panel(image, Path(row["file"]).name, _says(row["before"])),
                    Panel(before, "its map", _like(row["map_to_target_before"])),
                    Panel(target, "map to imitate"),
                    Panel(manipulated, "manipulated", _says(row["after"])),
                    Panel(after, "its map", _like(row["map_to_target"])),
                    Panel(difference, "change of the image x 10", f"image MSE {row['image']['mse']:.1e}"),
                ]
            )
            for row, image, before, target, manipulated, after, difference in parts
        ]
    )


def _says(predicted: dict[str, Any]) -> str:
    return f"{predicted['class']}, {predicted['probability']:.1%}"


def _like(alike: dict[str, float]) -> str:
    return f"vs map to imitate: PCC {alike['pcc']:.2f}"
