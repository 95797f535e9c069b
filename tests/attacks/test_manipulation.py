"""Manipulation: the trajectory of the same loop in plain autograd, the best iterate, Ctrl-C."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from attacks.nets import CHANNELS, cnn, load, pairs, plain_loop
from torch import Tensor, nn

import fastxai
from fastxai.attacks import Manipulation
from fastxai.data import cifar10
from fastxai.explainers import (
    BetaSmoothing,
    Explainer,
    Gradient,
    InputXGradient,
    Saliency,
    SmoothGrad,
    reduce_map,
)
from fastxai.metrics import pcc, ssim


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The loop in plain autograd."""
    return plain_loop()


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


def settings(plain: ModuleType, attack: Manipulation) -> object:
    low, high = (torch.as_tensor(b, dtype=torch.float64).view(1, -1, 1, 1) for b in attack.bounds)
    return plain.Settings(attack.steps, attack.lr, attack.beta, attack.c, attack.gamma, low, high, attack.judge_every)


class Spy(Gradient):
    """Remembers where it was asked for the map, by whether the net was smoothed; can press Ctrl-C."""

    def __init__(self, net: fastxai.Net | nn.Module, interrupt_at: int = -1) -> None:
        super().__init__(net)
        self.smooth: list[Tensor] = []
        self.judged: list[Tensor] = []
        self.betas: list[float | None] = []
        self.interrupt_at = interrupt_at

    def map_and_scores(self, x, target=None, *, net=None, parameters=True):
        assert not parameters
        (self.judged if net is self.net else self.smooth).append(x.detach().clone())
        if net is not self.net:
            self.betas.append(net.beta)
        if len(self.smooth) == self.interrupt_at:
            self.interrupt_at = -1
            raise KeyboardInterrupt
        return super().map_and_scores(x, target, net=net, parameters=parameters)


def assert_same_trajectory(plain: ModuleType, model: nn.Module, attack: Manipulation, x: Tensor, target_map: Tensor):
    iterates: list[Tensor] = []
    expected = plain.manipulate(
        plain.smoothed(model), x, target_map, settings(plain, attack), lambda _, i: iterates.append(i.clone())
    )
    result = attack.perturb(x, target_map)
    spy = attack.explainer
    assert isinstance(spy, Spy) and len(spy.smooth) == attack.steps == len(iterates)
    for ours, theirs in zip([*spy.smooth[1:], spy.judged[-2]], iterates, strict=True):
        assert (ours - theirs).abs().max() < 1e-8
    assert (iterates[-1] - x).abs().max() > 3 * attack.lr
    assert (result.images - expected.images).abs().max() < 1e-8
    assert (result.maps - expected.maps).abs().max() < 1e-8
    assert torch.equal(result.class_kept, expected.kept)


@pytest.mark.parametrize("judge_every", [1, 7, 100])
def test_same_trajectory_as_plain_autograd(plain, judge_every):
    attack = Manipulation(Spy(cnn()), steps=35, lr=5e-3, bounds=CHANNELS, judge_every=judge_every)
    assert_same_trajectory(plain, cnn(), attack, *pairs())


def test_same_trajectory_on_a_real_network_and_images(plain, shared):
    nets = load(shared / "data" / "models" / "nets.py")
    model = nets.load("cifar10_resnet20").double()
    images = cifar10(shared / "data" / "cifar10")[0][[4, 11, 13, 17]].double() / 255
    x = nets.prepare("cifar10_resnet20", images)
    low, high = (nets.prepare("cifar10_resnet20", torch.full((1, 3, 1, 1), v).double()) for v in (0.0, 1.0))
    spy = Spy(model)
    assert spy.net.report(x).engine
    attack = Manipulation(spy, steps=10, bounds=(low.flatten(), high.flatten()))
    target_map = reduce_map(Gradient(model).net.gradient(x[2:]))
    assert_same_trajectory(plain, model, attack, x[:2], target_map)


def test_beta_grows_geometrically_and_never_reaches_the_end():
    spy = Spy(cnn())
    Manipulation(spy, steps=4, beta=(10.0, 160.0), bounds=CHANNELS).perturb(*pairs())
    assert spy.betas == pytest.approx([10.0, 20.0, 40.0, 80.0])
    spy = Spy(cnn())
    Manipulation(spy, steps=3, beta=7.0, bounds=CHANNELS).perturb(*pairs())
    assert spy.betas == [7.0] * 3


def test_the_best_judged_iterate_is_returned():
    """Large steps make the last iterate bad and change classes: the choice must be seen to matter."""
    x, target_map = pairs(10)
    spy = Spy(cnn())
    attack = Manipulation(spy, steps=25, lr=0.8, gamma=0.0, bounds=CHANNELS, judge_every=4)
    result = attack.perturb(x, target_map)
    candidates = [x, *[spy.smooth[s] for s in (1, 5, 9, 13, 17, 21)], spy.judged[-2]]
    steps = torch.tensor([0, 1, 5, 9, 13, 17, 21, 25])
    net = fastxai.compile(cnn())
    classes = net(x).argmax(1)
    terms, held = [], []
    for images in candidates:
        terms.append((reduce_map(net.gradient(images, classes)) - target_map).square().mean((1, 2)))
        held.append(net(images).argmax(1) == classes)
    valid = torch.where(torch.stack(held), torch.stack(terms), float("inf"))
    assert torch.equal(result.best_step, steps[valid.argmin(0)])
    torch.testing.assert_close((result.maps - target_map).square().mean((1, 2)), valid.amin(0), rtol=1e-9, atol=0)
    assert bool(result.class_kept.all()) and not bool(torch.stack(held).all())
    assert len(result.best_step.unique()) > 2


def test_smooth_networks_are_judged_at_every_iterate_for_free():
    model = cnn(nn.Softplus(5.0, threshold=200))
    spy = Spy(model)
    x, target_map = pairs()
    result = Manipulation(spy, steps=12, lr=0.05, gamma=0.0, beta=None, bounds=CHANNELS).perturb(x, target_map)
    # The original's map, twelve iterations, the last iterate, the result.
    assert len(spy.judged) == 15 and not spy.smooth
    terms = [
        (reduce_map(spy.net.gradient(i, spy.net(x).argmax(1))) - target_map).square().mean((1, 2)) for i in spy.judged
    ]
    kept = [spy.net(i).argmax(1) == spy.net(x).argmax(1) for i in spy.judged]
    best = torch.where(torch.stack(kept), torch.stack(terms), float("inf")).amin(0)
    torch.testing.assert_close((result.maps - target_map).square().mean((1, 2)), best, rtol=1e-9, atol=0)


def test_a_smoothed_explainer_is_attacked_and_judged_as_it_is():
    x, target_map = pairs()
    net = fastxai.compile(cnn())
    smooth = net.with_activation("softplus", 0.8)
    result = Manipulation(Gradient(smooth), steps=15, lr=0.01, beta=None, bounds=CHANNELS).perturb(x, target_map)
    classes = net(x).argmax(1)
    torch.testing.assert_close(result.original_maps, reduce_map(smooth.gradient(x, classes)))
    torch.testing.assert_close(result.maps, reduce_map(smooth.gradient(result.images, classes)))
    assert torch.equal(result.output_change.original_classes, classes)
    assert bool((result.metrics.to_target.mse < mean_square(result.original_maps, target_map)).all())


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2))


@pytest.mark.parametrize("kind", [Gradient, Saliency, InputXGradient])
@pytest.mark.parametrize("output", ["softmax", "logits"])
def test_the_result_describes_itself(kind, output):
    x, target_map = pairs()
    model = cnn()
    attack = Manipulation(kind(model), steps=20, lr=0.01, output=output, bounds=CHANNELS)
    result = attack.perturb(x, 3 * target_map)
    explainer, classes = kind(model), model(x).argmax(1)
    low, high = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)
    unit, unit_0 = ((i - low) / (high - low) for i in (result.images, x))
    with torch.no_grad():
        after, before = model(result.images), model(x)
        torch.testing.assert_close(result.maps, reduce_map(explainer.attribute(result.images, classes)))
        torch.testing.assert_close(result.original_maps, reduce_map(explainer.attribute(x, classes)))
    torch.testing.assert_close(result.target_maps, target_map)
    assert bool((result.images >= low).all() and (result.images <= high).all())
    torch.testing.assert_close(result.metrics.to_target.mse, mean_square(result.maps, target_map))
    torch.testing.assert_close(result.metrics.to_original.mse, mean_square(result.maps, result.original_maps))
    torch.testing.assert_close(result.metrics.image.mse, (unit - unit_0).square().mean((1, 2, 3)))
    torch.testing.assert_close(result.metrics.to_target.pcc, pcc(result.maps, target_map))
    torch.testing.assert_close(result.metrics.image.ssim, ssim(unit, unit_0, 1.0))
    change = result.output_change
    torch.testing.assert_close(change.logits, (after - before).norm(dim=1))
    torch.testing.assert_close(change.softmax, (after.softmax(1) - before.softmax(1)).norm(dim=1))
    torch.testing.assert_close(change.confidence_change, after.softmax(1).amax(1) - before.softmax(1).amax(1))
    assert torch.equal(result.class_kept, after.argmax(1) == classes) and bool(result.class_kept.all())
    assert {name: tuple(t.shape) for name, t in result.history.items()} == {"map": (20, 3), "output": (20, 3)}
    assert bool((result.metrics.to_target.mse < mean_square(result.original_maps, target_map)).all())
    assert not result.interrupted and "class kept to the end 3/3" in str(result)


def test_history_holds_the_weighted_terms():
    x, target_map = pairs()
    model = cnn()
    attack = Manipulation(Gradient(model), steps=2, c=3.0, gamma=5.0, beta=(4.0, 9.0), bounds=CHANNELS)
    history = attack.perturb(x, target_map).history
    smooth = fastxai.compile(model).with_activation("softplus", 4.0)
    classes, p = model(x).argmax(1), model(x).softmax(1)
    expected = 3.0 * 64**2 * mean_square(reduce_map(smooth.gradient(x, classes)), target_map)
    torch.testing.assert_close(history["map"][0], expected)
    torch.testing.assert_close(history["output"][0], 5.0 * (smooth(x).softmax(1) - p).square().mean(1).detach())


def test_samples_do_not_see_each_other():
    x, target_map = pairs(4)
    attack = Manipulation(Gradient(cnn()), steps=12, lr=0.02, bounds=CHANNELS, judge_every=3)
    together = attack.perturb(x, target_map)
    for i in range(4):
        alone = attack.perturb(x[i : i + 1], target_map[i : i + 1])
        torch.testing.assert_close(alone.images, together.images[i : i + 1], rtol=0, atol=1e-10)
        assert alone.best_step == together.best_step[i]


def test_ctrl_c_keeps_the_best_so_far():
    x, target_map = pairs()
    whole = Manipulation(Spy(cnn()), steps=30, lr=5e-3, bounds=CHANNELS, judge_every=1).perturb(x, target_map)
    spy = Spy(cnn(), interrupt_at=21)
    result = Manipulation(spy, steps=30, lr=5e-3, bounds=CHANNELS, judge_every=1).perturb(x, target_map)
    assert result.interrupted and not whole.interrupted
    assert result.history["map"].shape == (20, 3)
    torch.testing.assert_close(result.history["map"], whole.history["map"][:20], rtol=0, atol=0)
    assert bool((result.metrics.to_target.mse < mean_square(result.original_maps, target_map)).all())
    assert int(result.best_step.max()) <= 20
    at_once = Manipulation(Spy(cnn(), interrupt_at=1), steps=30, bounds=CHANNELS).perturb(x, target_map)
    assert at_once.interrupted and at_once.history["map"].shape == (0, 3)
    assert torch.equal(at_once.images, x) and bool((at_once.best_step == 0).all())


def test_the_progress_bar_counts_to_the_end(capsys):
    Manipulation(Gradient(cnn()), steps=3, bounds=CHANNELS).perturb(*pairs(), progress=True)
    assert "3/3" in capsys.readouterr().err
    Manipulation(Gradient(cnn()), steps=3, bounds=CHANNELS).perturb(*pairs())
    assert capsys.readouterr().err == ""


def test_a_raw_target_map_is_reduced():
    x, _ = pairs()
    raw = torch.randn_like(x)
    attack = Manipulation(Gradient(cnn()), steps=3, bounds=CHANNELS)
    a, b = attack.perturb(x, raw), attack.perturb(x, reduce_map(raw))
    torch.testing.assert_close(a.target_maps, reduce_map(raw))
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=1e-12)


def test_a_target_class_is_explained_and_the_prediction_is_kept():
    x, target_map = pairs()
    model = cnn()
    target = (model(x).argmax(1) + 1) % 5
    result = Manipulation(Gradient(model), steps=10, lr=0.01, bounds=CHANNELS).perturb(x, target_map, target)
    torch.testing.assert_close(result.original_maps, reduce_map(fastxai.compile(model).gradient(x, target)))
    assert torch.equal(result.output_change.original_classes, model(x).argmax(1)) and bool(result.class_kept.all())


def test_mean_and_std_put_the_attack_in_image_space():
    x, target_map = pairs()
    x = (x + 1) / 2
    net = fastxai.compile(cnn(), mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    result = Manipulation(Gradient(net), steps=10, lr=2e-3).perturb(x, target_map)
    assert net.report().engine
    assert bool((result.images >= 0).all() and (result.images <= 1).all())
    torch.testing.assert_close(result.metrics.image.mse, (result.images - x).square().mean((1, 2, 3)))
    assert bool((result.metrics.to_target.mse < mean_square(result.original_maps, target_map)).all())


def test_descent_takes_the_plain_step():
    x, target_map = pairs()
    spy = Spy(cnn())
    Manipulation(spy, steps=2, lr=1e-4, gamma=0.0, optimizer="descent", beta=5.0, bounds=CHANNELS).perturb(
        x, target_map
    )
    smooth, y = spy.net.with_activation("softplus", 5.0), x.clone().requires_grad_()
    h = reduce_map(smooth.differentiable_gradient(y, spy.net(x).argmax(1))[0])
    (gradient,) = torch.autograd.grad(10.0 * 64**2 * mean_square(h, target_map).sum(), y)
    torch.testing.assert_close(spy.smooth[1], x - 1e-4 * gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [7, 9])
def test_batches_layouts_and_precision(side):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    attack = Manipulation(Gradient(model), steps=4, bounds=CHANNELS)
    x, target_map = (t.float() for t in pairs(2, side))
    result = attack.perturb(x, target_map)
    assert result.images.dtype == torch.float32 and bool(result.images.isfinite().all())
    other = attack.perturb(x.to(memory_format=torch.channels_last), target_map.mT.contiguous().mT)
    torch.testing.assert_close(other.images, result.images)
    empty = attack.perturb(x[:0], target_map[:0])
    assert empty.images.shape == (0, 3, side, side) and empty.history["map"].shape == (4, 0)
    assert "class kept to the end 0/0" in str(empty)


def test_a_diverging_attack_returns_the_original():
    x, target_map = pairs()
    attack = Manipulation(Gradient(cnn()), steps=3, lr=1e308, optimizer="descent", c=1e200, bounds=CHANNELS)
    result = attack.perturb(x, target_map)
    assert bool(result.images.isfinite().all() and result.class_kept.all())


def test_a_piecewise_linear_network_without_beta_warns():
    with pytest.warns(UserWarning, match="Give beta=") as caught:
        result = Manipulation(Gradient(cnn()), steps=2, beta=None, bounds=CHANNELS).perturb(*pairs())
    assert torch.equal(result.images, pairs()[0]) and caught[0].filename == __file__


def test_redraw_takes_one_smooth_grad_as_it_is():
    inner = SmoothGrad(Gradient(cnn()), 2)
    own = SmoothGrad(Gradient(cnn()), 2)
    own.map_and_scores = inner.map_and_scores  # type: ignore[method-assign]

    class Other(SmoothGrad):
        def map_and_scores(self, *arguments, **options):
            return super().map_and_scores(*arguments, **options)

    one, two, itself = (
        "a SmoothGrad explainer, got ",
        "one SmoothGrad, none inside another, got",
        "SmoothGrad's own map",
    )
    for explainer, said in (
        (inner.explainer, one + "Gradient"),
        (BetaSmoothing(inner), one + "BetaSmoothing"),
        (SmoothGrad(inner, 2), two),
        (SmoothGrad(BetaSmoothing(inner)), two),
        (own, itself),
        (Other(Gradient(cnn())), itself),
    ):
        with pytest.raises(ValueError, match=f"redraw must come with {said}"):
            Manipulation(explainer, redraw=True)
    Manipulation(SmoothGrad(BetaSmoothing(inner.explainer)), redraw=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a positive int, got 0"),
        ({"steps": True}, "steps must be a positive int, got True"),
        ({"lr": -1.0}, "lr must be finite and positive, got -1.0"),
        ({"beta": (10.0, 0.0)}, "beta must be finite and positive, got 0.0"),
        ({"beta": (1.0, 2.0, 3.0)}, "beta must be"),
        ({"c": -1.0}, "c must be finite and not negative"),
        ({"output": "probability"}, "output must be one of 'softmax', 'logits'"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of 'adam', 'descent'"),
        ({"bounds": (0.0,)}, "bounds must be"),
        ({"bounds": None}, r"bounds must be \(lowest, highest\), got None"),
        ({"bounds": "01"}, "bounds must be"),
        ({"redraw": True}, "redraw must come with a SmoothGrad explainer"),
        ({"judge_every": 0}, "judge_every must be a positive int"),
        ({"judge_every": True}, "judge_every must be a positive int"),
        ({"stop": "a"}, r"stop must be a correlation, -1 \.\. 1, got a"),
        ({"stop": True}, "stop must be a correlation"),
        ({"stop": 1.5}, "stop must be a correlation"),
    ],
)
def test_setting_errors(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Manipulation(Gradient(cnn())), **change)


def test_kind_errors():
    with pytest.raises(TypeError, match="explainer must be a fastxai explainer, got Sequential"):
        Manipulation(cnn())  # type: ignore[arg-type]
    attack = Manipulation(Gradient(cnn()), steps=1, bounds=CHANNELS)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        attack.perturb([1.0], pairs()[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target_map must be a torch\.Tensor"):
        attack.perturb(pairs()[0], None)  # type: ignore[arg-type]


def test_input_errors():
    x, target_map = pairs()
    attack = Manipulation(Gradient(cnn()), steps=1, bounds=CHANNELS)
    zero, infinite = target_map.clone(), target_map.clone()
    zero[1], infinite[2, 0, 0] = 0.0, float("inf")
    for images, h, message in (
        (x[0], target_map, r"x must have shape \[N, C, H, W\]"),
        (x[..., :6], target_map, "at least 7"),
        (x, target_map[:, :5], r"target_map must have shape \[3, 8, 8\] or \[3, 3, 8, 8\]"),
        (x, target_map[:2], "target_map must have shape"),
        (x, target_map.float(), "target_map must have x's dtype"),
        (x, zero, "target_map must have a positive sum in every sample"),
        (x, -target_map, "target_map must have a positive sum in every sample"),
        (x, target_map - target_map.mean() / 2, r"target_map must not be negative, as sums of \|\.\| are not, got -"),
        (x, infinite, "target_map must be finite"),
        (x + 5, target_map, "x must lie within the bounds"),
        (x * float("nan"), target_map, "x must lie within the bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            attack.perturb(images, h)
    with pytest.raises(ValueError, match=r"target must lie in 0 \.\. 4"):
        attack.perturb(x, target_map, 5)
    for bounds, message in (((1.0, 0.0), "lowest < highest"), (([0.0, 0.0], 1.0), "numbers or 3 values")):
        with pytest.raises(ValueError, match=message):
            Manipulation(Gradient(cnn()), bounds=bounds).perturb(x.abs(), target_map)
    assert isinstance(attack.explainer, Explainer)
