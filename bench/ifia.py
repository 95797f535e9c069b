"""[F]'s attack and training: fastxai against plain autograd, batched, and against the floor.

``python bench/ifia.py [--cases mnist_cnn:50:10 mnist_cnn:50:30 resnet20:32:10 resnet20:32:30] [--aat mnist_cnn:50:8]
[--evaluate 50] [--weights FILE] [--device cuda] [--small]`` prints an iteration of IFIA on integrated gradients
(NETWORK:BATCH:POINTS), a training step of AAT (5 attack steps, 1 restart), and, on a CPU, the evaluation of some
MNIST images ([F] table 2: 7 steps, 3 restarts, 10 Gauss-Legendre points; PGD), scaled to 10,000. ReLU is bent by the
curvature surrogate, beta 1. Gradients are compared with float64 before anything is timed; times are medians of
interleaved runs. The floor is the bare convolution and GEMM calls at their fastest, of the rows that fastxai runs:
for maps K rows a sample up and down, for their gradient 2 K, and 2 and 3 before the first activation.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _measure import interleaved, machine, peak_memory, table
from _networks import NETWORKS, SHARED
from floor import Layer, floor, weight_floor
from safetensors.torch import load_file
from torch import Tensor, nn

import fastxai
from fastxai import IFIA, IntegratedGradients, evaluation
from fastxai.attacks._map_ascent import _Objective, _shown
from fastxai.data import cifar10, labelled
from fastxai.explainers import Explainer, quadrature
from fastxai.kernels import attack_step
from fastxai.models import initialise
from fastxai.training import AAT, FAR, Objective, PerBatch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from references import far, far_batched
from references import ifia as bending

CASES = ["mnist_cnn:50:10", "mnist_cnn:50:30", "resnet20:32:10", "resnet20:32:30"]
AAT_CASES = ["mnist_cnn:50:8"]
BETA, TOP_K = 1.0, 50
# Samples that run at once in float64.
SAMPLES = 4
# Rows of one timed call of the floor: its largest chunk.
FLOOR_ROWS = 128
WHOLE = 10_000
Gradients = list[Tensor]


def case(name: str, batch: int, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """Return (model with ReLU, real images where the shared data lies there, what it predicts), on the device."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make()
    model = initialise(model, "he_normal") if name == "mnist_cnn" else model
    model.eval()
    x = torch.rand(batch, *shape)
    if name == "mnist_cnn" and (SHARED / "data" / "mnist").is_dir():
        x = labelled(f"idx:{SHARED / 'data' / 'mnist'}", "test").images[:batch].float() / 255
    elif shape == (3, 32, 32) and (SHARED / "data" / "cifar10").is_dir():
        x = cifar10(SHARED / "data" / "cifar10", "test")[0][:batch].float() / 255
    model, x = model.to(device), x.contiguous().to(device)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@dataclass
class Rows:
    """How many sample rows passed: maps alone, and maps with the gradient of a loss in x or in the weights too."""

    maps: int = 0
    slopes: int = 0
    weights: int = 0


class Counted(Explainer):
    """Another map, and how many rows were asked of it."""

    rows_alike = True

    def __init__(self, explainer: Explainer, rows: Rows) -> None:
        super().__init__(explainer.net)
        self.explainer, self.rows = explainer, rows

    def map_and_scores(self, x: Tensor, target: Any = None, *, net: Any = None, parameters: bool = True) -> Any:
        graph = torch.is_grad_enabled() and (x.requires_grad or parameters)
        for name, counts in (("maps", not graph), ("slopes", graph), ("weights", graph and parameters)):
            setattr(self.rows, name, getattr(self.rows, name) + counts * len(x))
        return self.explainer.map_and_scores(x, target, net=net, parameters=parameters)


@dataclass
class Floor:
    """Seconds a row of the vendor calls of a net, those before the first activation apart."""

    net: fastxai.Net
    x: Tensor
    points: int
    most: int = FLOOR_ROWS
    seconds: dict[tuple[bool, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run, _ = self.net._backend(self.x)
        prefix = self.net._core.path(run).boundary.prefix.nodes  # type: ignore[arg-type]
        first = {node.path or type(node).__name__ for node in prefix}
        count = min(len(self.x), self.most)
        directions = max(0, self.most // count - 1)
        rows = count * (1 + directions)
        layers: list[Layer] = floor(self.net, self.x[:count], directions) + weight_floor(self.net, self.x, rows)
        for layer in layers:
            name, what = layer.name.rsplit(" ", 1)
            key = name in first, what
            self.seconds[key] = self.seconds.get(key, 0.0) + layer.seconds / rows

    def _of(self, what: str, rest: float, before: float) -> float:
        return self.seconds.get((False, what), 0.0) * rest + self.seconds.get((True, what), 0.0) * before

    def maps(self, rows: int) -> float:
        """Seconds of so many maps, scores included."""
        k = self.points
        return rows * (self._of("up", k + 1, 2) + self._of("down", k, 1))

    def slopes(self, rows: int) -> float:
        """Seconds of so many maps and the gradient of a loss on each."""
        k = self.points
        return rows * (self._of("up", 2 * k + 1, 3) + self._of("down", 2 * k, 3))

    def weights(self, rows: int) -> float:
        """Seconds of the weight gradients of such losses."""
        return rows * self._of("weights", 2 * self.points, 3)

    def passes(self, up: int, down: int) -> float:
        """Seconds of so many plain rows up and down."""
        return self._of("up", up, up) + self._of("down", down, down)

    def all(self, rows: Rows) -> float:
        """Seconds of what was counted."""
        return self.maps(rows.maps) + self.slopes(rows.slopes) + self.weights(rows.weights)


def _error(got: Gradients, want: Gradients, *, by_sample: bool) -> float:
    """The median over samples, or the worst over the weights, of the relative L2 error."""
    pairs = [(g.detach().double(), w) for g, w in zip(got, want, strict=True)]
    if by_sample:
        pairs = [(g.flatten(1), w.flatten(1)) for g, w in pairs]
        return max(float(((g - w).norm(dim=1) / w.norm(dim=1).clamp(min=1e-300)).median()) for g, w in pairs)
    return max(float((g - w).norm() / w.norm().clamp(min=1e-300)) for g, w in pairs)


def compared(label: str, calls: dict[str, Callable[[], Gradients]], truth: Gradients, **how: bool) -> dict[str, float]:
    """Return every call's error; fastxai may err at most twice as much as the worst rival (as in hvp.py)."""
    errors = {name: _error(call(), truth, **how) for name, call in calls.items()}
    worst = max(error for name, error in errors.items() if name != "fastxai")
    if not errors["fastxai"] <= max(2 * worst, 1e-5):
        raise SystemExit(f"{label}: fastxai errs by {errors['fastxai']:.1e}, its rivals by {worst:.1e}; not timed")
    return errors


def same(label: str, ours: Gradients, theirs: Gradients) -> None:
    """Stop unless both agree in float64."""
    error = _error(ours, theirs, by_sample=False)
    if not error < 1e-8:
        raise SystemExit(f"{label}: float64 differs from plain autograd by {error:.1e}; not timed")


def timed(
    label: list[str], calls: dict[str, Callable[[], object]], errors: dict[str, float], bare: float, repeats: int
):
    """Return the rows of a table; without a floor on a GPU."""
    seconds = interleaved(calls, repeats, device="cpu" if bare else "cuda")
    ours, made = seconds["fastxai"], []
    for name, value in seconds.items():
        over = f"{value / bare:.2f}" if bare and name == "fastxai" else ""
        made.append([*label, name, f"{value * 1e3:.1f}", f"{value / ours:.2f}", over, f"{errors[name]:.0e}"])
    return [*made, [*label, "floor", f"{bare * 1e3:.1f}", "", "", ""]] if bare else made


class Iteration:
    """One iteration of IFIA as fastxai runs it, from a random start: value, gradient, class, step."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, points: int) -> None:
        net = fastxai.compile(model)
        self.attack = IFIA.preset(IntegratedGradients(net, n_steps=points), "mnist", k=TOP_K, beta=BETA)
        self.x, self.every = x, torch.arange(len(x), device=x.device)
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x) * 2 - 1
        self.images = (x + 0.5 * self.attack.eps * noise).clamp(0, 1)
        self.box = tuple(torch.full((x.shape[1],), bound).to(x) for bound in (0.0, 1.0))
        with torch.no_grad():
            h, scores = self.attack.explainer.map_and_scores(x, y, parameters=False)
        goal = _shown(h, "abs_sum")
        self.objective = _Objective(self.attack, self.attack.view(), y, scores.argmax(1), goal, "abs_sum", None)

    def gradient(self) -> Gradients:
        """Return that of d_s."""
        gradient = self.objective(self.images, self.every, gradient=True).gradient
        assert gradient is not None
        return [gradient]

    def step(self) -> Tensor:
        """Return the moved images."""
        size, eps = self.attack.step_size, self.attack.eps
        return attack_step.sign_project_clip(self.images, *self.gradient(), self.x, size, eps, self.box, None)


class PlainIteration:
    """The same in plain autograd."""

    def __init__(self, model: nn.Module, of: Iteration, y: Tensor, points: int) -> None:
        self.bent, attack = bending.bent(model, BETA), of.attack
        rule = quadrature("gausslegendre", points)
        self.attack = far_batched.Attack(rule, far_batched.top_k(TOP_K), attack.eps, attack.step_size, attack.steps)
        self.x, self.images, self.y = of.x, of.images, y
        self.goal = far_batched.plain.integrated_gradient(self.bent, of.x, y, rule).detach()

    def gradient(self) -> Gradients:
        """Return that of d_s."""
        return [far_batched.ascent(self.attack, self.bent, self.images, self.y, self.goal)[1]]

    def step(self) -> Tensor:
        """Return the moved images."""
        return far_batched.moved(self.attack, self.images, *self.gradient(), self.x)


def iteration(name: str, batch: int, points: int, device: str, repeats: int, most: int) -> list[list[str]]:
    """Compare and time one iteration of IFIA."""
    model, x, y = case(name, batch, device)
    ours = Iteration(model, x, y, points)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    rivals = {
        "plain": PlainIteration(model, ours, y, points),
        "plain, channels-last": PlainIteration(last, ours, y, points),
    }
    label, wide = [f"{name} x{batch}", str(points)], copy.deepcopy(model).double()
    truth = []
    # A few samples at a time: the float64 graph of all points of all of them would be many gigabytes.
    for rows in torch.arange(batch, device=device).split(SAMPLES):
        exact = Iteration(wide, x[rows].double(), y[rows], points)
        exact.images = ours.images[rows].double()
        truth += PlainIteration(wide, exact, y[rows], points).gradient()
        same(f"{label}", exact.gradient(), truth[-1:])
    gradients = {"fastxai": ours.gradient, **{how: rival.gradient for how, rival in rivals.items()}}
    errors = compared(f"{label}", gradients, [torch.cat(truth)], by_sample=True)
    bare = Floor(ours.attack.explainer.net, x, points, most).slopes(batch) if device == "cpu" else 0.0
    calls = {"fastxai": ours.step, **{how: rival.step for how, rival in rivals.items()}}
    return timed(label, calls, errors, bare, repeats)


class Training:
    """A step of AAT: the gradient of its loss in the weights."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, points: int, rows: Rows | None = None) -> None:
        self.model, self.x, self.y = model.requires_grad_(True), x, y
        self.term = AAT(eps=0.3, lambda_=0.5, n_steps=points, steps=5, restarts=1, beta=BETA)
        if rows is not None:
            inner = self.term.attack.explainer
            assert isinstance(inner, PerBatch)
            counted = PerBatch(lambda batch: Counted(inner.make(batch), rows))
            settings = {"eps": 0.3, "steps": 5, "restarts": 1, "beta": BETA}
            self.term = FAR("eq5", counted, lambda_=0.5, **settings)
        self.objective = Objective(fastxai.compile(model), [self.term]).eval()

    def gradient(self) -> Gradients:
        return list(torch.autograd.grad(self.objective(self.x, self.y), list(self.model.parameters())))

    def start(self) -> Tensor:
        """Return where the attack begins."""
        attack = self.term.attack
        every = torch.arange(len(self.x), device=self.x.device)
        draw = attack._ball().draw((0, self.objective.step), every, range(1), self.x[0].numel())
        return attack._ball().project((self.x + draw.to(self.x.dtype).view(self.x.shape)), self.x, _box(self.x))


def _box(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (x.new_full((x.shape[1],), bound) for bound in (0.0, 1.0))
    return low, high


def plain_training(model: nn.Module, of: Training, start: Tensor, points: int) -> Callable[[], Gradients]:
    """The same in plain autograd."""
    given = of.term.attack
    rule = quadrature("midpoint", points)
    attack = far_batched.Attack(rule, far_batched.pcl, given.eps, given.step_size, given.steps)
    outer = far.sharing(model, BETA, bending)

    def gradients() -> Gradients:
        # A user bends a copy once a step: the weights have changed.
        models = model, bending.bent(model, BETA), outer
        return far_batched.aat_gradients(attack, models, of.x, of.y, start, of.term.lambda_)

    return gradients


def training(name: str, batch: int, points: int, device: str, repeats: int, most: int) -> list[list[str]]:
    """Compare and time one step of AAT."""
    model, x, y = case(name, batch, device)
    ours, label = Training(model, x, y, points), [f"{name} x{batch}", str(points)]
    wide = copy.deepcopy(model).double()
    exact = Training(wide, x.double(), y, points)
    start = exact.start()
    truth = plain_training(wide, exact, start, points)()
    same(f"{label}, AAT", exact.gradient(), truth)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    calls = {
        "fastxai": ours.gradient,
        "plain": plain_training(model, ours, start.float(), points),
        "plain, channels-last": plain_training(last, ours, start.float(), points),
    }
    # Signs of gradients that are rounding error differ between any two float32 runs, so the images do too.
    errors = {how: _error(call(), truth, by_sample=False) for how, call in calls.items()}
    counts, bare = Rows(), 0.0
    if device == "cpu":
        Training(copy.deepcopy(model), x, y, points, counts).gradient()
        bare = Floor(ours.objective.net, x, points, most).all(counts)
    return timed(label, calls, errors, bare, repeats)


def evaluated(count: int, weights: Path | None, most: int) -> list[list[str]]:
    """Measure NA, AA, IN and CO of some images; return seconds, the floor of the same rows, and both of 10,000."""
    model, x, y = case("mnist_cnn", count)
    if weights is not None:
        model.load_state_dict(load_file(weights))
        with torch.no_grad():
            y = model(x).argmax(1)
    net, rows = fastxai.compile(model), Rows()
    explainer = IntegratedGradients(net, n_steps=10)
    evaluation.robustness(IFIA.preset(Counted(explainer, rows), "mnist"), x, y)
    began = time.perf_counter()
    evaluation.robustness(IFIA.preset(explainer, "mnist"), x, y)
    seconds = time.perf_counter() - began
    part, steps = Floor(net, x, 10, most), 40
    # PGD on every image: loss and gradient at each iterate, the scores before and after.
    bare = part.all(rows) + part.passes(count * (steps + 3), count * steps)
    full = 3 * (7 * part.slopes(1) + part.maps(1)) + part.maps(3) + part.passes(steps + 3, steps)
    share = rows.slopes / (3 * 7 * count)
    scale = WHOLE / count
    return [
        [f"{count} images", f"{seconds:.1f}", f"{bare:.1f}", f"{seconds / bare:.2f}", f"{share:.0%}"],
        [
            f"scaled to {WHOLE}",
            f"{seconds * scale:.0f}",
            f"{bare * scale:.0f}",
            f"{seconds / bare:.2f}",
            f"{share:.0%}",
        ],
        [f"{WHOLE}, no row stopped", "", f"{full * WHOLE:.0f}", "", "100%"],
    ]


def memory(kind: str, name: str, batch: int, points: int) -> list[list[str]]:
    """Return peak memory above the loaded model, each way in a process of its own."""
    made = "b.Iteration" if kind == "IFIA" else "b.Training"
    setup = f"import torch, ifia as b; torch.set_num_threads(2); model, x, y = b.case({name!r}, {batch})\n"
    setup += f"ours = {made}(model, x, y, {points})\n"
    if kind == "IFIA":
        setup += f"theirs = b.PlainIteration(model, ours, y, {points}).gradient"
    else:
        setup += f"theirs = b.plain_training(model, ours, ours.start(), {points})"
    calls = {"fastxai": "ours.gradient()", "plain": "theirs()"}
    label = [f"{name} x{batch}", str(points), kind]
    return [[*label, how, f"{peak_memory(setup, call) / 2**20:.0f}"] for how, call in calls.items()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="NETWORK:BATCH:POINTS")
    parser.add_argument("--aat", nargs="*", default=AAT_CASES, metavar="NETWORK:BATCH:POINTS")
    parser.add_argument(
        "--evaluate", type=int, default=50, metavar="N", help="images of the evaluation; 0 leaves it out"
    )
    parser.add_argument("--weights", type=Path, help="of the network that is evaluated, as .safetensors")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: times and errors alone")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="one small case of each, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine(), f"beta {BETA:g}")
    repeats, most = (2, 4) if args.small else (args.repeats, FLOOR_ROWS)
    for kind, cases, measure in (("IFIA", args.cases, iteration), ("AAT", args.aat, training)):
        for entry in ["mnist_cnn:2:3"] if args.small else cases:
            name, batch, points = entry.split(":")
            which = name, int(batch), int(points)
            columns = ["case", "points", "how", "ms", "x fastxai", "x floor", "error"]
            print(f"\n{'one iteration of IFIA' if kind == 'IFIA' else 'one step of AAT'}")
            print(table(columns, measure(*which, args.device, repeats, most)), flush=True)
            if not args.small and args.device == "cpu":
                print(table(["case", "points", "what", "how", "peak MiB"], memory(kind, *which)), flush=True)
    if args.evaluate and args.device == "cpu":
        print("\nevaluation: 7 steps, 3 restarts, 10 points; PGD, 40 steps")
        count = 2 if args.small else args.evaluate
        print(table(["MNIST", "seconds", "floor", "x floor", "rows of all"], evaluated(count, args.weights, most)))


if __name__ == "__main__":
    main()
