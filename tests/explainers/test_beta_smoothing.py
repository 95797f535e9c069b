"""BetaSmoothing: the map of the smoothed view, its derivatives, and whose beta wins."""

from __future__ import annotations

import explainers.nets as nets
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

import fastxai
from fastxai.explainers import BetaSmoothing, Gradient, InputXGradient, Saliency

INNER = {"gradient": Gradient, "saliency": Saliency, "input_x_gradient": InputXGradient}
TARGETS = torch.tensor([1, 0, 3])
every_inner = pytest.mark.parametrize("inner", INNER)


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


@every_inner
@pytest.mark.parametrize("name", nets.NETS)
def test_is_the_map_of_the_network_with_softplus(name, inner):
    model, x = nets.make(name, nn.ReLU()), nets.images()
    h, scores = BetaSmoothing(INNER[inner](model), 2.0).map_and_scores(x, TARGETS)
    view = fastxai.compile(model).with_activation("softplus", 2.0)
    expected = INNER[inner](view).map_and_scores(x, TARGETS)
    torch.testing.assert_close((h, scores), expected, rtol=0, atol=0)
    plain = nets.make(name, nets.softplus(2.0))
    torch.testing.assert_close(scores, plain(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(h, INNER[inner](plain).attribute(x, TARGETS), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(h, INNER[inner](model).attribute(x, TARGETS))


@every_inner
def test_gradcheck_in_the_input(inner):
    explainer = BetaSmoothing(INNER[inner](nets.make("pool", nn.ReLU())))
    assert gradcheck(lambda x: explainer.map_and_scores(x, TARGETS[:2]), (nets.images(2).requires_grad_(),))


@every_inner
def test_gradcheck_in_every_parameter(inner):
    model = nets.make("conv", nn.ReLU())

    def explain(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        return BetaSmoothing(INNER[inner](model)).map_and_scores(x, TARGETS[:2])

    assert gradcheck(explain, (nets.images(2).requires_grad_(), *model.parameters()), fast_mode=True)


def test_its_own_beta_wins_and_the_weights_of_the_view_stay():
    model, x = nets.make("conv", nn.ReLU()), nets.images()
    explainer = BetaSmoothing(Gradient(model), 0.8)
    expected = explainer.map_and_scores(x, TARGETS)
    for view in (explainer.net, explainer.net.base, explainer.net.with_activation("softplus", 100.0)):
        torch.testing.assert_close(explainer.map_and_scores(x, TARGETS, net=view), expected, rtol=0, atol=0)
    other = nets.make("conv", nn.ReLU())
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    on_other = explainer.map_and_scores(x, TARGETS, net=fastxai.compile(other))
    torch.testing.assert_close(on_other, BetaSmoothing(Gradient(other), 0.8).map_and_scores(x, TARGETS))
    inner = BetaSmoothing(BetaSmoothing(Gradient(model), 0.8), 5.0)
    torch.testing.assert_close(inner.map_and_scores(x, TARGETS), expected, rtol=0, atol=0)


def test_no_target_is_the_class_of_the_model_as_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    x = 0.3 * nets.images(40)
    explainer = BetaSmoothing(Gradient(model), 0.3)
    assert (explainer.net(x).argmax(1) != model(x).argmax(1)).any()
    assert torch.equal(explainer.attribute(x), explainer.attribute(x, model(x).argmax(1)))


def test_an_attack_that_grows_beta_attacks_this_beta():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    source = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=source)
    goal = torch.rand(2, 8, 8, dtype=torch.float64, generator=source)
    grown = fastxai.Manipulation(BetaSmoothing(Gradient(model), 0.8), steps=6, lr=5e-3).perturb(x, goal)
    view = fastxai.compile(model).with_activation("softplus", 0.8)
    constant = fastxai.Manipulation(Gradient(view), steps=6, lr=5e-3, beta=0.8).perturb(x, goal)
    torch.testing.assert_close(grown.images, constant.images, rtol=0, atol=0)
    torch.testing.assert_close(grown.maps, constant.maps, rtol=0, atol=0)
    assert not torch.equal(grown.images, x)


def test_parameters_false_spares_them():
    model, x = nets.make("conv", nn.ReLU()), nets.images().requires_grad_()
    h = BetaSmoothing(Gradient(model)).map_and_scores(x, TARGETS, parameters=False)[0]
    assert grad(h.square().sum(), x, retain_graph=True)[0].abs().max() > 0
    h.square().sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_empty_batch():
    explainer = BetaSmoothing(Gradient(nets.make("conv", nn.ReLU())))
    assert explainer.attribute(nets.images()[:0], 1).shape == (0, 2, 6, 6)


def test_errors():
    model = nets.make("conv", nn.ReLU())
    with pytest.raises(TypeError, match="explainer must be a fastxai explainer, got Sequential"):
        BetaSmoothing(model)  # type: ignore[arg-type]
    for beta in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta must be finite and positive"):
            BetaSmoothing(Gradient(model), beta)
