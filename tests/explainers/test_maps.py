"""Gradient, Saliency, InputXGradient: values, and gradients in the input and in every parameter."""

from __future__ import annotations

import captum.attr
import explainers.nets as nets
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

import fastxai
from fastxai.explainers import Explainer, Gradient, InputXGradient, Saliency

MAPS = {
    "gradient": Gradient,
    "saliency": Saliency,
    "signed_saliency": lambda net: Saliency(net, abs=False),
    "input_x_gradient": InputXGradient,
}
TARGETS = torch.tensor([1, 0, 3])
every_net = pytest.mark.parametrize("name", nets.NETS)
every_map = pytest.mark.parametrize("kind", MAPS)


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


def by_autograd(kind: str, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The same map with a graph, from the definition; x requires a gradient."""
    (g,) = grad(model(x).gather(1, target[:, None]).sum(), x, create_graph=True)
    return {"gradient": g, "saliency": g.abs(), "signed_saliency": g, "input_x_gradient": x * g}[kind]


def by_captum(kind: str, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    if kind == "input_x_gradient":
        return captum.attr.InputXGradient(model).attribute(x, target)
    return captum.attr.Saliency(model).attribute(x, target, abs=kind == "saliency")


@every_net
@every_map
def test_equals_captum_on_relu_nets(name, kind):
    model, x = nets.make(name, nn.ReLU()), nets.images()
    ours = MAPS[kind](model).attribute(x, TARGETS)
    theirs = by_captum(kind, model, x.clone().requires_grad_(), TARGETS)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert ours.abs().max() > 1e-3


@every_net
@every_map
def test_gradcheck_in_the_input(name, kind):
    explainer = MAPS[kind](nets.make(name, nets.softplus()))
    assert explainer.net.report(nets.images()).engine
    x = nets.images(2).requires_grad_()
    assert gradcheck(lambda x: explainer.map_and_scores(x, TARGETS[:2]), (x,))


@every_net
@every_map
def test_gradcheck_in_every_parameter(name, kind):
    model = nets.make(name, nets.softplus())

    def explain(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        return MAPS[kind](model).map_and_scores(x, TARGETS[:2])

    # Each parameter is checked against each output by itself.
    assert gradcheck(explain, (nets.images(2).requires_grad_(), *model.parameters()), fast_mode=True)


@every_net
@every_map
def test_loss_on_a_map_equals_autograd(name, kind):
    model = nets.make(name, nets.softplus())
    inputs = [nets.images().requires_grad_() for _ in range(2)]
    weight = torch.randn_like(inputs[0])

    def loss(h: Tensor, scores: Tensor) -> Tensor:
        return (weight * h).sum() + (h.square().sum((1, 2, 3)) * scores.softmax(1)[:, 0]).sum()

    ours = loss(*MAPS[kind](model).map_and_scores(inputs[0], TARGETS))
    theirs = loss(by_autograd(kind, model, inputs[1], TARGETS), model(inputs[1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    for a, b in zip(
        grad(ours, [inputs[0], *parameters]),
        grad(theirs, [inputs[1], *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every_map
def test_backward_reaches_the_parameters(kind):
    model = nets.make("shared", nets.softplus())
    MAPS[kind](model).attribute(nets.images(), TARGETS).square().sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {name for name, _ in model.named_parameters()}


def test_parameters_false_spares_them():
    model, x = nets.make("conv", nets.softplus()), nets.images().requires_grad_()
    Gradient(model).map_and_scores(x, TARGETS, parameters=False)[0].square().sum().backward()
    assert x.grad is not None and all(p.grad is None for p in model.parameters())
    assert not Gradient(model).map_and_scores(nets.images(), TARGETS, parameters=False)[0].requires_grad


def test_backward_twice_adds_up():
    model, x = nets.make("residual", nets.softplus()), nets.images().requires_grad_()
    loss = InputXGradient(model).attribute(x, TARGETS).square().sum()
    loss.backward(retain_graph=True)
    touched = [t for t in (x, *model.parameters()) if t.grad is not None]
    # The last bias shifts the scores and leaves the map alone.
    assert len(touched) == len(list(model.parameters()))
    once = [t.grad.clone() for t in touched]
    loss.backward()
    for tensor, first in zip(touched, once, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * first, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_map
def test_second_differentiation_names_the_fallback_which_can(kind):
    model = nets.make("conv", nets.softplus())
    x, x_plain = (nets.images().requires_grad_() for _ in range(2))
    (first,) = grad(MAPS[kind](model).attribute(x, TARGETS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fallback=True"):
        first.square().sum().backward()
    explainer = MAPS[kind](fastxai.compile(model, fallback=True))
    (first,) = grad(explainer.attribute(x, TARGETS).square().sum(), x, create_graph=True)
    (plain,) = grad(by_autograd(kind, model, x_plain, TARGETS).square().sum(), x_plain, create_graph=True)
    torch.testing.assert_close(
        grad(first.square().sum(), x)[0], grad(plain.square().sum(), x_plain)[0], rtol=1e-10, atol=1e-10
    )


def test_captum_drops_the_hessian_term_and_we_do_not():
    """captum.attr.InputXGradient returns a map with a graph, but its gradient knows v * nabla g only."""
    model = nets.make("conv", nets.softplus())
    x, v = nets.images().requires_grad_(), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    direction, step = torch.randn_like(x), 1e-5
    explainer = InputXGradient(model)

    def slope(h: Tensor) -> float:
        return ((grad((v * h).sum(), x)[0]) * direction).sum().item()

    ours, theirs = slope(explainer.attribute(x, TARGETS)), slope(by_captum("input_x_gradient", model, x, TARGETS))
    with torch.no_grad():
        up, down = (explainer.attribute(x + s * direction, TARGETS) for s in (step, -step))
        measured = ((v * (up - down)).sum() / (2 * step)).item()
        half = (v * Gradient(model).attribute(x, TARGETS) * direction).sum().item()
    assert ours == pytest.approx(measured, rel=1e-6)
    assert theirs == pytest.approx(half, rel=1e-10)
    assert abs(theirs - measured) > 0.05 * abs(measured)


@every_map
def test_targets(kind):
    model, x = nets.make("pool", nn.ReLU()), nets.images()
    explainer, predicted = MAPS[kind](model), model(x).argmax(1)
    torch.testing.assert_close(explainer.attribute(x), explainer.attribute(x, predicted), rtol=0, atol=0)
    torch.testing.assert_close(explainer.attribute(x, 2), explainer.attribute(x, torch.full((3,), 2)), rtol=0, atol=0)


@every_map
def test_layouts_and_sizes(kind):
    model, x = nets.make("conv", nn.ReLU()), nets.images(4)
    explainer = MAPS[kind](model)
    expected = explainer.attribute(x, 1)
    assert expected.shape == x.shape and explainer.attribute(x[:0], 1).shape == (0, 2, 6, 6)
    for other in (x.to(memory_format=torch.channels_last), x.flip(3).flip(3), x.repeat(1, 1, 1, 2)[..., :6]):
        torch.testing.assert_close(explainer.attribute(other, 1), expected, rtol=1e-12, atol=1e-12)


def test_map_and_its_gradient_are_in_the_space_of_the_input():
    model, mean, std = nets.make("conv", nets.softplus()), [0.4, 0.5], [0.2, 0.3]
    x = nets.images().abs().requires_grad_()
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) for v in (mean, std))
    wrapped = nn.Sequential(_Normalise(m, s), model)
    net = fastxai.compile(model, mean, std)
    assert net.report(x).engine
    h = InputXGradient(net).attribute(x, TARGETS)
    plain = by_autograd("input_x_gradient", wrapped, x, TARGETS)
    torch.testing.assert_close(h, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad(h.square().sum(), x), grad(plain.square().sum(), x), rtol=1e-10, atol=1e-10)


class _Normalise(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def test_another_view_of_the_net():
    model, x = nets.make("conv", nn.ReLU()), nets.images()
    explainer = Gradient(model)
    smooth = explainer.map_and_scores(x, TARGETS, net=explainer.net.with_activation("softplus", 2.0))[0]
    expected = by_autograd("gradient", nets.make("conv", nets.softplus()), x.clone().requires_grad_(), TARGETS)
    torch.testing.assert_close(smooth, expected, rtol=1e-10, atol=1e-10)


def test_no_grad_gives_numbers():
    x = nets.images().requires_grad_()
    with torch.no_grad():
        assert not Gradient(nets.make("conv", nets.softplus())).attribute(x, 0).requires_grad


def test_errors():
    with pytest.raises(TypeError, match=r"net must be a compiled net or a torch\.nn\.Module, got int"):
        Gradient(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"inputs must be a torch\.Tensor, got list"):
        Gradient(nets.make("conv", nn.ReLU())).attribute([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 3"):
        Gradient(nets.make("conv", nn.ReLU())).attribute(nets.images(), 4)
    with pytest.raises(TypeError, match="abstract"):
        Explainer(nets.make("conv", nn.ReLU()))  # type: ignore[abstract]
