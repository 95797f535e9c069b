"""Measure how good a network is and how stable its maps are, under random noise or under attacks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastxai import evaluation
from fastxai.cli import _attributional, _common, _evaluate, _rows
from fastxai.cli._common import Stopped, UsageError
from fastxai.cli._errors import naming
from fastxai.data.noise import KINDS
from fastxai.results import ResultStore, Row

__all__ = ["add_arguments", "run"]

# [R] table 1 and section 4.1.
METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "guided_backprop", "lrp")
# [F] table 1.
ROBUSTNESS_METHODS = ("integrated_gradients",)
LEVELS = (0.005, 0.01, 0.025)
SIMILARITIES = ("pcc", "ssim", "mse")
# What only random noise and the Hessian have use for.
OF_NOISE = {"noise": KINDS[0], "levels": LEVELS, "probes": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--data", required=True, metavar="KIND:FOLDER", help="images with labels, such as cifar10:FOLDER"
    )
    parser.add_argument("--part", choices=("test", "train"), default="test", help="part of the data (default: test)")
    parser.add_argument("--images", type=int, help="take the first so many (default: all)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=evaluation.METHODS,
        metavar="METHOD",
        help=f"maps, some of {' '.join(evaluation.METHODS)} (default: all but the last; "
        f"with --robustness {' '.join(ROBUSTNESS_METHODS)})",
    )
    parser.add_argument(
        "--robustness",
        choices=_attributional.PRESETS,
        help="attack predictions and maps in place of adding noise, with the settings for this data set",
    )
    _attributional.add_arguments(parser)
    parser.add_argument("--patterns", type=Path, metavar="FILE", help="patterns of the model, for pattern_attribution")
    parser.add_argument("--noise", choices=KINDS, help=f"kind of the noise (default: {KINDS[0]})")
    parser.add_argument(
        "--levels",
        type=float,
        nargs="+",
        metavar="NU",
        help=f"amounts of noise, as a share of the range of values (default: {' '.join(map(str, LEVELS))})",
    )
    parser.add_argument(
        "--probes", type=int, help="random directions an image for the norm of the Hessian (default: 1)"
    )
    parser.add_argument("--batch", type=int, default=100, help="images a row, computed together (default: 100)")
    _common.add_model(parser)
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the rows")


def run(options: argparse.Namespace) -> None:
    """Make the rows that are missing, then say what all of them say."""
    _check(options)
    store = ResultStore(options.out / "rows")
    bench = _make(options, store)
    result = _summary(options, bench, store.rows(study=_evaluate.NAME))
    _common.show(options, result, _text(result) if options.robustness is None else _attributional.text(result))


def _check(options: argparse.Namespace) -> None:
    """Fill in the defaults; UsageError names what is wrong; repeated methods and levels count once."""
    for name, default in OF_NOISE.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.robustness is not None:
            raise UsageError(f"--{name} does not go with --robustness, which adds no noise and takes no Hessian")
    if options.robustness is None:
        for name in (*_attributional.CHANGES, "points"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} goes with --robustness, whose attack it changes")
    else:
        options.changes = _attributional.changes(options)
    for name in ("images", "batch", "probes", "points"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    most = 2.0 if options.noise == "salt_and_pepper" else float("inf")
    wrong = [level for level in options.levels if not (0 <= level <= most and level < float("inf"))]
    if wrong:
        raise UsageError(f"--levels must be finite and lie in 0 .. {most:g} for {options.noise}, got {wrong[0]}")
    options.methods = list(dict.fromkeys(options.methods or (ROBUSTNESS_METHODS if options.robustness else METHODS)))
    options.levels = list(dict.fromkeys(options.levels))
    if options.points is not None and "integrated_gradients" not in options.methods:
        raise UsageError(f"--points goes with --methods integrated_gradients, got {' '.join(options.methods)}")


def _make(options: argparse.Namespace, store: ResultStore) -> _evaluate.Bench:
    rows = _rows.found(options, store)
    bench = _evaluate.bench(options)
    jobs = _evaluate.jobs(options, bench, rows)
    total, made = sum(len(job.parts) for job in jobs), 0
    try:
        with tqdm(total=total, unit="row", disable=None) as bar:
            for job in jobs:
                bar.set_description(job.label)
                with naming(job.label, store.folder):
                    made += _evaluate.run(store, bench, job)
                bar.update(len(job.parts))
    except OSError as error:
        raise UsageError(f"--out {options.out}: {error}") from error
    except KeyboardInterrupt as error:
        raise Stopped(
            f"stopped: {made} of {total} missing rows are now in {store.folder}; the same command goes on"
        ) from error
    return bench


def _summary(options: argparse.Namespace, bench: _evaluate.Bench, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what is printed, as JSON values."""
    count = options.images or len(bench.data)
    result: dict[str, Any] = {
        "command": "evaluate",
        "model": options.model,
        "data": options.data,
        "part": options.part,
        "images": count,
        "space": bench.told["space"],
        "written": str(options.out / "rows"),
    }
    wanted = _evaluate.parts(options)
    if options.robustness is not None:
        about = {"preset": options.robustness, **_attributional.settings(bench.attack(wanted[0]))}
        lines = [
            {
                "method": part.which["method"],
                "explainer": bench.made_with[part.which["method"]],
                **_attributional.summary(_evaluate.collected(rows, part, count)),
            }
            for part in wanted
        ]
        return {**result, "settings": about, _attributional.NAME: lines}
    result |= {"noise": [], "stability": []}
    for part in wanted:
        if part.experiment == "weights":
            [row] = [row for row in rows if part.has(row)]
            norms = row.values["norms"]
            layers = dict(zip(row.values["layers"], norms, strict=True))
            result["weight_norm"] = {"mean": sum(norms) / len(norms) if norms else None, "layers": layers}
            continue
        values = _evaluate.collected(rows, part, count)
        if part.experiment == "accuracy":
            result["accuracy"] = _share(values["correct"])
        elif part.experiment == "hessian":
            norms = {name: _mean_of_norms(one) for name, one in values.items()}
            result["hessian_norm"] = {"probes": options.probes, **norms}
        else:
            result["stability"].append({**part.which, **{name: _mean_and_std(values[name]) for name in SIMILARITIES}})
            # Images and noise are the same for every map, and so are the classes.
            if part.which["method"] == options.methods[0]:
                shares = {"class_changed": _share(values["changed"]), "accuracy": _share(values["correct"])}
                result["noise"].append({"kind": options.noise, "level": part.which["level"], **shares})
    return result


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _mean_and_std(numbers: Sequence[float]) -> dict[str, float]:
    """Return mean and standard deviation over the images (of these images: no Bessel correction)."""
    values = torch.tensor(numbers, dtype=torch.float64)
    return {"mean": values.mean().item(), "std": values.std(correction=0).item()}


def _mean_of_norms(norms: Sequence[float]) -> dict[str, float] | None:
    flat = evaluation.mean_norm(torch.tensor(norms, dtype=torch.float64)) is None
    return None if flat else _mean_and_std(norms)


def _text(result: Mapping[str, Any]) -> str:
    weights, hessians = result["weight_norm"], result["hessian_norm"]
    spaces = {"normalised": "the normalised input", "image": "the [0, 1] image"}
    found = [f"{_spread(hessians[name], '.4g')} on {said}" for name, said in spaces.items() if hessians.get(name)]
    lines = [
        f"accuracy           {result['accuracy']:.2%} of {result['images']} images",
        f"mean Hessian norm  {'; '.join(found) or 'none: the network is piecewise linear'}",
        f"mean weight norm   {'none' if weights['mean'] is None else format(weights['mean'], '.4g')}",
    ]
    layers = [[name, f"{norm:.4g}"] for name, norm in weights["layers"].items()]
    noises = [[f"{n['level']:g}", f"{n['accuracy']:.2%}", f"{n['class_changed']:.2%}"] for n in result["noise"]]
    maps = [
        [
            row["method"],
            f"{row['level']:g}",
            *(_spread(row[name], spec) for name, spec in zip(SIMILARITIES, (".2f", ".2f", ".1e"), strict=True)),
        ]
        for row in result["stability"]
    ]
    return "\n\n".join(
        [
            "\n".join(lines),
            _common.table(["layer", "weight norm"], layers),
            _common.table([f"{result['noise'][0]['kind']} noise", "accuracy", "class changed"], noises),
            _common.table(["map", "noise", "PCC", "SSIM", "MSE"], maps),
            f"rows in {result['written']}",
        ]
    )


def _spread(numbers: Mapping[str, float], spec: str) -> str:
    return f"{numbers['mean']:{spec}} +/- {numbers['std']:{spec}}"
