"""[M] eq. 4 on ResNet-20 and CIFAR-10: fastxai against the same loop in plain autograd, quality first, then time.

``python bench/manipulation.py [--pairs 16] [--steps 300] [--small]``. Pairs of random test images: the first is moved
to the Gradient map of the second. Both loops run in full and are judged on the ReLU network; milliseconds per iteration
are medians of interleaved blocks of further iterations.

``python bench/manipulation.py --method all [--batch 1 16] [--device cuda]`` times one iteration of every map on the
demo CNN instead, after it has compared both loss gradients in float64. On a CPU iterations whose tensors take at most
128 MiB are replayed, on a GPU all are. Images are CIFAR-10's, or noise where the shared data is absent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from _measure import machine, table
from _networks import NETWORKS, SHARED
from references import manipulation as plain
from torch import Tensor, nn

import fastxai
from fastxai.attacks import Manipulation
from fastxai.attacks._task import Task
from fastxai.data import cifar10
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    PatternTrainer,
    SmoothGrad,
    reduce_map,
)
from fastxai.metrics import mse, pcc, ssim

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
# In normalised units; an image-space step is smaller by the mean standard deviation.
LR = {"normalised": 1e-3, "image": 1e-3 * STD.mean().item()}


class Normalise(nn.Module):
    """What ``mean=`` and ``std=`` are to a compiled net."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - MEAN) / STD


@dataclass
class Case:
    """One batch of pairs, and both attacks on it."""

    x: Tensor
    target_map: Tensor
    attack: Manipulation
    model: nn.Module
    settings: plain.Settings

    def unit(self, images: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return (images - self.settings.low) / (self.settings.high - self.settings.low)


class Clocked(Explainer):
    """Another map, and when each iteration asked for it."""

    def __init__(self, explainer: Explainer) -> None:
        super().__init__(explainer.net)
        self.explainer = explainer
        self.stamps: list[float] = []

    def map_and_scores(self, x: Tensor, target: Any = None, *, net: Any = None, parameters: bool = True) -> Any:
        if x.requires_grad:
            self.stamps.append(time.perf_counter())
        return self.explainer.map_and_scores(x, target, net=net, parameters=parameters)

    def seconds(self) -> float:
        """Return the mean time of an iteration, of all but the last."""
        return (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1)


def case(args: argparse.Namespace) -> Case:
    """Return the seeded pairs and the attacks."""
    images = cifar10(SHARED / "data" / "cifar10")[0]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: 2 * args.pairs]
    x = images[chosen].float().contiguous() / 255
    model = NETWORKS["resnet20"][0]()
    if args.space == "normalised":
        x, low, high = (x - MEAN) / STD, (0 - MEAN) / STD, (1 - MEAN) / STD
        net = fastxai.compile(model)
    else:
        low, high = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
        net = fastxai.compile(model, MEAN.flatten(), STD.flatten())
        model = nn.Sequential(Normalise(), model)
    source, goal = x.chunk(2)
    settings = plain.Settings(
        steps=args.steps,
        lr=args.lr or LR[args.space],
        beta=(args.beta[0], args.beta[1]),
        c=args.c,
        gamma=args.gamma,
        low=low,
        high=high,
        judge_every=args.judge_every,
    )
    attack = Manipulation(
        Gradient(net),
        steps=settings.steps,
        lr=settings.lr,
        beta=settings.beta,
        c=settings.c,
        gamma=settings.gamma,
        bounds=(low.flatten(), high.flatten()),
        judge_every=settings.judge_every,
    )
    return Case(source.contiguous(), reduce_map(net.gradient(goal)), attack, plain.smoothed(model), settings)


def middle(values: Tensor) -> float:
    """Return the median, the mean of the two middle values of an even number."""
    return values.double().quantile(0.5).item()


def row(name: str, case: Case, images: Tensor, maps: Tensor, seconds: float) -> list[str]:
    """Return the figures of one loop, judged on the ReLU network in plain autograd."""
    plain.set_beta(case.model, None)
    with torch.no_grad():
        after, before = case.model(images), case.model(case.x)
    moved = (after.softmax(1) - before.softmax(1)).norm(dim=1)
    kept = after.argmax(1) == before.argmax(1)
    return [
        name,
        f"{middle(pcc(maps, case.target_map)):.4f}",
        f"{middle(ssim(maps, case.target_map)):.4f}",
        f"{middle(mse(case.unit(images), case.unit(case.x))):.2e}",
        f"{mse(case.unit(images), case.unit(case.x)).max():.2e}",
        f"{int(kept.sum())}/{len(kept)}",
        f"{middle(moved):.1e}",
        f"{seconds:.1f}",
    ]


def heatmap(case: Case, images: Tensor) -> Tensor:
    """Return the Gradient map of the ReLU network in plain autograd."""
    plain.set_beta(case.model, None)
    classes = case.model(case.x).argmax(1)
    return plain.heatmap(case.model, images.detach().requires_grad_(), classes, create_graph=False)[0].detach()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result, seconds)."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def quality(case: Case) -> list[list[str]]:
    """Run both attacks in full."""
    ours, ours_seconds = timed(lambda: case.attack.perturb(case.x, case.target_map, progress=True))
    theirs, plain_seconds = timed(lambda: plain.manipulate(case.model, case.x, case.target_map, case.settings))
    return [
        row("original images", case, case.x, heatmap(case, case.x), 0.0),
        row("fastxai", case, ours.images, heatmap(case, ours.images), ours_seconds),
        row("plain autograd", case, theirs.images, heatmap(case, theirs.images), plain_seconds),
    ]


def _now() -> float:
    """Return the time when all work that was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stamps:
    """A progress bar that notes when it moves."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self) -> None:
        """Note the time."""
        self.times.append(_now())

    def seconds(self) -> float:
        """Return the mean time of an iteration, of those after the recorded one."""
        return (self.times[-1] - self.times[WARM - 1]) / (len(self.times) - WARM)


def _plain_block(model: nn.Module, case: Case, x: Tensor, steps: int) -> float:
    stamps: list[float] = []
    settings = replace(case.settings, steps=steps)
    plain.manipulate(model, x, case.target_map, settings, lambda *_: stamps.append(time.perf_counter()))
    return (stamps[-1] - stamps[0]) / (steps - 1)


def _fastxai_block(case: Case, steps: int) -> float:
    clocked = Clocked(case.attack.explainer)
    replace(case.attack, explainer=clocked, steps=steps).perturb(case.x, case.target_map)
    return clocked.seconds()


def speed(case: Case, blocks: int) -> list[list[str]]:
    """Return seconds per iteration of each way: medians of interleaved blocks."""
    # A block holds one judgement, as any judge_every iterations do.
    steps = max(2, case.settings.judge_every + 1)
    last = plain.smoothed(case.model).to(memory_format=torch.channels_last)
    x_last = case.x.contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], float]] = {
        "fastxai": lambda: _fastxai_block(case, steps),
        "plain autograd": lambda: _plain_block(case.model, case, case.x, steps),
        "plain, channels-last": lambda: _plain_block(last, case, x_last, steps),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(blocks):
        for name, block in ways.items():
            times[name].append(block())
    medians = {name: middle(torch.tensor(t)) for name, t in times.items()}
    return [
        [name, f"{m * 1e3:.1f}", f"{min(times[name]) * 1e3:.1f}", f"{m / medians['fastxai']:.2f}"]
        for name, m in medians.items()
    ]


WARM = 4  # iterations that are ordinary calls or recorded, and one more
NOISE = 0.1  # of SmoothGrad and for the patterns' data
BOX = (-3.0, 3.0)  # bounds of the methods' normalised images
BETA = (10.0, 100.0)
# name: (our map of a net and [M]'s patterns, the plain map of the same, beta of the attack)
METHODS: dict[str, tuple[Callable[..., Explainer], Callable[..., plain.Map], tuple[float, float] | None]] = {
    "gradient": (lambda net, _: Gradient(net), lambda _: plain.gradient, BETA),
    "input_x_gradient": (lambda net, _: InputXGradient(net), lambda _: plain.input_x_gradient, BETA),
    "integrated_gradients": (
        lambda net, _: IntegratedGradients(net, n_steps=30, method="riemann_right"),
        lambda _: plain.integrated_gradients(30),
        BETA,
    ),
    "guided_backprop": (lambda net, _: GuidedBackprop(net), lambda _: plain.guided_backprop, BETA),
    "pattern_attribution": (
        PatternAttribution,
        lambda patterns: plain.pattern_attribution(patterns.tensors),
        BETA,
    ),
    "lrp": (
        lambda net, _: LRP(net, "zplus_zb", low=BOX[0], high=BOX[1]),
        lambda _: plain.lrp(*(torch.tensor(b).view(1, 1, 1, 1) for b in BOX)),
        None,
    ),
    "smooth_grad": (
        lambda net, _: SmoothGrad(Gradient(net), 10, stdev=NOISE),
        # The noise of seed 0, as fastxai.SmoothGrad documents it.
        lambda _: plain.smooth_grad(plain.gradient, NOISE * _normals(10)),
        BETA,
    ),
    "beta_smoothing": (lambda net, _: BetaSmoothing(Gradient(net), 0.8), lambda _: plain.gradient, None),
}


def _normals(count: int) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.stack([torch.randn(3, 32, 32, generator=source) for _ in range(count)]).double()


def _loss_gradient(h: Tensor, x: Tensor, target_map: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((1024 * (h - target_map)).square().mean((1, 2)).sum(), x)
    return gradient


def compared(name: str, x: Tensor, target_map: Tensor, patterns: Any) -> float:
    """Return how far the two loss gradients are apart, relative to the larger one, in float64."""
    ours, theirs, beta = METHODS[name]
    model = fastxai.models.demo().double().to(x.device)
    wide = fastxai.explainers.Patterns({key: t.double() for key, t in patterns.tensors.items()})
    net, smooth = fastxai.compile(model), plain.smoothed(model)
    own = 0.8 if name == "beta_smoothing" else None
    explainer, x, target_map = ours(net, wide), x.double(), target_map.double()
    plain.set_beta(smooth, BETA[0] if beta else own)
    classes = net(x).argmax(1)
    leaf = x.clone().requires_grad_()
    view = net.with_activation("softplus", BETA[0]) if beta else None
    got = _loss_gradient(reduce_map(explainer.map_and_scores(leaf, classes, net=view)[0]), leaf, target_map)
    leaf = x.clone().requires_grad_()
    h, _ = plain.heatmap(smooth, leaf, classes, True, theirs(wide))
    want = _loss_gradient(h, leaf, target_map)
    return ((got - want).norm() / want.norm()).item()


def timed_methods(args: argparse.Namespace) -> list[list[str]]:
    """Return milliseconds of one iteration of each map and batch, values compared first; rows are told as they come."""
    seeded, folder = torch.Generator().manual_seed(args.seed), SHARED / "data" / "cifar10"
    images = cifar10(folder)[0] if folder.is_dir() else torch.randint(256, (10000, 3, 32, 32), generator=seeded)
    chosen = torch.randperm(len(images), generator=seeded)[: 2 * max(args.batch)]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (fastxai.models.DEMO_MEAN, fastxai.models.DEMO_STD))
    x = ((images[chosen].float().contiguous() / 255 - mean) / std).to(args.device)
    model = fastxai.models.demo().to(args.device)
    net, smooth = fastxai.compile(model, capture=True if args.device == "cuda" else None), plain.smoothed(model)
    patterns = PatternTrainer(net).fit([x + NOISE * torch.randn_like(x)])
    target_maps = reduce_map(net.gradient(x))
    rows = []
    for name in METHODS if "all" in args.method else args.method:
        ours, theirs, beta = METHODS[name]
        error = compared(name, x[:2], target_maps[-2:], patterns)
        assert error < 1e-8, f"{name}: the loss gradients differ by {error:.1e}"
        own = 0.8 if name == "beta_smoothing" else None
        for batch in args.batch:
            pair = x[:batch], target_maps[-batch:]
            low, high = (torch.tensor(bound, device=args.device) for bound in BOX)
            # Judged at the end alone: both times are those of iterations.
            settings = plain.Settings(args.steps, 1e-3, beta, 10.0, 1e2, low, high, args.steps, theirs(patterns), own)
            explainer = ours(net, patterns)
            times: dict[str, list[float]] = {"fastxai": [], "plain": []}
            for _ in range(args.blocks):
                attack = Manipulation(
                    explainer, steps=args.steps, lr=1e-3, beta=beta, bounds=BOX, judge_every=args.steps
                )
                bar = Stamps()
                Task(attack, *pair, None, None)._iterate(bar)  # type: ignore[arg-type]
                times["fastxai"].append(bar.seconds())
                stamps: list[float] = []
                plain.manipulate(smooth, *pair, settings, lambda *_, s=stamps: s.append(_now()))
                times["plain"].append((stamps[-2] - stamps[0]) / (args.steps - 2))
            medians = {how: middle(torch.tensor(t)) * 1e3 for how, t in times.items()}
            ratio = medians["plain"] / medians["fastxai"]
            figures = [*(f"{medians[how]:.1f}" for how in ("fastxai", "plain")), f"{ratio:.2f}", f"{error:.0e}"]
            rows.append([name, str(batch), *figures])
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Run both loops and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, help="iterations; by default 300, and 34 a block of --method")
    parser.add_argument("--lr", type=float, help=f"in the space's units; by default {LR}")
    parser.add_argument("--c", type=float, default=10.0)
    parser.add_argument("--gamma", type=float, default=100.0)
    parser.add_argument("--beta", type=float, nargs=2, default=[10.0, 100.0])
    parser.add_argument("--judge-every", type=int, default=10)
    parser.add_argument("--space", choices=list(LR), default="normalised")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each way")
    parser.add_argument("--method", choices=[*METHODS, "all"], action="append", help="time these maps instead")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="of --method")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --method")
    parser.add_argument("--small", action="store_true", help="two pairs, few steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.small:
        args.pairs, args.steps, args.judge_every, args.blocks, args.batch = 2, 6, 3, 1, [1, 2]
    args.steps = args.steps or (34 if args.method else 300)
    print(machine())
    if args.method:
        columns = ["map", "batch", "fastxai ms", "plain ms", "plain / fastxai", "gradients differ by"]
        print(f"demo CNN, 32x32, float32, {args.blocks} interleaved blocks of {args.steps} iterations, medians")
        print(table(columns, timed_methods(args)))
        return
    made = case(args)
    chosen = ("pairs", "steps", "beta", "c", "gamma", "judge_every", "space", "seed")
    print(", ".join(f"{name} {getattr(args, name)}" for name in chosen) + f", lr {made.settings.lr:.2g}, Adam, softmax")
    columns = ["how", "PCC to target", "SSIM", "image MSE", "(largest)", "class kept", "softmax moved", "s"]
    print(table(columns, quality(made)))
    print(table(["how", "ms/iteration", "(fastest)", "x fastxai"], speed(made, args.blocks)))


if __name__ == "__main__":
    main()
