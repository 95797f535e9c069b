"""The Hessian penalty of [R]: the squared Frobenius norm of the input Hessian, by random probes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastxai import _check, _random
from fastxai.engine import Net
from fastxai.training.objective import Batch, Term

__all__ = ["HessianNorm"]

OF = ("winner", "label", "loss")
REDUCTIONS = ("mean", "sum")
Direction = Callable[[Net, Tensor, Tensor], Tensor]


class HessianNorm(Term):
    """mean_i mean_s ||H(x_i) v_s||^2, an unbiased estimate of the batch's mean, or sum, of ||H||_F^2 ([R] eq. 6).

    One probe a step is what [R] trains with. Its parameter gradients cost an order-2 sweep: 4 units forward, 4 back and
    4 of weight gradients a layer, the cross-entropy included, against 3 of an ordinary step.

    Args:
        probes: directions a sample.
        kind: "gaussian" ([R]) or "rademacher" (v_i = +-1, the smaller variance).
        of: whose Hessian: the highest score's ("winner", [R]), the labelled score's ("label") or the loss's ("loss").
        seed: of the probes, which are new at every step.
        reduction: over the batch. [R] eq. 6 has a "sum" and does not say how it meets the batches; its values of zeta
            bend the network beside a mean cross-entropy only so. "mean" does not depend on how large batches are.
        direction: instead of random probes, (net, x, y) -> v [N, ...] or [S, N, ...]; CURE's penalty is that of its
            normalised loss gradient with ``of="loss"``. It counts as constant.

    Raises:
        TypeError: direction is not callable, seed no int.
        ValueError: probes, kind, of or reduction are wrong.

    >>> from fastxai.training import CrossEntropy, HessianNorm, Objective
    >>> terms = [CrossEntropy(), 1e-6 * HessianNorm(reduction="sum")]
    """

    def __init__(
        self,
        probes: int = 1,
        kind: str = "gaussian",
        of: str = "winner",
        seed: int = 0,
        direction: Direction | None = None,
        reduction: str = "mean",
    ) -> None:
        whole = isinstance(probes, int) and not isinstance(probes, bool) and probes > 0
        _check.require(whole, "probes", "be a positive int", probes)
        _check.one_of(kind, "kind", _random.DISTRIBUTIONS)
        _check.one_of(of, "of", OF)
        _check.one_of(reduction, "reduction", REDUCTIONS)
        _check.require(isinstance(seed, int), "seed", "be an int", seed, TypeError)
        _check.require(direction is None or callable(direction), "direction", "be callable", direction, TypeError)
        self.probes, self.kind, self.of, self.seed, self.direction = probes, kind, of, seed, direction
        self.reduction = reduction

    def prepare(self, batch: Batch) -> None:
        """Multiply, and offer the scores of the pass."""
        target = None if self.of == "winner" else batch.y
        output = "cross_entropy" if self.of == "loss" else "logit"
        v = self._directions(batch).detach()
        hv, _, scores = batch.net.differentiable_hvp(batch.x, v, target, output=output)
        batch.keep(self, hv)
        batch.offer(scores)

    def _directions(self, batch: Batch) -> Tensor:
        if self.direction is not None:
            return self.direction(batch.net, batch.x, batch.y)
        rows, key = range(self.probes), (self.seed, batch.step)
        return _random.probes(self.kind, batch.x, key, batch.index, rows).unflatten(2, batch.x.shape[1:])

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean over directions and the mean, or sum, over samples."""
        hv = batch.kept(self)
        samples = len(batch.x) if self.reduction == "mean" else 1
        return hv.square().sum() / (samples * (hv.numel() // batch.x.numel()))
