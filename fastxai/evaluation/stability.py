"""How stable maps are under random noise ([R] section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastxai import _check
from fastxai.attacks import Similarity
from fastxai.evaluation.task import shown_map
from fastxai.explainers import Explainer

__all__ = ["Perturbation", "Stability", "stability"]


class Perturbation(Protocol):
    """Makes another version of inputs, such as ``functools.partial(fastxai.data.noisy, level=0.01)``."""

    def __call__(self, x: Tensor, *, index: Tensor) -> Tensor:
        """Return the version of x [N, ...], in x's shape; index is a LongTensor [N], the samples' numbers."""
        ...


@dataclass(frozen=True)
class Stability:
    """What a perturbation did to maps and classes, per sample.

    Attributes:
        similarity: of the reduced maps before and after, [N] each.
        classes, perturbed_classes: predicted before and after, LongTensor [N].
    """

    similarity: Similarity
    classes: Tensor
    perturbed_classes: Tensor

    @property
    def changed(self) -> Tensor:
        """Whether the predicted class changed, bool [N]; its mean is the share of samples."""
        return self.classes != self.perturbed_classes


@torch.no_grad()
def stability(
    explainer: Explainer,
    x: Tensor,
    perturbations: Sequence[Perturbation],
    *,
    index: Tensor | None = None,
    chunk: int = 100,
    progress: Callable[[int], object] | None = None,
) -> list[Stability]:
    """Compare the maps of inputs with those of perturbed copies: PCC, SSIM and MSE of |.| summed over channels, sum 1.

    Both maps explain the class that the model as given predicts at x, whether the perturbation changes it or not. Each
    sample's maps at x are computed once for all perturbations.

    Args:
        explainer: the map.
        x: inputs [N, C, H, W], a whole test set if it fits into memory.
        perturbations: P of them; what each gets is x's samples and their numbers.
        index: numbers of the samples in their data set, LongTensor [N]; None: 0 .. N - 1.
        chunk: how many samples are explained at once; it changes no result beyond rounding.
        progress: called with the number of samples of each chunk when it is done, such as the ``update`` of a tqdm bar.

    Returns:
        P results, in the order of the perturbations.

    Raises:
        TypeError: explainer is none, or x no floating point tensor.
        ValueError: a shape, dtype or device does not fit, or maps are too small for the SSIM's window of 7x7.

    [R] section 4.1, tables 1 and 2.

    >>> from functools import partial
    >>> explainer = fastxai.Gradient(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)))
    >>> noise = partial(fastxai.data.noisy, level=0.025)
    >>> [found] = fastxai.evaluation.stability(explainer, torch.rand(4, 3, 8, 8), [noise])
    >>> torch.allclose(found.similarity.pcc, torch.ones(4))  # the map of a linear model is constant
    True
    """
    _check.instance(explainer, "explainer", Explainer, "be a fastxai explainer")
    _check.require(_check.tensor(x, "x").dim() == 4, "x", "have shape [N, C, H, W]", list(x.shape))
    _check.require(isinstance(chunk, int) and chunk >= 1, "chunk", "be an int of at least 1", chunk)
    numbers = torch.arange(len(x), device=x.device) if index is None else _check.shape(index, "index", (len(x),))
    parts: list[list[Stability]] = []
    # An empty batch makes one empty chunk, and so results of no samples.
    for start in range(0, max(len(x), 1), chunk):
        rows = slice(start, start + chunk)
        parts.append(_compared(explainer, x[rows], perturbations, numbers[rows]))
        if progress is not None:
            progress(len(x[rows]))
    return [_joined(one) for one in zip(*parts, strict=True)]


def _compared(explainer: Explainer, x: Tensor, perturbations: Sequence[Perturbation], index: Tensor) -> list[Stability]:
    """Compare the maps of one chunk."""
    net = explainer.net.base
    classes = net(x).argmax(1)
    h = shown_map(explainer, x, classes)
    found = []
    for perturb in perturbations:
        other = _check.shape(perturb(x, index=index), "perturbation(x)", tuple(x.shape))
        alike = Similarity.between(shown_map(explainer, other, classes), h)
        found.append(Stability(alike, classes, net(other).argmax(1)))
    return found


def _joined(parts: Sequence[Stability]) -> Stability:
    """Return the results of all chunks as one."""
    alike = (torch.cat([getattr(part.similarity, name) for part in parts]) for name in ("pcc", "ssim", "mse"))
    return Stability(
        Similarity(*alike),
        torch.cat([part.classes for part in parts]),
        torch.cat([part.perturbed_classes for part in parts]),
    )
