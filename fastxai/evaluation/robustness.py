"""How far attacks move the predictions and the maps of a network ([F] table 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.attacks import IFIA, PGD
from fastxai.attacks._ball import box_of
from fastxai.engine import arguments
from fastxai.evaluation.network import correct
from fastxai.explainers import reduce_map
from fastxai.metrics import kendall_tau, top_k_intersection

__all__ = ["Robustness", "adversary", "robustness"]

# How many samples are scored at once.
_ROWS = 256


@dataclass(frozen=True)
class Robustness:
    """What two attacks did, per sample; a sample that is misclassified as it is gets no attack: it is skipped.

    Attributes:
        correct: the label is predicted, bool [N].
        withstood: it is predicted after PGD too, bool [N]; False where skipped.
        moved: IFIA found an image of the same class whose map differs more, bool [N]; False where skipped.
        top_k: share of the k largest values of S(x) that are among those of S(x_adv), [N]; NaN where skipped.
        tau: Kendall's tau-b of S(x) and S(x_adv), [N]; NaN where skipped.
    """

    correct: Tensor
    withstood: Tensor
    moved: Tensor
    top_k: Tensor
    tau: Tensor

    def summary(self) -> dict[str, float]:
        """Return the figures of [F]'s table 1 and two more.

        "natural_accuracy" (NA), "adversarial_accuracy" (AA) and "skipped" are shares of all samples, "top_k" (IN) and
        "kendall_tau" (CO) means over those attacked, "attack_success" the share of these that moved; NaN of none.
        """
        over = {
            "natural_accuracy": self.correct,
            "adversarial_accuracy": self.withstood,
            "top_k": self.top_k[self.correct],
            "kendall_tau": self.tau[self.correct],
            "attack_success": self.moved[self.correct],
            "skipped": ~self.correct,
        }
        return {name: values.double().mean().item() for name, values in over.items()}


def adversary(attack: IFIA) -> PGD:
    """Return the attack for AA in the ball of an attack on maps: PGD, 40 steps of .03 eps, from x ([F] table 2).

    >>> attack = fastxai.IFIA.preset(fastxai.Gradient(torch.nn.Linear(4, 3)), "mnist")
    >>> fastxai.evaluation.adversary(attack).eps
    0.3
    """
    kind = type(attack).__name__
    _check.require(isinstance(attack, IFIA), "attack", "be a fastxai.IFIA", kind, TypeError)
    ball: dict[str, Any] = {name: getattr(attack, name) for name in ("eps", "norm", "bounds", "seed")}
    return PGD(attack.explainer.net.base, **ball)


def robustness(
    attack: IFIA,
    x: Tensor,
    labels: Tensor,
    *,
    reduce: str | None = "abs_sum",
    index: Tensor | None = None,
    chunk: int = 20,
    progress: Callable[[int], object] | None = None,
) -> Robustness:
    """Measure NA, AA, IN and CO: predictions under PGD, maps S(x) against S(x_adv) of the images that IFIA finds.

    Both attacks have the same ball, see ``adversary``. Maps explain the label, by the explainer as it is. [F] says
    neither which samples it attacks nor how it compares maps of several channels: here those that the network gets
    right, and the channels summed as |.|. Adversarial accuracy judges the iterate with the highest loss.

    Args:
        attack: on the explainer's maps, such as ``fastxai.IFIA.preset(explainer, "cifar10")``; its k is that of IN.
            A baseline of the explainer is one for all samples.
        x: inputs [N, C, H, W], a whole test set if it fits into memory.
        labels: LongTensor [N].
        reduce: what becomes of a map's channels before values are ranked: "abs_sum", "sum", or None: each value counts.
        index: the samples' numbers in their data set, LongTensor [N], on which random starts depend; None: 0 .. N - 1.
        chunk: how many samples are attacked at once, times the restarts; it changes no result beyond rounding.
        progress: called with the number of samples of each chunk when it is done, such as the ``update`` of a tqdm bar.

    Raises:
        TypeError: attack is no IFIA, x no floating point tensor, or labels or index hold no integers.
        ValueError: a shape, dtype, device or range does not fit, k too; or a score or a map is not finite.

    [F] section 5, tables 1 and 2.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> attack = fastxai.IFIA.preset(fastxai.Gradient(model), "mnist", steps=2, restarts=1)
    >>> x = torch.rand(4, 1, 8, 8)
    >>> found = fastxai.evaluation.robustness(attack, x, model(x).argmax(1))
    >>> found.summary()["natural_accuracy"], tuple(found.tau.shape)
    (1.0, (4,))
    """
    pgd = adversary(attack)
    _check.require(_check.tensor(x, "x").dim() == 4, "x", "have shape [N, C, H, W]", list(x.shape))
    _check.require(isinstance(chunk, int) and chunk >= 1, "chunk", "be an int of at least 1", chunk)
    _check.one_of(reduce, "reduce", ("abs_sum", "sum", None))
    box_of(attack.bounds, _check.finite_samples(x, "x", "be finite"))
    numbers, net = _check.index_of(index, x), attack.explainer.net.base
    with torch.no_grad():
        scores = torch.cat([net(rows) for rows in x.split(_ROWS)])
    _check.finite_samples(scores, "x", "have finite scores")
    labels = arguments.classes(_check.tensor(labels, "labels", False), scores, "labels")
    if len(x):
        arguments.in_range(labels, scores.shape[1], "labels")
    right = scores.argmax(1) == labels
    parts: list[Robustness] = []
    # An empty batch makes one empty chunk, and so results of no samples.
    for start in range(0, max(len(x), 1), chunk):
        rows = slice(start, start + chunk)
        parts.append(_measured(attack, pgd, x[rows], labels[rows], right[rows], numbers[rows], reduce))
        if progress is not None:
            progress(len(x[rows]))
    return Robustness(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(Robustness)))


def _measured(
    attack: IFIA, pgd: PGD, x: Tensor, labels: Tensor, right: Tensor, index: Tensor, reduce: str | None
) -> Robustness:
    """Attack those of one chunk that are ``right``, bool [N]."""
    rows = right.nonzero()[:, 0]
    image, label, number = x[rows], labels[rows], index[rows]
    withstood = correct(attack.explainer.net.base, pgd.perturb(image, label, index=number).images, label)
    found = attack.perturb(image, label, index=number)
    with torch.no_grad():
        raw = (attack.explainer.attribute(each, label) for each in (image, found.images))
        finite = (_check.finite_samples(h, "x", "have finite maps, before and under attack") for h in raw)
        before, after = (reduce_map(h, reduce, None) for h in finite)
    alike = (top_k_intersection(before, after, attack.k), kendall_tau(before, after))
    moved = (found.images != image).flatten(1).any(1)
    flags = (torch.zeros_like(right).index_copy(0, rows, flag) for flag in (withstood, moved))
    figures = (x.new_full((len(x),), torch.nan).index_copy(0, rows, figure) for figure in alike)
    return Robustness(right, *flags, *figures)
