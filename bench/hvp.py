"""Gradient and Hessian-vector product: fastxai against plain autograd, its best rivals, and the floor.

``python bench/hvp.py [--cases cnn:1 cnn:64 resnet20:64 vgg16:2] [--no-compile] [--small]``. Values are compared before
anything is timed; times are medians of interleaved runs, ratios are to plain autograd in the same run.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import interleaved, machine, peak_memory, table
from _networks import network
from floor import floor
from torch import Tensor, nn

import fastxai

sys.path.insert(0, str(Path(__file__).resolve().parent))
from references import plain

Calls = dict[str, Callable[[], Tensor]]


def _error(got: Tensor, want: Tensor) -> float:
    """Median over samples of the relative L2 error."""
    got, want = (t.double().flatten(1) for t in (got, want))
    return float(((got - want).norm(dim=1) / want.norm(dim=1)).median())


def _compiled(model: nn.Module, target: Tensor, x: Tensor, v: Tensor) -> Callable[[], Tensor]:
    product = torch.compile(plain.jvp_grad(model, target), fullgraph=True)
    return lambda: product(x, v)


def _add(calls: Calls, name: str, call: Callable[[], Tensor]) -> str:
    """Add a rival that may not run at all (torch 2.15 cannot compile jvp(grad) of a batch norm); say so if not."""
    try:
        call()
    except RuntimeError as error:
        return f"fails: {type(error).__name__}"
    calls[name] = call
    return ""


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def gradient_calls(net: fastxai.Net, model: nn.Module, last: nn.Module, x: Tensor, target: Tensor) -> Calls:
    """The gradient, three ways."""
    return {
        "fastxai": lambda: net.gradient(x, target),
        "plain autograd": lambda: plain.gradient(model, x, target)[1],
        "channels-last": lambda: plain.gradient(last, _last(x), target)[1],
    }


def hvp_calls(net: fastxai.Net, model: nn.Module, last: nn.Module, x: Tensor, v: Tensor, target: Tensor) -> Calls:
    """One Hessian-vector product, three ways."""
    return {
        "fastxai": lambda: net.hvp(x, v, target),
        "plain autograd": lambda: plain.hvp(model, x, v, target),
        "channels-last": lambda: plain.hvp(last, _last(x), _last(v), target),
    }


def directions_calls(net: fastxai.Net, model: nn.Module, x: Tensor, vs: Tensor, target: Tensor) -> Calls:
    """Several directions, the ways that share the primal pass."""
    return {
        "fastxai": lambda: net.hvp(x, vs, target),
        "retained graph": lambda: plain.hvps_loop(model, x, vs, target),
        "is_grads_batched": lambda: plain.hvps_batched(model, x, vs, target),
    }


def _row(
    name: str, what: str, calls: Calls, truth: Tensor, repeats: int, floor_seconds: float | None
) -> list[list[str]]:
    """Compare every value with float64, then time: fastxai may err at most twice as much as the worst rival.

    The worst, not plain autograd's default layout: on deep nets with max-pools a few argmaxes flip between any two
    orders of summation, and which way of computing is hit is chance.
    """
    errors = {k: _error(call(), truth) for k, call in calls.items()}
    worst = max(error for k, error in errors.items() if k != "fastxai")
    if not errors["fastxai"] <= max(2 * worst, 1e-5):
        raise SystemExit(
            f"{name} {what}: fastxai errs by {errors['fastxai']:.1e}, its rivals by {worst:.1e}; not timed"
        )
    seconds = interleaved(calls, repeats=repeats)
    ours, rows = seconds["fastxai"], []
    for k in calls:
        over = "" if floor_seconds is None or k != "fastxai" else f"{ours / floor_seconds:.2f}"
        rows.append([name, what, k, f"{seconds[k] * 1e3:.2f}", f"{seconds[k] / ours:.2f}", over, f"{errors[k]:.0e}"])
    return rows


def case(name: str, batch: int, *, compiled: bool, repeats: int, directions: int) -> list[list[str]]:
    """Return the rows of one network and batch size."""
    model, x, target = network(name, batch)
    last = network(name, batch)[0].to(memory_format=torch.channels_last)
    net, label = fastxai.compile(model), f"{name} x{batch}"
    v = torch.randn_like(x)
    wide, x64 = copy.deepcopy(model).double(), x.double()
    truth = plain.gradient(wide, x64, target)[1]
    rows = _row(label, "gradient", gradient_calls(net, model, last, x, target), truth, repeats, None)
    hvp = hvp_calls(net, model, last, x, v, target)
    refused = _add(hvp, "compiled jvp(grad)", _compiled(model, target, x, v)) if compiled else ""
    seconds = sum(layer.seconds for layer in floor(net, x))
    rows += _row(label, "H v", hvp, plain.hvp(wide, x64, v.double(), target), repeats, seconds)
    rows.append([label, "H v", "floor", f"{seconds * 1e3:.2f}", "", "", ""])
    rows += [[label, "H v", "compiled jvp(grad)", refused, "", "", ""]] if refused else []
    if directions:
        vs = torch.randn(directions, *x.shape)
        calls = directions_calls(net, model, x, vs, target)
        if compiled:
            product = plain.jvp_grad(model, target)
            batched = torch.compile(torch.func.vmap(product, in_dims=(None, 0)), fullgraph=True)
            calls["compiled vmap"] = lambda: batched(x, vs)
        truth = plain.hvps_loop(wide, x64, vs.double(), target)
        rows += _row(label, f"H v x{directions}", calls, truth, max(3, repeats // 3), None)
    return rows


def memory(name: str, batch: int) -> list[list[str]]:
    """Return peak memory above the loaded model, each way in a process of its own."""
    rows = []
    for what, call in {
        "fastxai": "fastxai.compile(model).hvp(x, v, target)",
        "plain autograd": "plain.hvp(model, x, v, target)",
    }.items():
        setup = (
            "import torch, fastxai; from _networks import network; from references import plain; "
            f"torch.set_num_threads(2); model, x, target = network({name!r}, {batch}); v = torch.randn_like(x)"
        )
        rows.append([f"{name} x{batch}", "H v", what, f"{peak_memory(setup, call) / 2**20:.0f}"])
    return rows


def main() -> None:
    """Run the chosen cases and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["cnn:1", "cnn:64", "resnet20:64", "vgg16:2"])
    parser.add_argument("--directions", type=int, default=8, help="of the first case with batch 64")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    cases = ["cnn:2"] if args.small else args.cases
    print(machine())
    for entry in cases:
        name, batch = entry.split(":")
        many = args.directions if args.small or entry == "cnn:64" else 0
        repeats = 2 if args.small else args.repeats * (5 if batch == "1" else 1)
        compiled = not (args.small or args.no_compile)
        rows = case(name, int(batch), compiled=compiled, repeats=repeats, directions=many)
        print(table(["case", "what", "how", "ms", "x fastxai", "x floor", "error"], rows), flush=True)
        if not args.small:
            print(table(["case", "what", "how", "peak MiB"], memory(name, int(batch))), flush=True)


if __name__ == "__main__":
    main()
