"""Paths through a graph: values and derivatives against autograd, however rows are split and memory is bounded."""

from __future__ import annotations

import engine.path_nets as nets
import pytest
import torch
import torch.nn.functional as F
from engine.nets import Scores, directions, oracle, randomise
from engine.sandwich import sample
from engine.test_random_nets import ACTS, Program
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad

import fastxai
from fastxai.engine.heads import Output, head
from fastxai.engine.jets import Linear
from fastxai.engine.path import Path
from fastxai.engine.runtime import Runtime
from fastxai.explainers.quadrature import quadrature

TARGETS = torch.tensor([1, 0, 2])
every_net = pytest.mark.parametrize("name", nets.NETS)


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, target, reduction="none")


def output_value(output: Output, z: Tensor, target: Tensor) -> Tensor:
    if not isinstance(output, str):
        return output(z, target)
    return (z if output == "logit" else z.softmax(1)).gather(1, target[:, None])[:, 0]


def by_autograd(
    model: Scores, x: Tensor, xbar: Tensor, points: tuple[Tensor, Tensor], output: Output, target: Tensor = TARGETS
) -> Tensor:
    """The map with a graph, written out point by point."""
    total = torch.zeros_like(x)
    for t, w in zip(*points, strict=True):
        point = xbar + t * (x - xbar)
        point = point if point.requires_grad else point.requires_grad_()
        value = output_value(output, model(point), target).sum()
        total = total + w * grad(value, point, create_graph=True)[0]
    return (x - xbar) * total


def inputs() -> tuple[Tensor, Tensor]:
    return nets.images().requires_grad_(), nets.images(seed=6).requires_grad_()


def runtime(model: nn.Module) -> tuple[Runtime, tuple]:
    run, acts = fastxai.compile(model)._backend(nets.images())
    assert isinstance(run, Runtime)
    return run, acts


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm().clamp(min=1e-2)).detach())


def loss(h: Tensor, scores: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
    return (weight * h).sum() + h.square().sum() * scores.softmax(1)[:, 0].sum()


@every_net
@pytest.mark.parametrize("output", ["logit", "probability", cross_entropy])
@pytest.mark.parametrize("act", [None, nn.ReLU()], ids=["softplus", "relu"])
def test_equals_autograd(name, output, act):
    model, points = nets.make(name, act), quadrature("gausslegendre", 5)
    (x, xbar), (x_plain, xbar_plain) = inputs(), inputs()
    net = fastxai.compile(model)
    assert net.report(x).engine
    h, scores = net.differentiable_integral(x, xbar, points, TARGETS, output=output)
    plain = by_autograd(model, x_plain, xbar_plain, points, output)
    assert relative(h, plain) < 1e-13 and relative(scores, model(x)) < 1e-14
    ours = grad(loss(h, scores), [x, xbar, *model.parameters()])
    theirs = grad(loss(plain, model(x_plain)), [x_plain, xbar_plain, *model.parameters()], materialize_grads=True)
    assert max(map(relative, ours, theirs)) < 1e-12


@every_net
@pytest.mark.parametrize("wanted", ["map", "scores", "x", "baseline", "parameters"])
def test_any_part_of_the_gradient_alone(name, wanted):
    model, points = nets.make(name), quadrature("midpoint", 4)
    (x, xbar), (x_plain, xbar_plain) = inputs(), inputs()
    leaves, plain_leaves = [x, xbar, *model.parameters()], [x_plain, xbar_plain, *model.parameters()]
    chosen = {"x": slice(0, 1), "baseline": slice(1, 2), "parameters": slice(2, None)}.get(wanted, slice(None))
    for i, leaf in enumerate((*leaves, *plain_leaves[:2])):
        leaf.requires_grad_(i % len(leaves) in range(*chosen.indices(len(leaves))))
    h, scores = fastxai.compile(model).differentiable_integral(x, xbar, points, TARGETS)
    plain, plain_scores = by_autograd(model, x_plain, xbar_plain, points, "logit"), model(x_plain)
    if wanted == "map":
        value, plain_value = h.square().sum(), plain.square().sum()
    elif wanted == "scores":
        value, plain_value = scores.square().sum(), plain_scores.square().sum()
    else:
        value, plain_value = loss(h, scores), loss(plain, plain_scores)
    ours = grad(value, leaves[chosen], materialize_grads=True)
    theirs = grad(plain_value, plain_leaves[chosen], materialize_grads=True)
    assert max(map(relative, ours, theirs)) < 1e-12
    assert max(g.abs().max() for g in ours) > 1e-6


@every_net
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 10, 1000])
def test_splitting_changes_nothing(name, rows):
    model, points = nets.make(name), quadrature("gausslegendre", 5)
    run, acts = runtime(model)
    results = []
    for path in (Path(run), Path(run, rows=rows)):
        x, xbar = inputs()
        h, scores = path.integrate(x, xbar, points, head("probability"), None, acts, parameters=True)
        results.append([h, scores, *grad(loss(h, scores), [x, xbar, *model.parameters()])])
        with torch.no_grad():
            numbers = path.integrate(x, xbar, points, head("probability"), None, acts, parameters=True)
        assert not numbers[0].requires_grad
        assert max(map(relative, numbers, (h, scores))) < 1e-14
    assert max(map(relative, *results)) < 1e-12


@every_net
@pytest.mark.parametrize("rows", [2, 7])
def test_memory_beyond_the_budget_is_computed_again_to_the_same_bits(name, rows):
    model, points = nets.make(name), quadrature("gausslegendre", 5)
    run, acts = runtime(model)
    results, kept = [], []
    for budget in (1 << 30, 50_000, 15_000, 10_000, 5_000, 0):
        x, xbar = inputs()
        path = Path(run, budget, rows)
        h, scores = path.integrate(x, xbar, points, head("logit"), TARGETS, acts, parameters=True)
        groups = [group for _, group in h.grad_fn.parts.groups]  # type: ignore[union-attr]
        kept.append(sum(1 + len(group.pieces) for group in groups if group is not None))
        value = loss(h, scores)
        first = grad(value, [x, xbar, *model.parameters()], retain_graph=True)
        results.append([h, scores, *first])
        for again, before in zip(grad(value, [x, xbar, *model.parameters()]), first, strict=True):
            assert torch.equal(again, before)
    assert sorted(kept, reverse=True) == kept and kept[-1] == 0
    # An affine network's pieces hold nothing.
    assert name == "affine" or any(0 < k < kept[0] for k in kept)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_same_input_same_bits():
    model = nets.make("residual").float()
    x, xbar = nets.images().float(), nets.images(seed=6).float()
    net, points = fastxai.compile(model), quadrature("midpoint", 30)
    first = net.differentiable_integral(x, xbar, points, 1)[0]
    assert torch.equal(first, net.differentiable_integral(x, xbar, points, 1)[0])


@every_net
def test_layouts_dtypes_and_no_samples(name):
    model, points = nets.make(name), quadrature("midpoint", 3)
    net, x, xbar = fastxai.compile(model), nets.images(), nets.images(seed=6)
    expected, scores = net.differentiable_integral(x, xbar, points, TARGETS)
    last = torch.channels_last
    for a, b in ((x.to(memory_format=last), xbar), (x, xbar.to(memory_format=last)), (x.mT.contiguous().mT, xbar)):
        assert relative(net.differentiable_integral(a, b, points, TARGETS)[0], expected) < 1e-14
    one = net.differentiable_integral(x[1:2], xbar[:1].expand(1, 2, 6, 6), points, 0)[0]
    assert relative(one, net.differentiable_integral(x[1:2], xbar[:1], points, 0)[0]) == 0
    none = nets.images(0).requires_grad_()
    h, g = net.differentiable_integral(none, none.detach(), points)
    assert h.shape == (0, 2, 6, 6) and g.shape == (0, 3)
    assert grad(h.sum() + g.sum(), none)[0].shape == none.shape
    single = fastxai.compile(model.float()).differentiable_integral(x.float(), xbar.float(), points, TARGETS)
    assert relative(single[0].double(), expected) < 2e-6 and relative(single[1].double(), scores) < 2e-6


@pytest.mark.parametrize("kind", ["softplus", "curvature"])
def test_views(kind):
    model, points = nets.make("residual", nn.ReLU()), quadrature("midpoint", 4)
    view = {"activation" if kind == "softplus" else "surrogate": kind, "beta": 3.0}
    bent = oracle(model, 3.0, kind)
    (x, xbar), (x_plain, xbar_plain) = inputs(), inputs()
    h, scores = fastxai.compile(model, **view).differentiable_integral(x, xbar, points, TARGETS)
    plain = by_autograd(bent, x_plain, xbar_plain, points, "logit")  # type: ignore[arg-type]
    assert relative(h, plain) < 1e-13
    ours = grad(loss(h, scores), [x, xbar, *model.parameters()])
    theirs = grad(loss(plain, bent(x_plain)), [x_plain, xbar_plain, *model.parameters()])
    assert max(map(relative, ours, theirs)) < 1e-12


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_networks(data: st.DataObject) -> None:
    model = randomise(Program(data, ACTS, data.draw(st.integers(1, 9)))).double()
    kind, beta = data.draw(st.sampled_from([("softplus", 1.0), ("softplus", 5.0), ("curvature", 2.0)]))
    view = {"activation" if kind == "softplus" else "surrogate": kind, "beta": beta}
    n, rows = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 3, 8, None]))
    scores_of, target = oracle(model, beta, kind), TARGETS[:n]
    x = sample(n)
    xbar = directions(x, 1)[0]
    leaves = [(x.clone().requires_grad_(), xbar.clone().requires_grad_()) for _ in range(2)]
    points, net = quadrature("gausslegendre", 3), fastxai.compile(model, **view)
    run, acts = net._backend(x)
    assert isinstance(run, Runtime)
    path = Path(run, data.draw(st.sampled_from([0, 1 << 30])), rows)
    h, scores = path.integrate(*leaves[0], points, head("probability"), target, acts, parameters=True)
    plain = by_autograd(scores_of, *leaves[1], points, "probability", target)
    assume(float(plain.detach().norm()) > 1e-6)
    scale = 1 / float(plain.detach().norm())
    results = []
    for (a, b), value, z in ((leaves[0], h, scores), (leaves[1], plain, scores_of(leaves[1][0]))):
        total = (scale * value).square().sum() + (torch.linspace(-1, 1, z.numel()).view_as(z) * z).sum()
        results.append([value, z, *grad(total, [a, b, *model.parameters()], materialize_grads=True)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).detach().norm()) < 1e-9 * max(1.0, float(theirs.detach().norm()))


def test_prefix_is_swept_once_whatever_the_number_of_points():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).double()
    run, acts = runtime(model)
    conv = next(node for node in run.graph.nodes if type(node).__name__ == "Conv2d")
    push, rows = conv.push, []
    conv.push = lambda s, *xs: rows.append(xs[0].shape[0]) or push(s, *xs)  # type: ignore[method-assign]
    for n_steps in (5, 50):
        x = nets.images()
        points = quadrature("midpoint", n_steps)
        Path(run).integrate(x, 0 * x, points, head("logit"), None, acts, parameters=False)
    assert rows == [6, 6]


def test_a_backward_for_the_parameters_stops_at_the_lowest(monkeypatch):
    model, (x, xbar) = nets.make("residual"), inputs()
    run, acts = runtime(model)
    path = Path(run)
    first = next(node for node in path.boundary.prefix.nodes if node.params)
    assert isinstance(first, Linear) and not first.fed
    transpose, calls = first.transpose, []
    monkeypatch.setattr(first, "transpose", lambda w, nu: calls.append(nu.shape[0]) or transpose(w, nu))
    found = []
    for leaves in ((x, xbar), (x.detach(), xbar), (x.detach(), xbar.detach())):
        h, scores = path.integrate(*leaves, quadrature("midpoint", 4), head("logit"), TARGETS, acts, parameters=True)
        calls.clear()
        found.append(grad(loss(h, scores), list(model.parameters())))
        assert sum(calls) == (2 * len(x) if leaves[1].requires_grad else 0)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_weights_changed_in_between():
    model, (x, xbar) = nets.make("mlp"), inputs()
    h, _ = fastxai.compile(model).differentiable_integral(x, xbar, quadrature("midpoint", 3), 1)
    with torch.no_grad():
        model[1].weight.mul_(2)  # type: ignore[index,operator]
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|weights changed"):
        h.sum().backward()


def test_second_differentiation_names_the_fallback_which_can():
    model, points = nets.make("residual"), quadrature("midpoint", 3)
    (x, xbar), (x_plain, xbar_plain), plain_leaves = inputs(), inputs(), inputs()
    h = fastxai.compile(model).differentiable_integral(x, xbar, points, TARGETS)[0]
    (first,) = grad(h.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fallback=True"):
        first.sum().backward()
    net = fastxai.compile(model, fallback=True)
    h = net.differentiable_integral(x_plain, xbar_plain, points, TARGETS)[0]
    plain = by_autograd(model, *plain_leaves, points, "logit")
    seconds = []
    for value, leaves in ((h, (x_plain, xbar_plain)), (plain, plain_leaves)):
        inner = torch.cat([g.flatten() for g in grad(value.square().sum(), leaves, create_graph=True)])
        seconds.append(grad(inner.square().sum(), [*leaves, *model.parameters()], materialize_grads=True))
    assert max(map(relative, *seconds)) < 1e-12


@every_net
@pytest.mark.parametrize("output", ["logit", "probability", cross_entropy])
def test_fallback_agrees(name, output):
    model, points = nets.make(name), quadrature("clenshaw_curtis", 4)
    results = []
    for fallback in (False, True):
        (x, xbar), net = inputs(), fastxai.compile(model, fallback=fallback)
        h, scores = net.differentiable_integral(x, xbar, points, output=output)
        results.append([h, scores, *grad(loss(h, scores), [x, xbar, *model.parameters()], materialize_grads=True)])
        with torch.inference_mode():
            numbers = net.differentiable_integral(x, xbar, points, output=output)[0]
        assert not numbers.requires_grad and relative(numbers.clone(), h) < 1e-13
    assert max(map(relative, *results)) < 1e-12


def test_parameters_false_spares_them():
    model, (x, xbar), points = nets.make("pools"), inputs(), quadrature("midpoint", 3)
    net = fastxai.compile(model)
    net.differentiable_integral(x, xbar, points, 1, parameters=False)[0].square().sum().backward()
    assert x.grad is not None and xbar.grad is not None and all(p.grad is None for p in model.parameters())
    assert not net.differentiable_integral(x.detach(), xbar.detach(), points, 1, parameters=False)[0].requires_grad


def test_errors():
    net, x, points = fastxai.compile(nets.make("mlp")), nets.images(), quadrature("midpoint", 3)
    with pytest.raises(ValueError, match=r"baseline must have shape \[3, 2, 6, 6\], got \[2, 6, 6\]"):
        net.differentiable_integral(x, x[0], points)
    with pytest.raises(ValueError, match=r"baseline must have x's dtype torch\.float64, got torch\.float32"):
        net.differentiable_integral(x, x.float(), points)
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 2"):
        net.differentiable_integral(x, x, points, 3)
    with pytest.raises(ValueError, match="output must be one of"):
        net.differentiable_integral(x, x, points, output="margin")
