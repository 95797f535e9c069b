"""What every rule-based map promises: chunks, memory orders, repeated backwards, shared graphs; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine.nets import error
from engine.rule_checks import Gate, compiled, differentiated, images, loss, make
from torch import Tensor, nn
from torch.autograd import grad

import fastxai
from fastxai import LRP
from fastxai.engine import rules
from fastxai.explainers import GuidedBackprop

TARGETS = torch.tensor([1, 0, 3])
BOX = rules.ZBox(-2.0, 2.0)
GAMMA_BOX = rules.lrp(rules.Gamma(), rules.Epsilon(0.3), BOX, stabilizer=0.3)
Z_BOX = rules.lrp(rules.ZPlus(), rules.ZPlus(), BOX)
GUIDED = rules.Composite(activation=rules.GuidedBackprop())


def make_map(beta: float | None = 2.0, seed: str = "score") -> tuple[nn.Module, Callable[..., tuple[Tensor, Tensor]]]:
    model = make("vgg")
    net = compiled(model, beta)
    return model, lambda x, **options: net.relevance(x, GAMMA_BOX, options.pop("target", TARGETS), seed=seed, **options)


@pytest.mark.parametrize("composite, name", [(GAMMA_BOX, "normed"), (GUIDED, "gated"), (GUIDED, "shared")])
def test_two_backwards_through_one_map_are_equal(composite, name):
    model = make(name)
    x = images().requires_grad_()
    h, scores = compiled(model, 2.0).relevance(x, composite, TARGETS)
    leaves = [x, *model.parameters()]
    total = loss(h) + loss(scores)
    first = grad(total, leaves, retain_graph=True, materialize_grads=True)
    again = grad(total, leaves, retain_graph=True, materialize_grads=True)
    alone = grad(loss(h.clone()), leaves, retain_graph=True, materialize_grads=True)
    rest = grad(loss(scores.clone()), leaves, materialize_grads=True)
    for a, b, c, d in zip(first, again, alone, rest, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c + d, a, rtol=1e-12, atol=1e-12 * float(a.abs().max()))


def test_parameters_are_spared_on_request():
    model, explain = make_map()
    x = images().requires_grad_()
    h, _ = explain(x, parameters=False)
    (alone,) = grad(loss(h), x)
    assert torch.equal(alone, differentiated(explain, images())[1])
    h, _ = explain(x, parameters=False)
    loss(h).backward()
    assert all(p.grad is None for p in model.parameters())


def test_maps_without_anything_to_differentiate_have_no_graph():
    model, explain = make_map()
    with torch.no_grad():
        assert not explain(images().requires_grad_())[0].requires_grad
    model.requires_grad_(False)
    assert not explain(images())[0].requires_grad


def test_frozen_parameters_get_no_gradient():
    model, explain = make_map()
    model[0].weight.requires_grad_(False)
    loss(explain(images())[0]).backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None


def test_samples_do_not_depend_on_each_other_or_on_memory_order():
    _, explain = make_map()
    x = images()
    h, dx = differentiated(explain, x)
    turned = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    for form in (x.contiguous(memory_format=torch.channels_last), turned, torch.cat([x, x], 3)[..., 10:]):
        got = differentiated(explain, form)
        assert error(got[0], h) < 1e-13 and error(got[1], dx) < 1e-13
    for i in range(len(x)):
        alone = explain(x[i : i + 1], target=TARGETS[i : i + 1])[0]
        assert error(alone, h[i : i + 1]) < 1e-13


def test_target_of_every_kind():
    model, explain = make_map()
    x, predicted = images(), model(images()).argmax(1)
    assert torch.equal(explain(x, target=None)[0], explain(x, target=predicted)[0])
    assert torch.equal(explain(x, target=2)[0], explain(x, target=torch.full((3,), 2))[0])


@pytest.mark.parametrize("target", [None, 1, torch.zeros(0, dtype=torch.long)])
def test_an_empty_batch_has_an_empty_map(target):
    _, explain = make_map()
    x = images(0).requires_grad_()
    h, scores = explain(x, target=target)
    assert h.shape == x.shape and scores.shape == (0, 4)
    (dx,) = grad(h.sum() + scores.sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("composite", [GAMMA_BOX, Z_BOX, GUIDED], ids=["gamma-box", "z-plus-z-box", "guided"])
def test_chunks_make_no_difference(composite):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 40, 3, padding=1), nn.ReLU(), nn.AvgPool2d(52), nn.Flatten(), nn.Linear(40, 4))
    model = nn.Sequential(*layers).double()
    net, x, target = compiled(model, 2.0), images(9, 52), torch.arange(9) % 4
    run = net._core.rule_runtime(tuple(x.shape[1:]), x.dtype, composite)
    assert len(list(run.chunks(x, 2))) > 1

    def total(rows: slice) -> list[Tensor]:
        part = x[rows].clone().requires_grad_()
        h, scores = net.relevance(part, composite, target[rows], seed="score")
        return [h, *grad((h.square() * 100 + h).sum() + scores.square().sum(), [part, *model.parameters()])]

    whole, parts = total(slice(None)), [total(slice(i, i + 1)) for i in range(9)]
    for i, tensor in enumerate(whole):
        alone = [part[i] for part in parts]
        want = torch.cat(alone) if i < 2 else torch.stack(alone).sum(0)
        torch.testing.assert_close(tensor, want, rtol=1e-11, atol=1e-12 * float(want.detach().abs().max()))


def test_equal_composites_share_a_graph():
    model, x = make("vgg"), images()
    net = fastxai.compile(model)
    boxes = [([0, 0, 0], 1), (torch.zeros(3), torch.tensor(1.0))]
    explainers = [LRP(net, "epsilon_gamma_box", low=low, high=high) for low, high in boxes]
    assert explainers[0].composite == explainers[1].composite
    for explainer in [*explainers, LRP(net.with_activation("softplus", 2.0), explainers[0].composite)]:
        explainer.attribute(x, 1)
    assert len(net._core.rule_runtimes) == 1
    guided = [GuidedBackprop(net), GuidedBackprop(net), GuidedBackprop(net, "reference")]
    for explainer in guided:
        explainer.attribute(x, 1)
    assert len(net._core.rule_runtimes) == 3


def test_other_patterns_are_another_composite():
    """Their rules hold tensors, which do not compare."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 4)).double()
    net = fastxai.compile(model)
    patterns = [{"1.weight": torch.full((4, 300), value, dtype=torch.float64)} for value in (1.0, 2.0)]
    maps = [net.relevance(images(), rules.Patterned(model=model, patterns=p), 1)[0] for p in patterns]
    assert torch.equal(maps[1], 2 * maps[0])


def test_paths_choose_modules():
    """A convolution with a border of its own is one module, two nodes."""
    model, x = make("geometry"), images()
    net = fastxai.compile(model)
    everywhere = rules.lrp(rules.Gamma(), rules.Epsilon(), rules.ZPlus())
    by_path = rules.lrp(rules.Gamma(), rules.Epsilon(), paths=(("0", rules.ZPlus()),))
    assert torch.equal(net.relevance(x, everywhere, 1)[0], net.relevance(x, by_path, 1)[0])


def refused(model: nn.Module, composite: rules.Composite, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fastxai.compile(model.double()).relevance(images(), composite, 1)


class Branching(nn.Module):
    """What it computes depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(1))
        return y if y.sum() > 0 else -y


def test_what_has_no_rule_is_named():
    known = rules.lrp(rules.Epsilon(), rules.Epsilon())
    gate = nn.Sequential(nn.Conv2d(3, 4, 3), Gate(4), nn.Flatten(), nn.Linear(256, 4))
    refused(gate, known, RuntimeError, "Sequential cannot be explained by rules.*mul at '1' has no rule")
    refused(Branching(), known, RuntimeError, "Branching cannot be explained by rules.*meta")
    late = rules.lrp(rules.Epsilon(), rules.ZBox())
    refused(make("vgg"), late, RuntimeError, "ZBox is a rule for first layers, '8' is behind another")


def test_rules_that_do_not_fit_are_named():
    eps, plus = rules.Epsilon(), rules.ZPlus()
    refused(make("vgg"), rules.lrp(eps, eps, paths=[("8.x", eps)]), ValueError, r"paths must name.*got \['8.x'\]")
    refused(make("vgg"), rules.Composite(activation=eps), TypeError, "Epsilon needs a linear map, Activate at '1'")
    refused(make("normed"), rules.Composite(average=plus), TypeError, "ZPlus needs a weight, AvgPool at '3'")
    refused(make("vgg"), rules.Composite(dense=rules.PassThrough()), TypeError, "PassThrough needs one input.*'8'")
    refused(make("vgg"), rules.Composite(dense=rules.GuidedBackprop()), TypeError, "is for activations, Dense at '8'")
    box = rules.lrp(eps, eps, rules.ZBox((0.0, 0.0), (1.0, 1.0)))
    refused(make("vgg"), box, ValueError, r"low, high must have one value or 3, one a channel, got \[2\]")


@pytest.mark.parametrize(
    "make_rule, kind, message",
    [
        (lambda: rules.Epsilon(0.0), ValueError, "stabilizer must be finite and positive"),
        (lambda: rules.ZBox(stabilizer=-1.0), ValueError, "stabilizer must be finite and positive"),
        (lambda: rules.Gamma(gamma=0.0), ValueError, "gamma must be finite and positive"),
        (lambda: rules.AlphaBeta(alpha=2.0, beta=2.0), ValueError, "alpha - beta = 1, got"),
        (lambda: rules.AlphaBeta(alpha=0.5, beta=-0.5), ValueError, "be zero or positive"),
        (lambda: rules.GuidedBackprop("hard"), ValueError, "mode must be one of 'rectified', 'reference'"),
        (lambda: rules.ZBox(1.0, 1.0), ValueError, "low below high"),
        (lambda: rules.ZBox((0.0, 2.0), (1.0, 1.0)), ValueError, "low below high"),
        (lambda: rules.ZBox((0.0, 0.0), (1.0, 1.0, 1.0)), ValueError, "one a channel"),
        (lambda: rules.ZBox(float("nan"), 1.0), ValueError, "low below high"),
        (lambda: rules.ZBox("low", 1.0), TypeError, "low must be a number or one a channel, got 'low'"),
    ],
)
def test_settings_are_checked(make_rule, kind, message):
    with pytest.raises(kind, match=message):
        make_rule()


def test_relevance_checks_its_arguments():
    net, known = fastxai.compile(make("vgg")), rules.lrp(rules.Epsilon(), rules.Epsilon())
    with pytest.raises(TypeError, match=r"composite must be a rules\.Composite, got str"):
        net.relevance(images(), "epsilon", 1)
    with pytest.raises(ValueError, match="seed must be one of 'one', 'score'"):
        net.relevance(images(), known, 1, seed="two")
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 3, got 7 \.\. 7"):
        net.relevance(images(), known, 7)


def test_a_map_is_differentiated_once():
    _, explain = make_map()
    x = images().requires_grad_()
    (dx,) = grad(loss(explain(x)[0]), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad(dx.sum(), x)


def test_weights_changed_behind_a_map_are_refused():
    model, explain = make_map()
    x = images().requires_grad_()
    h = explain(x)[0]
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|weights changed"):
        loss(h).backward()
    h = explain(x, parameters=False)[0]
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="weights changed between"):
        loss(h).backward()


def test_changed_weights_are_seen():
    model, explain = make_map()
    explain(images())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    fresh = compiled(model, 2.0).relevance(images(), GAMMA_BOX, TARGETS, seed="score")[0]
    assert torch.equal(explain(images())[0], fresh)
