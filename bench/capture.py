"""Recorded work that is replayed against the same work called by Python: ``fastxai.compile(capture=True)``.

``python bench/capture.py [--cases cnn:1 cnn:64 resnet20:1 resnet20:64] [--device cuda] [--small]``: a gradient, H v, an
iteration of ``Manipulation`` with growing beta and of ``IFIA``, a step of training with the Hessian penalty. Results
are compared before anything is timed, and must be the same bits. Times are by the clock, the device being waited for
before and after, medians of interleaved runs; of attacks they are those of one iteration more, so that what comes
before the first and the recording itself do not count. On a CPU a step of training is not recorded.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from _measure import machine, table
from _networks import BETA, NETWORKS
from torch import Tensor

import fastxai
from fastxai.attacks import IFIA, Manipulation
from fastxai.engine.capture import CudaRecorder, Graphs
from fastxai.explainers import Gradient, reduce_map
from fastxai.training import CrossEntropy, FitConfig, HessianNorm, Objective
from fastxai.training._step import Step


class Launched(CudaRecorder):
    """Runs what could be recorded, and does not record it."""

    def record(self, function: Callable[[], Any], device: torch.device, pool: Any) -> NoReturn:
        """Refuse."""
        raise RuntimeError("it is to be launched")


# Calls before a comparison or a time: two ordinary ones, the recording, and the first steps of an optimizer.
WARM = 6
Result = tuple[Tensor, ...]
# Does some work and returns its results; ``count`` is how many iterations, where it has such.
Work = Callable[[int], Result]


def _net(name: str, device: str, *, capture: bool, smooth: bool) -> fastxai.Net:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().to(device).eval()
    options = {"activation": "softplus", "beta": BETA} if smooth else {}
    return fastxai.compile(model, capture=capture, **options)  # type: ignore[arg-type]


def gradient(name: str, x: Tensor, *, capture: bool) -> Work:
    """The gradient of one class."""
    net, target = _net(name, x.device.type, capture=capture, smooth=True), torch.zeros_like(x[:, 0, 0, 0]).long()
    return lambda _: (net.gradient(x, target),)


def product(name: str, x: Tensor, *, capture: bool) -> Work:
    """One Hessian-vector product."""
    net, target = _net(name, x.device.type, capture=capture, smooth=True), torch.zeros_like(x[:, 0, 0, 0]).long()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    return lambda _: (net.hvp(x, v, target),)


def manipulation(name: str, x: Tensor, *, capture: bool) -> Work:
    """[M]'s attack."""
    net = _net(name, x.device.type, capture=capture, smooth=False)
    target_map = reduce_map(net.gradient(x.flip(0)))
    attack = Gradient(net)
    return lambda count: (
        Manipulation(attack, steps=count, bounds=(-6, 6), judge_every=count).perturb(x, target_map).images,
    )


def ifia(name: str, x: Tensor, *, capture: bool) -> Work:
    """[F]'s attack; rows that changed their class go on, so that both ways have as many."""
    explainer = Gradient(_net(name, x.device.type, capture=capture, smooth=False))
    return lambda count: (
        IFIA(explainer, eps=0.1, alpha=1e-3, steps=count, bounds=(-6, 6), freeze=False).perturb(x).images,
    )


def training(name: str, x: Tensor, *, capture: bool) -> Work:
    """[R]'s step; both ways take the optimizer's fused kernels, and its rate from the device."""
    net = _net(name, x.device.type, capture=True, smooth=True)
    if not capture:
        net._core.graphs = Graphs(recorder=Launched())
    objective = Objective(net, [CrossEntropy(), 1e-6 * HessianNorm()]).train()
    step, index = Step(objective, FitConfig(), x), torch.arange(len(x), device=x.device)

    def work(_: int) -> Result:
        step(1e-3, [(x, index % 10, index, None)])
        return tuple(p.detach() for p in net.model.parameters())

    return work


# name: (makes the work, whether it has iterations)
WORK: dict[str, tuple[Callable[..., Work], bool]] = {
    "gradient": (gradient, False),
    "H v": (product, False),
    "Manipulation, an iteration": (manipulation, True),
    "IFIA, an iteration": (ifia, True),
    "a step of training": (training, False),
}


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def row(case: str, what: str, x: Tensor, repeats: int, counts: tuple[int, ...]) -> list[str]:
    """Compare, time, and return one line of the table."""
    make, iterates = WORK[what]
    device, few, many = x.device.type, *counts
    ways = {how: make(case.split(" ")[0], x, capture=how == "replayed") for how in ("launched", "replayed")}
    results = [[work(few) for _ in range(1 if iterates else WARM)][-1] for work in ways.values()]
    pairs = list(zip(*results, strict=True))
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    assert all(torch.equal(*pair) for pair in pairs), f"{case}, {what}: results differ by up to {apart:.1e}; not timed"
    times: dict[str, list[float]] = {how: [] for how in ways}
    for _ in range(repeats):
        for how, work in ways.items():
            if iterates:
                longer, shorter = (_seconds(lambda n=n, w=work: w(n), device) for n in (many, few))
                times[how].append((longer - shorter) / (many - few))
            else:
                times[how].append(_seconds(lambda w=work: [w(0) for _ in range(many)], device) / many)
    medians = {how: 1e3 * statistics.median(values) for how, values in times.items()}
    ratio = medians["launched"] / medians["replayed"]
    return [case, what, *(f"{medians[how]:.3f}" for how in ways), f"{ratio:.2f}"]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["cnn:1", "cnn:64", "resnet20:1", "resnet20:64"])
    parser.add_argument("--what", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--counts", type=int, nargs=2, default=(40, 240), help="iterations: few, many")
    parser.add_argument("--small", action="store_true", help="one small case, to see that it runs")
    args = parser.parse_args()
    if args.small:
        args.cases, args.repeats, args.counts = ["cnn:2"], 1, (2, 4)
    warnings.filterwarnings("ignore", message=".*it is to be launched")
    print(machine())
    rows = []
    for entry in args.cases:
        name, batch = entry.split(":")
        x = torch.randn(int(batch), *NETWORKS[name][1], generator=torch.Generator().manual_seed(0)).to(args.device)
        rows += [row(f"{name} x{batch}", what, x, args.repeats, tuple(args.counts)) for what in args.what]
    print(table(["case", "what", "launched ms", "replayed ms", "launched / replayed"], rows))


if __name__ == "__main__":
    main()
