"""Manipulation: an image that looks the same and is classified the same, with a map of one's choice ([M] eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from fastxai import _check
from fastxai.attacks import _presets
from fastxai.attacks._ball import Ball, Bound, Restarts
from fastxai.attacks._optimizer import OPTIMIZERS
from fastxai.attacks._result import AttackResult
from fastxai.attacks._task import Task
from fastxai.explainers import Explainer, SmoothGrad

__all__ = ["Manipulation"]

Target = int | Tensor | None


@dataclass(frozen=True)
class Manipulation:
    """Move the map of x to a target map while the image and the output stay ([M] eq. 4).

    Per sample, with h the map reduced by |.| over channels and divided by its sum, P = HW pixels and K classes,

        loss = c P^2 mean_p (h(x_adv)_p - h_t,p)^2 + gamma mean_k (f(g(x_adv))_k - f(g(x))_k)^2

    where h and g(x_adv) are those of the network smoothed by softplus_beta, beta(t) = beta_0 (beta_e/beta_0)^(t/T) for
    t = 0 .. T-1, and g(x) is the output of the explainer's net: of the model as given, unless that is a smoothed view.
    After every step x_adv is projected onto the ball around x, if there is one, and clamped to the valid images. The
    explained class is fixed, at the model's prediction on x unless a target is given.

    Every explainer can be attacked. LRP needs no beta, since its rules do not differentiate activations; the others
    do on piecewise linear networks. A smoothed view (``BetaSmoothing``) has a beta of its own, which stays. Noise of
    ``SmoothGrad`` is fixed unless ``redraw``, and the baseline of ``IntegratedGradients`` must be the same for all
    samples where rows come and go (``stop``, ``restarts``).

    [M]'s factors are c P^2 = 1e11 and gamma = 1e6 on 224x224 with 1000 classes, and 1e7 and 1e2 on CIFAR-10: c = 40 and
    10, the same at every resolution. ``Manipulation.preset`` has all of [M]'s settings.

    Which iterate is returned: the one with the lowest map term among those whose predicted class is the original's,
    both measured on the net as given. The smoothed net cannot tell: beta grows, so its terms are not comparable between
    iterations, and its lowest one comes from a soft net. Judging costs one pass of first order (half an iteration or
    less), so every ``judge_every``-th iterate, counted from the end, is judged: at 10 that is 5 % of the time. Without
    ``beta`` and ``redraw`` the iteration itself measures the net as given, and every iterate is judged for free. With
    ``stop`` it is the first judged iterate that meets it.

    Attributes:
        explainer: the map under attack. If its net is a smoothed view, the map of that view is attacked and judged, and
            the class is still that of the model as given.
        steps: iterations T.
        lr: step size, in the space of x.
        beta: (beta_0, beta_e), one constant value, or None: the net as it is (LRP, smooth nets). Not used where the
            explainer's net is a smoothed view, or softplus takes the place of nothing in it (``Net.smooths``).
        c: weight of the map: 10 on CIFAR-10, 40 on ImageNet.
        gamma: weight of the output: 1e2 on CIFAR-10 and 1e6 on ImageNet, both with softmax; 10 with logits on ImageNet.
        output: f, "softmax" or "logits" (identity).
        bounds: lowest and highest valid value, each a number or one a channel. They also define [0, 1] for the metrics
            of the image.
        optimizer: "adam" (moments .9 and .999, as [M]) or "descent".
        judge_every: distance between judged iterates.
        ball: how far x_adv may be from x; None is no limit.
        stop: PCC of map and target map at which a sample is done: the rest of the batch goes on without it.
        restarts: attack from several starts at once and return the best; None is one start, at x.
        redraw: draw the noise of a ``SmoothGrad`` explainer anew at every step, by seeds that its seed gives, and judge
            with its own. The map then moves for noise that nobody knows beforehand; where the noise is fixed it moves
            for that noise.

    Raises:
        TypeError: explainer is no explainer, ball no ``Ball`` or restarts no ``Restarts``.
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
    ball: Ball | None = None
    stop: float | None = None
    restarts: Restarts | None = None
    redraw: bool = False

    def __post_init__(self) -> None:
        """Check every setting."""
        _check.instance(self.explainer, "explainer", Explainer, "be a fastxai explainer")
        for name in ("steps", "judge_every"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _check.require(whole and value > 0, name, "be a positive int", value)
        _check.positive(self.lr, "lr")
        for name in ("c", "gamma"):
            _check.not_negative(getattr(self, name), name)
        _check.one_of(self.output, "output", ("softmax", "logits"))
        _check.one_of(self.optimizer, "optimizer", OPTIMIZERS)
        pair = isinstance(self.bounds, (tuple, list)) and len(self.bounds) == 2
        _check.require(pair, "bounds", "be (lowest, highest)", self.bounds)
        self.betas()
        for name, kind in (("ball", Ball), ("restarts", Restarts)):
            value = getattr(self, name)
            fits = value is None or isinstance(value, kind)
            _check.require(fits, name, f"be a {kind.__name__} or None", type(value).__name__, TypeError)
        if self.stop is not None:
            number = isinstance(self.stop, (int, float)) and not isinstance(self.stop, bool)
            _check.require(number and -1 <= self.stop <= 1, "stop", "be a correlation, -1 .. 1", self.stop)
        _check.instance(self.redraw, "redraw", bool, "be True or False")
        if self.redraw:
            self._check_noise()
        drawn = self.restarts is None or self.restarts.sigma is not None or self.ball is not None
        _check.require(drawn, "restarts", "have a sigma where the attack has no ball", self.restarts)

    def _check_noise(self) -> None:
        """Raise ValueError unless there is noise to redraw, and all of it is: what others draw would stay."""
        around, inner = self.explainer, getattr(self.explainer, "explainer", None)
        while inner is not None and not isinstance(inner, SmoothGrad):
            inner = getattr(inner, "explainer", None)
        name = type(around).__name__
        _check.require(isinstance(around, SmoothGrad), "redraw", "come with a SmoothGrad explainer", name)
        _check.require(inner is None, "redraw", "come with one SmoothGrad, none inside another", name)
        own = "map_and_scores" in vars(around) or type(around).map_and_scores is not SmoothGrad.map_and_scores
        _check.require(not own, "redraw", "come with SmoothGrad's own map_and_scores", f"another one in {name}")

    def betas(self) -> list[float] | None:
        """Return beta(t) for t = 0 .. T-1, or None where the net stays as it is."""
        if self.beta is None:
            return None
        pair = self.beta if isinstance(self.beta, Sequence) else (self.beta, self.beta)
        _check.require(len(pair) == 2, "beta", "be (beta_0, beta_e), a number or None", self.beta)
        start, end = (_check.positive(value, "beta") for value in pair)
        return [start * (end / start) ** (t / self.steps) for t in range(self.steps)]

    @classmethod
    def preset(
        cls,
        explainer: Explainer,
        data: str,
        network: str | None = None,
        *,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        **changes: Any,
    ) -> Manipulation:
        """Return [M]'s attack on this map: its iterations, step size, factors, beta growth and output.

        [M] attacks normalised inputs, and step sizes are in their units. Such are the inputs of a net compiled without
        ``mean`` and ``std``: bounds are (0 - mean) / std and (1 - mean) / std then. A net that normalises itself takes
        the image: bounds are 0 and 1, and the step size is multiplied by the mean of its std.

        c is [M]'s factor divided by the square of its number of pixels, 1e11 / 50176^2 and 1e7 / 1024^2, so that it
        holds at any resolution.

        Args:
            explainer: the map. The row is that of its kind; around a map, ``SmoothGrad`` (in [M] of 10 samples) and
                ``BetaSmoothing`` (of beta 0.8) have rows of their own. Saliency is Gradient here.
            data: "imagenet" or "cifar10". On CIFAR-10 [M] has LRP alone: other maps take ImageNet's iterations and step
                sizes with CIFAR-10's factors.
            network: [M]'s row for the Gradient map of "vgg16", "alexnet", "densenet121" or "resnet18", where the
                output term is on the scores; None is the row with softmax (on VGG-16 in [M]).
            mean: per channel; None is ImageNet's usual one, CIFAR-10 has none.
            std: likewise.
            changes: settings that replace the preset's.

        Raises:
            TypeError: explainer is no explainer, or a setting is unknown.
            ValueError: there is no such row, or mean and std are missing, come twice or are out of range.

        >>> net = fastxai.compile(torch.nn.Linear(4, 3))
        >>> attack = fastxai.Manipulation.preset(fastxai.LRP(net, "epsilon"), "imagenet", steps=100)
        >>> attack.steps, attack.lr, attack.beta, round(attack.c)
        (100, 0.0002, None, 40)
        """
        _check.instance(explainer, "explainer", Explainer, "be a fastxai explainer")
        return cls(explainer, **(_presets.settings(explainer, data, network, mean, std) | changes))

    def perturb(
        self,
        x: Tensor,
        target_map: Tensor,
        target: Target = None,
        *,
        index: Tensor | None = None,
        progress: bool = False,
    ) -> AttackResult:
        """Attack a batch of pairs.

        Args:
            x: images [N, C, H, W].
            target_map: h_t, [N, H, W], scaled to sum 1 here; or a raw map [N, C, H, W], which is post-processed here.
            target: explained class k as an int, a LongTensor [N], or None for the model's prediction on x.
            index: the samples' numbers, LongTensor [N], on which the noise of ``restarts`` depends; 0 .. N-1 if None.
                With their numbers in the data set, samples get the same noise in whatever batch they come.
            progress: show a progress bar.

        Returns:
            The best iterate of every sample; after Ctrl-C, of the iterations that ran (``interrupted``).

        Raises:
            TypeError: x or target_map is no floating point tensor, index no LongTensor.
            ValueError: a shape, dtype, device or range is wrong: x outside the bounds, a map that is not finite, a
                target map [N, H, W] with negative values, or one whose sum is not positive.
            RuntimeError: within ``torch.inference_mode()``.
        """
        task = Task(self, x, target_map, target, index)
        interrupted = task.run(progress=progress)
        return task.result(interrupted=interrupted)
