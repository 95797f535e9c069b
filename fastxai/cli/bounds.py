"""Print what the theorems allow a map to change beside what it does change, and the ratio of the two."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastxai import theory
from fastxai.cli import _common
from fastxai.cli._errors import UsageError, first_line
from fastxai.data import noisy
from fastxai.engine import Net

__all__ = ["add_arguments", "run"]

# Points of the segment between which kinks are counted, and pieces of which the integral is made.
POINTS, PIECES, NODES = 17, 8, 2
# Where nothing jumps, what the integral may miss before the row says so.
_COARSE = 0.01
# From so many kinks on, [R] eq. 27 holds whatever their number is.
ENOUGH = 4


@dataclass(frozen=True)
class _Row:
    """A measurement and its bound.

    Attributes:
        name: what is measured.
        source: the bound and where it is from.
        measured: [N].
        bound: [N]; None if there is none for this network.
        note: why there is none, or what to know of it.
    """

    name: str
    source: str
    measured: Tensor
    bound: Tensor | None
    note: str = ""

    def numbers(self) -> dict[str, Any]:
        """Return the row as plain numbers: of every image, and their medians."""
        columns = {"measured": self.measured, "bound": self.bound}
        columns["ratio"] = None if self.bound is None else self.measured.double() / self.bound.double()
        listed = {name: None if v is None else [_plain(one) for one in v.tolist()] for name, v in columns.items()}
        medians = {name: None if v is None else _plain(_median(v)) for name, v in columns.items()}
        return {"name": self.name, "source": self.source, "note": self.note, **listed, "median": medians}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--beta", type=float, default=10.0, help="softplus of this beta in place of ReLU (default: 10; as [R] has it)"
    )
    parser.add_argument(
        "--class", dest="target", type=int, metavar="K", help="class whose score is looked at (default: the predicted)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.005,
        metavar="NU",
        help="how far the segment goes: standard deviation of the noise at its end, for images in [0, 1] "
        "(default: 0.005)",
    )
    parser.add_argument(
        "--exact-kinks",
        action="store_true",
        help=f"find every kink of the ReLU network, a pass each, not those between {POINTS} points alone",
    )
    parser.add_argument("--probes", type=int, default=32, help="random directions for ||H||_F (default: 32)")
    parser.add_argument("--steps", type=int, default=32, help="Lanczos steps for ||H||_2 (default: 32)")
    _common.add_model(parser)
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda:0 (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> None:
    """Measure, bound and print."""
    for name in ("probes", "steps"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 < options.noise < math.inf:
        raise UsageError(f"--noise must be finite and positive, got {options.noise}")
    network = _common.network(options)
    x = _common.images(options.images, "IMAGE", network, options.device)
    net = network.smooth(options.beta)
    network.check_class(options.target)
    classes = network.net(x).argmax(1)
    classes = classes if options.target is None else torch.full_like(classes, options.target)
    other = noisy(x, options.noise, seed=options.seed)

    norms = {kind: _norms(net, x, classes, kind) for kind in ("frobenius", "spectral")}
    rows = [*_hessian_rows(options, net, x, classes, norms), *_segment_rows(options, net, (x, other), classes)]
    kinks, relu = _relu_rows(options, network.net, (x, other), classes, norms)
    _show(options, network.predict(x), [*rows, *relu], norms, kinks)


Norms = Tensor | str


def _attempt(make: Callable[[], Any]) -> Any:
    """Return what is made, or a line that says why it cannot be."""
    try:
        return make()
    except (ValueError, RuntimeError) as error:
        return first_line(error)


def _norms(net: Net, x: Tensor, classes: Tensor, kind: str) -> Norms:
    """Return the layers' norms [N, L] for the score of each image's class, or why there are none."""
    kinds, place = classes.unique(return_inverse=True)
    found = _attempt(lambda: theory.layer_norms(net, x, kinds, norm=kind).double()[place])
    return found if isinstance(found, str) else found.cpu()


def _hessian_rows(
    options: argparse.Namespace, net: Net, x: Tensor, classes: Tensor, norms: dict[str, Norms]
) -> list[_Row]:
    index = torch.arange(len(x), device=x.device)
    frobenius = theory.frobenius_norm(net, x, classes, probes=options.probes, seed=options.seed, index=index).value
    spectral = theory.spectral_norm(net, x, classes, steps=options.steps, seed=options.seed, index=index).value
    smooth = _attempt(lambda: theory.smoothness(net, x))

    def tight(of: list[float]) -> float:
        return theory.hessian_bound(of, smooth.slope, smooth.curvature, linear_head=True)

    def loose(of: list[float]) -> float:
        if smooth.slope > 1 or smooth.curvature > options.beta:
            raise ValueError(f"an activation is steeper, or bends more, than softplus of beta {options.beta:g}")
        return theory.loose_softplus_bound(of, options.beta)

    def row(name: str, source: str, measured: Tensor, kind: str, bound: Callable[[list[float]], float]) -> _Row:
        layers = norms[kind]
        if isinstance(smooth, str):
            made = smooth
        elif isinstance(layers, str):
            made = layers
        else:
            made = _attempt(lambda: _double([bound(of) for of in layers.tolist()]))
        if isinstance(made, str):
            return _Row(name, source, measured.cpu(), None, f"does not apply: {made}")
        return _Row(name, source, measured.cpu(), made)

    return [
        row("||H||_F", "[R] eq. 8, Frobenius norms", frobenius, "frobenius", tight),
        row("||H||_2", "[R] eq. 8, spectral norms", spectral, "spectral", tight),
        row("||H||_F", "beta C~, [M1] eq. 17", frobenius, "frobenius", loose),
    ]


def _segment_rows(options: argparse.Namespace, net: Net, ends: tuple[Tensor, Tensor], classes: Tensor) -> list[_Row]:
    """Return the links of [R]'s chain along the segment; where maps jump, with the jumps on the greater side."""
    x, other = ends
    points = torch.stack([x + t / PIECES * (other - x) for t in range(PIECES + 1)])
    found = theory.path_change(net, points, classes, nodes=NODES, samples=1, steps=options.steps, probes=options.probes)
    smooth = _attempt(lambda: theory.smoothness(net, x))
    jumping = isinstance(smooth, str) or smooth.jumps
    jumps, more = (found.jumps, " + jumps") if jumping else (torch.zeros_like(found.jumps), "")
    missed = _median(found.jumps / found.moved)
    coarse = f"the integral's {PIECES * NODES} points miss {missed:.0%} of the change" if missed > _COARSE else ""
    note = f"jumps, which no Hessian sees: {_median(jumps):.3g}" if jumping else coarse
    links = {
        f"int ||H dx||{more}, [R] eq. 4": found.total,
        f"max ||H||_2 L{more}": found.spectral * found.length,
        f"max ||H||_F L{more}, [R] eq. 5": found.frobenius * found.length,
    }
    moved = found.moved.cpu()
    return [_Row("map change", source, moved, (link + jumps).cpu(), note) for source, link in links.items()]


def _relu_rows(
    options: argparse.Namespace, net: Net, ends: tuple[Tensor, Tensor], classes: Tensor, norms: dict[str, Norms]
) -> tuple[Tensor | None, list[_Row]]:
    """Return how many kinks each segment has [N], if that is known, and the rows of [R] theorem 2."""
    x, other = ends
    moved = (net.gradient(other, classes) - net.gradient(x, classes)).flatten(1).norm(dim=1).cpu()

    def count() -> tuple[Tensor, Tensor]:
        """Return the kinks, and the numbers that the bound is taken of."""
        smooth = theory.smoothness(net, x)
        if not smooth.piecewise_linear or smooth.slope > 1:
            raise ValueError("the network as given is not piecewise linear, or an activation is steeper than ReLU")
        if options.exact_kinks:
            found = theory.segment_kinks(net, x, other)
            return found.units + found.winners, found.weighted
        counted = theory.count_kinks(net, torch.stack([x + t / (POINTS - 1) * (other - x) for t in range(POINTS)]))
        return counted, counted.clamp(min=ENOUGH)

    kinks: tuple[Tensor, Tensor] | str = norms["frobenius"] if isinstance(norms["frobenius"], str) else _attempt(count)

    def row(source: str, of: Norms) -> _Row:
        if isinstance(kinks, str) or isinstance(of, str):
            reason = kinks if isinstance(kinks, str) else of
            return _Row("map change, ReLU", source, moved, None, f"does not apply: {reason}")
        counted, weighted = kinks
        pairs = zip(of.tolist(), weighted.tolist(), strict=True)
        bound = _double([theory.relu_bound(one, number) for one, number in pairs])
        least = "" if options.exact_kinks else "at least "
        return _Row("map change, ReLU", source, moved, bound, f"{least}{_median(counted):.0f} kinks")

    rows = [
        row("sqrt(kinks) prod ||W||_F, [R] eq. 27", norms["frobenius"]),
        row("sqrt(kinks) prod ||W||_2", norms["spectral"]),
    ]
    return None if isinstance(kinks, str) else kinks[0], rows


def _show(
    options: argparse.Namespace,
    predicted: list[dict[str, Any]],
    rows: list[_Row],
    norms: dict[str, Norms],
    kinks: Tensor | None,
) -> None:
    numbers = [row.numbers() for row in rows]
    result = {
        "command": "bounds",
        "model": options.model,
        "beta": options.beta,
        "noise": options.noise,
        "explained_class": options.target,
        "images": [{"file": str(file), **row} for file, row in zip(options.images, predicted, strict=True)],
        "rows": numbers,
        "layer_norms": {kind: None if isinstance(of, str) else of.tolist() for kind, of in norms.items()},
        "kinks": None if kinks is None else kinks.tolist(),
    }
    width = max(len(row.note) for row in rows)
    lines = [
        [
            f"{row.name} <= {row.source}",
            *("-" if (n := plain["median"][name]) is None else f"{n:.3g}" for name in ("measured", "bound", "ratio")),
            row.note.ljust(width),
        ]
        for row, plain in zip(rows, numbers, strict=True)
    ]
    head = [f"medians of {len(predicted)}", "measured", "bound", "ratio", ""]
    text = _common.table(head, lines)
    _common.show(options, result, "\n".join(line.rstrip() for line in text.splitlines()))


def _double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _median(v: Tensor) -> float:
    return v.double().quantile(0.5).item()


def _plain(number: float) -> float | None:
    """Return the number, or None for one that JSON does not have."""
    return number if math.isfinite(number) else None
