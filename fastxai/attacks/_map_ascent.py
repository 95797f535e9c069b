"""Ascent of a dissimilarity of maps: what ``IFIA`` and ``AdversarialIFIA`` share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fastxai import _check
from fastxai.attacks import dissimilarities
from fastxai.attacks._ascent import Ascent, How, Label, Objective, Point, inputs_of, labels_of, loss_at
from fastxai.attacks._ball import box_of
from fastxai.attacks._recorded import graphs_for
from fastxai.attacks._result import MapAscentResult, OutputChange
from fastxai.attacks.dissimilarities import DISSIMILARITIES, Dissimilarity
from fastxai.engine import Net
from fastxai.explainers import BetaSmoothing, Explainer, IntegratedGradients, SmoothGrad, reduce_map

__all__ = ["MapAscent"]

# These compare pixels, not channels.
_OF_PIXELS = ("top_k", "mass_centre", "ssim")
# A signed map whose sum is a smaller share of its sum of |.| is not scaled to sum 1.
_LEAST_SUM = 1e-6


@dataclass(frozen=True, kw_only=True)
class MapAscent(Ascent):
    """An ascent whose objective is made of d_s[S(x_adv), S_T].

    Attributes:
        explainer: the map under attack.
        dissimilarity: d_s: a name from ``dissimilarities`` or a function (S(x_adv), S_T) -> [N] that treats every
            sample by itself. One of the library's own functions is the same as its name.
        k: of "top_k".
        reduce: what S is: None is the map as the explainer gives it; "abs_sum" and "sum" have the channels summed, |.|
            or signed, and each map scaled to sum 1. "auto" is "abs_sum" for "top_k", "mass_centre" and "ssim" and for a
            target map without channels, None for the rest.
        beta: sharpness of the ``curvature`` surrogate, which bends ReLU where the map is differentiated and nowhere
            else; None: the net as it is. Not used where the explainer's net is a smoothed or surrogate view already.
    """

    explainer: Explainer = field(kw_only=False)
    dissimilarity: str | Dissimilarity = "pcl"
    k: int = 100
    reduce: str | None = "auto"
    beta: float | None = 1.0

    def check_map_settings(self) -> None:
        """Raise TypeError or ValueError unless every setting is in range."""
        self.check_settings()
        _check.instance(self.explainer, "explainer", Explainer, "be a fastxai explainer")
        if not callable(self.dissimilarity):
            _check.one_of(self.dissimilarity, "dissimilarity", DISSIMILARITIES)
        whole = isinstance(self.k, int) and not isinstance(self.k, bool) and self.k > 0
        _check.require(whole, "k", "be a positive int", self.k)
        _check.one_of(self.reduce, "reduce", ("auto", "abs_sum", "sum", None))
        if self.beta is not None:
            _check.positive(self.beta, "beta")

    def view(self) -> Net:
        """Return the view of the explainer's net whose maps are differentiated."""
        net = self.explainer.net
        if self.beta is None or net.activation is not None or net.surrogate is not None:
            return net
        return net.with_surrogate("curvature", self.beta)

    def _name(self) -> str | None:
        """Return the name of d_s, also where its function is given; None for a function of one's own."""
        if isinstance(self.dissimilarity, str):
            return self.dissimilarity
        given = self.dissimilarity.func if isinstance(self.dissimilarity, partial) else self.dissimilarity
        return next((name for name, function in DISSIMILARITIES.items() if function is given), None)

    def _top(self) -> int:
        """Return the k of "top_k", which a ``partial`` may bring with it."""
        own = self.dissimilarity.keywords if isinstance(self.dissimilarity, partial) else {}
        return own.get("k", self.k)

    def difference(self) -> Dissimilarity:
        """Return d_s as a function."""
        if self._name() == "top_k":
            return partial(dissimilarities.top_k, k=self._top())
        return self.dissimilarity if callable(self.dissimilarity) else DISSIMILARITIES[self.dissimilarity]

    def distance(self, h: Tensor, goal: Tensor, *, given: bool) -> Tensor:
        """Return d_s [N] with a graph, of maps h [N, C, ...] as the explainer gives them.

        Args:
            h: S(x_adv).
            goal: S_T: a map such as h, or a target map as for ``IFIA.perturb``, which counts as constant.
            given: whether it is a target map.
        """
        reduce = self._reduce(goal if given else None, h)
        return self.difference()(_shown(h, reduce), _target(goal, h, reduce) if given else _shown(goal, reduce))

    def run(
        self,
        x: Tensor,
        y: Label,
        target_map: Tensor | None,
        index: Tensor | None,
        original_map: Tensor | None,
        *,
        weight: float | None,
        freeze: bool,
    ) -> MapAscentResult:
        """Ascend d_s, or loss + weight d_s; arguments as for ``IFIA.perturb``."""
        x = inputs_of(x)
        (box, x), index = box_of(self.bounds, x), _check.index_of(index, x)
        view = self.view()
        with torch.no_grad():
            scores = _check.finite_samples(self.explainer.net.base(x), "x", "have finite scores")
            labels = labels_of(y, scores)
            h = self._map(x, labels, view) if original_map is None else _known_map(original_map, x)
        reduce = self._reduce(target_map, h)
        goal = _shown(h, reduce) if target_map is None else self._goal(target_map, h, reduce)
        objective = _Objective(self, view, labels, scores.argmax(1), goal, reduce, weight)
        with torch.no_grad():
            every = torch.arange(len(x), device=x.device)
            original = objective.point(h, scores, objective.losses(scores, every), every)
            _check.finite_samples(original.value, "dissimilarity(S, S_T)", "be finite at x")
        moved = self._moved(flat=weight is None and target_map is None)
        starts = self.starts(x, box, index, moved=moved)
        graphs = None if callable(self.dissimilarity) else graphs_for(self.explainer, x, self.steps)
        # A recorded iteration has as many rows as the others, and its loop waits for nothing.
        alone = graphs is None and _rows_alike(self.explainer)
        how = How(None if not freeze else "drop" if alone else "freeze", graphs)
        found = self.ascend(objective, x, original, starts, box, how)
        assert found.maps is not None
        maps = _shown(h, "abs_sum")
        return MapAscentResult(
            images=found.images,
            class_kept=found.scores.argmax(1) == scores.argmax(1),
            output_change=OutputChange.between(found.scores, scores),
            terms=found.terms,
            history=found.history,
            best_step=found.step,
            best_restart=found.restart,
            maps=_shown(found.maps, "abs_sum"),
            target_maps=maps if target_map is None else _target(target_map, h, "abs_sum"),
            original_maps=maps,
            originals=x,
            bounds=box,
        )

    def _map(self, x: Tensor, labels: Tensor, view: Net) -> Tensor:
        h, _ = self.explainer.map_and_scores(x, labels, net=view, parameters=False)
        return _check.finite_samples(h, "x", "have finite maps")

    def says(self, target_map: Tensor, h: Tensor) -> Tensor:
        """Return whether a target map says what a map [N, C, ...] should show, bool [N].

        One that is scaled to sum 1 has a sum; "top_k" wants k values that are not 0.

        Raises:
            TypeError, ValueError: as for ``IFIA.perturb``.
        """
        reduce = self._reduce(target_map, h)
        return self._says(target_map, _target(target_map, h, reduce), h, reduce)

    def _says(self, target_map: Tensor, goal: Tensor, h: Tensor, reduce: str | None) -> Tensor:
        pixels = math.prod(goal.shape[1:])
        found = torch.ones(len(h), dtype=torch.bool, device=h.device)
        if reduce is not None:
            absolute = reduce == "abs_sum" and target_map.dim() == h.dim()
            values = (target_map.abs() if absolute else target_map).flatten(1)
            if reduce == "abs_sum":
                contract = "not be negative, as sums of |.| are not"
                _check.every_sample(values >= 0, "target_map", contract, "a negative value")
            found = values.sum(1).abs() > _LEAST_SUM * values.abs().sum(1)
        if self._name() == "top_k" and self._top() <= pixels:
            found = found & ((goal != 0).flatten(1).sum(1) >= self._top())
        return found

    def _goal(self, target_map: Tensor, h: Tensor, reduce: str | None) -> Tensor:
        marks = f"{self._top()} values that are not 0 for top_k" if self._name() == "top_k" else "a sum that is not 0"
        goal = _target(target_map, h, reduce)
        _check.every_sample(self._says(target_map, goal, h, reduce), "target_map", f"have {marks}", "less")
        return goal

    def _moved(self, *, flat: bool) -> bool:
        """Return whether every start is random; ``flat`` says that equal maps are where the ascent would start."""
        flat = flat and self._name() != "top_k"
        if self.random_start is None:
            return flat
        # Further restarts start at random points.
        stuck = flat and self.random_start is False and self.restarts == 1 and self._name() is not None
        contract = f"not be False: {self._name()} has no gradient at equal maps, so the attack would not move"
        _check.require(not stuck, "random_start", contract, self.random_start)
        return bool(self.random_start)

    def _reduce(self, target_map: Tensor | None, h: Tensor) -> str | None:
        if self.reduce != "auto":
            return self.reduce
        bare = target_map is not None and _check.tensor(target_map, "target_map").dim() == h.dim() - 1
        return "abs_sum" if bare or self._name() in _OF_PIXELS else None


def _rows_alike(explainer: Explainer) -> bool:
    """Return whether rows may come and go: no setting of the explainer belongs to one."""
    while type(explainer) is SmoothGrad or type(explainer) is BetaSmoothing:
        explainer = explainer.explainer
    if type(explainer) is IntegratedGradients:
        baselines = explainer.baselines
        return not callable(baselines) and not (isinstance(baselines, Tensor) and len(baselines) > 1)
    # Not what a subclass with settings of its own inherits.
    return bool(vars(type(explainer)).get("rows_alike", False))


def _shown(h: Tensor, reduce: str | None) -> Tensor:
    """Return the map [N, C, ...] as it is compared; one without other axes than C has a value a pixel already."""
    if reduce is None:
        return h
    return reduce_map(h.abs() if reduce == "abs_sum" else h, None) if h.dim() == 2 else reduce_map(h, reduce)


def _known_map(given: Tensor, x: Tensor) -> Tensor:
    """Return S(x) as it was given, of x's shape."""
    name = "original_map"
    h = _check.same_place(_check.tensor(given, name), name, x, "x").detach()
    return _check.finite_samples(_check.shape(h, name, tuple(x.shape)), name, "be finite")


def _target(target_map: Tensor, h: Tensor, reduce: str | None) -> Tensor:
    """Return S_T, of a map of h's shape [N, C, ...] or, where channels are summed, [N, ...]."""
    name = "target_map"
    target_map = _check.same_place(_check.tensor(target_map, name), name, h, "x").detach()
    full, pixels = tuple(h.shape), (h.shape[0], *h.shape[2:])
    bare = reduce is not None and h.dim() > 2
    fits = tuple(target_map.shape) in ((full, pixels) if bare else (full,))
    _check.require(fits, name, f"have shape {list(full)}" + bare * f" or {list(pixels)}", list(target_map.shape))
    _check.require(bool(target_map.isfinite().all()), name, "be finite", "inf or nan")
    return reduce_map(target_map, None) if bare and target_map.dim() < h.dim() else _shown(target_map, reduce)


@dataclass(frozen=True)
class _Objective(Objective):
    """d_s[S(x_adv), S_T], or loss + weight d_s; labels and classes [N], goal S_T [N, ...]."""

    attack: MapAscent
    view: Net
    labels: Tensor
    classes: Tensor
    goal: Tensor
    reduce: str | None
    weight: float | None

    def __call__(self, images: Tensor, sample: Tensor, *, gradient: bool) -> Point:
        """Return the objective; the loss is the model's as given, whatever view gives the maps."""
        view, labels, slope = self.view, self.labels[sample], None
        x = images.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            h, scores = self.attack.explainer.map_and_scores(x, labels, net=view, parameters=False)
            losses = None
            if view.activation is None:
                losses = self.losses(scores, sample)
            elif self.weight is None:
                scores = view.base(images)
            else:
                losses, scores, slope = loss_at(view.base, images, labels, gradient=gradient)
            point = self.point(h, scores, losses, sample)
            if not gradient:
                return point
            value, name = point.value.sum(), "dissimilarity"
            _check.require(value.requires_grad, name, "be differentiable in its first argument", "no graph")
            (total,) = torch.autograd.grad(value, x)
        return _detached(point, total if slope is None else total + slope)

    def point(self, h: Tensor, scores: Tensor, losses: Tensor | None, sample: Tensor) -> Point:
        """Measure maps [M, C, ...], scores [M, K] and, where they count, losses [M]."""
        name = "dissimilarity(S, S_T)"
        d = self.attack.difference()(_shown(h, self.reduce), self.goal[sample])
        _check.shape(_check.tensor(d, name), name, (len(h),))
        if self.weight is None:
            return Point({"dissimilarity": d}, d, scores, scores.argmax(1) == self.classes[sample], h)
        assert losses is not None
        return Point({"loss": losses, "dissimilarity": d}, losses + self.weight * d, scores, None, h)

    def losses(self, scores: Tensor, sample: Tensor) -> Tensor | None:
        """Return the cross-entropy of the labels, [M], where it counts."""
        if self.weight is None:
            return None
        return functional.cross_entropy(scores, self.labels[sample], reduction="none")


def _detached(point: Point, gradient: Tensor) -> Point:
    terms = {name: term.detach() for name, term in point.terms.items()}
    maps = None if point.maps is None else point.maps.detach()
    return Point(terms, point.value.detach(), point.scores.detach(), point.held, maps, gradient)
