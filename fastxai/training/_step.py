"""One step of training: batches in, gradients, the optimizer's update; recorded whole where the net captures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai.engine.capture import Graphs
from fastxai.training.config import FitConfig
from fastxai.training.cross_entropy import CrossEntropy
from fastxai.training.hessian_norm import HessianNorm
from fastxai.training.objective import Objective

__all__ = ["Step"]

# x, y, the samples' numbers, and masks where there are some.
Samples = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _fixed(objective: Objective) -> bool:
    """Return whether an objective is the same device work for every batch; exact types, as subclasses may do more."""
    kinds = {type(term) for term in objective.terms}
    own = all(term.direction is None for term in objective.terms if isinstance(term, HessianNorm))
    return type(objective) is Objective and kinds <= {CrossEntropy, HessianNorm} and own


def _graphs(objective: Objective, x: Tensor) -> Graphs | None:
    """Return graphs for the steps of one run, or None where they are ordinary calls."""
    kept = objective.net._core.graphs
    if kept is None or not kept.serves(x, training=True):
        return None
    if not _fixed(objective) or not objective.net.report(x.shape[1:]).engine:
        return None
    return kept.another()


class Step:
    """The optimizer of an objective's model, and what it does with the batches of one step.

    Where a graph replays the step, what changes between steps lies on the device: the learning rate, the number of the
    batch, the optimizer's own count. Derived weights are made anew inside it. Version counters do not see a replay, so
    they are advanced after each step.

    Attributes:
        optimizer: SGD or Adam, torch's.
    """

    def __init__(self, objective: Objective, config: FitConfig, x: Tensor) -> None:
        """Make the optimizer; x is on the device, as the images are.

        Raises:
            ValueError: no parameter requires a gradient.
        """
        self.objective, self.config = objective, config
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        _check.require(len(self.parameters) > 0, "objective", "have parameters that require gradients", 0)
        self._graphs = _graphs(objective, x)
        self.optimizer = self._optimizer(x.device)
        self._number = torch.zeros((), dtype=torch.long, device=x.device)

    def _optimizer(self, device: torch.device) -> torch.optim.Optimizer:
        """Return the optimizer; in a recorded step its rate and its count are tensors, which the fused kernels read."""
        config, live = self.config, self._graphs is not None
        options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
        if live:
            options |= {"lr": torch.tensor(config.lr, device=device), "fused": True}
        if config.optimizer == "adam":
            return torch.optim.Adam(self.parameters, capturable=live, **options)
        return torch.optim.SGD(self.parameters, momentum=config.momentum, nesterov=config.momentum > 0, **options)

    def __call__(self, rate: float, batches: Iterable[Samples]) -> list[dict[str, Tensor]]:
        """Make one step; return the loss and the unweighted terms of every batch, detached."""
        objective = self.objective
        if self._graphs is None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            return self._whole((*samples, None) for samples in batches)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)
        self._number.fill_(objective.step)
        modes = tuple(module.training for module in objective.modules())
        key = modes, tuple(p.requires_grad for p in objective.parameters())
        inputs = [tensor for samples in batches for tensor in samples]
        values = self._graphs("a step of training", self._recorded, inputs, key, self._reads())
        torch.autograd.graph.increment_version([*objective.parameters(), *objective.buffers()])
        objective.step += len(values)
        objective.parts = {name: value for name, value in values[-1].items() if name != "loss"}
        return values

    def _reads(self) -> list[Tensor]:
        """Return the tensors that a recorded step reads and writes."""
        state = [x for entry in self.optimizer.state.values() for x in entry.values() if isinstance(x, Tensor)]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [*self.objective.parameters(), *self.objective.buffers(), *state, *rates, self._number]

    def _recorded(self, *inputs: Tensor | None) -> list[dict[str, Tensor]]:
        # Parameters are never again what they were when the step was recorded: their derived weights belong in it.
        self.objective.net.refresh()
        batches = zip(*[iter(inputs)] * 4, strict=True)
        values = self._whole((*samples, self._number + i) for i, samples in enumerate(batches))
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def _whole(self, batches: Iterable[tuple[Any, ...]]) -> list[dict[str, Tensor]]:
        objective, config, values = self.objective, self.config, []
        self.optimizer.zero_grad(set_to_none=True)
        for x, y, index, masks, number in batches:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = objective(x, y, index, masks, step=number)
            (loss / config.accumulate).backward()
            values.append({"loss": loss.detach(), **objective.parts})
        if config.clip:
            torch.nn.utils.clip_grad_norm_(list(objective.parameters()), config.clip)
        self.optimizer.step()
        return values
