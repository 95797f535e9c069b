"""Projected gradient descent: the attack on the prediction (Madry et al. 2018; [F] eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai.attacks._ascent import Ascent, How, Label, Objective, Point, inputs_of, labels_of, loss_at
from fastxai.attacks._ball import box_of
from fastxai.attacks._far import radius_and_k
from fastxai.attacks._recorded import graphs_of
from fastxai.attacks._result import AscentResult, OutputChange
from fastxai.engine import Net, compile

__all__ = ["PGD"]


@dataclass(frozen=True)
class PGD(Ascent):
    """Ascend the cross-entropy l(x_adv, y) in the ball around x: ``AdversarialIFIA`` with lambda 0.

        x_adv <- project(x_adv + alpha normalise(nabla l)), normalise = sign ("linf") or g / |g|_2 ("l2")

    It attacks the model as given, in eval mode. Of all iterates and restarts the one with the highest loss is returned,
    each sample by itself; a sample is fooled where ``output_change.classes`` is not its label.

    Attributes:
        net: the compiled network; a module is compiled first.
        eps: radius of the ball, in the space of x.
        steps: how many; 0 judges the starts alone.
        alpha: step size, in the space of x.
        rel_stepsize: step size over eps, in place of ``alpha``; with neither it is 1.2 / steps.
        norm: "linf" or "l2", over all values of one sample.
        random_start: False or None starts at x, and further restarts at uniform points of the ball; True takes uniform
            points throughout; "signs" the points x +- eps.
        restarts: how often each sample is attacked, all at once.
        bounds: lowest and highest valid value, each a number or one a channel.
        seed: an int or several. Starts are a function of seed, number of the sample and number of the restart.

    Raises:
        TypeError: net is neither a compiled net nor a module.
        ValueError: a setting is out of range or unknown.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> result = fastxai.PGD(model, eps=0.1, steps=5).perturb(torch.rand(2, 1, 8, 8), torch.tensor([0, 2]))
    >>> bool((result.terms["loss"] > result.history["loss"][0]).all())
    True
    """

    net: Net | nn.Module = field(kw_only=False)
    steps: int = field(default=40, kw_only=True)

    def __post_init__(self) -> None:
        """Check every setting."""
        self.check_settings()
        fits = isinstance(self.net, (Net, nn.Module))
        _check.require(fits, "net", "be a compiled net or a torch.nn.Module", type(self.net).__name__, TypeError)
        if isinstance(self.net, nn.Module):
            object.__setattr__(self, "net", compile(self.net))

    @classmethod
    def preset(cls, net: Net | nn.Module, data: str, **changes: Any) -> PGD:
        """Return [F]'s attack for adversarial accuracy: 40 steps of .03 eps (table 2).

        Args:
            net: takes images in [0, 1].
            data: "mnist", "fashion_mnist", "cifar10", "gtsrb" or "restricted_imagenet".
            changes: settings that replace the preset's.

        Raises:
            TypeError: a setting is unknown.
            ValueError: [F] has no such data set.

        >>> fastxai.PGD.preset(torch.nn.Linear(4, 3), "cifar10").eps
        0.03
        """
        fixed: dict[str, Any] = {"eps": radius_and_k(data)[0]}
        return cls(net, **(fixed | changes))

    def perturb(self, x: Tensor, y: Label = None, *, index: Tensor | None = None) -> AscentResult:
        """Attack a batch.

        Args:
            x: inputs [N, C, ...].
            y: the class whose loss is ascended, as an int, a LongTensor [N], or None for the model's prediction on x.
            index: the samples' numbers, LongTensor [N], on which random starts depend; 0 .. N-1 if None.

        Raises:
            TypeError: x is no floating point tensor, y or index hold no integers.
            ValueError: a shape, dtype, device or range is wrong: x outside the bounds; or a score, or the loss's
                gradient where the attack starts, is not finite.
            RuntimeError: within ``torch.inference_mode()``.
        """
        assert isinstance(self.net, Net)
        net, (box, x) = self.net.base, box_of(self.bounds, inputs_of(x))
        index = _check.index_of(index, x)
        scores = _check.finite_samples(net(x), "x", "have finite scores")
        objective = _Loss(net, labels_of(y, scores))
        starts = self.starts(x, box, index, moved=bool(self.random_start))
        original = objective(x, torch.arange(len(x), device=x.device), gradient=False)
        found = self.ascend(objective, x, original, starts, box, How(graphs=graphs_of(net, x, self.steps)))
        return AscentResult(
            images=found.images,
            class_kept=found.scores.argmax(1) == scores.argmax(1),
            output_change=OutputChange.between(found.scores, scores),
            terms=found.terms,
            history=found.history,
            best_step=found.step,
            best_restart=found.restart,
        )


@dataclass(frozen=True)
class _Loss(Objective):
    """The cross-entropy of the labels [N]."""

    net: Net
    labels: Tensor

    def __call__(self, images: Tensor, sample: Tensor, *, gradient: bool) -> Point:
        """Return the loss at images [M, ...]."""
        loss, scores, slope = loss_at(self.net, images, self.labels[sample], gradient=gradient)
        return Point({"loss": loss}, loss, scores, gradient=slope)
