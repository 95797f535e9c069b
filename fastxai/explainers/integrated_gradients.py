"""Integrated Gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai._warn import warn
from fastxai.engine import Net
from fastxai.engine.heads import Output, head
from fastxai.explainers._base import Explainer, Target
from fastxai.explainers.quadrature import REFINABLE, quadrature, refine

__all__ = ["IntegratedGradients"]

Baselines = float | str | Tensor | Callable[[Tensor], Tensor | float] | None
Steps = int | Literal["auto"]

_FIRST_STEPS = 5


class IntegratedGradients(Explainer):
    """h(x) = (x - xbar) * int_0^1 nabla f(xbar + t (x - xbar)) dt, f = g_k by default (Sundararajan et al. 2017).

    The integral is a sum over ``n_steps`` points. Its error shows in completeness: sum h should be f(x) - f(xbar).
    Maps are exactly differentiable in x, in a baseline that requires a gradient, and in the parameters. The explained
    class stays that of x along the whole path. The points are evaluated in as many rows at once as fit, so that there
    is no batch size to choose.

    Attributes:
        baselines: xbar, in the space of x: None or a number (the same everywhere; None is 0), a tensor [N, ...] or
            [1, ...], "mean" (the net's own ``mean``, where the normalised input is 0), or a function of x that gives
            such a tensor.
        n_steps: how many points, or "auto": 5, then 2 or 3 times as many, until |sum h - (f(x) - f(xbar))| <= ``tol``
            |f(x) - f(xbar)|, each input by itself; earlier points are reused.
        method: as in ``quadrature``; None is "gausslegendre" as in Captum, or "midpoint" where n_steps is "auto",
            which needs a rule whose weights stay equal: Gauss-Legendre shares no point with its refinements, and those
            of Clenshaw-Curtis change every weight by its own factor.
        output: f as "logit" (the score g_k), "probability" (softmax), or a function (scores [rows, K], classes [rows])
            -> [rows] that treats every row by itself.
        tol: the completeness gap that "auto" accepts.
        max_steps: where "auto" stops with a warning.

    >>> model, x = torch.nn.Linear(4, 3), torch.ones(1, 4)
    >>> h, delta = fastxai.IntegratedGradients(model).attribute(x, 2, return_convergence_delta=True)
    >>> torch.allclose(h[0], model.weight[2]), delta.abs().item() < 1e-6
    (True, True)
    """

    def __init__(
        self,
        net: Net | nn.Module,
        baselines: Baselines = None,
        n_steps: Steps = 50,
        method: str | None = None,
        output: Output = "logit",
        tol: float = 1e-2,
        max_steps: int = 500,
    ) -> None:
        """Explain ``net`` with these settings; ``attribute`` may replace some for one call.

        Raises:
            TypeError: n_steps is neither an integer nor "auto".
            ValueError: a setting is unknown or out of range, or the method cannot be refined.
        """
        super().__init__(net)
        head(output)
        self._method = method
        self.method = method or ("midpoint" if n_steps == "auto" else "gausslegendre")
        if n_steps == "auto":
            nested = self.method in (*REFINABLE, "riemann_middle")
            contract = f"reuse its points when refined, for n_steps='auto': one of {', '.join(map(repr, REFINABLE))}"
            _check.require(nested, "method", contract, repr(method))
        else:
            quadrature(self.method, n_steps)
        _check.require(max_steps >= _FIRST_STEPS, "max_steps", f"be at least {_FIRST_STEPS}", max_steps)
        self.n_steps: Steps = n_steps
        self.baselines, self.output = baselines, output
        self.tol, self.max_steps = _check.positive(tol, "tol"), max_steps

    @overload
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        baselines: Baselines = None,
        n_steps: Steps | None = None,
        method: str | None = None,
        return_convergence_delta: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        baselines: Baselines = None,
        n_steps: Steps | None = None,
        method: str | None = None,
        return_convergence_delta: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        baselines: Baselines = None,
        n_steps: Steps | None = None,
        method: str | None = None,
        return_convergence_delta: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the map h(x), differentiable once in the inputs, the baseline and the model's parameters.

        Captum's arguments, by name: all but the first two are keyword-only, so that a class is never taken for a
        baseline.

        Args:
            inputs: x [N, ...].
            target: the explained class k as an int, a LongTensor [N], or None for the class that the model as given
                predicts.
            baselines: these for this call; None is the explainer's own, likewise below.
            n_steps: how many points, or "auto".
            method: how they are spread.
            return_convergence_delta: return sum h - (f(x) - f(xbar)) [N] too.

        Returns:
            The map, of x's shape; or (map, delta).

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument has the wrong shape, dtype, device, range or name.
            RuntimeError: at the second differentiation of a map; a net compiled with ``fallback=True`` allows it.
        """
        x = _check.tensor(inputs, "inputs")
        used = self._with(baselines, n_steps, method)
        xbar = used._baseline(self.net, x)
        h, scores = used._integrate(self.net, x, xbar, target, parameters=True)
        if not return_convergence_delta:
            return h
        with torch.no_grad():
            return h, used._gap(self.net, xbar, h, scores, _classes(self.net, x, target))[0]

    def map_and_scores(
        self, x: Tensor, target: Target = None, *, net: Net | None = None, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (h(x), g(x)) with the explainer's own settings; arguments as in the base class."""
        net = self.net if net is None else net
        xbar = self._baseline(net, _check.tensor(x, "x"))
        return self._integrate(net, x, xbar, target, parameters=parameters)

    def _with(self, baselines: Baselines, n_steps: Steps | None, method: str | None) -> IntegratedGradients:
        if baselines is None and n_steps is None and method is None:
            return self
        return IntegratedGradients(
            self.net,
            self.baselines if baselines is None else baselines,
            self.n_steps if n_steps is None else n_steps,
            self._method if method is None else method,
            self.output,
            self.tol,
            self.max_steps,
        )

    def _baseline(self, net: Net, x: Tensor) -> Tensor:
        """Return xbar, expanded to x's shape."""
        xbar = self.baselines(x) if callable(self.baselines) else self.baselines
        if isinstance(xbar, str):
            _check.one_of(xbar, "baselines", ("mean",))
            mean = _check.given(net.mean, "baselines", "not be 'mean' for a net compiled without mean=", xbar)
            xbar = mean.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 2))[None]
        elif xbar is None or isinstance(xbar, (int, float)):
            xbar = torch.full((1,) * x.dim(), float(xbar or 0), dtype=x.dtype, device=x.device)
        _check.same_place(_check.tensor(xbar, "baselines"), "baselines", x, "x")
        fits = xbar.dim() == x.dim() and all(b in (1, n) for b, n in zip(xbar.shape, x.shape, strict=True))
        _check.require(fits, "baselines", f"have shape {list(x.shape)} or [1, ...]", list(xbar.shape))
        return xbar.expand(x.shape)

    def _integrate(
        self, net: Net, x: Tensor, xbar: Tensor, target: Target, *, parameters: bool
    ) -> tuple[Tensor, Tensor]:
        options = {"output": self.output, "parameters": parameters}
        if isinstance(self.n_steps, int):
            points = quadrature(self.method, self.n_steps)
            return net.differentiable_integral(x, xbar, points, target, **options)
        classes = _classes(net, x, target)
        h, scores, steps = self._refined(net, x.detach(), xbar.detach(), classes)
        weights = parameters and any(p.requires_grad for p in net.model.parameters())
        if not torch.is_grad_enabled() or not (x.requires_grad or xbar.requires_grad or weights):
            return h, scores
        parts, places = [], []
        for n in steps.unique().tolist():
            rows = (steps == n).nonzero()[:, 0]
            points = quadrature(self.method, n)
            parts.append(net.differentiable_integral(x[rows], xbar[rows], points, classes[rows], **options))
            places.append(rows)
        if len(parts) < 2:
            return parts[0] if parts else (h, scores)
        order = torch.cat(places).argsort()
        return torch.cat([part[0] for part in parts])[order], torch.cat([part[1] for part in parts])[order]

    @torch.no_grad()
    def _refined(self, net: Net, x: Tensor, xbar: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (h, g(x), how many steps each input took [N]) as numbers."""
        n = _FIRST_STEPS
        h, scores = net.differentiable_integral(x, xbar, quadrature(self.method, n), classes, output=self.output)
        steps = torch.full(x.shape[:1], n)
        gap, change = self._gap(net, xbar, h, scores, classes)
        while True:
            # A gap that is not a number is not within the tolerance.
            rows = (~(gap.abs() <= self.tol * change.abs())).nonzero()[:, 0]
            if not len(rows):
                return h, scores, steps
            n, t, w, factor = refine(self.method, n)
            if n > self.max_steps:
                worst = (gap[rows] / change[rows]).abs().max().item()
                warn(
                    f"integrated gradients of {len(rows)} of {len(x)} inputs miss completeness by up to {worst:.1e} "
                    f"|f(x) - f(xbar)| after {int(steps.max())} {self.method} steps, tol is {self.tol:.1e}; "
                    "raise max_steps or tol",
                )
                return h, scores, steps
            more, _ = net.differentiable_integral(x[rows], xbar[rows], (t, w), classes[rows], output=self.output)
            h[rows] = factor * h[rows] + more
            gap[rows] = h[rows].flatten(1).sum(1) - change[rows]
            steps[rows] = n

    def _gap(self, net: Net, xbar: Tensor, h: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum h - (f(x) - f(xbar)), f(x) - f(xbar)), [N] each."""
        f = head(self.output)
        change = f.value(scores, classes) - f.value(net(xbar), classes)
        return h.flatten(1).sum(1) - change, change


def _classes(net: Net, x: Tensor, target: Target) -> Tensor:
    """Return the explained classes [N]."""
    if target is None:
        return net.base(x).argmax(1)
    classes = torch.as_tensor(target, device=x.device)
    return classes.expand(x.shape[0]) if classes.dim() == 0 else classes
