"""SmoothGrad: the mean over the noisy copies, Captum's with the same noise, its derivatives, and what it depends on."""

from __future__ import annotations

import captum.attr
import explainers.nets as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad, gradcheck

import fastxai
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    smooth_grad,
)

INNER = {"gradient": Gradient, "saliency": Saliency, "input_x_gradient": InputXGradient}
TARGETS = torch.tensor([1, 0, 3])
every_net = pytest.mark.parametrize("name", nets.NETS)
every_inner = pytest.mark.parametrize("inner", INNER)


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


def noise(n: int, *shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=source) for _ in range(n)]).double()


def by_autograd(kind: str, model: nn.Module, x: Tensor, target: Tensor, sigma: Tensor | float, eps: Tensor) -> Tensor:
    """The mean written out, one noisy copy of the batch at a time."""
    total = torch.zeros_like(x)
    for one in eps:
        noisy = x + sigma * one
        (g,) = grad(model(noisy).gather(1, target[:, None]).sum(), noisy, create_graph=True)
        total = total + {"gradient": g, "saliency": g.abs(), "input_x_gradient": noisy * g}[kind]
    return total / len(eps)


@every_net
@every_inner
def test_is_the_mean_over_noisy_copies_with_its_gradients(name, inner):
    model = nets.make(name, nets.softplus())
    ours_x, plain_x = (nets.images().requires_grad_() for _ in range(2))
    h, scores = SmoothGrad(INNER[inner](model), 4, 0.2, seed=7).map_and_scores(ours_x, TARGETS)
    low, high = plain_x.detach().flatten(1).aminmax(dim=1)
    sigma = 0.2 * (high - low).view(3, 1, 1, 1)
    plain = by_autograd(inner, model, plain_x, TARGETS, sigma, noise(4, 2, 6, 6, seed=7))
    torch.testing.assert_close(h, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores, model(plain_x), rtol=1e-10, atol=1e-10)

    def loss(h: Tensor, scores: Tensor) -> Tensor:
        return (h.square().sum((1, 2, 3)) * (1 + scores.softmax(1)[:, 0])).sum()

    parameters = list(model.parameters())
    ours = grad(loss(h, scores), [ours_x, *parameters])
    theirs = grad(loss(plain, model(plain_x)), [plain_x, *parameters])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert ours[0].abs().max() > 1e-6


@every_net
@pytest.mark.parametrize(
    "inner", [IntegratedGradients, GuidedBackprop, lambda net: LRP(net, "zplus_zb", low=-3.0, high=3.0)]
)
def test_takes_maps_of_several_sweeps(name, inner):
    explainer = inner(nets.make(name, nets.softplus()))
    x, plain_x = (nets.images().requires_grad_() for _ in range(2))
    h = SmoothGrad(explainer, 3, seed=2, stdev=0.2).attribute(x, TARGETS)
    eps = noise(3, 2, 6, 6, seed=2)
    plain = torch.stack([explainer.attribute(plain_x + 0.2 * one, TARGETS) for one in eps]).mean(0)
    torch.testing.assert_close(h, plain, rtol=1e-10, atol=1e-12)
    parameters = list(explainer.net.model.parameters())
    ours, theirs = (
        grad(m.square().sum(), [leaf, *parameters], allow_unused=True, materialize_grads=True)
        for m, leaf in ((h, x), (plain, plain_x))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert ours[0].abs().max() > 1e-9


@every_inner
def test_gradcheck_in_the_input(inner):
    # With stdev= sigma does not depend on x; with noise= it does and counts as constant, unlike a difference quotient.
    explainer = SmoothGrad(INNER[inner](nets.make("conv", nets.softplus())), 3, stdev=0.3)
    x = nets.images(2).requires_grad_()
    assert gradcheck(lambda x: explainer.map_and_scores(x, TARGETS[:2]), (x,))


@every_inner
def test_gradcheck_in_every_parameter(inner):
    model = nets.make("conv", nets.softplus())

    def explain(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        return SmoothGrad(INNER[inner](model), 3, stdev=0.3).map_and_scores(x, TARGETS[:2])

    assert gradcheck(explain, (nets.images(2).requires_grad_(), *model.parameters()), fast_mode=True)


@every_net
@pytest.mark.parametrize("signed", [True, False])
def test_equals_captum_with_the_same_noise(name, signed):
    # Captum draws in float32 from the global generator; one sample a pass draws as we do, and a power of two as stdev
    # rounds the same in float32 and in float64.
    model, x = nets.make(name, nn.ReLU()), nets.images()
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    ours = SmoothGrad(Saliency(model, abs=not signed), 5, seed=11, stdev=0.25).attribute(x, TARGETS)
    for i in range(len(x)):
        torch.manual_seed(11)
        theirs = tunnel.attribute(
            x[i : i + 1], nt_samples=5, nt_samples_batch_size=1, stdevs=0.25, target=TARGETS[i : i + 1], abs=not signed
        )
        torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-10, atol=1e-10)
    assert ours.abs().max() > 1e-3


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 7),
    level=st.floats(0, 2),
    count=st.integers(0, 5),
    cut=st.integers(0, 5),
)
def test_splitting_the_batch_changes_nothing(seed, samples, level, count, cut):
    model = nets.make("conv", nets.softplus())
    explainer, x = SmoothGrad(Gradient(model), samples, level, seed), nets.images(5)[:count]
    whole = explainer.attribute(x, 2)
    assert whole.shape == x.shape
    parts = torch.cat([explainer.attribute(x[:cut], 2), explainer.attribute(x[cut:], 2)])
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-11)
    other = SmoothGrad(Gradient(model), samples, level, seed).attribute(x, 2)
    assert torch.equal(other, whole)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5), stdev=st.floats(0, 1e6))
def test_a_linear_network_is_not_smoothed(seed, samples, stdev):
    model = nn.Linear(7, 3).double()
    h = SmoothGrad(Gradient(model), samples, seed=seed, stdev=stdev).attribute(torch.zeros(2, 7).double(), 1)
    torch.testing.assert_close(h, model.weight[1].expand(2, 7).clone(), rtol=1e-12, atol=1e-12)


def test_redrawn_noise_is_that_of_the_seed_in_the_same_memory():
    model, x = nets.make("conv", nets.softplus()), nets.images()
    explainer, other = SmoothGrad(Gradient(model), 3), SmoothGrad(Gradient(model), 3, seed=7)
    first = explainer.redraw(x, 5)
    assert explainer.redraw(x, 7) is first and explainer.seed == 7
    assert torch.equal(explainer.attribute(x, 0), other.attribute(x, 0))
    small = explainer.redraw(x.float(), 8)
    assert small.dtype == torch.float32 and torch.equal(
        small, SmoothGrad(Gradient(model), 3, seed=8).redraw(x, 8).float()
    )
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(ValueError, match="seed must be an int in"):
            explainer.redraw(x, seed)  # type: ignore[arg-type]
    apart = explainer.another()
    apart.redraw(x.float(), 9)
    assert explainer.seed == 8 and torch.equal(explainer.redraw(x.float(), 8), small)


@pytest.mark.parametrize("budget", [1, 2 * 3 * 72 * 8, 4 * 3 * 72 * 8])
@pytest.mark.parametrize("wanted", [True, False])
def test_chunks_of_samples_change_nothing(budget, wanted, monkeypatch):
    model, sizes = nets.make("pool", nets.softplus()), []

    class Counted(Gradient):
        def map_and_scores(self, x, *arguments, **options):
            sizes.append(len(x))
            return super().map_and_scores(x, *arguments, **options)

    def explain() -> list[Tensor]:
        x = nets.images().requires_grad_(wanted)
        h, scores = SmoothGrad(Counted(model), 6, seed=1).map_and_scores(x, TARGETS, parameters=wanted)
        return [h, scores, *(grad(h.square().sum() + scores.sum(), [x, *model.parameters()]) if wanted else ())]

    whole = explain()
    assert sizes == [21]
    monkeypatch.setattr(smooth_grad, "_BUDGET", budget)
    for a, b in zip(explain(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert len(sizes) > 2 and sum(sizes[1:]) == 21 and max(sizes[1:]) * 72 * 8 <= max(budget, 3 * 72 * 8)


def test_no_noise_is_the_map_itself():
    model, x = nets.make("residual", nn.ReLU()), nets.images()
    torch.testing.assert_close(
        SmoothGrad(InputXGradient(model), 3, 0).attribute(x, TARGETS),
        InputXGradient(model).attribute(x, TARGETS),
        rtol=1e-12,
        atol=1e-12,
    )


def test_more_samples_extend_the_noise_of_fewer_and_seeds_differ():
    model, x = nets.make("conv", nets.softplus()), nets.images()
    one, two, three = (SmoothGrad(Gradient(model), n, seed=4).attribute(x, 0) for n in (1, 2, 3))
    third = by_autograd("gradient", model, x.requires_grad_(), 0 * TARGETS, _range(x), noise(3, 2, 6, 6, seed=4)[2:])
    torch.testing.assert_close(3 * three - 2 * two, third, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(one, SmoothGrad(Gradient(model), 1, seed=5).attribute(x, 0))


def _range(x: Tensor) -> Tensor:
    x = x.detach().flatten(1)
    return 0.1 * (x.amax(1) - x.amin(1)).view(-1, 1, 1, 1)


def test_the_noise_is_the_same_in_every_dtype_and_follows_the_settings():
    model, x = nets.make("conv", nets.softplus()), nets.images()
    wide = SmoothGrad(Gradient(model), 3)
    expected = wide.attribute(x, 1)
    narrow = SmoothGrad(Gradient(nets.make("conv", nets.softplus()).float()), 3).attribute(x.float(), 1)
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-5, atol=1e-5)
    wide.seed = 9
    torch.testing.assert_close(
        wide.attribute(x, 1), SmoothGrad(Gradient(model), 3, seed=9).attribute(x, 1), rtol=0, atol=0
    )
    state = torch.get_rng_state()
    SmoothGrad(Gradient(model), 3).attribute(x, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_drawn_in_inference_mode_serves_a_backward_pass():
    explainer, x = SmoothGrad(Gradient(nets.make("conv", nets.softplus())), 3), nets.images()
    with torch.inference_mode():
        expected = explainer.attribute(x.clone(), 1).clone()
    h = explainer.attribute(x.requires_grad_(), 1)
    torch.testing.assert_close(h.detach(), expected, rtol=1e-12, atol=1e-12)
    assert grad(h.square().sum(), x)[0].abs().max() > 0


def test_no_target_is_the_class_of_the_clean_input_on_the_model_as_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    x = 0.3 * nets.images(40)
    net = fastxai.compile(model)
    smooth = net.with_activation("softplus", 0.3)
    assert (smooth(x).argmax(1) != net(x).argmax(1)).any()
    noisy = x + 2 * noise(1, 2, 6, 6)[0]
    assert (smooth(noisy).argmax(1) != net(x).argmax(1)).any()
    explainer = SmoothGrad(Gradient(smooth), 2, stdev=2.0)
    assert torch.equal(explainer.attribute(x), explainer.attribute(x, net(x).argmax(1)))
    assert torch.equal(explainer.attribute(x, 2), explainer.attribute(x, torch.full((40,), 2)))
    assert torch.equal(explainer.attribute(x, torch.tensor(2)), explainer.attribute(x, 2))


def test_layouts_and_views():
    model, x = nets.make("conv", nn.ReLU()), nets.images(4)
    explainer = SmoothGrad(InputXGradient(model), 3)
    expected = explainer.attribute(x, 1)
    for other in (x.to(memory_format=torch.channels_last), x.flip(3).flip(3), x.repeat(1, 1, 1, 2)[..., :6]):
        torch.testing.assert_close(explainer.attribute(other, 1), expected, rtol=1e-12, atol=1e-12)
    view = explainer.net.with_activation("softplus", 2.0)
    on_view, scores = explainer.map_and_scores(x, 1, net=view)
    torch.testing.assert_close(on_view, SmoothGrad(InputXGradient(view), 3).attribute(x, 1), rtol=0, atol=0)
    torch.testing.assert_close(scores, view(x), rtol=1e-12, atol=1e-12)


def test_parameters_false_spares_them():
    model, x = nets.make("conv", nets.softplus()), nets.images().requires_grad_()
    SmoothGrad(Gradient(model), 2).map_and_scores(x, TARGETS, parameters=False)[0].square().sum().backward()
    assert x.grad is not None and all(p.grad is None for p in model.parameters())


def test_wraps_wrappers():
    model, x = nets.make("conv", nn.ReLU()), nets.images()
    smooth = fastxai.compile(model).with_activation("softplus", 0.8)
    both = SmoothGrad(BetaSmoothing(Gradient(model), 0.8), 3)
    torch.testing.assert_close(
        both.attribute(x, 1), SmoothGrad(Gradient(smooth), 3).attribute(x, 1), rtol=1e-12, atol=1e-12
    )
    swapped = BetaSmoothing(SmoothGrad(Gradient(model), 3), 0.8)
    torch.testing.assert_close(both.attribute(x, 1), swapped.attribute(x, 1), rtol=1e-12, atol=1e-12)


def test_the_attack_runs_on_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    source = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=source)
    goal = torch.rand(2, 8, 8, dtype=torch.float64, generator=source)
    attack = fastxai.Manipulation(SmoothGrad(Gradient(model), 3), steps=30, lr=5e-3)
    result = attack.perturb(x, goal)
    expected = fastxai.reduce_map(SmoothGrad(Gradient(model), 3).attribute(result.images, model(x).argmax(1)))
    torch.testing.assert_close(result.maps, expected.detach(), rtol=1e-9, atol=1e-12)
    assert (result.metrics.to_target.mse < (result.original_maps - result.target_maps).square().mean((1, 2))).all()


def test_errors():
    model = nets.make("conv", nn.ReLU())
    with pytest.raises(TypeError, match="explainer must be a fastxai explainer, got Sequential"):
        SmoothGrad(model)  # type: ignore[arg-type]
    for settings_, message in (
        ({"n_samples": 0}, "n_samples must be a positive int, got 0"),
        ({"n_samples": 2.0}, "n_samples must be a positive int"),
        ({"noise": -0.1}, "noise must be finite and not negative"),
        ({"noise": float("nan")}, "noise must be finite"),
        ({"stdev": float("inf")}, "stdev must be finite"),
        ({"seed": 0.5}, "seed must be an int"),
    ):
        with pytest.raises(ValueError, match=message):
            SmoothGrad(Gradient(model), **settings_)  # type: ignore[arg-type]
    explainer = SmoothGrad(Gradient(model), 2)
    with pytest.raises(ValueError, match=r"inputs must have shape \[N, \.\.\.\]"):
        explainer.attribute(torch.zeros(3))
    with pytest.raises(ValueError, match=r"x must have shape \[N, \.\.\.\]"):
        explainer.map_and_scores(torch.zeros(3))
    with pytest.raises(ValueError, match=r"target must have shape \[3\], got \[9\]"):
        explainer.attribute(nets.images(), torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 3"):
        explainer.attribute(nets.images(), 4)
    with pytest.raises(TypeError, match="target must be an int"):
        explainer.attribute(nets.images(), "cat")  # type: ignore[arg-type]
