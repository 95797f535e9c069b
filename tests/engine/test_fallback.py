"""The autograd fallback: announced once, naming its cause, with the engine's interface and numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine.nets import directions, error, gradient, hvp, oracle
from engine.small import agrees, batch, small
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastxai


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Flatten(), nn.Linear(60, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Linear(8, 3))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(2 * x if x.mean() > -100 else x)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(60, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 1).reshape(len(x), 10, 6)
        return self.head(F.relu(self.attention(x, x, x, need_weights=False)[0]).flatten(1))


class Discarding(nn.Module):
    """Uses the in-place effect of an activation and not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(60, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x.flatten(1)))
        F.relu_(h)
        h = 2 * h - 1
        F.leaky_relu(h, 0.1, True)
        h = h.clamp(min=0) + h.clamp_min(0)
        return self.b(h)


class TestFallback:
    @pytest.mark.parametrize(
        "make, word",
        [
            (Normed, r"layer_norm at 'body.2'"),
            (Deciding, "shape-only"),
            (Attending, "attention"),
            (Discarding, "layer_norm at 'norm'"),
        ],
        ids=["layer-norm", "control-flow", "attention", "in-place"],
    )
    def test_is_announced_once_and_gives_equal_numbers(self, make: Callable[[], nn.Module], word: str) -> None:
        torch.manual_seed(0)
        model, x = make().double().eval(), batch()
        net = fastxai.compile(model)
        with pytest.warns(UserWarning, match=word) as said:
            net(x)
        assert len(said) == 1
        assert "fallback=True" in str(said[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            view, bent = net.with_activation("softplus", beta=3.0), fastxai.compile(model, fallback=True)
            net(x), net(batch(2)), view(x), bent(x)
            report = net.report(x)
        assert not report.engine and report.reason in str(report)
        vs = directions(x, 2)
        f = oracle(model, 3.0)
        with sdpa_kernel(SDPBackend.MATH):  # no other attention has a second derivative
            g, hv = hvp(f, x, vs, 1)
            bent_g, bent_hv = hvp(oracle(model, 2.0, "curvature"), x, vs, 1)
        assert error(view(x), f(x)) < 1e-12
        assert error(view.gradient(x, 1), g) < 1e-12
        assert error(view.hvp(x, vs, 1), hv, 2) < 1e-12
        assert error(net.gradient(x), gradient(model, x, model(x).argmax(1))) < 1e-12
        bent = fastxai.compile(model, surrogate="curvature", beta=2.0, fallback=True)
        assert error(bent.gradient(x, 1), bent_g) < 1e-12
        assert error(bent.hvp(x, vs, 1), bent_hv, 2) < 1e-12

    def test_another_shape_does_not_announce_again(self) -> None:
        layers = (nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        net = fastxai.compile(nn.Sequential(*layers))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for size in (5, 6, 7):
                net(torch.rand(2, 2, size, size))
        assert len(said) == 1

    def test_asked_for(self) -> None:
        model, x = small(), batch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = fastxai.compile(model, activation="softplus", beta=3.0, fallback=True)
            assert agrees(plain, model, x)
        assert "fallback=True" in plain.report(x).reason

    def test_differentiates_a_map_any_number_of_times(self) -> None:
        model, x = small(), batch().requires_grad_()
        net = fastxai.compile(model, activation="softplus", beta=3.0, fallback=True)
        heat, _ = net.differentiable_gradient(x, 1)
        (g,) = torch.autograd.grad(heat.square().sum(), x, create_graph=True)
        (third,) = torch.autograd.grad(g.square().sum(), x)
        assert float(third.norm()) > 0

    def test_a_pool_too_large_for_the_kernel_falls_back(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.MaxPool2d(16), nn.Flatten()).double()
        x = torch.rand(2, 2, 16, 16, dtype=torch.float64)
        with pytest.warns(UserWarning, match="max_pool2d"):
            got = fastxai.compile(model).gradient(x, 1)
        assert error(got, gradient(model, x, 1)) < 1e-12


class Kinked(nn.Module):
    """Dense layers with a function between them, which the engine has no node for."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.act, self.second = nn.Linear(60, 8), act, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x.flatten(1)) * 2))


def soft(a: Tensor, beta: float = 3.0) -> Tensor:
    return F.softplus(a, beta, threshold=200)


SLOPES = torch.linspace(-0.5, 1.5, 8, dtype=torch.float64)
KINKS = {
    "prelu": (nn.PReLU(), lambda a: soft(a) - 0.25 * soft(-a)),
    "prelu-each": (lambda a: F.prelu(a, SLOPES), lambda a: soft(a) - SLOPES * soft(-a)),
    "prelu-named": (lambda a: F.prelu(input=a, weight=SLOPES), lambda a: soft(a) - SLOPES * soft(-a)),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), lambda a: -0.5 + soft(a + 0.5) - soft(a - 2.0)),
    "hardtanh-own": (F.hardtanh, lambda a: -1.0 + soft(a + 1.0) - soft(a - 1.0)),
    "hardtanh_": (lambda a: (F.hardtanh_(a, max_val=0.3), a)[1], lambda a: -1.0 + soft(a + 1.0) - soft(a - 0.3)),
    "hardtanh-above": (lambda a: F.hardtanh(a, -math.inf, 0.3), lambda a: 0.3 - soft(0.3 - a)),
    "hardtanh-below": (lambda a: F.hardtanh(a, -0.3, math.inf), lambda a: soft(a + 0.3) - 0.3),
    "threshold": (nn.Threshold(0, 0), soft),
    "threshold_": (lambda a: (F.threshold_(a, 0, 0), a)[1], soft),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_that_have_no_node_are_smoothed(name):
    kinked, smooth = KINKS[name]
    model, x = Kinked(kinked).double(), batch()
    net = fastxai.compile(model, fallback=True)
    assert net.smooths(x)
    view, want = net.with_activation("softplus", 3.0), Kinked(smooth).double()
    pairs = (view(x), want(x)), (net(x), model(x)), (view.gradient(x, 0), gradient(want, x, 0))
    v = directions(x, 1)
    pairs += ((view.hvp(x, v[0], 0), hvp(want, x, v, 0)[1][0]),)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", [nn.GELU(), torch.abs, lambda a: torch.where(a > 0, a, 0 * a), nn.Threshold(0.5, 0.0)])
def test_a_view_that_smooths_nothing_says_so(act):
    x = batch()
    net = fastxai.compile(Kinked(act).double(), fallback=True)
    assert not net.smooths(x)
    with pytest.warns(UserWarning, match="softplus takes the place of nothing in Kinked"):
        same = net.with_activation("softplus", 3.0)(x)
    assert torch.equal(same, net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.with_activation("softplus", 1.0)(x)


def test_what_one_batch_passes_by_others_may_meet():
    class Choosing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(F.relu(one) if one.sum() > 0 else one).sum() * torch.ones(3) for one in x.float()])

    def signed(sign: float) -> Tensor:
        return sign * torch.rand(2, 1, 3, 3)

    class Empty(Choosing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) else torch.zeros(0, 3)

    net = fastxai.compile(Empty(), fallback=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.with_activation("softplus", 1.0)(signed(1)[:0])
    assert [net.smooths(x) for x in (signed(1)[:0], signed(-1), signed(1), signed(-1))] == [False, False, True, True]


def test_a_warning_points_at_the_users_line():
    for work in (
        lambda net, x: net.with_activation("softplus", 3.0)(x),
        lambda net, x: net.with_activation("softplus", 3.0).hvp(x, x, 0),
        lambda net, x: fastxai.Gradient(net.with_activation("softplus", 3.0)).attribute(x),
        lambda net, x: fastxai.SmoothGrad(fastxai.Gradient(net.with_activation("softplus", 3.0))).attribute(x),
    ):
        with pytest.warns(UserWarning, match="takes the place of nothing") as said:
            work(fastxai.compile(Kinked(nn.GELU()).double(), fallback=True), batch())
        assert [warning.filename for warning in said] == [__file__]


def test_the_engine_knows_what_softplus_changes():
    x = batch()
    kinked, smooth = (
        fastxai.compile(nn.Sequential(nn.Flatten(), nn.Linear(60, 3), act).double()) for act in (nn.ReLU6(), nn.ELU())
    )
    assert kinked.report(x).engine and kinked.smooths(x)
    assert smooth.report(x).engine and not smooth.smooths(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("act", "high"), [(F.hardtanh, 1.0), (F.relu6, 6.0)])
@pytest.mark.parametrize("view", ["with_activation", "with_surrogate"])
def test_bounded_activations_stay_bounded_far_out(dtype, act, high, view):
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return act(x)

    net = fastxai.compile(Alone(), fallback=True)
    kind = {"with_activation": "softplus", "with_surrogate": "curvature"}[view]
    x = torch.tensor([[1e2, 1e3, 3e4, -3e4], [1e4, 2e4, -1e2, 5e4]]).to(dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        x = torch.cat([x, 1e4 * x])
    want = torch.where(x > 0, high, -1.0 if act is F.hardtanh else 0.0).to(dtype)
    torch.testing.assert_close(getattr(net, view)(kind, 2.0)(x), want, rtol=0, atol=1e-3)
    assert getattr(net, view)(kind, 2.0).gradient(x, 0).abs().max().item() < 1e-60
