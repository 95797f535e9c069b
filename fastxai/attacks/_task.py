"""One call of ``Manipulation.perturb``: its rows, its iterations, its best iterates."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastxai import _backend, _check
from fastxai._warn import warn
from fastxai.attacks._ascent import inputs_of
from fastxai.attacks._ball import box_of
from fastxai.attacks._optimizer import OPTIMIZERS, Box, Optimizer
from fastxai.attacks._recorded import graphs_for
from fastxai.attacks._result import AttackResult, Metrics, OutputChange, Similarity, unit_images
from fastxai.engine import Net
from fastxai.explainers import SmoothGrad, reduce_map
from fastxai.kernels.formulas import dials
from fastxai.metrics import pcc
from fastxai.metrics.ssim import WINDOW

if TYPE_CHECKING:
    from fastxai.attacks.manipulation import Manipulation, Target

__all__ = ["Task"]


@dataclass(frozen=True)
class _Rows:
    """What is still attacked, one row for each sample and restart; replaced as a whole."""

    number: Tensor
    images: Tensor
    origin: Tensor
    target_map: Tensor
    target: Tensor
    classes: Tensor
    output: Tensor

    def __len__(self) -> int:
        return len(self.number)

    def keep(self, which: Tensor) -> _Rows:
        """Return these rows alone, LongTensor."""
        return _Rows(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class _Best:
    """The best judged iterate of every row so far, replaced as a whole."""

    images: Tensor
    term: Tensor
    step: Tensor
    done: Tensor

    def _parts(self) -> tuple[Tensor, ...]:
        return self.images, self.term, self.step, self.done

    def against(self, rows: _Rows, term: Tensor, held: Tensor, done: Tensor | None, step: int) -> _Best:
        """Compare with the rows' images; where ``done``, they win whatever their term, and nothing follows."""
        whole = len(rows) == len(self.term)
        mine = self if whole else _Best(*(part[rows.number] for part in self._parts()))
        better = held & (term < mine.term)
        if done is not None:
            better = (better | done) & ~mine.done
        new = _Best(
            torch.where(better[:, None, None, None], rows.images, mine.images),
            torch.where(better, term, mine.term),
            torch.where(better, step, mine.step),
            mine.done if done is None else mine.done | done,
        )
        if whole:
            return new
        pairs = zip(self._parts(), new._parts(), strict=True)
        return _Best(*(old.index_copy(0, rows.number, part) for old, part in pairs))


def step_seeds(seed: int, steps: int) -> list[int]:
    """Return a seed for the noise of every step, from the upper half of those that generators tell apart."""
    drawn = torch.randint(2**31, 2**32, (steps,), generator=torch.Generator().manual_seed(seed))
    return drawn.tolist()


class _Iteration:
    """One iteration as a function of its number, recorded where the net captures.

    What changes between steps and is no image lies on the device then: beta, and Adam's numbers and state.
    """

    def __init__(self, task: Task, optimizer: Optimizer, box: Box) -> None:
        self.task, self.optimizer, self.box, self.view = task, optimizer, box, task.net
        images = task.rows.images
        # These kernels take no beta from memory.
        numbers = task.betas is not None and _backend.chosen() == "cuda"
        self.graphs = None
        if not numbers:
            # Rows that leave, as they do with a stop, are another recording every time.
            unasked = task.attack.stop is None
            self.graphs = graphs_for(task.attack.explainer, images, task.attack.steps, unasked=unasked)
        self.betas: Tensor | None = None
        self.reads: tuple[Tensor, ...] = ()
        if self.graphs is None:
            return
        optimizer.hold(images, task.attack.steps)
        if task.betas is not None:
            self.betas = dials(task.betas, images.device)
            self.beta: Any = self.betas[0].clone()
            self.view = task.net.with_activation("softplus", self.beta)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Return what ``Task.moved`` does."""
        task, images = self.task, self.task.rows.images
        self.optimizer.advance()
        noise: tuple[Tensor, ...] = ()
        if task.noisy is not None:
            noise = (task.noisy.redraw(images, task.seeds[step]),)
        if self.graphs is None:
            net = task.net if task.betas is None else task.net.with_activation("softplus", task.betas[step])
            return task.moved(net, self.optimizer, self.box, images)
        if self.betas is not None:
            self.beta.copy_(self.betas[step])
        if not self.reads or self.reads[0] is not task.rows.origin:
            rows = task.rows
            self.reads = (rows.origin, rows.target_map, rows.target, rows.output, *task.box, *self.box)
            self.reads += (*self.optimizer.reads(), *noise, *(() if self.betas is None else (self.beta,)))
        move = partial(task.moved, self.view, self.optimizer, self.box)
        return self.graphs("an iteration of Manipulation", move, (images,), reads=self.reads)


class Task:
    """The constants of a batch, the rows under attack, the best iterates and the history."""

    def __init__(
        self, attack: Manipulation, x: Tensor, target_map: Tensor, target: Target, index: Tensor | None
    ) -> None:
        self.attack = attack
        self.net = attack.explainer.net
        # What moves the images where noise is redrawn; the explainer's own noise, which they never met, judges them.
        smooth = attack.explainer if attack.redraw else None
        self.noisy = smooth.another() if isinstance(smooth, SmoothGrad) else None
        self.seeds = step_seeds(smooth.seed, attack.steps) if isinstance(smooth, SmoothGrad) else []
        fits = _check.tensor(x, "x").dim() == 4 and min(x.shape[2:]) >= WINDOW
        _check.require(fits, "x", f"have shape [N, C, H, W], H and W at least {WINDOW}", list(x.shape))
        self.box, self.x = box_of(attack.bounds, inputs_of(x))
        finite = all(bool(bound.isfinite().all()) for bound in self.box)
        _check.require(finite, "bounds", "be finite: the metrics compare images in [0, 1]", attack.bounds)
        # A smoothed view's own beta is part of the map.
        self.betas = attack.betas() if self.net.activation is None and self.net.smooths(self.x) else None
        if attack.beta is not None and self.net.activation is None and self.betas is None:
            self._warn_of_kinks()
        self.target_map = self._target_map(target_map)
        with torch.no_grad():
            self.scores = self.net.base(self.x)
            self.classes = self.scores.argmax(1)
            chosen = self.classes if target is None else target
            self.original_map, scores = self._map(self.x, chosen, self.net)
            _check.finite_samples(self.original_map, "x", "have finite maps")
            term = self._map_term(self.original_map, self.target_map)
        # A target that has explained a map is an int or a LongTensor.
        self.target = torch.as_tensor(chosen, device=x.device).expand(len(x))
        self.rows = self._rows(self._f(scores), index)
        first = torch.zeros_like(self.classes)
        done = first.bool() if attack.stop is None else pcc(self.original_map, self.target_map) >= attack.stop
        self.best = _Best(*map(self._copies, (self.x, term, first, done)))
        self.history: list[tuple[Tensor, Tensor]] = []

    @property
    def count(self) -> int:
        """How often each sample is attacked."""
        return 1 if self.attack.restarts is None else self.attack.restarts.count

    def _warn_of_kinks(self) -> None:
        # On the engine every unit is known: what kinks are left are those of max-pools, which no beta smooths.
        if self.net.report(self.x).engine:
            return
        warn(
            f"softplus takes the place of nothing in {type(self.net.model).__name__} (see Net.smooths): beta changes "
            "nothing. If the model is not smooth, write its kinks as torch.relu; as it is, an attack that fails does "
            "not make it robust.",
        )

    def _copies(self, values: Tensor) -> Tensor:
        return values.repeat(self.count, *[1] * (values.dim() - 1))

    def _rows(self, output: Tensor, index: Tensor | None) -> _Rows:
        x, restarts = self.x, self.attack.restarts
        index = _check.index_of(index, x)
        starts = x if restarts is None else restarts.starts(x, self.attack.ball, self.box, index)
        constants = (x, self.target_map, self.target, self.classes, output)
        return _Rows(torch.arange(len(starts), device=x.device), starts, *map(self._copies, constants))

    def _target_map(self, target_map: Tensor) -> Tensor:
        x, name = self.x, "target_map"
        h = _check.same_place(_check.tensor(target_map, name), name, x, "x").detach()
        pixels = (x.shape[0], *x.shape[2:])
        fits = tuple(h.shape) in (pixels, tuple(x.shape))
        _check.require(fits, name, f"have shape {list(pixels)} or {list(x.shape)}", list(h.shape))
        _check.require(bool(h.isfinite().all()), name, "be finite", "inf or nan")
        h = reduce_map(h, "abs_sum" if h.dim() == 4 else None, None)
        sums = h.sum((1, 2))
        _check.require(bool((sums > 0).all()), name, "have a positive sum in every sample", sums.tolist())
        lowest = h.min().item() if h.numel() else 0.0
        _check.require(lowest >= 0, name, "not be negative, as sums of |.| are not", f"{lowest:.4g}")
        return reduce_map(h, None)

    def _f(self, scores: Tensor) -> Tensor:
        return scores.softmax(1) if self.attack.output == "softmax" else scores

    def _map(self, images: Tensor, target: Target, net: Net, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
        """Return (post-processed map [N, H, W], scores) of a view of the net; ``noisy`` with the noise of the step."""
        explainer = self.noisy if noisy and self.noisy is not None else self.attack.explainer
        h, scores = explainer.map_and_scores(images, target, net=net, parameters=False)
        return reduce_map(h), scores

    def _map_term(self, h: Tensor, target_map: Tensor) -> Tensor:
        pixels = h.shape[1] * h.shape[2]
        return self.attack.c * (pixels * (h - target_map)).square().mean((1, 2))

    def _compare(self, h: Tensor, term: Tensor, classes: Tensor, step: int) -> Tensor:
        """Keep what is better, return which rows keep their class; all of the net as given."""
        rows, stop = self.rows, self.attack.stop
        held = classes == rows.classes
        done = None if stop is None else held & (pcc(h, rows.target_map) >= stop)
        self.best = self.best.against(rows, term, held, done, step)
        return held

    def _judge(self, step: int) -> tuple[Tensor, Tensor]:
        """Compare the rows as they are; return which keep their class, and the PCC of map and target map."""
        rows = self.rows
        with torch.no_grad():
            h, scores = self._map(rows.images, rows.target, self.net)
            if self.net.base is not self.net:
                scores = self.net.base(rows.images)
            held = self._compare(h, self._map_term(h, rows.target_map), scores.argmax(1), step)
            return held, pcc(h, rows.target_map)

    def _drop_done(self, optimizer: Optimizer) -> None:
        """Drop the rows of samples one of whose rows is done; this waits for the device."""
        done = self._copies(self.best.done.view(self.count, -1).any(0))[self.rows.number]
        left = (~done).nonzero()[:, 0]
        if len(left) < len(self.rows):
            self.rows = self.rows.keep(left)
            optimizer.keep(left)

    def run(self, *, progress: bool) -> bool:
        """Iterate; return whether Ctrl-C ended it."""
        interrupted = False
        try:
            with tqdm(total=self.attack.steps, disable=not progress, desc="manipulation", unit="it") as bar:
                self._iterate(bar)
        except KeyboardInterrupt:
            interrupted = True
        self.last = self._judge(len(self.history))
        return interrupted

    def _iterate(self, bar: tqdm) -> None:
        attack, net = self.attack, self.net
        optimizer = OPTIMIZERS[attack.optimizer](attack.lr)
        free = self.betas is None and net.base is net and self.noisy is None
        # Where there is a ball, its projection comes between the step and the clamping.
        low, high = self.box
        box = self.box if attack.ball is None else (low - torch.inf, high + torch.inf)
        move = _Iteration(self, optimizer, box)
        for step in range(attack.steps):
            rows = self.rows
            if attack.stop is not None and not len(rows):
                return
            images, gradient, *terms, h, scores = move(step)
            if step == 0 and self.betas is None and len(self.x) and not gradient[: len(self.x)].any():
                # The first start's output has not moved yet, so this is the map term's gradient alone.
                cure = "Give beta=(beta_0, beta_e), or attack" if attack.beta is None else "Attack"
                warn(
                    "the map term has no gradient, as on a piecewise linear network: the attack will not move. "
                    f"{cure} a smooth network.",
                )
            if free:
                self._compare(h, terms[0], scores.argmax(1), step)
            self.rows = replace(rows, images=images)
            self.history.append((self._spread(terms[0]), self._spread(terms[1])))
            left = attack.steps - step - 1
            if left and left % attack.judge_every == 0:
                if not free:
                    self._judge(step + 1)
                if attack.stop is not None:
                    self._drop_done(optimizer)
            bar.update()

    def moved(self, net: Net, optimizer: Optimizer, box: Box, images: Tensor) -> tuple[Tensor, ...]:
        """Return the rows' next images; then the loss's gradient, its two terms, map and scores, where they are now."""
        attack, rows = self.attack, self.rows
        x = images.clone().requires_grad_()
        with torch.enable_grad():
            h, scores = self._map(x, rows.target, net, noisy=True)
            terms = self._map_term(h, rows.target_map), attack.gamma * (self._f(scores) - rows.output).square().mean(1)
            (gradient,) = torch.autograd.grad((terms[0] + terms[1]).sum(), x)
        with torch.no_grad():
            images = optimizer.step(images, gradient, box)
            if attack.ball is not None:
                images = attack.ball.project(images, rows.origin, self.box)
        return images, gradient, *(value.detach() for value in (*terms, h, scores))

    def _spread(self, values: Tensor) -> Tensor:
        """Return [R N] from the values of the rows, NaN elsewhere."""
        everywhere = len(self.best.term)
        if len(values) == everywhere:
            return values
        return values.new_full((everywhere,), torch.nan).index_copy(0, self.rows.number, values)

    def _chosen(self) -> tuple[Tensor, Tensor]:
        """Return (the best restart of every sample, its row), [N] each."""
        term, done = (t.view(self.count, -1) for t in (self.best.term, self.best.done))
        # What met the stop comes first, then the lowest term.
        restart = torch.where(done.any(0) & ~done, torch.inf, term).argmin(0)
        return restart, restart * len(self.x) + torch.arange(len(self.x), device=self.x.device)

    def result(self, *, interrupted: bool) -> AttackResult:
        """Measure the best iterate on the model as given."""
        restart, row = self._chosen()
        images = self.best.images[row]
        with torch.no_grad():
            maps = self._map(images, self.target, self.net)[0]
            scores = self.net.base(images)
            unit, unit_0 = (unit_images(i, self.box) for i in (images, self.x))
            metrics = Metrics(
                Similarity.between(maps, self.target_map),
                Similarity.between(maps, self.original_map),
                Similarity.between(unit, unit_0, 1.0),
            )
            # What was done moved no more, or should not have.
            ended = torch.ones_like(self.best.done), self._copies(metrics.to_target.pcc)
            last_kept, last_pcc = (
                torch.where(self.best.done, end, end.index_copy(0, self.rows.number, last))
                for end, last in zip(ended, self.last, strict=True)
            )
            none = images.new_empty(0, len(images))
            history = {
                name: torch.stack([terms[i][row] for terms in self.history]) if self.history else none
                for i, name in enumerate(("map", "output"))
            }
            return AttackResult(
                images=images,
                maps=maps,
                target_maps=self.target_map,
                original_maps=self.original_map,
                class_kept=scores.argmax(1) == self.classes,
                output_change=OutputChange.between(scores, self.scores),
                metrics=metrics,
                history=history,
                best_step=self.best.step[row],
                best_restart=restart,
                last_class_kept=last_kept[row],
                last_pcc=last_pcc[row],
                interrupted=interrupted,
            )
