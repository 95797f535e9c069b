"""Layer-wise relevance propagation and its gradient: fastxai against zennit.

``python bench/lrp.py [--cases cnn:1 cnn:64 vgg16:2] [--composites epsilon_plus epsilon_gamma_box] [--small]``. The
gradient is that of a quadratic loss on the map, for x. zennit's hooks stay registered while it is timed. Values are
compared before anything is timed; times are medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from _measure import interleaved, machine, peak_memory, table
from _networks import NETWORKS
from torch import Tensor, nn
from zennit import composites

import fastxai

CLASS = 1
BOX = (-3.0, 3.0)


def relu_network(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """Return (model in eval mode, its ReLUs as they are; inputs in the box), seeded."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().eval().requires_grad_(False), torch.randn(batch, *shape).clamp(*BOX)


def zennit_composite(name: str) -> composites.LayerMapComposite:
    """Return zennit's composite of this name."""
    if name == "epsilon_gamma_box":
        low, high = (torch.full((1, 3, 1, 1), end) for end in BOX)
        return composites.EpsilonGammaBox(low=low, high=high)
    return composites.COMPOSITES[name]()


class Peer:
    """zennit on one model: maps and gradients of maps, with the hooks registered once."""

    def __init__(self, model: nn.Module, composite: str) -> None:
        self.composite = zennit_composite(composite)
        self.composite.register(model)
        self.model = model

    def map(self, x: Tensor, *, differentiable: bool = False) -> tuple[Tensor, Tensor]:
        """Return (map, the leaf it depends on); the covector requires grad, or the gradient would be wrong."""
        x = x.detach().requires_grad_()
        scores = self.model(x)
        seed = torch.zeros_like(scores)
        seed[:, CLASS] = 1
        seed.requires_grad_(differentiable)
        return torch.autograd.grad(scores, x, seed, create_graph=differentiable)[0], x

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of sum h^2."""
        h, leaf = self.map(x, differentiable=True)
        with self.composite.inactive():
            return torch.autograd.grad(h.square().sum(), leaf)[0]


def gradient(explainer: fastxai.LRP, x: Tensor) -> Tensor:
    """Return the gradient of sum h^2."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(explainer.attribute(x, CLASS).square().sum(), x)[0]


def _error(got: Tensor, want: Tensor) -> float:
    got, want = (t.double().flatten(1) for t in (got, want))
    return float(((got - want).norm(dim=1) / want.norm(dim=1)).median())


def case(name: str, batch: int, composite: str, repeats: int) -> list[list[str]]:
    """Return the rows of one network, batch size and composite."""
    model, x = relu_network(name, batch)
    wide = copy.deepcopy(model).double()
    ours, truth = fastxai.LRP(copy.deepcopy(model), composite, low=BOX[0], high=BOX[1]), Peer(wide, composite)
    theirs, last = Peer(copy.deepcopy(model), composite), Peer(model.to(memory_format=torch.channels_last), composite)
    x_last = x.contiguous(memory_format=torch.channels_last)
    rows = []
    work: dict[str, tuple[dict[str, Callable[[], Tensor]], Tensor]] = {
        "map": (
            {
                "fastxai": lambda: ours.attribute(x, CLASS),
                "zennit": lambda: theirs.map(x)[0],
                "zennit channels-last": lambda: last.map(x_last)[0],
            },
            truth.map(x.double())[0],
        ),
        "map and gradient": (
            {
                "fastxai": lambda: gradient(ours, x),
                "zennit": lambda: theirs.gradient(x),
                "zennit channels-last": lambda: last.gradient(x_last),
            },
            truth.gradient(x.double()),
        ),
    }
    for what, (calls, want) in work.items():
        errors = {k: _error(call(), want) for k, call in calls.items()}
        worst = max(error for k, error in errors.items() if k != "fastxai")
        if not errors["fastxai"] <= max(2 * worst, 1e-5):
            raise SystemExit(
                f"{name} {what}: fastxai errs by {errors['fastxai']:.1e}, zennit by {worst:.1e}; not timed"
            )
        seconds = interleaved(calls, repeats=repeats)
        for k in calls:
            ratio = seconds[k] / seconds["fastxai"]
            label = [f"{name} x{batch}", composite, what, k]
            rows.append([*label, f"{seconds[k] * 1e3:.2f}", f"{ratio:.2f}", f"{errors[k]:.0e}"])
    return rows


def memory(name: str, batch: int, composite: str) -> list[list[str]]:
    """Return peak memory of map and gradient above the loaded model, each in a process of its own."""
    rows = []
    for what, make, call in (
        ("fastxai", f"fastxai.LRP(model, {composite!r}, low=-3.0, high=3.0)", "gradient(made, x)"),
        ("zennit", f"Peer(model, {composite!r})", "made.gradient(x)"),
    ):
        setup = (
            "import torch, fastxai; from lrp import Peer, gradient, relu_network; torch.set_num_threads(2); "
            f"model, x = relu_network({name!r}, {batch}); made = {make}"
        )
        rows.append([f"{name} x{batch}", composite, what, f"{peak_memory(setup, call) / 2**20:.0f}"])
    return rows


def main() -> None:
    """Run the chosen cases and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["cnn:1", "cnn:64", "vgg16:2"])
    parser.add_argument("--composites", nargs="*", default=["epsilon_plus", "epsilon_gamma_box"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine())
    for entry in ["cnn:2"] if args.small else args.cases:
        name, batch = entry.split(":")
        for composite in args.composites:
            rows = case(name, int(batch), composite, 2 if args.small else args.repeats)
            print(table(["case", "composite", "what", "how", "ms", "x fastxai", "error"], rows), flush=True)
            if not args.small:
                peaks = memory(name, int(batch), composite)
                print(table(["case", "composite", "how", "peak MiB"], peaks), flush=True)


if __name__ == "__main__":
    main()
