"""Integrated Gradients: against Captum, completeness, baselines, refinement, gradients."""

from __future__ import annotations

import warnings
from typing import Any

import captum.attr
import engine.path_nets as nets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

import fastxai
from fastxai import IntegratedGradients
from fastxai.explainers.quadrature import METHODS, REFINABLE, quadrature

TARGETS = torch.tensor([1, 0, 2])
NETS = ("pools", "residual", "branches", "mlp")
every_net = pytest.mark.parametrize("name", NETS)


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, target, reduction="none")


def captums(model: nn.Module, x: Tensor, **options: Any) -> Any:
    return captum.attr.IntegratedGradients(model).attribute(x, **options)


class Squares(nn.Module):
    """Scores of second degree: nabla g is linear along every path."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.second(x)


@every_net
@pytest.mark.parametrize("act", [nn.ReLU(), nets.Smooth()], ids=["relu", "softplus"])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle"])
def test_equals_captum(name, act, method):
    model, x = nets.make(name, act), nets.images()
    # Captum's Riemann positions are float32 numbers, which 8 steps make exact; so are the weights of all its rules.
    rounding = 1e-7 if method == "gausslegendre" else 1e-10
    options = {"n_steps": 8, "method": method, "return_convergence_delta": True}
    # A flat image ties max-pools; riemann_left takes the gradient there.
    flat = [] if method == "riemann_left" else [None, 0.7]
    for baselines in (*flat, nets.images(seed=6), nets.images(1, seed=7)):
        for target in (TARGETS, 2):
            theirs, gap = captums(model, x, baselines=baselines, target=target, **options)
            ours, delta = IntegratedGradients(model).attribute(x, target, baselines=baselines, **options)
            assert relative(ours, theirs) < rounding and ours.abs().max() > 1e-3
            torch.testing.assert_close(delta, gap.to(delta), rtol=0, atol=10 * rounding)


@every_net
def test_equals_captum_to_rounding_with_its_rounded_weights(name):
    model, x, xbar = nets.make(name, nn.ReLU()), nets.images(), nets.images(seed=6)
    for n in (5, 30):
        t, w = quadrature("gausslegendre", n)
        ours = fastxai.compile(model).differentiable_integral(x, xbar, (t, w.float().double()), TARGETS)[0]
        assert relative(ours, captums(model, x, baselines=xbar, target=TARGETS, n_steps=n)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_is_exact_for_a_linear_model(method):
    model, x, xbar = nets.make("affine"), nets.images(), nets.images(seed=6)
    h, delta = IntegratedGradients(model, xbar, 3, method).attribute(x, TARGETS, return_convergence_delta=True)
    change = model(x) - model(xbar)
    assert relative(h.flatten(1).sum(1), change.gather(1, TARGETS[:, None])[:, 0]) < 1e-13
    assert delta.abs().max() < 1e-13


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 5),
    rule=st.sampled_from([("gausslegendre", 1), ("midpoint", 1), ("riemann_trapezoid", 2), ("clenshaw_curtis", 2)]),
)
def test_completeness_is_exact_for_scores_of_second_degree(seed, n, rule):
    torch.manual_seed(seed)
    model, (x, xbar) = Squares().double(), torch.randn(2, n, 4, dtype=torch.float64)
    h, delta = IntegratedGradients(model, xbar, rule[1], rule[0]).attribute(x, 1, return_convergence_delta=True)
    change = (model(x) - model(xbar))[:, 1]
    torch.testing.assert_close(h.sum(1), change, rtol=1e-10, atol=1e-12)
    assert delta.abs().max() < 1e-11


@given(seed=st.integers(0, 10**6), method=st.sampled_from(["gausslegendre", "midpoint", "riemann_trapezoid"]))
def test_swapping_the_ends_of_a_path_changes_the_sign(seed, method):
    model, x, xbar = nets.make("mlp", nn.ReLU()), nets.images(seed=seed), nets.images(seed=seed + 1)
    there = IntegratedGradients(model, xbar, 6, method).attribute(x, TARGETS)
    back = IntegratedGradients(model, x, 6, method).attribute(xbar, TARGETS)
    torch.testing.assert_close(there, -back, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("output", ["logit", "probability", cross_entropy])
def test_delta_is_the_completeness_gap_and_shrinks(output):
    model, x, xbar = nets.make("residual"), nets.images(), nets.images(seed=6)

    def f(x: Tensor) -> Tensor:
        z = model(x)
        if output == cross_entropy:
            return cross_entropy(z, TARGETS)
        return (z if output == "logit" else z.softmax(1)).gather(1, TARGETS[:, None])[:, 0]

    gaps = []
    for n in (2, 8, 32):
        explainer = IntegratedGradients(model, xbar, n, output=output)
        h, delta = explainer.attribute(x, TARGETS, return_convergence_delta=True)
        torch.testing.assert_close(delta, h.flatten(1).sum(1) - (f(x) - f(xbar)), rtol=1e-10, atol=1e-13)
        assert not delta.requires_grad and h.requires_grad
        gaps.append(float(delta.abs().max()))
    assert gaps[0] > 10 * gaps[1] > 10 * gaps[2]


@every_net
@pytest.mark.parametrize("output", ["logit", "probability", cross_entropy])
@pytest.mark.parametrize("statistics", [{}, {"mean": [0.4, -0.2], "std": [0.7, 1.3]}], ids=["plain", "mean_std"])
def test_gradcheck_in_input_and_baseline(name, output, statistics):
    net, leaves = fastxai.compile(nets.make(name), **statistics), (nets.images(2), nets.images(2, seed=6))
    assert net.report(leaves[0]).engine

    def explain(x: Tensor, xbar: Tensor) -> tuple[Tensor, Tensor]:
        return IntegratedGradients(net, xbar, 3, output=output).map_and_scores(x, TARGETS[:2])

    fast = bool(statistics) or output != "probability"
    assert gradcheck(explain, tuple(leaf.requires_grad_() for leaf in leaves), fast_mode=fast)


@every_net
def test_gradcheck_in_every_parameter(name):
    model, output = nets.make(name), "logit" if name == "mlp" else "probability"

    def explain(*_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        net = fastxai.compile(model, [0.4, -0.2], [0.7, 1.3])
        return IntegratedGradients(net, 0.3, 2, output=output).map_and_scores(x, TARGETS[:2])

    x = nets.images(2)
    assert gradcheck(explain, tuple(model.parameters()), fast_mode=True)


def test_captum_drops_the_hessian_term_and_we_do_not():
    """captum.attr.IntegratedGradients returns a map with a graph, but its gradient knows hbar * G only."""
    model, x = nets.make("mlp"), nets.images().requires_grad_()
    v, direction, step = nets.images(seed=8), nets.images(seed=9), 1e-5
    explainer = IntegratedGradients(model, n_steps=20)

    def slope(h: Tensor) -> float:
        return float((grad((v * h).sum(), x)[0] * direction).sum())

    ours, theirs = slope(explainer.attribute(x, TARGETS)), slope(captums(model, x, target=TARGETS, n_steps=20))
    with torch.no_grad():
        up, here, down = (explainer.attribute(x + s * direction, TARGETS) for s in (step, 0, -step))
        measured = float((v * (up - down)).sum() / (2 * step))
        half = float((v * here / x * direction).sum())
    assert ours == pytest.approx(measured, rel=1e-6)
    assert theirs == pytest.approx(half, rel=1e-7)
    assert abs(theirs - measured) > 0.05 * abs(measured)


def test_baselines():
    model, x = nets.make("pools"), nets.images()
    explainer = IntegratedGradients(model, n_steps=5)
    zero = explainer.attribute(x, 1)
    for same in (0, 0.0, torch.zeros_like(x), torch.zeros_like(x[:1]), torch.zeros_like):
        assert torch.equal(explainer.attribute(x, 1, baselines=same), zero)
        assert torch.equal(IntegratedGradients(model, same, 5).attribute(x, 1), zero)
    grey = explainer.attribute(x, 1, baselines=0.5)
    assert torch.equal(explainer.attribute(x, 1, baselines=torch.full((1, 2, 1, 1), 0.5).double()), grey)
    assert torch.equal(explainer.attribute(x, 1, baselines=lambda x: 0.5), grey)
    assert relative(grey, zero) > 1e-2
    other = nets.images(seed=6)
    assert torch.equal(
        explainer.attribute(x, 1, baselines=other)[1:2], explainer.attribute(x[1:2], 1, baselines=other[1:2])
    )


def test_mean_baseline_is_the_normalised_zero():
    model, x, mean, std = nets.make("branches"), nets.images(), [0.4, -0.3], [0.5, 2.0]
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) for v in (mean, std))
    in_image_space = IntegratedGradients(fastxai.compile(model, mean, std), "mean", 5).attribute(x, 1)
    assert relative(in_image_space, IntegratedGradients(model, n_steps=5).attribute((x - m) / s, 1)) < 1e-12


def test_gradient_reaches_whatever_makes_the_baseline():
    model, x = nets.make("residual"), nets.images().requires_grad_()
    shared = nets.images(1, seed=6).requires_grad_()
    full = shared.detach().expand(3, -1, -1, -1).clone().requires_grad_()
    one, many = (grad(IntegratedGradients(model, b, 4).attribute(x, 1).square().sum(), b)[0] for b in (shared, full))
    torch.testing.assert_close(one, many.sum(0, keepdim=True), rtol=1e-11, atol=1e-13)
    blurred = IntegratedGradients(model, lambda x: F.avg_pool2d(x, 3, 1, 1), 4)
    assert gradcheck(lambda x: blurred.attribute(x, 1), (nets.images(1).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("method", [None, *REFINABLE])
def test_auto_stops_each_input_at_its_tolerance(method):
    model, x = nets.make("mlp", nn.ReLU()), nets.images(12)
    x[3] = 0
    explainer = IntegratedGradients(model, 0.1, "auto", method, tol=2e-2, max_steps=4000)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        h, delta = explainer.attribute(x, 1, return_convergence_delta=True)
        change = (model(x) - model(torch.full_like(x, 0.1)))[:, 1]
        assert bool((delta.abs() <= 2e-2 * change.abs() * (1 + 1e-9)).all())
        steps = explainer._refined(explainer.net, x, torch.full_like(x, 0.1), torch.ones(12).long())[2]
        assert len(steps.unique()) > 1
        for i, n in enumerate(steps.tolist()):
            fixed = IntegratedGradients(model, 0.1, n, explainer.method).attribute(x[i : i + 1], 1)
            assert relative(h[i : i + 1], fixed) < 1e-12
    with_graph = explainer.attribute(x.requires_grad_(), 1)
    assert relative(with_graph, h) < 1e-12
    (ours,) = grad(with_graph.square().sum(), x)
    for i, n in enumerate(steps.tolist()):
        one = x[i : i + 1].detach().requires_grad_()
        fixed = IntegratedGradients(model, 0.1, n, explainer.method).attribute(one, 1)
        torch.testing.assert_close(ours[i : i + 1], grad(fixed.square().sum(), one)[0], rtol=1e-10, atol=1e-12)


def test_auto_evaluates_every_point_once_and_converged_inputs_no_more():
    net, x = fastxai.compile(nets.make("mlp", nn.ReLU())), nets.images(12)
    points, integral = [], net.differentiable_integral

    def counted(x: Tensor, xbar: Tensor, rule: tuple[Tensor, Tensor], *args: Any, **options: Any) -> Any:
        points.append(len(x) * len(rule[0]))
        return integral(x, xbar, rule, *args, **options)

    net.differentiable_integral = counted  # type: ignore[method-assign]
    explainer = IntegratedGradients(net, n_steps="auto", tol=5e-2)
    with torch.no_grad():
        explainer.attribute(x, 1)
        used = sum(points)
        steps = explainer._refined(net, x, torch.zeros_like(x), torch.ones(12).long())[2]
    assert used == int(steps.sum()) < 12 * int(steps.max())


def test_auto_says_how_far_it_got():
    model, x = nets.make("pools", nn.ReLU()), nets.images()
    explainer = IntegratedGradients(model, n_steps="auto", tol=1e-9, max_steps=20)
    with pytest.warns(UserWarning, match=r"of 3 of 3 inputs .* after 15 midpoint steps, tol is 1\.0e-09; raise max_st"):
        h = explainer.attribute(x, 1)
    assert relative(h, IntegratedGradients(model, n_steps=15, method="midpoint").attribute(x, 1)) < 1e-12


def test_auto_without_inputs():
    x = nets.images(0).requires_grad_()
    h, delta = IntegratedGradients(nets.make("mlp")).attribute(x, n_steps="auto", return_convergence_delta=True)
    assert h.shape == x.shape and delta.shape == (0,)


def test_the_explained_class_is_the_given_models_at_x():
    model, x = nets.make("mlp", nn.ReLU()), nets.images(8)
    explainer = IntegratedGradients(model, n_steps=5)
    predicted = model(x).argmax(1)
    assert torch.equal(explainer.attribute(x), explainer.attribute(x, predicted))
    smooth = explainer.net.with_activation("softplus", 0.3)
    h, scores = explainer.map_and_scores(x, net=smooth)
    assert not torch.equal(scores.argmax(1), predicted)
    assert torch.equal(h, explainer.map_and_scores(x, predicted, net=smooth)[0])
    _, delta = IntegratedGradients(smooth).attribute(x, n_steps=40, return_convergence_delta=True)
    assert delta.abs().max() < 1e-3


def test_settings_of_one_call():
    model, x = nets.make("mlp"), nets.images()
    explainer = IntegratedGradients(model, 0.2, 7, "midpoint")
    own = explainer.attribute(x, 1)
    assert torch.equal(explainer.map_and_scores(x, 1)[0], own)
    expected = IntegratedGradients(model, 0.2, 9, "midpoint").attribute(x, 1)
    assert torch.equal(explainer.attribute(x, 1, n_steps=9), expected) and relative(expected, own) > 1e-6
    expected = IntegratedGradients(model, 0.2, 7, "riemann_left").attribute(x, 1)
    assert torch.equal(explainer.attribute(x, 1, method="riemann_left"), expected) and relative(expected, own) > 1e-6
    assert torch.equal(explainer.attribute(x, 1), own)
    with torch.no_grad():
        assert not explainer.attribute(x.requires_grad_(), 1).requires_grad


def test_other_explainers_and_attacks_take_it():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, 4)).double()
    explainer, x = IntegratedGradients(model, n_steps=4), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    smooth = fastxai.SmoothGrad(explainer, 3, stdev=0.0)
    assert relative(smooth.attribute(x, TARGETS), explainer.attribute(x, TARGETS)) < 1e-12
    goal = fastxai.reduce_map(explainer.attribute(x.flip(0)))
    result = fastxai.Manipulation(explainer, steps=3, lr=1e-2, beta=(3.0, 5.0)).perturb(x, goal)
    assert result.images.shape == x.shape and bool(result.maps.isfinite().all())


def test_errors():
    model, x = nets.make("mlp"), nets.images()
    explain = IntegratedGradients(model).attribute
    with pytest.raises(TypeError, match=r"target must hold integers, got torch\.float64"):
        explain(x, torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"baselines must have shape \[3, 2, 6, 6\] or \[1, \.\.\.\], got \[2, 2"):
        explain(x, 1, baselines=x[:2])
    with pytest.raises(ValueError, match=r"baselines must have x's dtype torch\.float64, got torch\.float32"):
        explain(x, 1, baselines=x.float())
    with pytest.raises(TypeError, match=r"baselines must be a torch\.Tensor, got list"):
        explain(x, 1, baselines=[0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="baselines must not be 'mean' for a net compiled without mean=, got mean"):
        explain(x, 1, baselines="mean")
    with pytest.raises(ValueError, match="baselines must be one of 'mean', got 'blur'"):
        explain(x, 1, baselines="blur")
    for method in ("gausslegendre", "clenshaw_curtis"):
        with pytest.raises(ValueError, match=r"method must reuse its points .* 'midpoint', 'riemann_left', 'riemann_r"):
            explain(x, 1, n_steps="auto", method=method)
    with pytest.raises(TypeError, match="n_steps must be an integer, got many"):
        explain(x, 1, n_steps="many")
    with pytest.raises(ValueError, match="n_steps must be at least 1 for 'gausslegendre', got 0"):
        explain(x, 1, n_steps=0)
    with pytest.raises(ValueError, match="method must be one of 'gausslegendre'"):
        IntegratedGradients(model, method="simpson")
    with pytest.raises(ValueError, match="tol must be finite and positive, got 0"):
        IntegratedGradients(model, tol=0)
    with pytest.raises(ValueError, match="output must be one of 'logit', 'probability', 'cross_entropy', got 'loss'"):
        IntegratedGradients(model, output="loss")
