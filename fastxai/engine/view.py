"""Views: a compiled model with activations of one's choice; what runs it, and with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai._warn import warn
from fastxai.engine import arguments
from fastxai.engine.core import Core, Report
from fastxai.engine.fallback import Fallback
from fastxai.engine.runtime import Runtime
from fastxai.kernels.activation import RELU_LIKE, Activation

__all__ = ["View"]


class View:
    """A model, its compiled graphs, and the activations that stand in for its own.

    Attributes:
        model: the wrapped module, which shares its weights.
        base: the view with the model's own activations (itself, if it is that).
        activation, beta, surrogate: the view's settings.
    """

    def __init__(
        self, core: Core, activation: str | None, beta: float | None, surrogate: str | None, base: Self | None = None
    ) -> None:
        self.beta = arguments.sharpness(activation, beta, surrogate)
        self._core, self.activation, self.surrogate = core, activation, surrogate
        self.base: Self = self if base is None else base
        self._rules: dict[Any, tuple[Activation, ...]] = {}
        self._warned = False

    @property
    def model(self) -> nn.Module:
        """The wrapped module."""
        return self._core.model

    @property
    def normalises(self) -> bool:
        """True if the net takes the image and normalises it itself (``mean`` or ``std`` was given)."""
        return self._core.mean is not None or self._core.std is not None

    @property
    def mean(self) -> Tensor | None:
        """The mean per channel that is subtracted, or None."""
        return self._core.mean

    @property
    def std(self) -> Tensor | None:
        """The standard deviation per channel that the net divides by, or None."""
        return self._core.std

    def with_activation(self, activation: str | None, beta: float | None = None) -> Self:
        """Return a view of the same network whose ReLU-like activations are softplus_beta (None: the model's own).

        Weights and compiled graphs are shared, so a view costs nothing. ``target=None`` keeps meaning the class that
        the model as given predicts.

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> net.with_activation("softplus", beta=2.0).beta
        2.0
        """
        return type(self)(self._core, activation, beta, None, self.base)

    def with_surrogate(self, surrogate: str | None, beta: float | None = None) -> Self:
        """Return a view like ``with_activation``'s where s'' alone differs from the model's own (see ``compile``).

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> net.with_surrogate("curvature", beta=2.0).surrogate
        'curvature'
        """
        return type(self)(self._core, None, beta, surrogate, self.base)

    def _view(self, act: Activation) -> Activation:
        """Return the activation that this view uses in place of the model's own."""
        if act.name not in RELU_LIKE:
            return act
        beta = 1.0 if self.beta is None else self.beta
        if self.activation == "softplus":
            return act.smoothed(beta)
        return act if self.surrogate is None else replace(act, beta=beta, second=self.surrogate)

    def _backend(self, x: Tensor) -> tuple[Runtime | Fallback, Any]:
        """Return what runs inputs like x, and the activations of this view in its terms."""
        second = self.surrogate or "own"
        runtime, _ = self._core.runtime(tuple(x.shape[1:]), x.dtype, second)
        key = id(runtime)
        if key not in self._rules:
            if self.activation is not None:
                self._warn_if_no_view(x)
            acts = () if runtime is None else runtime.graph.activations
            self._rules[key] = tuple(self._view(act) for act in acts)
        return (self._core.autograd, self._view) if runtime is None else (runtime, self._rules[key])

    def smooths(self, x: Tensor) -> bool:
        """Return whether ``with_activation("softplus")`` changes anything of the model, for inputs like x [N, ...].

        It knows ReLU, ReLU6, LeakyReLU, PReLU, Hardtanh and Threshold(0, 0), as modules or torch functions. A smooth
        model has none of them; a model with kinks of another kind keeps these.

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU()))
        >>> net.smooths(torch.zeros(1, 4))
        False
        """
        x = self._check_input(x)
        runtime, _ = self._core.runtime(tuple(x.shape[1:]), x.dtype, "own")
        if runtime is not None:
            return any(act.name in RELU_LIKE for act in runtime.graph.activations)
        known, shape = self._core.smooth, tuple(x.shape[1:])
        # What these inputs pass by others may meet, where the model decides by values.
        if shape not in known and self._core.autograd.smooths(x.detach()):
            known.add(shape)
        return shape in known

    def _warn_if_no_view(self, x: Tensor) -> None:
        if len(x) and "softplus" not in self._core.announced and not self.smooths(x):
            self._core.announced.add("softplus")
            warn(
                f"softplus takes the place of nothing in {type(self.model).__name__} (see Net.smooths): this view is "
                "the model as given.",
            )

    def _check_input(self, x: Any) -> Tensor:
        return self._core.check_channels(arguments.inputs(x, self.model))

    def report(self, x: Tensor | Sequence[int] | None = None) -> Report:
        """Return where each operation runs, for an input (or its per-sample shape); by default the last one seen.

        Raises:
            ValueError: no input was seen yet and none is given.
        """
        second = self.surrogate or "own"
        if x is None:
            _check.require(bool(self._core.runtimes), "x", "be given: the net has seen no input yet", None)
            return self._core.runtimes[self._core.last][1]
        like = x if isinstance(x, Tensor) else next(self.model.parameters(), torch.empty(0))
        shape = x.shape[1:] if isinstance(x, Tensor) else x
        return self._core.runtime(tuple(shape), like.dtype, second)[1]

    def refresh(self) -> None:
        """Rebuild every derived weight at the next call: needed after edits through ``.data`` only."""
        self._core.refresh()
