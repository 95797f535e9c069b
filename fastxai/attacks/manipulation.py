"""Manipulation: an image that looks the same and is classified the same, with a map of one's choice ([M] eq. 4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fastxai import _check
from fastxai.attacks._optimizer import OPTIMIZERS
from fastxai.attacks._result import AttackResult, Metrics, OutputChange, Similarity
from fastxai.engine import Net
from fastxai.explainers import Explainer, reduce_map

__all__ = ["Manipulation"]

Bound = float | Sequence[float] | Tensor
Target = int | Tensor | None

# The metrics' SSIM window: an image must hold one.
_WINDOW = 7
# Bounds are often written as (0 - mean) / std, which an image prepared in float32 can miss by some roundings.
_SLACK = 1e-5


@dataclass(frozen=True)
class Manipulation:
    """Move the map of x to a target map while the image and the output stay ([M] eq. 4).

    Per sample, with h the map reduced by |.| over channels and divided by its sum, P = HW pixels and K classes,

        loss = c P^2 mean_p (h(x_adv)_p - h_t,p)^2 + gamma mean_k (f(g(x_adv))_k - f(g(x))_k)^2

    where h and g(x_adv) are those of the network smoothed by softplus_beta, beta(t) = beta_0 (beta_e/beta_0)^(t/T) for
    t = 0 .. T-1, and g(x) is the output of the model as given. After every step x_adv is clamped to the valid images.
    The explained class is fixed, at the model's prediction on x unless a target is given.

    [M]'s factors are c P^2 = 1e11 and gamma = 1e6 on 224x224 with 1000 classes, and 1e7 and 1e2 on CIFAR-10: c = 40 and
    10, the same at every resolution.

    Which iterate is returned: the one with the lowest map term among those whose predicted class is the original's,
    both measured on the net as given. The smoothed net cannot tell: beta grows, so its terms are not comparable between
    iterations, and its lowest one comes from a soft net. Judging costs one pass of first order (half an iteration or
    less), so every ``judge_every``-th iterate, counted from the end, is judged: at 10 that is 5 % of the time. Without
    ``beta`` the iteration itself measures the net as given, and every iterate is judged for free.

    Attributes:
        explainer: the map under attack. If its net is a smoothed view, the map of that view is attacked and judged, and
            the class is still that of the model as given.
        steps: iterations T.
        lr: step size, in the space of x.
        beta: (beta_0, beta_e), one constant value, or None: the net as it is (LRP, smooth nets).
        c: weight of the map: 10 on CIFAR-10, 40 on ImageNet.
        gamma: weight of the output: 1e2 on CIFAR-10 and 1e6 on ImageNet, both with softmax; 10 with logits on ImageNet.
        output: f, "softmax" or "logits" (identity).
        bounds: lowest and highest valid value, each a number or one a channel. They also define [0, 1] for the metrics
            of the image.
        optimizer: "adam" (moments .9 and .999, as [M]) or "descent".
        judge_every: distance between judged iterates.

    Raises:
        TypeError: explainer is no explainer.
        ValueError: a setting is out of range or unknown.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> attack = fastxai.attacks.Manipulation(fastxai.explainers.Gradient(model), steps=3)
    >>> attack.perturb(torch.rand(2, 1, 8, 8), torch.rand(2, 8, 8)).images.shape
    torch.Size([2, 1, 8, 8])
    """

    explainer: Explainer
    _: KW_ONLY
    steps: int = 1500
    lr: float = 1e-3
    beta: tuple[float, float] | float | None = (10.0, 100.0)
    c: float = 10.0
    gamma: float = 1e2
    output: str = "softmax"
    bounds: tuple[Bound, Bound] = (0.0, 1.0)
    optimizer: str = "adam"
    judge_every: int = 10

    def __post_init__(self) -> None:
        """Check every setting."""
        kind = type(self.explainer).__name__
        _check.require(isinstance(self.explainer, Explainer), "explainer", "be a fastxai explainer", kind, TypeError)
        for name in ("steps", "judge_every"):
            value = getattr(self, name)
            _check.require(isinstance(value, int) and value > 0, name, "be a positive int", value)
        _check.positive(self.lr, "lr")
        for name in ("c", "gamma"):
            _check.require(getattr(self, name) >= 0, name, "be zero or positive", getattr(self, name))
        _check.one_of(self.output, "output", ("softmax", "logits"))
        _check.one_of(self.optimizer, "optimizer", OPTIMIZERS)
        _check.require(len(self.bounds) == 2, "bounds", "be (lowest, highest)", self.bounds)
        self.betas()

    def betas(self) -> list[float] | None:
        """Return beta(t) for t = 0 .. T-1, or None where the net stays as it is."""
        if self.beta is None:
            return None
        pair = self.beta if isinstance(self.beta, Sequence) else (self.beta, self.beta)
        _check.require(len(pair) == 2, "beta", "be (beta_0, beta_e), a number or None", self.beta)
        start, end = (_check.positive(value, "beta") for value in pair)
        return [start * (end / start) ** (t / self.steps) for t in range(self.steps)]

    def perturb(self, x: Tensor, target_map: Tensor, target: Target = None, *, progress: bool = False) -> AttackResult:
        """Attack a batch of pairs.

        Args:
            x: images [N, C, H, W].
            target_map: h_t, [N, H, W], scaled to sum 1 here; or a raw map [N, C, H, W], which is post-processed here.
            target: explained class k as an int, a LongTensor [N], or None for the model's prediction on x.
            progress: show a progress bar.

        Returns:
            The best iterate of every sample; after Ctrl-C, of the iterations that ran (``interrupted``).

        Raises:
            TypeError: x or target_map is no floating point tensor.
            ValueError: a shape, dtype, device or range is wrong: x outside the bounds, a target map that is not finite
                or whose sum is not positive.
        """
        task = _Task(self, x, target_map, target)
        interrupted = task.run(progress=progress)
        return task.result(interrupted)


@dataclass(frozen=True)
class _Best:
    """The best judged iterate so far, replaced as a whole."""

    images: Tensor
    term: Tensor
    step: Tensor

    def against(self, images: Tensor, term: Tensor, held: Tensor, step: int) -> _Best:
        better = held & (term < self.term)
        return _Best(
            torch.where(better[:, None, None, None], images, self.images),
            torch.where(better, term, self.term),
            torch.where(better, step, self.step),
        )


class _Task:
    """One call of ``perturb``: the constants of its batch, the iterate, the best one and the history."""

    def __init__(self, attack: Manipulation, x: Tensor, target_map: Tensor, target: Target) -> None:
        self.attack = attack
        self.explain, self.net = attack.explainer.map_and_scores, attack.explainer.net
        fits = _check.tensor(x, "x").dim() == 4 and min(x.shape[2:]) >= _WINDOW
        _check.require(fits, "x", f"have shape [N, C, H, W], H and W at least {_WINDOW}", list(x.shape))
        self.x = x.detach()
        self.low, self.high = self._bounds()
        self.target_map = self._target_map(target_map)
        with torch.no_grad():
            self.scores = self.net.base(self.x)
            self.classes = self.scores.argmax(1)
            self.target = self.classes if target is None else target
            self.output = self._f(self.scores)
            self.original_map = self._map(self.x, self.net)[0]
            term = self._map_term(self.original_map)
        self.images = self.x
        self.best = _Best(self.x, term, torch.zeros_like(self.classes))
        self.history: list[tuple[Tensor, Tensor]] = []

    def _bounds(self) -> tuple[Tensor, Tensor]:
        x, (low, high) = self.x, self.attack.bounds
        channels = x.shape[1]
        made = []
        for value in (low, high):
            bound = torch.as_tensor(value, dtype=torch.float64).flatten()
            fits = bound.numel() in (1, channels)
            _check.require(fits, "bounds", f"be numbers or {channels} values (one a channel)", value)
            made.append(bound.to(x.device, x.dtype).view(1, -1, 1, 1))
        low, high = made
        _check.require(bool((low < high).all()), "bounds", "be lowest < highest", self.attack.bounds)
        slack = _SLACK * (high - low)
        inside = bool(((x >= low - slack) & (x <= high + slack)).all())
        if not inside:
            _check.require(False, "x", "lie within the bounds", f"{x.min().item():.4g} .. {x.max().item():.4g}")
        return low, high

    def _target_map(self, target_map: Tensor) -> Tensor:
        x, name = self.x, "target_map"
        h = _check.same_place(_check.tensor(target_map, name), name, x, "x").detach()
        pixels = (x.shape[0], *x.shape[2:])
        fits = tuple(h.shape) in (pixels, tuple(x.shape))
        _check.require(fits, name, f"have shape {list(pixels)} or {list(x.shape)}", list(h.shape))
        _check.require(bool(h.isfinite().all()), name, "be finite", "inf or nan")
        h = reduce_map(h, "abs_sum" if h.dim() == 4 else None, None)
        sums = h.sum((1, 2))
        _check.require(bool((sums > 0).all()), name, "have a positive sum in every sample", sums.tolist())
        return reduce_map(h, None)

    def _f(self, scores: Tensor) -> Tensor:
        return scores.softmax(1) if self.attack.output == "softmax" else scores

    def _map(self, images: Tensor, net: Net) -> tuple[Tensor, Tensor]:
        """Return (post-processed map [N, H, W], scores) of a view of the net."""
        h, scores = self.explain(images, self.target, net=net, parameters=False)
        return reduce_map(h), scores

    def _map_term(self, h: Tensor) -> Tensor:
        pixels = h.shape[1] * h.shape[2]
        return self.attack.c * (pixels * (h - self.target_map)).square().mean((1, 2))

    def _judge(self, images: Tensor, step: int) -> None:
        with torch.no_grad():
            h, scores = self._map(images, self.net)
            if self.net.base is not self.net:
                scores = self.net.base(images)
            self.best = self.best.against(images, self._map_term(h), scores.argmax(1) == self.classes, step)

    def run(self, *, progress: bool) -> bool:
        """Iterate; return whether Ctrl-C ended it."""
        interrupted = False
        try:
            with tqdm(total=self.attack.steps, disable=not progress, desc="manipulation", unit="it") as bar:
                self._iterate(bar)
        except KeyboardInterrupt:
            interrupted = True
        self._judge(self.images, len(self.history))
        return interrupted

    def _iterate(self, bar: tqdm) -> None:
        attack, net = self.attack, self.net
        optimizer = OPTIMIZERS[attack.optimizer](attack.lr)
        betas = attack.betas()
        free = betas is None and net.base is net
        for step in range(attack.steps):
            x = self.images.clone().requires_grad_()
            with torch.enable_grad():
                h, scores = self._map(x, net if betas is None else net.with_activation("softplus", betas[step]))
                terms = self._map_term(h), attack.gamma * (self._f(scores) - self.output).square().mean(1)
                (gradient,) = torch.autograd.grad((terms[0] + terms[1]).sum(), x)
            if step == 0 and betas is None and not gradient.any():
                # The output has not moved yet, so this is the map term's gradient alone.
                warnings.warn(
                    "the map term has no gradient, as on a piecewise linear network: the attack will not move. "
                    "Give beta=(beta_0, beta_e), or attack a smooth network.",
                    stacklevel=4,
                )
            with torch.no_grad():
                if free:
                    held = scores.argmax(1) == self.classes
                    self.best = self.best.against(self.images, terms[0].detach(), held, step)
                images = optimizer.step(self.images, gradient).clamp(self.low, self.high)
            self.images = images
            self.history.append((terms[0].detach(), terms[1].detach()))
            left = attack.steps - step - 1
            if not free and left and left % attack.judge_every == 0:
                self._judge(images, step + 1)
            bar.update()

    def result(self, interrupted: bool) -> AttackResult:
        """Measure the best iterate on the model as given."""
        images = self.best.images
        with torch.no_grad():
            maps = self._map(images, self.net)[0]
            scores = self.net.base(images)
            unit, unit_0 = ((i - self.low) / (self.high - self.low) for i in (images, self.x))
            metrics = Metrics(
                Similarity.between(maps, self.target_map),
                Similarity.between(maps, self.original_map),
                Similarity.between(unit, unit_0, 1.0),
            )
            none = images.new_empty(0, len(images))
            history = {
                name: torch.stack([row[i] for row in self.history]) if self.history else none
                for i, name in enumerate(("map", "output"))
            }
            return AttackResult(
                images=images.clone(),
                maps=maps,
                target_maps=self.target_map,
                original_maps=self.original_map,
                class_kept=scores.argmax(1) == self.classes,
                output_change=OutputChange.between(scores, self.scores),
                metrics=metrics,
                history=history,
                best_step=self.best.step,
                interrupted=interrupted,
            )
