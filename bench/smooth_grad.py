"""SmoothGrad of the gradient, and the gradient of a loss on it: fastxai against Captum and plain autograd.

``python bench/smooth_grad.py [--cases cnn:8:10 cnn:8:50 resnet20:8:10 resnet20:8:50] [--small]``; a case is
network:batch:samples. Values are compared before anything is timed; times are medians of interleaved runs. Captum draws
noise of its own, so every map is compared with the float64 mean over the very noise it used. The map is that of the
ReLU network, the loss (the map's sum of squares) that of the softplus network, since ReLU has no second derivative.
Captum's map has no gradient.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import captum.attr
import torch
from _measure import interleaved, machine, peak_memory, table
from _networks import NETWORKS, network
from torch import Tensor, nn

import fastxai

sys.path.insert(0, str(Path(__file__).resolve().parent))
from references import plain

# A rival: what is timed, and its value with the float64 truth over the same noise.
Rival = tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, Tensor]]]
STDEV = 0.25


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _error(got: Tensor, want: Tensor) -> float:
    """Median over samples of the relative L2 error."""
    got, want = (t.detach().double().flatten(1) for t in (got, want))
    return float(((got - want).norm(dim=1) / want.norm(dim=1)).median())


class Recorded(fastxai.Gradient):
    """The Gradient map, which remembers the inputs that it was asked about."""

    def map_and_scores(self, x: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
        self.seen = x.detach()
        return super().map_and_scores(x, *arguments, **options)


class Case:
    """One network, batch and number of samples: every way to the map and to the gradient of a loss on it."""

    def __init__(self, name: str, batch: int, samples: int, *, smooth: bool) -> None:
        self.samples = samples
        self.model, self.x, self.target = network(name, batch) if smooth else self._relu(name, batch)
        self.x_last, self.last = _last(self.x), copy.deepcopy(self.model).to(memory_format=torch.channels_last)
        self.wide = copy.deepcopy(self.model).double()
        self.explainer = fastxai.SmoothGrad(Recorded(self.model), samples, stdev=STDEV)
        self.noise = self._our_rows() - self.x

    @staticmethod
    def _relu(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        make, shape = NETWORKS[name]
        model, x = make().eval().requires_grad_(False), torch.randn(batch, *shape)
        return model, x, model(x).argmax(1)

    def _our_rows(self) -> Tensor:
        self.ours()
        rows = self.explainer.explainer.seen  # type: ignore[attr-defined]
        return rows.unflatten(0, (self.samples, -1))

    def ours(self) -> Tensor:
        return self.explainer.attribute(self.x, self.target)

    def captum(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        options = {"nt_samples": self.samples, "stdevs": STDEV, "target": self.target, "abs": False}
        return tunnel.attribute(x, **options)  # type: ignore[return-value]

    def plain(self, way: Callable[..., Tensor], **options: bool) -> Tensor:
        return way(self.last, self.x_last, self.target, self.noise, **options)

    def our_slope(self) -> Tensor:
        leaf = self.x.detach().requires_grad_()
        return torch.autograd.grad(self.explainer.attribute(leaf, self.target).square().sum(), leaf)[0]

    def plain_slope(self, way: Callable[..., Tensor], model: nn.Module, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        h = way(model, leaf, self.target, self.noise, create_graph=True)
        return torch.autograd.grad(h.square().sum(), leaf)[0]

    def true_map(self, rows: Tensor) -> Tensor:
        """The float64 mean over given noisy inputs [n, N, ...]."""
        parts = [plain.gradient(self.wide, one.double(), self.target)[1] for one in rows]
        return torch.stack(parts).mean(0)

    def true_slope(self, rows: Tensor) -> Tensor:
        """sum_i H(x_i) v with v = dL/dh / n, in float64."""
        v = 2 * self.true_map(rows) / len(rows)
        return torch.stack([plain.hvp(self.wide, one.double(), v, self.target) for one in rows]).sum(0)

    def captum_check(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def recorded(rows: Tensor) -> Tensor:
            seen.append(rows.detach().clone())
            return model(rows)

        h = self.captum(recorded, x)
        return h, self.true_map(torch.cat(seen).unflatten(0, (-1, self.samples)).transpose(0, 1))

    def maps(self) -> dict[str, Rival]:
        """The map, by every rival."""
        rows = self._our_rows()
        truth = self.true_map(rows)
        calls: dict[str, Rival] = {
            "fastxai": (self.ours, lambda: (self.ours(), truth)),
            "Captum": (
                partial(self.captum, self.model, self.x),
                partial(self.captum_check, self.model, self.x),
            ),
            "Captum, channels-last": (
                partial(self.captum, self.last, self.x_last),
                partial(self.captum_check, self.last, self.x_last),
            ),
        }
        for what, way in (("loop", plain.smooth_gradient), ("one batch", plain.smooth_gradient_batched)):
            call = partial(self.plain, way)
            calls[f"plain {what}, channels-last"] = call, lambda call=call: (call(), truth)
        return calls

    def slopes(self) -> dict[str, Rival]:
        """The gradient of the loss, by every rival."""
        truth = self.true_slope(self._our_rows())
        loop, batch = plain.smooth_gradient, plain.smooth_gradient_batched
        calls = {
            "fastxai": self.our_slope,
            "plain loop": partial(self.plain_slope, loop, self.model, self.x),
            "plain loop, channels-last": partial(self.plain_slope, loop, self.last, self.x_last),
            "plain one batch, channels-last": partial(self.plain_slope, batch, self.last, self.x_last),
        }
        return {k: (call, lambda call=call: (call(), truth)) for k, call in calls.items()}


def rows(label: list[str], rivals: dict[str, Rival], repeats: int) -> list[list[str]]:
    """Compare every value with its truth, then time: fastxai may err at most twice as much as the worst rival."""
    errors = {k: _error(*check()) for k, (_, check) in rivals.items()}
    worst = max(error for k, error in errors.items() if k != "fastxai")
    if not errors["fastxai"] <= max(2 * worst, 1e-5):
        raise SystemExit(f"{label}: fastxai errs by {errors['fastxai']:.1e}, its rivals by {worst:.1e}; not timed")
    seconds = interleaved({k: call for k, (call, _) in rivals.items()}, repeats=repeats)
    ours = seconds["fastxai"]
    return [[*label, k, f"{seconds[k] * 1e3:.1f}", f"{seconds[k] / ours:.2f}", f"{errors[k]:.0e}"] for k in rivals]


def memory(name: str, batch: int, samples: int) -> list[list[str]]:
    """Return peak memory above the loaded model, each way in a process of its own."""
    made = []
    for what, smooth, how, call in (
        ("map", False, "fastxai", "case.ours()"),
        ("map", False, "Captum", "case.captum(case.model, case.x)"),
        ("d|map|^2", True, "fastxai", "case.our_slope()"),
        ("d|map|^2", True, "plain loop", "case.plain_slope(plain.smooth_gradient, case.model, case.x)"),
    ):
        setup = (
            "import torch; from smooth_grad import Case, plain; torch.set_num_threads(2); "
            f"case = Case({name!r}, {batch}, {samples}, smooth={smooth})"
        )
        made.append([f"{name} x{batch}", f"{samples}", what, how, f"{peak_memory(setup, call) / 2**20:.0f}"])
    return made


def main() -> None:
    """Run the chosen cases and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["cnn:8:10", "cnn:8:50", "resnet20:8:10", "resnet20:8:50"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine())
    for entry in ["cnn:2:3"] if args.small else args.cases:
        name, batch, samples = entry.split(":")
        repeats, size = 2 if args.small else args.repeats, (int(batch), int(samples))
        label = [f"{name} x{batch}", samples]
        times = rows([*label, "map"], Case(name, *size, smooth=False).maps(), repeats)
        times += rows([*label, "d|map|^2"], Case(name, *size, smooth=True).slopes(), repeats)
        print(table(["case", "samples", "what", "how", "ms", "x fastxai", "error"], times), flush=True)
        if not args.small:
            print(table(["case", "samples", "what", "how", "peak MiB"], memory(name, *size)), flush=True)


if __name__ == "__main__":
    main()
