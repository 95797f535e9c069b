"""The public face of the engine: ``fastxai.compile`` and the net that it returns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastxai import _check
from fastxai.engine.core import Core, Report, Statistics
from fastxai.engine.explain import SEEDS, LayerSample
from fastxai.engine.fallback import Fallback
from fastxai.engine.heads import Output, head
from fastxai.engine.rules import Composite
from fastxai.engine.runtime import Runtime
from fastxai.kernels.activation import RELU_LIKE, Activation

__all__ = ["Net", "Report", "compile"]

Target = int | Tensor | None
_PLAIN = Composite()


class Net:
    """A compiled network: its scores, gradients and Hessian-vector products, batched, as numbers without a graph.

    Maps with gradients are the explainers' (``fastxai.Gradient`` and kin). The model is always evaluated in eval mode;
    changed weights are seen at the next call, except edits through ``.data``, which need ``refresh()``.

    Attributes:
        model: the wrapped module, which shares its weights.
        base: the net with the model's own activations (itself, if this is no smoothed view).
        activation, beta, surrogate: the view's settings.
    """

    def __init__(
        self, core: Core, activation: str | None, beta: float | None, surrogate: str | None, base: Net | None = None
    ) -> None:
        if activation is not None:
            _check.one_of(activation, "activation", ("softplus",))
            _check.require(surrogate is None, "surrogate", "be None beside activation=", surrogate)
        if surrogate is not None:
            _check.one_of(surrogate, "surrogate", ("curvature", "none"))
        needs_beta = activation == "softplus" or surrogate == "curvature"
        _check.require(
            needs_beta or beta is None, "beta", "come with activation='softplus' or surrogate='curvature'", beta
        )
        _check.require(not needs_beta or beta is not None, "beta", "be given with this activation or surrogate", beta)
        self._core, self.activation, self.surrogate = core, activation, surrogate
        self.beta = None if beta is None else _check.positive(beta, "beta")
        self.base: Net = self if base is None else base
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
        """The mean per channel that the net subtracts, or None."""
        return self._core.mean

    @property
    def std(self) -> Tensor | None:
        """The standard deviation per channel that the net divides by, or None."""
        return self._core.std

    def with_activation(self, activation: str | None, beta: float | None = None) -> Net:
        """Return a view of the same network whose ReLU-like activations are softplus_beta (None: the model's own).

        Weights and compiled graphs are shared, so a view costs nothing. ``target=None`` keeps meaning the class that
        the model as given predicts.

        >>> net = fastxai.compile(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> net.with_activation("softplus", beta=2.0).beta
        2.0
        """
        return Net(self._core, activation, beta, None, self.base)

    def _view(self, act: Activation) -> Activation:
        """Return the activation that this view uses in place of the model's own."""
        if act.name not in RELU_LIKE:
            return act
        if self.activation == "softplus":
            return Activation(SMOOTH[act.name], beta=self.beta or 1.0, alpha=act.alpha)
        if self.surrogate is not None:
            return Activation(act.name, beta=self.beta or 1.0, alpha=act.alpha, second=self.surrogate)
        return act

    def _backend(self, x: Tensor) -> tuple[Runtime | Fallback, Any]:
        """Return what runs inputs like x, and the activations of this view in its terms."""
        second = self.surrogate or "own"
        runtime, _ = self._core.runtime(tuple(x.shape[1:]), x.dtype, second)
        if runtime is None:
            return self._core.autograd, self._view
        key = id(runtime)
        if key not in self._rules:
            self._rules[key] = tuple(self._view(act) for act in runtime.graph.activations)
        return runtime, self._rules[key]

    def _check_input(self, x: Any, name: str = "x") -> Tensor:
        _check.tensor(x, name)
        _check.require(x.dim() >= 2, name, "have shape [N, ...]", list(x.shape))
        first = next(self.model.parameters(), None)
        if first is not None:
            _check.require(x.dtype == first.dtype, name, f"have the model's dtype {first.dtype}", x.dtype)
            _check.require(x.device == first.device, name, f"be on the model's device {first.device}", x.device)
        return x

    def _check_target(self, target: Target, x: Tensor) -> Tensor | None:
        """Return the target as a LongTensor [N], or None for the highest score of this view's own model."""
        if target is None:
            return None if self.base is self else self.base(x).argmax(1)
        if isinstance(target, Tensor):
            _check.require(not target.is_floating_point(), "target", "hold integers", target.dtype, TypeError)
            if target.dim() == 0:
                target = target.expand(x.shape[0])
            _check.shape(target, "target", (x.shape[0],))
            target = target.to(x.device, torch.long)
        else:
            _check.require(isinstance(target, int), "target", "be an int, a LongTensor [N] or None", target, TypeError)
            target = torch.full((x.shape[0],), target, dtype=torch.long, device=x.device)
        return target

    def __call__(self, x: Tensor) -> Tensor:
        """Return the scores g(x) [N, K]."""
        x = self._check_input(x).detach()
        run, acts = self._backend(x)
        return run.scores(x, acts)

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
        gradient, scores = self._gradient(x, target)
        chosen = self._check_target(target, x)
        chosen = scores.argmax(1) if chosen is None else chosen
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
        x = self._check_input(x).detach()
        v = _check.same_place(_check.tensor(v, "v"), "v", x, "x").detach()
        several = v.dim() == x.dim() + 1
        _check.require(
            tuple(v.shape[several:]) == tuple(x.shape), "v", f"have shape {list(x.shape)} or [S, N, ...]", list(v.shape)
        )
        run, acts = self._backend(x)
        chosen = self._chosen(run, x, target)
        self._warn_if_flat(run, acts)
        vs = v if several else v[None]
        hv = run.hvp(x, vs, chosen, acts)[0] if x.numel() and vs.numel() else torch.zeros_like(vs)
        return hv if several else hv[0]

    def _classes(self, run: Runtime | Fallback, x: Tensor) -> int:
        return run.graph.nodes[-1].shape[0] if isinstance(run, Runtime) else run.scores(x[:1], self._view).shape[1]

    def _warn_if_flat(self, run: Runtime | Fallback, acts: Any) -> None:
        if self._warned or self.surrogate is not None or not isinstance(run, Runtime):
            return
        if all(act.flat for act in acts) and not run.graph.has_curved:
            self._warned = True
            warnings.warn(
                "the network is piecewise linear: the Hessian of its scores is zero. Name what you want: "
                "activation='softplus' (smooth the network), surrogate='curvature' or surrogate='none'.",
                stacklevel=3,
            )

    def _gradient(self, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        x = self._check_input(x).detach()
        run, acts = self._backend(x)
        return run.gradient(x, self._chosen(run, x, target), acts)

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
        x = self._check_input(x)
        run, acts = self._backend(x)
        return run.explain(x, self._chosen(run, x.detach(), target), acts, parameters=parameters)

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
            output: the function f of the scores: "logit" (g_k), "probability" (softmax) or a function
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
        kind = type(composite).__name__
        _check.require(isinstance(composite, Composite), "composite", "be a rules.Composite", kind, TypeError)
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
            low, high = torch.stack([chosen.min(), chosen.max()]).tolist()
            classes = self._classes(run, x)
            _check.require(low >= 0 and high < classes, "target", f"lie in 0 .. {classes - 1}", f"{low} .. {high}")
        return chosen

    def report(self, x: Tensor | Sequence[int] | None = None) -> Report:
        """Return where each operation runs, for an input (or its per-sample shape); by default the last one seen.

        Raises:
            ValueError: no input was seen yet and none is given.
        """
        second = self.surrogate or "own"
        if x is None:
            _check.require(bool(self._core.runtimes), "x", "be given: the net has seen no input yet", None)
            return self._core.runtimes[self._core.last][1]
        if isinstance(x, Tensor):
            return self._core.runtime(tuple(x.shape[1:]), x.dtype, second)[1]
        first = next(self.model.parameters(), torch.empty(0))
        return self._core.runtime(tuple(x), first.dtype, second)[1]

    def refresh(self) -> None:
        """Rebuild every derived weight at the next call: needed after edits through ``.data`` only."""
        for runtime, _ in self._core.runtimes.values():
            if runtime is not None:
                runtime.weights.refresh()
        for runtimes in self._core.rule_runtimes.values():
            for runtime in runtimes.values():
                runtime.weights.refresh()


def compile(
    model: nn.Module,
    mean: Statistics = None,
    std: Statistics = None,
    activation: str | None = None,
    beta: float | None = None,
    surrogate: str | None = None,
    *,
    fallback: bool = False,
) -> Net:
    """Compile a classifier for fast first and second derivatives.

    Args:
        model: maps [N, ...] to scores [N, K]; evaluated in eval mode always, its weights shared.
        mean: per channel; the net then takes x and feeds the model (x - mean) / std. Maps are in x's space.
        std: per channel, positive.
        activation: None keeps the model's own; "softplus" replaces ReLU-like ones by softplus_beta.
        beta: sharpness of the softplus, or of the curvature surrogate; > 0.
        surrogate: how ReLU-like activations bend at order 1: "curvature" ([F]: s'' = beta p(1-p), forward and map are
            ReLU's) or "none" (s'' = 0 on purpose); an error beside ``activation``.
        fallback: run everything on plain autograd (maps are then differentiable any number of times).

    Raises:
        TypeError: model is no module.
        ValueError: a setting is unknown, or two contradict each other.

    >>> net = fastxai.compile(torch.nn.Linear(4, 3))
    >>> net(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    _check.require(isinstance(model, nn.Module), "model", "be a torch.nn.Module", type(model).__name__, TypeError)
    if std is not None:
        _check.require(bool((torch.as_tensor(std) > 0).all()), "std", "be positive", std)
    base = Net(Core(model, mean, std, fallback=fallback), None, None, None)
    if activation is None and surrogate is None:
        _check.require(beta is None, "beta", "come with activation='softplus' or surrogate='curvature'", beta)
        return base
    return Net(base._core, activation, beta, surrogate, base if activation else None)


SMOOTH = {"relu": "softplus", "relu6": "softplus6", "leaky_relu": "leaky_softplus"}
