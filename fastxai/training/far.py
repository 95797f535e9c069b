"""FAR: train maps, and predictions, against the worst image of a ball ([F] eq. 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastxai import _check
from fastxai.attacks import IFIA, PGD, AdversarialIFIA
from fastxai.attacks._ascent import Ascent
from fastxai.attacks.dissimilarities import Dissimilarity
from fastxai.engine import Net
from fastxai.explainers import Explainer
from fastxai.training.objective import Batch, Term
from fastxai.training.per_batch import PerBatch

__all__ = ["FAR", "Attribution", "TargetMaps", "masks", "zeros"]

Attribution = Explainer | Callable[[Net], Explainer]
TargetMaps = Callable[[Batch], Tensor]
OBJECTIVES = {"eq5": IFIA, "eq6": AdversarialIFIA}
OUTER = ("curvature", "none")


def masks(batch: Batch) -> Tensor:
    """Return the batch's masks as S_T: ground truth in the place of S(x) ([F] sections 2.1 and 3).

    Raises:
        ValueError: the data has none.

    >>> from fastxai.training import FAR, masks
    >>> term = FAR("eq5", fastxai.Gradient, eps=0.1, target_map=masks)
    """
    if batch.masks is None:
        raise ValueError("data must have masks where they are the target map, got none")
    return batch.masks


def zeros(batch: Batch) -> Tensor:
    """Return maps that are 0 everywhere, of the inputs' shape, as S_T: what IG from the baseline x is at x ([F] eq. 8).

    >>> from fastxai.training import FAR, zeros
    >>> term = FAR("eq5", fastxai.Gradient, eps=0.1, dissimilarity="l1", target_map=zeros)
    """
    return torch.zeros_like(batch.x)


class FAR(Term):
    """The robust objectives of [F], natural or adversarial loss included.

        "eq5"    mean_i  l(x_i, y_i) + lambda d_s[S(x~_i), S_T]       x~ of ``IFIA``
        "eq6"    mean_i  l(x~_i, y_i) + lambda d_s[S(x~_i), S_T]      x~ of ``AdversarialIFIA``

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
        attack: the ``IFIA`` or ``AdversarialIFIA``.
        lambda_, outer, target_map: as given.

    >>> from fastxai.training import FAR, Objective
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> far = FAR("eq5", fastxai.InputXGradient, eps=0.1, dissimilarity="cosine", lambda_=0.5, steps=3)
    >>> objective = Objective(fastxai.compile(model), [far])
    >>> objective(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    """

    last = True

    def __init__(
        self,
        objective: str,
        attribution: Attribution,
        *,
        dissimilarity: str | Dissimilarity = "pcl",
        lambda_: float = 1.0,
        outer: str = "curvature",
        target_map: TargetMaps | None = None,
        **settings: Any,
    ) -> None:
        """Train with these settings.

        Args:
            objective: "eq5" or "eq6".
            attribution: S: what makes an explainer of the net, such as the class ``fastxai.Gradient``; an explainer of
                the objective's net; or a ``PerBatch``.
            dissimilarity: d_s, as for ``IFIA``.
            lambda_: weight of d_s, in an AdversarialIFIA too.
            outer: how ReLU bends where the parameters' gradient is taken: "curvature", with the attack's beta, or
                "none", the derivative that ReLU has wherever it has one.
            target_map: (batch) -> S_T, of a shape as for ``IFIA.perturb``, such as ``masks``; it counts as constant.
                S(x) takes the place of one that says nothing: a mask of zeros, or fewer than k marks for "top_k".
            settings: the others of the attack, eps among them. Random starts are a function of its seed, the
                objective's step and the sample's number.

        Raises:
            TypeError: attribution or target_map are of another kind, or a setting is unknown.
            ValueError: a setting is out of range or unknown.
        """
        _check.one_of(objective, "objective", OBJECTIVES)
        _check.not_negative(lambda_, "lambda_")
        _check.one_of(outer, "outer", OUTER)
        callable_ = target_map is None or callable(target_map)
        _check.require(callable_, "target_map", "be a function of the batch", target_map, TypeError)
        if not isinstance(attribution, Explainer):
            contract = "be an explainer, or a function that makes one of a net"
            _check.require(callable(attribution), "attribution", contract, attribution, TypeError)
            attribution = PerBatch(partial(_of_net, attribution))
        self.adversarial = objective == "eq6"
        weight = {"lambda_": lambda_} if self.adversarial else {}
        self.attack = OBJECTIVES[objective](attribution, dissimilarity=dissimilarity, **weight, **settings)
        if target_map is zeros:
            contract = "not be set where S_T is 0: no map of sum 1 is"
            _check.require(self.attack.reduce in ("auto", None), "reduce", contract, self.attack.reduce)
        self.lambda_, self.outer, self.target_map = lambda_, outer, target_map

    def prepare(self, batch: Batch) -> None:
        """Attack, explain, and offer the scores of the pass at x."""
        batch.keep(self, self._parts(batch))

    def _parts(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the images whose loss counts (None: x), their scores if a pass gave them, and d_s [N] if it counts."""
        attack = self._bound(batch)
        if self.lambda_ == 0:
            return self.perturbed(attack, batch) if self.adversarial else None, None, None
        view = attack.view() if self.outer == "curvature" else _own(attack.explainer.net)
        # A smoothed view's scores are those of another network.
        shared = batch.alike and view.activation is None and batch.net.activation is None
        target, known = self._target(attack, batch), None
        if target is None:
            goal, clean = attack.explainer.map_and_scores(batch.x, batch.y, net=view)
            known = goal.detach()
            if shared:
                batch.offer(clean)
        else:
            goal = target
        images = self.perturbed(attack, batch, target, known)
        h, scores = attack.explainer.map_and_scores(images, batch.y, net=view)
        distance = attack.distance(h, goal, given=target is not None)
        if self.adversarial:
            return images, scores if shared else None, distance
        return None, None, distance

    def _target(self, attack: IFIA | AdversarialIFIA, batch: Batch) -> Tensor | None:
        """Return S_T where it is given; S(x), as constant as that, for samples whose target map says nothing."""
        if self.target_map is None:
            return None
        target = self.target_map(batch)
        said = attack.says(target, batch.x)
        if self.target_map is masks:
            said = said & target.flatten(1).any(1)
        if said.all():
            return target
        with torch.no_grad():
            h, _ = attack.explainer.map_and_scores(batch.x, batch.y, net=attack.view(), parameters=False)
        own = h if target.dim() == h.dim() else h.abs().sum(1)
        return torch.where(said.view(-1, *[1] * (own.dim() - 1)), target, own)

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
            made = explainer.make(batch)
            explainer = _check.instance(made, "attribution", Explainer, "make an explainer")
        same = explainer.net.base is batch.net.base
        _check.require(same, "attribution", "explain the objective's net, or a view of it", "another net")
        key = seed if isinstance(seed, tuple) else (seed,)
        return replace(self.attack, explainer=explainer, seed=(*key, int(batch.step)))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        images, scores, distance = batch.kept(self)
        if scores is None:
            scores = batch.scores if images is None else batch.net.differentiable_scores(images)
        loss = functional.cross_entropy(scores, batch.y)
        return loss if distance is None else loss + self.lambda_ * distance.mean()


def _of_net(make: Callable[[Net], Explainer], batch: Batch) -> Explainer:
    return make(batch.net)


def _own(net: Net) -> Net:
    """Return the view whose activations have the derivatives that they have."""
    return net if net.surrogate is None else net.base
