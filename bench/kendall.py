"""Kendall's tau-b of a batch of maps against SciPy's: values compared first, then medians of interleaved runs.

``python bench/kendall.py [--small]``. Sixteen pairs of correlated maps; SciPy takes them one by one. A kernel's thread
takes whole samples, so one pair alone runs at the rate of one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _measure import interleaved, machine, table
from scipy.stats import kendalltau
from torch import Tensor

import fastxai
from fastxai.metrics import kendall_tau

PAIRS = 16
# SciPy's result is float64: ours is as close as its dtype allows, for values up to 1
TOLERANCE = {torch.float32: 6e-8, torch.float64: 1e-14}


def maps(size: int, dtype: torch.dtype, *, tied: bool) -> tuple[Tensor, Tensor]:
    """Two batches [16, size] with a correlation of about .5; tied ones hold 8-bit values."""
    first, second = torch.rand(2, PAIRS, size, dtype=torch.float64)
    both = torch.stack((first, (first + second) / 2))
    a, b = ((both * 255).round() if tied else both).to(dtype).unbind(0)
    return a, b


def by_scipy(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([kendalltau(x, y)[0] for x, y in zip(a.numpy(), b.numpy(), strict=True)])


def under(backend: str, threads: int, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        torch.set_num_threads(threads)
        with fastxai.backend(backend):
            return kendall_tau(a, b)

    return call


def run(size: int, dtype: torch.dtype, repeats: int, *, tied: bool) -> list[list[str]]:
    """Check every contender, time all of them in one interleaved run, and return the table's rows."""
    a, b = maps(size, dtype, tied=tied)
    calls = {f"cpu, {threads} thread{'s' * (threads > 1)}": under("cpu", threads, a, b) for threads in (1, 2)}
    calls["reference, 1 thread"] = under("reference", 1, a, b)
    expected, errors = by_scipy(a, b).double(), {"SciPy": ""}
    for name, call in calls.items():
        error = (call().double() - expected).abs().max().item()
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f"{name}, n = {size}: error {error:.1e}; no time is reported")
        errors[name] = f"{error:.0e}"
    seconds = interleaved({**calls, "SciPy": lambda: by_scipy(a, b)}, repeats)
    kind = f"{str(dtype).removeprefix('torch.')}{', tied' * tied}"
    return [
        [str(size), kind, name, f"{s / PAIRS * 1e6:.1f}", f"{seconds['SciPy'] / s:.1f}", errors[name]]
        for name, s in seconds.items()
    ]


def main() -> None:
    """Run every size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny maps: a test that everything runs")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    if fastxai.available()["cpu"]:
        raise SystemExit(f"backend 'cpu' cannot run here: {fastxai.available()['cpu']}")
    torch.manual_seed(0)
    print(machine())
    report = []
    for size in (64, 200) if args.small else (3072, 50176):
        for dtype, tied in ((torch.float32, False), (torch.float32, True), (torch.float64, False)):
            report += run(size, dtype, args.repeats, tied=tied)
    print(table(["elements", "maps", "by", "us a pair", "x SciPy", "error"], report))


if __name__ == "__main__":
    main()
