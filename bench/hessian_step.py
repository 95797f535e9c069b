"""One step of training with the Hessian penalty: fastxai against three backward passes, and against its floor.

``python bench/hessian_step.py [--cases cnn:64 cnn:128] [--small]``: cross-entropy + zeta ||H v||^2, value and gradients
of every parameter. Gradients are compared with float64 before anything is timed; times are medians of interleaved
runs. The floor is the bare calls of the two passes at their fastest: up and down twice with 2 N rows, weight gradients
of 4 N.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import interleaved, machine, peak_memory, table
from _networks import BETA, network
from floor import floor, weight_floor
from torch import Tensor, nn

import fastxai
from fastxai.training import CrossEntropy, HessianNorm, Objective

ZETA = 1e-6
CASES = ["cnn:64", "cnn:128"]
Step = Callable[[], list[Tensor]]


def _gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def three_backward(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> list[Tensor]:
    """The loop that everybody writes."""
    leaf = x.detach().requires_grad_()
    scores = model(leaf)
    (g,) = torch.autograd.grad(scores.max(1).values.sum(), leaf, create_graph=True)
    (hv,) = torch.autograd.grad(g, leaf, v, create_graph=True)
    return _gradients(F.cross_entropy(scores, y) + ZETA * hv.flatten(1).square().sum(1).mean(), model)


def compiled(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> Step:
    """torch.compile of the gradient of a loss on jvp(grad)."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        def best(x: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (x,)).max(1).values.sum()

        hv = torch.func.jvp(torch.func.grad(best), (x,), (v,))[1]
        scores = torch.func.functional_call(model, parameters, (x,))
        return F.cross_entropy(scores, y) + ZETA * hv.flatten(1).square().sum(1).mean()

    step = torch.compile(torch.func.grad(loss))
    return lambda: list(step(parameters, x).values())


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """A step without the penalty."""
    return _gradients(F.cross_entropy(model(x), y), model)


def case(name: str, batch: int, repeats: int) -> tuple[list[list[str]], list[list[str]]]:
    """Compare, time, and return the rows of both tables."""
    model, x, y = network(name, batch)
    model.requires_grad_(True)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    net = fastxai.compile(model)
    objective = Objective(net, [CrossEntropy(), ZETA * HessianNorm(direction=lambda net, x, y: v)])
    wide = copy.deepcopy(model).double()
    steps: dict[str, Step] = {
        "fastxai": lambda: _gradients(objective(x, y), model),
        "three backward passes": lambda: three_backward(model, x, y, v),
        "the same, channels-last": lambda: three_backward(last, x_last, y, v),
    }
    try:
        steps["compiled jvp(grad)"] = compiled(model, x, y, v)
        steps["compiled jvp(grad)"]()
    except Exception as error:
        print(f"compiled jvp(grad): {type(error).__name__}: {str(error).splitlines()[0]}")
        steps.pop("compiled jvp(grad)", None)
    truth = three_backward(wide, x.double(), y, v.double())
    errors = {}
    for how, step in steps.items():
        pairs = list(zip(step(), truth, strict=True))
        errors[how] = max(float((got.double() - want).norm() / want.norm()) for got, want in pairs)
        assert errors[how] < 1e-3, (how, errors[how])
    calls = {**steps, "without the penalty": lambda: plain_step(model, x, y)}
    seconds = interleaved(calls, repeats)
    with torch.no_grad():
        bare = 2 * sum(layer.seconds for layer in floor(net, x))
        bare += sum(layer.seconds for layer in weight_floor(net, x, 4 * batch))
    rows = []
    for how, time in seconds.items():
        ours = how == "fastxai"
        ratios = [f"{time / seconds['fastxai']:.2f}", f"{time / bare:.2f}" if ours else ""]
        rows.append(
            [f"{name} x{batch}", how, f"{1e3 * time:.1f}", *ratios, f"{errors.get(how, 0):.0e}" * (how in errors)]
        )
    rows.append([f"{name} x{batch}", "floor", f"{1e3 * bare:.1f}", "", "", ""])
    setup = (
        "import torch, fastxai, hessian_step as b\nfrom _networks import network\n"
        f"model, x, y = network({name!r}, {batch}); model.requires_grad_(True); v = torch.randn_like(x)\n"
        "penalty = b.HessianNorm(direction=lambda net, x, y: v)\n"
        "o = b.Objective(fastxai.compile(model), [b.CrossEntropy(), b.ZETA * penalty])"
    )
    peaks = [
        [f"{name} x{batch}", how, f"{peak_memory(setup, call) / 2**20:.0f}"]
        for how, call in (
            ("fastxai", "b._gradients(o(x, y), model)"),
            ("three backward passes", "b.three_backward(model, x, y, v)"),
        )
    ]
    return rows, peaks


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="NETWORK:BATCH")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    print(machine(), f"beta {BETA:g}")
    for one in ["cnn:2"] if args.small else args.cases:
        name, batch = one.split(":")
        rows, peaks = case(name, int(batch), 2 if args.small else args.repeats)
        print(table(["case", "how", "ms", "x fastxai", "x floor", "error"], rows))
        print(table(["case", "how", "peak MiB"], peaks), flush=True)


if __name__ == "__main__":
    main()
