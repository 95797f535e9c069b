"""FAR: train maps, and predictions, against the worst image of a ball ([F] eq. 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from torch import Tensor
from torch.nn import functional

from fastxai import _check
from fastxai.attacks import IFIA, PGD, AdversarialIFIA
from fastxai.attacks._ascent import Ascent
from fastxai.engine import Net
from fastxai.training.objective import Batch, Term
from fastxai.training.per_batch import PerBatch

__all__ = ["FAR", "TargetMaps", "masks"]

TargetMaps = Callable[[Batch], Tensor]
OUTER = ("curvature", "none")


def masks(batch: Batch) -> Tensor:
    """Return the batch's masks as S_T: ground truth in the place of S(x) ([F] sections 2.1 and 3).

    Raises:
        ValueError: the data has none.

    >>> from fastxai.training import FAR, PerBatch, masks
    >>> term = FAR(fastxai.IFIA(PerBatch(lambda batch: fastxai.Gradient(batch.net)), eps=0.1), target_map=masks)
    """
    if batch.masks is None:
        raise ValueError("data must have masks where they are the target map, got none")
    return batch.masks


class FAR(Term):
    """The robust objective of an attack, natural or adversarial loss included ([F] eq. 5 and 6).

        IFIA               mean_i  l(x_i, y_i) + lambda d_s[S(x~_i), S_T]       (eq. 5)
        AdversarialIFIA    mean_i  l(x~_i, y_i) + lambda d_s[S(x~_i), S_T]      (eq. 6)

    l is the cross-entropy, x~ the attack's image, which counts as constant, and S_T = S(x) unless ``target_map`` gives
    it. The explained class is the label, in the attack and in the loss. Gradients reach the parameters exactly through
    S(x~) and S(x), as the explainers' autograd functions give them; the attack's passes leave no graph. With
    ``lambda_=0``, eq. 5 is the natural loss, without any attack, and eq. 6 is PGD's adversarial training, without maps
    (eq. 7).

    Where [F] is silent or we differ: sums over data are means over the batch; the attack keeps the best iterate in
    place of the last (see ``IFIA``); [F] bends ReLU "during these attacks" and does not say how the outer step
    differentiates the maps, which ``outer`` sets. Maps are always those of eval mode; l is that of the model's present
    mode, and shares a pass of the maps where both modes agree.

    Attributes:
        attack: an IFIA (eq. 5) or an AdversarialIFIA (eq. 6). Its explainer's net must be the objective's, or it is a
            ``PerBatch``. Random starts are a function of its seed, the objective's step and the sample's number.
        lambda_: weight of d_s, in the attack too; None is the AdversarialIFIA's own, and 1 for IFIA.
        outer: how ReLU bends where the parameters' gradient is taken: "curvature", with the attack's beta, or "none",
            the derivative that ReLU has wherever it has one.
        target_map: (batch) -> S_T, of a shape as for ``IFIA.perturb``, such as ``masks``; it counts as constant.

    Raises:
        TypeError: attack is of another kind, or target_map is not callable.
        ValueError: lambda_ or outer are wrong.

    >>> from fastxai.training import FAR, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> net = fastxai.compile(model)
    >>> objective = Objective(net, [FAR(fastxai.IFIA(fastxai.Gradient(net), eps=0.1, steps=3), lambda_=0.5)])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    last = True

    def __init__(
        self,
        attack: IFIA | AdversarialIFIA,
        lambda_: float | None = None,
        outer: str = "curvature",
        target_map: TargetMaps | None = None,
    ) -> None:
        kind = type(attack).__name__
        fits = isinstance(attack, (IFIA, AdversarialIFIA))
        _check.require(fits, "attack", "be an IFIA or an AdversarialIFIA", kind, TypeError)
        if lambda_ is None:
            lambda_ = attack.lambda_ if isinstance(attack, AdversarialIFIA) else 1.0
        _check.not_negative(lambda_, "lambda_")
        _check.one_of(outer, "outer", OUTER)
        callable_ = target_map is None or callable(target_map)
        _check.require(callable_, "target_map", "be a function of the batch", target_map, TypeError)
        self.adversarial = isinstance(attack, AdversarialIFIA)
        self.attack = replace(attack, lambda_=lambda_) if isinstance(attack, AdversarialIFIA) else attack
        self.lambda_, self.outer, self.target_map = lambda_, outer, target_map

    def prepare(self, batch: Batch) -> None:
        """Attack, explain, and offer the scores of the pass at x."""
        batch.keep(self, self._parts(batch))

    def _parts(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the images whose loss counts (None: x), their scores if a pass gave them, and d_s [N] if it counts."""
        attack = self._bound(batch)
        if self.lambda_ == 0:
            return self.perturbed(attack, batch) if self.adversarial else None, None, None
        target = None if self.target_map is None else self.target_map(batch)
        view = attack.view() if self.outer == "curvature" else _own(attack.explainer.net)
        # A smoothed view's scores are those of another network.
        shared = batch.alike and view.activation is None and batch.net.activation is None
        goal, known = target, None
        if goal is None:
            goal, clean = attack.explainer.map_and_scores(batch.x, batch.y, net=view)
            known = goal.detach()
            if shared:
                batch.offer(clean)
        images = self.perturbed(attack, batch, target, known)
        h, scores = attack.explainer.map_and_scores(images, batch.y, net=view)
        distance = attack.distance(h, goal, given=target is not None)
        if self.adversarial:
            return images, scores if shared else None, distance
        return None, None, distance

    def perturbed(
        self, attack: IFIA | AdversarialIFIA, batch: Batch, target: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """Return the images x~ of this batch's attack, of x's shape and without a graph; ``known`` is S(x)."""
        if self.adversarial and self.lambda_ == 0:
            settings = {one.name: getattr(attack, one.name) for one in fields(Ascent)}
            return PGD(batch.net, **settings).perturb(batch.x, batch.y, index=batch.index).images
        return attack.perturb(batch.x, batch.y, target, index=batch.index, original_map=known).images

    def _bound(self, batch: Batch) -> IFIA | AdversarialIFIA:
        """Return the attack on this batch's network, with this step's random numbers."""
        seed, explainer = self.attack.seed, self.attack.explainer
        if isinstance(explainer, PerBatch):
            explainer = explainer.make(batch)
        same = explainer.net.base is batch.net.base
        _check.require(same, "attack", "explain the objective's net, or a view of it", "another net")
        key = seed if isinstance(seed, tuple) else (seed,)
        return replace(self.attack, explainer=explainer, seed=(*key, batch.step))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        images, scores, distance = batch.kept(self)
        if scores is None:
            scores = batch.scores if images is None else batch.net.differentiable_scores(images)
        loss = functional.cross_entropy(scores, batch.y)
        return loss if distance is None else loss + self.lambda_ * distance.mean()


def _own(net: Net) -> Net:
    """Return the view whose activations have the derivatives that they have."""
    return net if net.surrogate is None else net.base
