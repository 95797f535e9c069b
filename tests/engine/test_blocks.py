"""Blocks of several nodes, heads, input preparation, and what a differentiable map promises."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from engine.nets import directions, error, gradient, hvp, randomise
from engine.sandwich import C, H, W, build, check, loss, sample, through_autograd, through_engine
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastxai

conv = partial(nn.Conv2d, C)


class Blocks(nn.Module):
    """Small modules that read an activation twice, share weights, or gate."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(C), nn.ReLU(inplace=True)
        self.down, self.up = nn.Linear(C, 2), nn.Linear(2, C)
        self.scale, self.shift = nn.Parameter(torch.randn(C, 1, 1)), nn.Parameter(torch.randn(1, C, 1, 1))
        self.gain = nn.Parameter(torch.tensor(0.7))
        if kind == "tied":
            self.b.weight = self.a.weight
        if kind == "weight-norm":
            self.a = parametrizations.weight_norm(self.a)

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "residual":
                return self.act(self.bn(self.b(self.act(self.a(x)))) + x)
            case "residual-inplace":
                y = self.a(x)
                y += x
                return self.act(y)
            case "pre-activation":
                return x + self.a(self.act(self.bn(x)))
            case "two-branches":
                return self.act(self.a(x) + self.bn(self.b(x)))
            case "shared-module":
                return self.a(self.act(self.a(self.act(self.a(x)))))
            case "norm-of-two-readers":
                y = self.a(x)
                return self.bn(y) + y.tanh()
            case "bias-of-two-readers":
                y = self.a(x)
                return self.act(y) * y
            case "squeeze-excite":
                gate = self.up(torch.tanh(self.down(x.mean((2, 3)))))
                return x * gate.sigmoid().view(-1, C, 1, 1)
            case "parameters":
                return self.gain * (self.scale * x + self.shift) - self.scale / 3
            case "stacked":
                return torch.cat([self.a(x), self.act(self.b(x))], 1)
            case _:
                return self.b(self.act(self.a(x)))


BLOCKS = [
    *("residual", "residual-inplace", "pre-activation", "two-branches", "shared-module", "norm-of-two-readers"),
    *("bias-of-two-readers", "squeeze-excite", "parameters", "stacked", "tied", "weight-norm"),
]


@pytest.mark.parametrize("kind", BLOCKS)
def test_block(kind: str) -> None:
    check(build(Blocks(kind)), sample(), beta=3.0)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_under_the_curvature_surrogate(kind: str, n: int) -> None:
    check(build(Blocks(kind)), sample(n), beta=3.0, kind="curvature")


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(dim=-1), nn.Tanh(), nn.ReLU6()], ids=repr)
def test_head(head: nn.Module) -> None:
    check(nn.Sequential(build(nn.ReLU()), head), sample(), beta=2.0)


def test_dense_network() -> None:
    model = randomise(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ELU(), nn.Linear(6, 3)))
    check(model.double(), sample()[:, 0, 0, :5], beta=2.0)


def test_sequences_of_vectors() -> None:
    layers = (nn.Linear(W, 5), nn.GELU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(H * 4, 3))
    check(randomise(nn.Sequential(*layers)).double(), sample()[:, 0])


class Preparing(nn.Module):
    """Input preparation inside the model, as Caffe's networks want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) * 2.55 - x.new_tensor([1.04, 1.17]).view(1, 2, 1, 1)
        return self.model((x - 0.5) / 0.25)


def test_preparation_inside_the_model() -> None:
    model = build(conv(5, 3, padding=1))
    check(Preparing(model), sample(), beta=2.0)


@pytest.mark.parametrize("mean, std", [([0.3, -0.2], None), (None, (0.5, 2.0)), (torch.tensor([0.1, 0.4]), [0.3, 0.6])])
def test_preparation_by_compile(mean: object, std: object) -> None:
    model, x, target = build(conv(5, 3, padding=1)), sample(), torch.tensor([0, 2, 1])

    def prepared(x: Tensor) -> Tensor:
        for values, op in ((mean, torch.sub), (std, torch.div)):
            if values is not None:
                x = op(x, torch.as_tensor(values, dtype=x.dtype).view(2, 1, 1))
        return model(x)

    net = fastxai.compile(model, mean=mean, std=std)  # type: ignore[arg-type]
    g, hv = hvp(prepared, x, directions(x, 2), target)
    assert net.report(x).engine
    assert error(net(x), prepared(x)) < 1e-12
    assert error(net.gradient(x, target), g) < 1e-12
    assert error(net.hvp(x, directions(x, 2), target), hv, 2) < 1e-11
    for want, got in zip(
        through_autograd(model, prepared, x, target), through_engine(model, net, x, target), strict=True
    ):
        assert float((got - want).norm()) <= 1e-11 * float(want.norm()) + 1e-13


def test_only_the_parameters_that_want_a_gradient_get_one() -> None:
    model, x = build(Blocks("residual")), sample()
    model.stem.weight.requires_grad_(False)
    net = fastxai.compile(model, surrogate="curvature", beta=2.0)
    loss(*net.differentiable_gradient(x, 1)).backward()
    assert model.stem.weight.grad is None and model.stem.bias.grad is not None
    for p in model.parameters():
        p.grad = None
    x = x.requires_grad_()
    loss(*net.differentiable_gradient(x, 1, parameters=False)).backward()
    assert x.grad is not None and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["residual", "squeeze-excite", "tied", "parameters"])
def test_gradcheck_of_the_map_in_the_input_and_every_parameter(kind: str) -> None:
    model = build(Blocks(kind))

    def heat_and_scores(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # A net of its own for each call: gradcheck perturbs parameters through .data, unseen by a net that lives on.
        return fastxai.compile(model).with_activation("softplus", beta=2.0).differentiable_gradient(x, 1)

    inputs = (sample(2).requires_grad_(), *model.parameters())
    assert torch.autograd.gradcheck(heat_and_scores, inputs, fast_mode=True)


def test_a_map_is_differentiated_once() -> None:
    net = fastxai.compile(build(nn.Tanh()))
    x = sample().requires_grad_()
    heat, _ = net.differentiable_gradient(x, 1)
    (g,) = torch.autograd.grad(heat.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fallback"):
        g.sum().backward()


def test_gradient_of_a_gradient_matches_through_the_fallback() -> None:
    model, x = build(nn.Tanh()), sample()
    net = fastxai.compile(model, fallback=True)
    want = through_autograd(model, model, x, torch.arange(3))
    got = through_engine(model, net, x, torch.arange(3))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(want, got, strict=True))
    assert error(net.gradient(x, 1), gradient(model, x, 1)) < 1e-14
