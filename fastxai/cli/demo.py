"""Explain two photos, manipulate one explanation, recover it, and time it all against plain autograd."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastxai import models
from fastxai.attacks import AttackResult, Manipulation
from fastxai.cli import _common, _plain
from fastxai.cli.attack import compared, tensors
from fastxai.data import demo_photos
from fastxai.engine import compile as compile_net
from fastxai.explainers import Gradient, reduce_map
from fastxai.metrics import pcc, ssim
from fastxai.viz import Exhibit, demo_figure

__all__ = ["add_arguments", "run"]

BETA, LR = 3.0, 2e-4
ROUNDS, TIMED_STEPS, COMPARED_STEPS = 5, 40, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--steps", type=int, default=600, help="iterations of the attack (default: 600)")
    _common.add_common(parser, "fastxai-demo.png")
    parser.set_defaults(model="demo", weights=None, pretrained=False, size=None, mean=None, std=None)


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    out = options.out or [Path("fastxai-demo.png")]
    if options.steps < 1:
        raise _common.UsageError(f"--steps must be at least 1, got {options.steps}")
    _common.check_outputs(out)
    network = _common.network(options)
    photos, names = demo_photos()
    photos = photos.to(options.device)
    predicted = network.predict(photos)
    explainer = Gradient(network.net)
    heat = _common.maps(explainer, photos)[1]

    attack = Manipulation(explainer, steps=options.steps, lr=LR)
    result = attack.perturb(photos[:1], heat[1:], progress=True)
    smooth = Gradient(network.net.with_activation("softplus", BETA))
    recovered = _common.maps(smooth, torch.cat([photos[:1], result.images]))[1]

    row = compared(result, predicted[:1], network.predict(result.images))[0]
    pairs = {
        "smoothed_map_to_target": (recovered[1:], heat[1:]),
        "smoothed_map_to_original": (recovered[1:], heat[:1]),
        "smoothed_map_to_smoothed_original": (recovered[1:], recovered[:1]),
    }
    row |= {name: _alike(a, b) for name, (a, b) in pairs.items()}
    _common.write_figure(out, lambda: _draw(photos, heat, predicted, result, row["after"], recovered))
    _common.write_tensors(out, {**tensors(photos[:1], result), "recovered_maps": recovered})
    report = {
        "command": "demo",
        "photos": [{"photo": name, **p} for name, p in zip(names, predicted, strict=True)],
        "steps": len(result.history["map"]),
        "beta": BETA,
        **row,
        "time": None if result.interrupted else _time(network, photos[:1], heat[1:], options.device),
        "written": [str(file) for file in out],
    }
    _common.show(options, report, _text(report))
    if result.interrupted:
        raise _common.Stopped(f"stopped after {report['steps']} of {options.steps} steps; {_common.written(out)}")


def _alike(a: Tensor, b: Tensor) -> dict[str, float]:
    return {"pcc": float(pcc(a, b)), "ssim": float(ssim(a, b)), "mse": float((a - b).square().mean())}


def _time(network: _common.Network, x: Tensor, target_map: Tensor, where: str) -> dict[str, Any]:
    """Compare values, then seconds an iteration, of fastxai and of plain autograd on the same attack, in turns."""
    net, statistics = network.net, (models.DEMO_MEAN, models.DEMO_STD)
    attack = Manipulation(Gradient(net), steps=TIMED_STEPS, judge_every=TIMED_STEPS)
    plain = (net.model, x, target_map, attack, *statistics)
    difference = _difference(x.double(), reduce_map(target_map.double(), None), *statistics)
    seconds: dict[str, list[float]] = {"fastxai": [], "autograd": []}
    for _ in range(ROUNDS):
        for name, work in (
            ("fastxai", lambda: attack.perturb(x, target_map)),
            ("autograd", lambda: _plain.manipulate(*plain)),
        ):
            began = time.perf_counter()
            work()
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / TIMED_STEPS)
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "seconds_per_step": medians,
        "ratio": medians["autograd"] / medians["fastxai"],
        "steps": TIMED_STEPS,
        "rounds": ROUNDS,
        "relative_difference_of_the_loss": difference,
        "machine": _common.machine(where),
    }


def _difference(x: Tensor, target_map: Tensor, mean: Sequence[float], std: Sequence[float]) -> float:
    """Largest relative difference of the loss of the two, in float64, since Adam amplifies the roundings of float32."""
    model = models.demo().to(x)
    attack = Manipulation(Gradient(compile_net(model, mean, std)), steps=COMPARED_STEPS)
    ours = attack.perturb(x, target_map).history
    theirs = _plain.manipulate(model, x, target_map, attack, mean, std)[1]
    return float(((ours["map"] + ours["output"] - theirs) / theirs).abs().max())


def _text(report: dict[str, Any]) -> str:
    before, after = report["before"], report["after"]
    said = "\n".join(f"  {p['photo']}: {p['class']}, {p['probability']:.1%}" for p in report["photos"])
    rows = {
        "map to target's map, before": "map_to_target_before",
        "map to target's map, after": "map_to_target",
        "map to original map, after": "map_to_original",
        f"smoothed map (beta {BETA:g}) to target's map": "smoothed_map_to_target",
        f"smoothed map (beta {BETA:g}) to original map": "smoothed_map_to_original",
        f"smoothed map (beta {BETA:g}) to original's, smoothed": "smoothed_map_to_smoothed_original",
        "manipulated photo to original photo": "image",
    }
    alike = _common.table(
        ["similarity", "PCC", "SSIM", "MSE"],
        [
            [what, *(f"{report[k][n]:{f}}" for n, f in (("pcc", ".3f"), ("ssim", ".3f"), ("mse", ".1e")))]
            for what, k in rows.items()
        ],
    )
    # What is returned keeps the class by choice.
    kept = "kept to the end" if report["last_class_kept"] else "kept, but not by the last step"
    parts = [
        f"The network says\n{said}",
        f"After {report['steps']} steps that move the {report['photos'][0]['photo']}'s map to the "
        f"{report['photos'][1]['photo']}'s\n  class {kept}: {before['class']}, {before['probability']:.1%} -> "
        f"{after['class']}, {after['probability']:.1%}",
        alike,
    ]
    if report["time"]:
        parts.append(_time_text(report["time"]))
    return "\n\n".join([*parts, _common.written(report["written"])])


def _time_text(measured: dict[str, Any]) -> str:
    seconds = measured["seconds_per_step"]
    names = {"fastxai": "fastxai", "autograd": "plain PyTorch autograd"}
    rows = [[names[name], f"{1e3 * s:.2f}", f"{seconds['autograd'] / s:.1f}x"] for name, s in seconds.items()]
    below = (
        f"medians of {measured['rounds']} rounds of {measured['steps']} steps, in turns; "
        f"in float64 their losses differ by {measured['relative_difference_of_the_loss']:.0e} of the value"
    )
    return "\n".join([_common.table(["attack, one image", "ms a step", "speed"], rows), below, measured["machine"]])


def _draw(
    photos: Tensor,
    heat: Tensor,
    predicted: list[dict[str, Any]],
    result: AttackResult,
    after: dict[str, Any],
    recovered: Tensor,
) -> Figure:
    says = [f"{p['class']}, {100 * p['probability']:.0f} %" for p in (*predicted, after)]
    first, second = (Exhibit(photos[i], heat[i], says[i]) for i in (0, 1))
    changed = Exhibit(result.images[0], result.maps[0], says[2])
    return demo_figure(first, second, changed, recovered[1], BETA, smoothed=recovered[0])
