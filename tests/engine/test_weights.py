"""Changed weights are seen at the next call, and the user's tensors are never written to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.nets import error, gradient, oracle
from engine.small import agrees, batch, small, smooth
from torch import nn

import fastxai


def step(model: nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        optimiser.zero_grad()
        model(batch()).square().mean().backward()
        optimiser.step()


def adam(model: nn.Module) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)
    model(batch()).square().mean().backward()
    optimiser.step()


def statistics(model: nn.Module) -> None:
    with torch.no_grad():
        model.train()(3 * batch() + 1)
    model.eval()


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        model.conv.weight[0] *= 2
        model.bn.running_var += 0.3
        model.heads[3, :5] = 0.1


def replace(model: nn.Module) -> None:
    model.conv.weight = nn.Parameter(model.conv.weight.detach() * 1.5)
    model.heads = nn.Parameter(model.heads.detach().flip(0))
    model.bn.running_mean = model.bn.running_mean + 0.2


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "optimiser": step,
    "adam": adam,
    "load_state_dict": lambda m: m.load_state_dict(small(seed=5).state_dict()),
    "load_state_dict-assign": lambda m: m.load_state_dict(small(seed=6).state_dict(), assign=True),
    "statistics": statistics,
    "in-place": edit,
    "replaced": replace,
    "moved": lambda m: m.float().double(),
}


class TestChangedWeights:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_are_seen(self, change: Callable[[nn.Module], Any]) -> None:
        model, x = small(), batch()
        net = smooth(model)
        before = net.gradient(x, 1)
        for _ in range(2):
            change(model)
            assert agrees(net, model, x)
        if change is not CHANGES["moved"]:
            assert error(net.gradient(x, 1), before) > 1e-9

    def test_one_after_the_other(self) -> None:
        model, x = small(), batch()
        net = smooth(model)
        for change in (*CHANGES.values(), *reversed(CHANGES.values())):
            change(model)
            assert agrees(net, model, x)

    def test_rebuilding_never_writes_to_the_user_s_tensors(self) -> None:
        model, x = small(), batch()
        net = smooth(model)
        net.gradient(x)
        old = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
        model.load_state_dict(small(seed=5).state_dict(), assign=True)
        assert agrees(net, model, x)
        for name, (p, value) in old.items():
            assert torch.equal(p, value), name

    def test_swapping_weights_through_data_leaves_both_sets_alone(self) -> None:
        model, x = small(), batch()
        net = smooth(model)
        mine = {name: p.data for name, p in model.named_parameters()}
        average = {name: p.data * 0.9 for name, p in model.named_parameters()}
        kept = copy.deepcopy((mine, average))
        for weights in (average, mine, average):
            net.gradient(x)
            for name, p in model.named_parameters():
                p.data = weights[name]
            net.refresh()
            assert agrees(net, model, x)
        for name in mine:
            assert torch.equal(mine[name], kept[0][name]) and torch.equal(average[name], kept[1][name]), name

    def test_edits_through_data_need_refresh(self) -> None:
        model, x = small(), batch()
        net, bent = smooth(model), fastxai.compile(model, surrogate="curvature", beta=2.0)
        net.gradient(x), bent.gradient(x)
        model.conv.weight.data[0] *= 3
        net.refresh(), bent.refresh()
        assert agrees(net, model, x)
        assert error(bent.gradient(x, 1), gradient(model, x, 1)) < 1e-11

    def test_a_deep_copy_is_another_net(self) -> None:
        model, x = small(), batch()
        net = smooth(model)
        before = net.gradient(x, 1)
        other = smooth(copy.deepcopy(model))
        edit(other.model)
        assert agrees(other, other.model, x)
        assert torch.equal(net.gradient(x, 1), before)

    def test_another_dtype(self) -> None:
        model, x = small(torch.float32), batch(dtype=torch.float32)
        net = smooth(model)
        coarse = net.gradient(x, 1)
        model.double()
        assert agrees(net, model, x.double())
        assert error(coarse, net.gradient(x.double(), 1)) < 1e-5

    @pytest.mark.parametrize("parameters", [True, False])
    def test_between_map_and_backward_raise(self, parameters: bool) -> None:
        model, x = small(), batch().requires_grad_()
        net = smooth(model)
        heat, _ = net.differentiable_gradient(x, 1, parameters=parameters)
        with torch.no_grad():
            model.heads.mul_(2)
        with pytest.raises(RuntimeError, match=r"modified by an inplace operation|weights changed"):
            heat.square().sum().backward()

    def test_between_map_and_backward_raise_after_another_call(self) -> None:
        model, x = small(), batch().requires_grad_()
        net = smooth(model)
        heat, _ = net.differentiable_gradient(x, 1, parameters=False)
        edit(model)
        net.gradient(x, 1)
        with pytest.raises(RuntimeError, match="weights changed"):
            heat.square().sum().backward()

    def test_two_maps_of_one_net_live_side_by_side(self) -> None:
        model, x = small(), batch().requires_grad_()
        net = smooth(model)
        first, second = net.differentiable_gradient(x, 1)[0], net.differentiable_gradient(x, 2)[0]
        (both,) = torch.autograd.grad((first * second).sum(), x)
        f = oracle(model, 3.0)
        z = x.detach().requires_grad_()
        maps = [torch.autograd.grad(f(z)[:, k].sum(), z, create_graph=True)[0] for k in (1, 2)]
        assert error(both, torch.autograd.grad((maps[0] * maps[1]).sum(), z)[0]) < 1e-11

    def test_backward_twice_through_a_retained_graph(self) -> None:
        x, net = batch().requires_grad_(), smooth(small())
        heat, _ = net.differentiable_gradient(x, 1)
        parameters = [x, *net.model.parameters()]
        cubes = torch.autograd.grad(heat.pow(3).sum(), parameters, retain_graph=True)
        squares = torch.autograd.grad(heat.square().sum(), parameters, retain_graph=True)
        again = torch.autograd.grad(heat.pow(3).sum(), parameters)
        assert all(map(torch.equal, cubes, again))
        assert not torch.equal(squares[0], cubes[0])
