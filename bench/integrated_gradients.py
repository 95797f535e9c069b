"""Integrated Gradients: fastxai against Captum and plain autograd, at equal steps; then steps to a given accuracy.

``python bench/integrated_gradients.py [--cases cnn:8:30 cnn:8:50 resnet20:8:30 vgg16:1:10 vgg16:8:30:10] [--small]``.
Values are compared with float64 before anything is timed; times are medians of interleaved runs. The floor is the bare
convolution and GEMM calls at their fastest; those before the first activation have 2 rows a sample up and 1 down for
any steps. A fourth number in a case is the most rows the rivals run at once (Captum's ``internal_batch_size``), where
all of them would not fit: then only the map is compared, with float64 for the first sample, and each is timed once.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import captum.attr
import torch
from _measure import interleaved, machine, peak_memory, table
from _networks import BETA, NETWORKS, SHARED, network
from floor import floor
from torch import Tensor, nn

import fastxai
from fastxai.data import cifar10
from fastxai.explainers import quadrature
from fastxai.models import DEMO_MEAN, DEMO_STD, demo

sys.path.insert(0, str(Path(__file__).resolve().parent))
from references import plain

Calls = dict[str, Callable[[], Tensor]]
CASES = ["cnn:8:30", "cnn:8:50", "resnet20:8:30", "resnet20:8:50", "vgg16:1:10"]
GRID = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GAP = 1e-3


def _error(got: Tensor, want: Tensor) -> float:
    """Median over samples of the relative L2 error."""
    got, want = (t.detach().double().flatten(1) for t in (got, want))
    return float(((got - want).norm(dim=1) / want.norm(dim=1)).median())


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def map_calls(name: str, batch: int, steps: int, rows: int | None = None) -> tuple[Calls, Callable[[], Tensor]]:
    """The map by every rival, and in float64; with ``rows``, Captum's own division of the work alone."""
    model, x, target = network(name, batch)
    last = network(name, batch)[0].to(memory_format=torch.channels_last)
    explainer, points = fastxai.IntegratedGradients(model), quadrature("gausslegendre", steps)
    rival, rival_last = captum.attr.IntegratedGradients(model), captum.attr.IntegratedGradients(last)
    calls: Calls = {
        "fastxai": lambda: explainer.attribute(x, target, n_steps=steps),
        "Captum": lambda: rival.attribute(x, target=target, n_steps=steps, internal_batch_size=rows),
        "Captum, channels-last": lambda: rival_last.attribute(
            _last(x), target=target, n_steps=steps, internal_batch_size=rows
        ),
        "plain, channels-last": lambda: plain.integrated_gradient(last, _last(x), target, points),
    }
    wide = copy.deepcopy(model).double()
    if rows is None:
        return calls, lambda: plain.integrated_gradient(wide, x.double(), target, points)
    del calls["plain, channels-last"]
    return calls, lambda: plain.integrated_gradient(wide, x[:1].double(), target[:1], points)


def slope_calls(name: str, batch: int, steps: int) -> tuple[Calls, Callable[[], Tensor]]:
    """The gradient in x of |map|^2 by those who have it, and in float64."""
    model, x, target = network(name, batch)
    last = network(name, batch)[0].to(memory_format=torch.channels_last)
    explainer, points = fastxai.IntegratedGradients(model), quadrature("gausslegendre", steps)

    def ours() -> Tensor:
        leaf = x.clone().requires_grad_()
        h = explainer.attribute(leaf, target, n_steps=steps)
        return torch.autograd.grad(h.square().sum(), leaf)[0]

    def theirs(model: nn.Module, x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        h = plain.integrated_gradient(model, leaf, target, points, create_graph=True)
        return torch.autograd.grad(h.square().sum(), leaf)[0]

    wide = copy.deepcopy(model).double()
    calls: Calls = {
        "fastxai": ours,
        "plain": lambda: theirs(model, x),
        "plain, channels-last": lambda: theirs(last, _last(x)),
    }
    return calls, lambda: theirs(wide, x.double())


def floor_seconds(name: str, batch: int, steps: int) -> float:
    """Return the seconds of the bare vendor calls of one map."""
    model, x, _ = network(name, batch)
    net = fastxai.compile(model)
    run, _ = net._backend(x)
    first = {node.path or type(node).__name__ for node in net._core.path(run).boundary.prefix.nodes}  # type: ignore[arg-type]
    before, after = floor(net, x), floor(net, x, steps - 1)
    rows = {"up": 1.0, "down": 0.5}
    seconds = sum(rows[la.name.split()[-1]] * la.seconds for la in before if la.name.rsplit(" ", 1)[0] in first)
    return seconds + sum(la.seconds for la in after if la.name.rsplit(" ", 1)[0] not in first)


def rows(label: list[str], calls: Calls, truth: Tensor, repeats: int, least: float | None) -> list[list[str]]:
    """Compare with float64, then time; fastxai may err at most twice as much as the worst rival (as in hvp.py).

    With one repeat, what is timed are the calls that are compared.
    """
    first: dict[str, float] = {}
    errors: dict[str, float] = {}
    for k, call in calls.items():
        start = time.perf_counter()
        found = call()
        first[k] = time.perf_counter() - start
        errors[k] = _error(found[: len(truth)], truth)
    worst = max(error for k, error in errors.items() if k != "fastxai")
    if not errors["fastxai"] <= max(2 * worst, 1e-5):
        raise SystemExit(f"{label}: fastxai errs by {errors['fastxai']:.1e}, its rivals by {worst:.1e}; not timed")
    seconds = interleaved(calls, repeats=repeats) if repeats > 1 else first
    ours, made = seconds["fastxai"], []
    for k in calls:
        over = f"{ours / least:.2f}" if least and k == "fastxai" else ""
        made.append([*label, k, f"{seconds[k] * 1e3:.1f}", f"{seconds[k] / ours:.2f}", over, f"{errors[k]:.0e}"])
    return made


def memory(name: str, batch: int, steps: int) -> list[list[str]]:
    """Return peak memory above the loaded model, each way in a process of its own."""
    setup = (
        "import torch, fastxai, captum.attr; from _networks import network; torch.set_num_threads(2); "
        f"model, x, target = network({name!r}, {batch})"
    )
    arguments = f"x, target=target, n_steps={steps}"
    leaf, slope = "x = x.clone().requires_grad_()", "torch.autograd.grad(h.square().sum(), x)"
    ours = f"h = fastxai.IntegratedGradients(model).attribute({arguments})"
    calls = {
        ("map", "fastxai"): ours,
        ("map", "Captum"): f"captum.attr.IntegratedGradients(model).attribute({arguments})",
        ("d|map|^2", "fastxai"): f"{leaf}; {ours}; {slope}",
    }
    label = f"{name} x{batch}"
    return [[label, str(steps), *how, f"{peak_memory(setup, call) / 2**20:.0f}"] for how, call in calls.items()]


def trained(name: str, activation: str | None) -> fastxai.Net:
    """Return a trained net that takes images in [0, 1]."""
    beta = BETA if activation else None
    if name == "demo":
        return fastxai.compile(demo(), DEMO_MEAN, DEMO_STD, activation, beta)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return fastxai.compile(NETWORKS[name][0]().eval(), mean, std, activation, beta)


@torch.no_grad()
def accuracy(name: str, activation: str | None, x: Tensor, grid: Sequence[int]) -> list[list[str]]:
    """Return the steps and seconds that every rule takes until the gap stays below ``GAP`` |f(x) - f(xbar)|."""
    net, made = trained(name, activation), []
    target = net(x).argmax(1)
    change = (net(x) - net(torch.zeros_like(x))).gather(1, target[:, None])[:, 0].abs()
    label = [name, f"softplus {BETA:.0f}" if activation else "ReLU"]
    for method in ("gausslegendre", "clenshaw_curtis", "midpoint", "riemann_trapezoid", "riemann_right"):
        explainer, gaps = fastxai.IntegratedGradients(net, method=method), []
        for n in grid:
            gaps.append(explainer.attribute(x, target, n_steps=n, return_convergence_delta=True)[1].abs() / change)
        # The first n from which on the gap stays small.
        bad = torch.stack(gaps) > GAP
        last = len(grid) - bad.flip(0).int().argmax(0)
        first = torch.where(bad.any(0), last, 0).sort().values
        shown = [int(first[int(q * (len(x) - 1))]) for q in (0.5, 0.9)]
        steps = [f"{grid[i]}" if i < len(grid) else f">{grid[-1]}" for i in shown]
        n = grid[min(shown[0], len(grid) - 1)]
        seconds = interleaved({"call": lambda e=explainer, n=n: e.attribute(x, target, n_steps=n)}, 3)["call"]
        made.append([*label, method, steps[0], steps[1], f"{seconds * 1e3:.0f}"])
    return made


@torch.no_grad()
def automatic(name: str, activation: str | None, x: Tensor, most: int) -> list[list[str]]:
    """Return how many points an input takes by n_steps="auto", and the time of the batch."""
    net, made = trained(name, activation), []
    target, zero = net(x).argmax(1), torch.zeros_like(x)
    for method in ("midpoint", "riemann_trapezoid"):
        explainer = fastxai.IntegratedGradients(net, n_steps="auto", method=method, max_steps=most)
        steps = explainer._refined(net, x, zero, target)[2].double()
        seconds = interleaved({"call": lambda e=explainer: e.attribute(x, target)}, 3)["call"]
        label = [name, f"softplus {BETA:.0f}" if activation else "ReLU", f"auto, {method}, tol 1e-2"]
        made.append([*label, f"{steps.median():.0f}", f"{steps.quantile(0.9):.0f}", f"{seconds * 1e3:.0f}"])
    return made


def main() -> None:
    """Run the chosen cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=12, help="of the table of steps; 0 leaves it out")
    parser.add_argument("--networks", nargs="*", default=["demo", "resnet20"], help="of the table of steps")
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine())
    for entry in ["cnn:2:3"] if args.small else args.cases:
        name, batch, steps, *most = entry.split(":")
        case = name, int(batch), int(steps)
        repeats = 2 if args.small else args.repeats
        label, least = [f"{name} x{batch}", steps], None if name == "vgg16" else floor_seconds(*case)
        times = []
        calls, truth = map_calls(*case, rows=int(most[0]) if most else None)
        times += rows([*label, "map"], calls, truth(), 1 if most else repeats, least)
        if not most:
            calls, truth = slope_calls(*case)
            times += rows([*label, "d|map|^2"], calls, truth(), repeats, None)
        times += [[*label, "map", "floor", f"{least * 1e3:.1f}", "", "", ""]] if least else []
        print(table(["case", "steps", "what", "how", "ms", "x fastxai", "x floor", "error"], times))
        if not args.small and not most:
            print(table(["case", "steps", "what", "how", "peak MiB"], memory(*case)), flush=True)
    if not args.images:
        return
    # An input that "auto" gives up on says so; the table shows it.
    warnings.simplefilter("ignore", UserWarning)
    x = torch.rand(2, 3, 32, 32) if args.small else cifar10(SHARED / "data" / "cifar10")[0][: args.images].float() / 255
    print(f"steps until the gap stays below {GAP:.0e} |f(x) - f(xbar)|, and the time of the median")
    for name in ["demo"] if args.small else args.networks:
        for activation in ("softplus", None):
            steps_taken = accuracy(name, activation, x, GRID[:4] if args.small else GRID)
            steps_taken += automatic(name, activation, x, 20 if args.small else 500)
            print(table(["net", "activation", "rule", "median", "90 %", "ms"], steps_taken), flush=True)


if __name__ == "__main__":
    main()
