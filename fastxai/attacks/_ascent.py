"""Projected gradient ascent in a ball, batched over samples and restarts: what PGD and the attacks of [F] share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastxai import _check
from fastxai._warn import warn
from fastxai.attacks._ball import Ball, Bound
from fastxai.attacks._optimizer import Box
from fastxai.engine import Net, arguments
from fastxai.engine.capture import Graphs
from fastxai.kernels import attack_step

__all__ = ["Ascent", "Found", "How", "Label", "Objective", "Point", "inputs_of", "labels_of", "loss_at"]

Label = int | Tensor | None

# All steps together reach a little beyond the ball's surface ([F] tables 1 and 2: 7 steps of 1.2 / 7, 40 of .03).
_REACH = 1.2


@dataclass(frozen=True)
class Point:
    """An objective at M images.

    Attributes:
        terms: its summands by name, unweighted, [M] each.
        value: what is ascended, [M].
        scores: of the model as given, [M, K].
        held: rows that may be returned and go on, [M] bool; None is all.
        maps: the maps [M, ...], where the objective has some.
        gradient: of the value, of the images' shape; None where it was not asked for.
    """

    terms: dict[str, Tensor]
    value: Tensor
    scores: Tensor
    held: Tensor | None = None
    maps: Tensor | None = None
    gradient: Tensor | None = None


class Objective(ABC):
    """What is ascended."""

    @abstractmethod
    def __call__(self, images: Tensor, sample: Tensor, *, gradient: bool) -> Point:
        """Return the objective at images [M, ...] of these samples, LongTensor [M]; all of it detached."""


@dataclass(frozen=True)
class Best:
    """The best iterate of every row so far; ``parts`` are images, value, step, scores, then maps and terms."""

    parts: tuple[Tensor, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, images: Tensor, point: Point, step: Tensor) -> Best:
        """Begin with these images, ``step`` being a LongTensor []."""
        maps = () if point.maps is None else (point.maps,)
        steps = step.repeat(point.value.shape)
        return cls((images, point.value, steps, point.scores, *maps, *point.terms.values()), tuple(point.terms))

    def repeat(self, count: int) -> Best:
        """Return all rows ``count`` times."""
        return replace(self, parts=tuple(part.repeat(count, *[1] * (part.dim() - 1)) for part in self.parts))

    def against(self, rows: Tensor, images: Tensor, point: Point, step: Tensor) -> Best:
        """Take what is better of some rows, LongTensor [M]."""
        better = point.value > self.parts[1][rows]
        if point.held is not None:
            better &= point.held
        pairs = zip(self.parts, Best.of(images, point, step).parts, strict=True)
        taken = ((old, torch.where(_by_row(better, new), new, old[rows])) for old, new in pairs)
        return replace(self, parts=tuple(old.index_copy(0, rows, new) for old, new in taken))

    def rows(self, which: Tensor) -> Best:
        """Return these rows, LongTensor."""
        return replace(self, parts=tuple(part[which] for part in self.parts))


@dataclass(frozen=True)
class How:
    """How iterations are run.

    Attributes:
        stop: what becomes of rows that do not hold: they go on (None), "freeze" or "drop". Dropping spares their passes
            but waits for the device, and what belongs to a row must come and go with it.
        graphs: record iterations, which are the same device work every time; None: ordinary calls.
    """

    stop: str | None = None
    graphs: Graphs | None = None

    def run(self, iterate: Callable[..., Any], inputs: tuple[Tensor | None, ...]) -> Any:
        """Return ``iterate(*inputs)``."""
        if self.graphs is None:
            return iterate(*inputs)
        return self.graphs("an iteration of an ascent", iterate, inputs)


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _terms(point: Point, frozen: Tensor | None) -> Tensor:
    """Return the summands [terms, M]; NaN in rows that stopped before."""
    terms = torch.stack(tuple(point.terms.values()))
    return terms if frozen is None else terms.masked_fill(frozen, torch.nan)


@dataclass(frozen=True)
class Found:
    """The best iterate of every sample.

    Attributes:
        images: [N, C, ...].
        scores: of the model as given, [N, K].
        maps: [N, ...], where the objective has some.
        terms: the objective's summands there, [N] each.
        step: after how many steps it was found, LongTensor [N].
        restart: by which restart, LongTensor [N].
        history: the summands at every iterate of that restart, [steps + 1, N] each; NaN after a sample stopped.
    """

    images: Tensor
    scores: Tensor
    maps: Tensor | None
    terms: dict[str, Tensor]
    step: Tensor
    restart: Tensor
    history: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Ascent(ABC):
    """x_adv <- project(x_adv + alpha normalise(gradient)), onto the ball around x and the bounds.

    normalise is the sign for "linf" and g / |g|_2, each sample by itself, for "l2" ([F] algorithms 1 and 2).

    Attributes:
        eps: radius of the ball, in the space of x.
        steps: how many; 0 judges the starts alone.
        alpha: step size, in the space of x.
        rel_stepsize: step size over eps, in place of ``alpha``; with neither it is 1.2 / steps, as in [F].
        norm: "linf" or "l2", over all values of one sample.
        random_start: False starts at x, and further restarts at uniform points of the ball; True takes uniform points
            throughout; "signs" the points x +- eps (for "l2" of that length); None is False where that has a gradient.
        restarts: R; the attack costs R times as much.
        bounds: lowest and highest valid value, each a number or one a channel.
        seed: an int or several. Starts are a function of seed, number of the sample and number of the restart.
    """

    eps: float
    steps: int = 7
    alpha: float | None = None
    rel_stepsize: float | None = None
    norm: str = "linf"
    random_start: bool | str | None = None
    restarts: int = 1
    bounds: tuple[Bound, Bound] = (0.0, 1.0)
    seed: int | tuple[int, ...] = 0

    def check_settings(self) -> None:
        """Raise ValueError unless every setting is in range."""
        self._ball()
        for name, least in (("steps", 0), ("restarts", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _check.require(whole and value >= least, name, f"be an int, {least} or more", value)
        for name in ("alpha", "rel_stepsize"):
            if getattr(self, name) is not None:
                _check.positive(getattr(self, name), name)
        both = self.alpha is not None and self.rel_stepsize is not None
        _check.require(not both, "rel_stepsize", "be None beside alpha", self.rel_stepsize)
        _check.one_of(self.random_start, "random_start", (None, False, True, "signs"))
        pair = isinstance(self.bounds, (tuple, list)) and len(self.bounds) == 2
        _check.require(pair, "bounds", "be (lowest, highest)", self.bounds)
        whole = all(isinstance(number, int) for number in self._key())
        _check.require(whole, "seed", "be an int or a tuple of ints", self.seed)

    @property
    def step_size(self) -> float:
        """Alpha."""
        if self.alpha is not None:
            return self.alpha
        return self.eps * (_REACH / max(1, self.steps) if self.rel_stepsize is None else self.rel_stepsize)

    def _ball(self) -> Ball:
        return Ball(self.eps, self.norm)

    def _key(self) -> tuple[int, ...]:
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    def starts(self, x: Tensor, box: Box, index: Tensor, *, moved: bool) -> Tensor:
        """Return where the restarts begin, [R N, ...]: at x first, unless all are to be ``moved``."""
        ball, first = self._ball(), int(not moved)
        if first == self.restarts:
            return x
        draw = ball.signs if self.random_start == "signs" else ball.draw
        offsets = draw(self._key(), index, range(first, self.restarts), x[:1].numel())
        origin = x.repeat(self.restarts - first, *[1] * (x.dim() - 1))
        others = ball.project(origin + offsets.to(x.dtype).view(origin.shape), origin, box)
        return torch.cat([x, others]) if first else others

    def ascend(
        self, objective: Objective, x: Tensor, original: Point, starts: Tensor, box: Box, how: How | None = None
    ) -> Found:
        """Return the best iterate of every sample: the highest value among rows that held; x itself where none beat it.

        Args:
            objective: what is ascended.
            x: originals [N, C, ...].
            original: the objective there.
            starts: [R N, C, ...].
            box: the lowest and the highest valid value, [C] each.
            how: what becomes of rows that do not hold, and whether iterations are recorded.
        """
        how, n, images = how or How(), len(x), starts
        rows, t = torch.arange(len(starts), device=x.device), torch.zeros((), dtype=torch.long, device=x.device)
        origin = x.repeat(self.restarts, *[1] * (x.dim() - 1))
        best = Best.of(x, original, t).repeat(self.restarts)
        history = x.new_full((self.steps + 1, len(original.terms), len(starts)), torch.nan)
        frozen = torch.zeros_like(rows, dtype=torch.bool) if how.stop == "freeze" else None
        iterate = partial(self._iterate, objective, best.names, n, box)
        for number in range(self.steps):
            inputs = (images, rows, origin, t.fill_(number), frozen, *best.parts)
            moved, terms, gradient, held, frozen, *parts = how.run(iterate, inputs)
            images, best = moved, replace(best, parts=tuple(parts))
            history[number][:, rows] = terms
            if number == 0 and n:
                self._check_gradient(gradient)
            if how.stop == "drop" and held is not None:
                left = held.nonzero()[:, 0]
                if not len(left):
                    return self._found(best, history, n)
                if len(left) < len(rows):
                    rows, images, origin = rows[left], images[left], origin[left]
        point = objective(images, rows % max(1, n), gradient=False)
        best = best.against(rows, images, point, t.fill_(self.steps))
        history[self.steps][:, rows] = _terms(point, frozen)
        return self._found(best, history, n)

    def _check_gradient(self, gradient: Tensor) -> None:
        """Complain of a first gradient [R N, ...] by which the attack cannot move."""
        by_sample = gradient.view(self.restarts, -1, *gradient.shape[1:]).transpose(0, 1)
        _check.finite_samples(by_sample, "the objective's gradient", "be finite where the attack starts")
        if not gradient.any():
            warn(
                "the objective has no gradient where the attack starts, so it will not move; what helps is "
                "beta= on a piecewise linear network, and random_start=True where maps are equal at the start.",
            )

    def _iterate(
        self, objective: Objective, names: tuple[str, ...], n: int, box: Box, *state: Any
    ) -> tuple[Tensor | None, ...]:
        """Judge the images and move them: return what becomes of the state, and what was found on the way."""
        images, rows, origin, t, frozen, *parts = state
        step = attack_step.sign_project_clip if self.norm == "linf" else attack_step.l2_project_clip
        point = objective(images, rows % max(1, n), gradient=True)
        best, terms = Best(tuple(parts), names).against(rows, images, point, t), _terms(point, frozen)
        if frozen is not None and point.held is not None:
            frozen = frozen | ~point.held
        moved = step(images, point.gradient, origin, self.step_size, self.eps, box, frozen)
        return moved, terms, point.gradient, point.held, frozen, *best.parts

    def _found(self, best: Best, history: Tensor, n: int) -> Found:
        """Choose among the restarts; history [steps + 1, terms, R N]."""
        restart = best.parts[1].view(self.restarts, n).argmax(0)
        row = restart * n + torch.arange(n, device=restart.device)
        images, _, step, scores, *rest = best.rows(row).parts
        names = best.names
        maps = rest[0] if len(rest) > len(names) else None
        return Found(
            images,
            scores,
            maps,
            dict(zip(names, rest[len(rest) - len(names) :], strict=True)),
            step,
            restart,
            dict(zip(names, history[:, :, row].unbind(1), strict=True)),
        )


def inputs_of(x: Tensor) -> Tensor:
    """Return x without a graph, checked to be [N, C, ...]."""
    _check.require(_check.tensor(x, "x").dim() >= 2, "x", "have shape [N, C, ...]", list(x.shape))
    recorded = not torch.is_inference_mode_enabled()
    _check.require(recorded, "torch.inference_mode()", "be left where maps are differentiated", "on", RuntimeError)
    return x.clone() if x.is_inference() else x.detach()


def labels_of(y: Label, scores: Tensor) -> Tensor:
    """Return the label y as a LongTensor [N], checked against scores [N, K]; the highest of them where y is None.

    Raises:
        TypeError: y is no integer.
        ValueError: its shape or range is wrong.
    """
    if y is None:
        return scores.argmax(1)
    labels = arguments.classes(y, scores, "y")
    # On a GPU reading the range would stop the host.
    if labels.numel() and labels.device.type == "cpu":
        arguments.in_range(labels, scores.shape[1], "y")
    return labels


def loss_at(net: Net, images: Tensor, y: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (cross-entropy of y [N], scores [N, K], its gradient if asked for), with the model's own activations."""
    net = net.with_activation(None)
    with torch.no_grad():
        if gradient:
            # No direction at all: what is left of H v's pass is the value, and the head's gradient.
            none = images.new_empty(0, *images.shape)
            _, slope, scores = net.differentiable_hvp(images, none, y, output="cross_entropy", parameters=False)
        else:
            slope, scores = None, net(images)
        return functional.cross_entropy(scores, y, reduction="none"), scores, slope
