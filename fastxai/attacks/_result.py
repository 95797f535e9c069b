"""What an attack hands back: images, maps, and how far each of them moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastxai import _check
from fastxai.metrics import mse, pcc, ssim

__all__ = ["AscentResult", "AttackResult", "MapAscentResult", "Metrics", "OutputChange", "Similarity"]


@dataclass(frozen=True)
class Similarity:
    """How alike two batches are, per sample.

    Attributes:
        pcc, ssim, mse: [N] each.
    """

    pcc: Tensor
    ssim: Tensor
    mse: Tensor

    @classmethod
    def between(cls, a: Tensor, b: Tensor, data_range: float | None = None) -> Similarity:
        """Compare two batches of maps or images [N, ...]; ``data_range`` is the SSIM's (None: per pair)."""
        return cls(pcc(a, b), ssim(a, b, data_range), mse(a, b))


@dataclass(frozen=True)
class Metrics:
    """The three comparisons that [M] reports.

    Attributes:
        to_target: the manipulated image's map against the target map.
        to_original: the manipulated image's map against the original image's map.
        image: the manipulated image against the original, both in [0, 1].
    """

    to_target: Similarity
    to_original: Similarity
    image: Similarity


@dataclass(frozen=True)
class OutputChange:
    """What the attack did to the output of the model as given ([M1] figs. 10 and 11).

    Attributes:
        classes, original_classes: predicted class after and before, LongTensor [N].
        confidence, original_confidence: softmax probability of that class, [N].
        softmax, logits: norm of the change of the probabilities and of the scores, [N].
    """

    classes: Tensor
    original_classes: Tensor
    confidence: Tensor
    original_confidence: Tensor
    softmax: Tensor
    logits: Tensor

    @classmethod
    def between(cls, scores: Tensor, original: Tensor) -> OutputChange:
        """Compare scores after and before, [N, K] each."""
        p, p_0 = scores.softmax(1), original.softmax(1)
        (confidence, classes), (confidence_0, classes_0) = p.max(1), p_0.max(1)
        norms = ((a - b).norm(dim=1) for a, b in ((p, p_0), (scores, original)))
        return cls(classes, classes_0, confidence, confidence_0, *norms)

    @property
    def confidence_change(self) -> Tensor:
        """Change of the winning probability, [N]."""
        return self.confidence - self.original_confidence


@dataclass(frozen=True)
class AttackResult:
    """The best iterate of every sample, judged on the model as given.

    Attributes:
        images: [N, C, H, W].
        maps, target_maps, original_maps: post-processed [N, H, W]: channels summed as |.|, each map's sum is 1.
        class_kept: the predicted class is the original image's, [N] bool: always, since no other iterate is returned.
            ``last_class_kept`` says whether the attack itself kept to it.
        output_change: how far the output moved.
        metrics: how alike maps and images are.
        history: per iteration the terms of the loss, [T, N] each; of the returned restart, NaN after a sample stopped.
        best_step: the iteration whose result ``images`` holds, LongTensor [N]; 0 is the original image, which stays
            where no iterate kept the class and lowered the map term.
        best_restart: the restart that ``images`` comes from, LongTensor [N]; 0 began at the original image.
        last_class_kept, last_pcc: of the last iterate of that restart: its predicted class is the original image's,
            [N] bool; PCC of its map with the target map, [N]. Where ``stop`` ended a sample early: of what is returned.
        interrupted: stopped by Ctrl-C; everything above holds for the iterations that ran.
    """

    images: Tensor
    maps: Tensor
    target_maps: Tensor
    original_maps: Tensor
    class_kept: Tensor
    output_change: OutputChange
    metrics: Metrics
    history: dict[str, Tensor]
    best_step: Tensor
    best_restart: Tensor
    last_class_kept: Tensor
    last_pcc: Tensor
    interrupted: bool = False

    def __str__(self) -> str:
        """Return the figures of [M]'s tables, as medians over the batch."""
        rows = (("map to target", self.metrics.to_target), ("map to original", self.metrics.to_original))
        lines = [
            f"{name:<16} PCC {median(s.pcc):6.3f}  SSIM {median(s.ssim):6.3f}  MSE {median(s.mse):.2e}"
            for name, s in (*rows, ("image", self.metrics.image))
        ]
        # What is returned keeps the class by choice.
        ended = f"class kept to the end {int(self.last_class_kept.sum())}/{len(self.last_class_kept)}"
        return "\n".join([*lines, f"{ended}, {_moved(self.output_change)}"])


@dataclass(frozen=True)
class AscentResult:
    """The iterate with the highest objective, of every sample, judged on the model as given.

    Attributes:
        images: [N, C, ...].
        class_kept: the predicted class is the original image's, [N] bool.
        output_change: how far the output moved.
        terms: the objective's summands at ``images``, [N] each: "loss" (cross-entropy), "dissimilarity" (d_s).
        history: the same at the start and after every step of the returned restart, [steps + 1, N] each; NaN after a
            sample stopped.
        best_step: after how many steps ``images`` was found, LongTensor [N]; 0 is the start, or the original image,
            which stays where nothing beat it.
        best_restart: the restart that ``images`` comes from, LongTensor [N].
    """

    images: Tensor
    class_kept: Tensor
    output_change: OutputChange
    terms: dict[str, Tensor]
    history: dict[str, Tensor]
    best_step: Tensor
    best_restart: Tensor

    def __str__(self) -> str:
        """Return the objective's summands before and after, as medians over the batch."""
        lines = [
            f"{name:<16} {median(values[0]):.3g} at the start, {median(self.terms[name]):.3g} at the end"
            for name, values in self.history.items()
        ]
        return "\n".join([*lines, _output_line(self.class_kept, self.output_change)])


@dataclass(frozen=True)
class MapAscentResult(AscentResult):
    """The like of an attack on maps.

    Attributes:
        maps, target_maps, original_maps: post-processed [N, H, W]: channels summed as |.|, each map's sum is 1
            (inputs [N, C] keep their shape).
        originals: the images before the attack.
        bounds: the lowest and the highest valid value, [C] each.
    """

    maps: Tensor
    target_maps: Tensor
    original_maps: Tensor
    originals: Tensor
    bounds: tuple[Tensor, Tensor]

    @property
    def dissimilarity(self) -> Tensor:
        """d_s of the returned images, [N]; 1 - d_s is [F]'s robustness (eq. 3)."""
        return self.terms["dissimilarity"]

    @cached_property
    def metrics(self) -> Metrics:
        """How alike maps and images are; for images [N, C, H, W], H and W at least 7.

        Raises:
            ValueError: the bounds are infinite, so that images have no [0, 1] to be compared in.
        """
        finite = all(bool(bound.isfinite().all()) for bound in self.bounds)
        _check.require(finite, "bounds", "be finite where images are compared", [one.tolist() for one in self.bounds])
        unit, unit_0 = (unit_images(images, self.bounds) for images in (self.images, self.originals))
        return Metrics(
            Similarity.between(self.maps, self.target_maps),
            Similarity.between(self.maps, self.original_maps),
            Similarity.between(unit, unit_0, 1.0),
        )


def unit_images(images: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Return images [N, C, H, W] with the lowest valid value at 0 and the highest at 1; bounds [C] each."""
    low, high = (bound.view(-1, 1, 1) for bound in bounds)
    return (images - low) / (high - low)


def _output_line(class_kept: Tensor, change: OutputChange) -> str:
    kept = f"class kept {int(class_kept.sum())}/{len(class_kept)}"
    return f"{kept}, {_moved(change)}"


def _moved(change: OutputChange) -> str:
    return f"softmax moved by {median(change.softmax):.1e} (medians)"


def median(values: Tensor) -> float:
    """Return the median over the batch, the mean of the two middle values where N is even; NaN of nothing."""
    return torch.quantile(values.double(), 0.5).item() if values.numel() else float("nan")
