"""The public face of the engine: the net that ``fastxai.compile`` returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastxai import _check
from fastxai._warn import warn
from fastxai.engine import arguments
from fastxai.engine.arguments import Target
from fastxai.engine.core import Report
from fastxai.engine.directions import directions
from fastxai.engine.explain import SEEDS, LayerSample
from fastxai.engine.fallback import Fallback
from fastxai.engine.graph import FLAT
from fastxai.engine.heads import Head, Output, head
from fastxai.engine.products import products
from fastxai.engine.rules import Composite
from fastxai.engine.runtime import Runtime
from fastxai.engine.view import View

__all__ = ["Net", "Report"]

_PLAIN = Composite()


class Net(View):
    """A compiled network: its scores, gradients and Hessian-vector products, batched, as numbers without a graph.

    Maps with gradients are the explainers' (``fastxai.Gradient`` and kin). The model is always evaluated in eval mode;
    changed weights are seen at the next call, except edits through ``.data``, which need ``refresh()``.

    Attributes:
        model: the wrapped module, which shares its weights.
        base: the net with the model's own activations (itself, if this is no smoothed view).
        activation, beta, surrogate: the view's settings.
    """

    def _check_target(self, target: Target, x: Tensor) -> Tensor | None:
        """Return the target as a LongTensor [N], or None for the highest score of this view's own model."""
        if target is None:
            return None if self.activation is None else self.base(x).argmax(1)
        return arguments.classes(target, x)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the scores g(x) [N, K]."""
        run, acts = self._backend(self._check_input(x))
        return self._core.launch("the scores", run, acts, lambda x: run.scores(x, acts), x.detach())

    def gradient(self, x: Tensor, target: Target = None) -> Tensor:
        """Return nabla g_k(x), of x's shape.

        Args:
            x: inputs [N, ...].
            target: class k as an int, a LongTensor [N], or None for the class that the model as given predicts.

        Raises:
            TypeError: x is no floating point tensor, target no integer.
            ValueError: x or target have the wrong shape, dtype, device or range.

        >>> net = fastxai.compile(torch.nn.Linear(4, 3))
        >>> torch.equal(net.gradient(torch.zeros(1, 4), 2)[0], net.model.weight[2])
        True
        """
        return self._gradient(x, target)[0]

    def value_and_gradient(self, x: Tensor, target: Target = None) -> tuple[Tensor, Tensor]:
        """Return (g_k(x) [N], nabla g_k(x)) from one pass; arguments as ``gradient``."""
        gradient, scores, given = self._gradient(x, target)
        chosen = scores.argmax(1) if given is None else given
        return scores.gather(1, chosen[:, None])[:, 0], gradient

    def hvp(self, x: Tensor, v: Tensor, target: Target = None) -> Tensor:
        """Return the Hessian-vector product H(x) v of g_k, for one direction or several.

        Args:
            x: inputs [N, ...].
            v: directions, of x's shape or [S, N, ...]; S directions share one primal pass.
            target: as for ``gradient``.

        Returns:
            H v in the shape of v.

        Raises:
            TypeError, ValueError: as for ``gradient``; v's shape does not fit.

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softplus()))
        >>> net.hvp(torch.zeros(5, 4), torch.ones(3, 5, 4), 0).shape
        torch.Size([3, 5, 4])
        """
        f, x = head("logit"), self._check_input(x).detach()
        run, acts, vs, chosen = self._start(x, v, target, f)

        def product(x: Tensor, v: Tensor, target: Tensor | None) -> Tensor:
            with torch.no_grad():
                return products(run, f, target, acts).differentiable(x, v, parameters=False)[0]

        hv = self._core.launch("the Hessian-vector product", run, acts, product, x, vs.detach(), chosen)
        return hv if v.dim() > x.dim() else hv[0]

    def differentiable_hvp(
        self, x: Tensor, v: Tensor, target: Target = None, *, output: Output = "logit", parameters: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H v, nabla f(x), g(x)) with a graph like ``differentiable_gradient``; gradients reach v too.

        A loss on H v costs an order-2 sweep in its backward pass; one on the scores, such as cross-entropy, then comes
        free of charge.

        Args:
            x: inputs [N, ...].
            v: directions, as for ``hvp``.
            target: as for ``gradient``.
            output: the function f of the scores whose Hessian it is: "logit" (g_k), "probability" (softmax),
                "cross_entropy" (the loss of class k) or a function as for ``differentiable_integral``.
            parameters: False spares the gradients of the parameters.

        Raises:
            TypeError, ValueError: as for ``hvp``; the view is the curvature surrogate's, which has no third derivative.

        >>> x, v = torch.ones(5, 4), torch.randn(5, 4)
        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()))
        >>> net.differentiable_hvp(x, v, 0)[0].square().sum().backward()
        """
        known = self.surrogate != "curvature"
        _check.require(known, "surrogate", "not be 'curvature' where H v is differentiated", self.surrogate)
        f = head(output)
        run, acts, vs, chosen = self._start(self._check_input(x), v, target, f)
        hv, gradient, scores = products(run, f, chosen, acts).differentiable(x, vs, parameters=parameters)
        return hv if v.dim() > x.dim() else hv[0], gradient, scores

    def _start(
        self, x: Tensor, v: Tensor, target: Target, f: Head
    ) -> tuple[Runtime | Fallback, Any, Tensor, Tensor | None]:
        """Return what runs x, the view's activations, the directions [S, N, ...] and the classes."""
        vs = arguments.directions(v, x)
        run, acts = self._backend(x)
        chosen = self._chosen(run, x.detach(), target)
        self._warn_if_flat(run, acts, f)
        return run, acts, vs, chosen

    def hessian_norm(
        self,
        x: Tensor,
        target: Target = None,
        probes: int | None = 1,
        *,
        kind: str = "gaussian",
        seed: int = 0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return ||H(x)||_F [N] as sqrt(mean_s ||H v_s||^2): its square is an unbiased estimate, as E v v^T = 1.

        ``theory.frobenius_norm`` gives the standard error beside it ([R] section 3.1).

        Args:
            x: inputs [N, ...].
            target: as for ``gradient``.
            probes: S random directions; None: every basis vector once, which is exact, for small inputs.
            kind: "gaussian" ([R]) or "rademacher" (v_i = +-1, the smaller variance).
            seed: of the probes.
            index: LongTensor [N], a number per sample: samples of unlike numbers get unlike probes. None: all get the
                same. Where a mean over samples is the aim, give one: errors then average out.

        Raises:
            TypeError, ValueError: as for ``hvp``; probes, kind or index are wrong.

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softplus()))
        >>> net.hessian_norm(torch.zeros(5, 4), 0, probes=None).shape
        torch.Size([5])
        """
        x = self._check_input(x).detach()
        target = self.base(x).argmax(1) if target is None else target
        some = directions(x, probes, kind=kind, seed=seed, index=index)
        squares = [self.hvp(x, v, target).flatten(2).square().sum((0, 2)) for v in some]
        return (torch.stack(squares).sum(0) / (probes or 1)).sqrt()

    def _warn_if_flat(self, run: Runtime | Fallback, acts: Any, f: Head) -> None:
        if self._warned or self.surrogate is not None or not f.linear or not isinstance(run, Runtime):
            return
        if run.graph.is_flat(acts):
            self._warned = True
            warn(FLAT)

    def _gradient(self, x: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self._check_input(x).detach()
        run, acts = self._backend(x)
        chosen = self._chosen(run, x, target)
        made = self._core.launch("the gradient", run, acts, lambda x, target: run.gradient(x, target, acts), x, chosen)
        return *made, chosen

    def differentiable_gradient(
        self, x: Tensor, target: Target = None, *, parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (nabla g_k(x), g(x)) with a graph: any loss on them gives exact gradients of x and the parameters.

        This is what the explainers are made of. Gradients reach x if it requires them, and the model's parameters
        that do unless ``parameters`` is False. Arguments and errors as ``gradient``.

        >>> x = torch.ones(1, 4, requires_grad=True)
        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()))
        >>> net.differentiable_gradient(x, 0)[0].square().sum().backward()
        """
        run, acts = self._backend(self._check_input(x))
        return run.explain(x, self._chosen(run, x.detach(), target), acts, parameters=parameters)

    def differentiable_scores(self, x: Tensor) -> Tensor:
        """Return g(x) [N, K] with a graph by plain autograd, the model being in its present mode (training, or eval).

        Activations and input preparation are this view's. Everything else here always evaluates the model.
        """
        return self._core.autograd.present(self._check_input(x), self._view)

    def differentiable_integral(
        self,
        x: Tensor,
        baseline: Tensor,
        points: tuple[Tensor, Tensor],
        target: Target = None,
        *,
        output: Output = "logit",
        parameters: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return ((x - xbar) sum_k w_k nabla f(xbar + t_k (x - xbar)), g(x)) with a graph like the above.

        Gradients reach the baseline too.

        Args:
            x: inputs [N, ...].
            baseline: xbar, of x's shape.
            points: positions t and weights w, [K] each, such as ``fastxai.explainers.quadrature`` gives.
            target: as for ``gradient``; None is the class at x, for every point of the path.
            output: the function f of the scores: "logit" (g_k), "probability" (softmax), "cross_entropy" or a function
                (scores [rows, K], classes [rows]) -> [rows] that treats every row by itself.
            parameters: False spares the gradients of the parameters.

        >>> x, linear = torch.ones(1, 4), torch.nn.Linear(4, 3)
        >>> h, _ = fastxai.compile(linear).differentiable_integral(x, 0 * x, (torch.ones(1), torch.ones(1)), 2)
        >>> torch.equal(h[0], linear.weight[2])
        True
        """
        x = self._check_input(x)
        _check.same_place(_check.tensor(baseline, "baseline"), "baseline", x, "x")
        _check.shape(baseline, "baseline", x.shape)
        run, acts = self._backend(x)
        chosen = self._chosen(run, x.detach(), target)
        path = self._core.path(run) if isinstance(run, Runtime) else run
        return path.integrate(x, baseline, points, head(output), chosen, acts, parameters=parameters)

    def relevance(
        self, x: Tensor, composite: Composite, target: Target = None, *, seed: str = "one", parameters: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return (relevance of x, g(x)) by a composite's rules, with a graph like ``differentiable_gradient``.

        This is what the rule-based explainers are made of.

        Args:
            x: inputs [N, ...].
            composite: which rule explains which node.
            target: as for ``gradient``.
            seed: relevance of the explained score: "one" (1) or "score" (g_k(x)).
            parameters: False spares the gradients of the parameters.

        Raises:
            TypeError: composite is none, or one of its rules does not fit its node.
            ValueError: the seed is unknown, or the composite names a module that the model does not have.
            RuntimeError: an operation has no node, or no rule: there is no fallback.

        >>> x, linear = torch.ones(1, 4), torch.nn.Linear(4, 3)
        >>> net = fastxai.compile(linear)
        >>> h, _ = net.relevance(x, fastxai.engine.rules.lrp(*[fastxai.engine.rules.ZPlus()] * 2), 0)
        >>> torch.allclose(h, linear.weight[:1].clamp(min=0) / linear.weight[0].clamp(min=0).sum())
        True
        """
        x = self._check_input(x)
        known = isinstance(composite, Composite)
        _check.require(known, "composite", "be a rules.Composite", type(composite).__name__, TypeError)
        _check.one_of(seed, "seed", SEEDS)
        run = self._core.rule_runtime(tuple(x.shape[1:]), x.dtype, composite)
        chosen = self._chosen(run, x.detach(), target)
        acts = tuple(self._view(act) for act in run.graph.activations)
        return run.attribute(x, chosen, acts, seed, parameters=parameters)

    def layers(self, x: Tensor) -> Iterator[LayerSample]:
        """Yield what every convolution and dense layer reads and writes, chunk of the batch by chunk, layer by layer.

        >>> net = fastxai.compile(torch.nn.Linear(4, 3))
        >>> [sample.outputs.shape for sample in net.layers(torch.zeros(2, 4))]
        [torch.Size([2, 3])]
        """
        x = self._check_input(x).detach()
        run = self._core.rule_runtime(tuple(x.shape[1:]), x.dtype, _PLAIN)
        acts = tuple(self._view(act) for act in run.graph.activations)
        for rows in run.chunks(x, 2):
            yield from run.layers(x[rows], acts)

    def _chosen(self, run: Runtime | Fallback, x: Tensor, target: Target) -> Tensor | None:
        """Return the target as ``_check_target`` does, its range checked too."""
        chosen = self._check_target(target, x)
        # On a GPU reading the range would stop the host; scatter's own assertion guards it there.
        if target is not None and chosen is not None and chosen.numel() and chosen.device.type == "cpu":
            last = run.graph.nodes[-1].shape if isinstance(run, Runtime) else run.scores(x[:1], self._view).shape[1:]
            arguments.in_range(chosen, last[0])
        return chosen
