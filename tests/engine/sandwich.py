"""A sandwich around what is tested, and the check of all that the engine computes against float64 autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from engine.nets import directions, error, hvp, oracle, randomise
from torch import Tensor, nn

import fastxai
from fastxai import Net

C, H, W = 4, 7, 6
Middle = Callable[[Tensor], Tensor]


class Sandwich(nn.Module):
    """conv, tanh, what is tested, tanh, dense: the tanh bend everything and keep it near one."""

    def __init__(self, middle: Middle, after: Middle = torch.tanh) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, C, 3, padding=1)
        self.middle, self.after = middle, after
        x = torch.zeros(1, 2, H, W)
        if isinstance(middle, nn.Module):
            middle.eval()
        self.head = nn.Linear(self.middle(torch.tanh(self.stem(x))).numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.middle(torch.tanh(self.stem(x)))).flatten(1))


def sample(n: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(11)
    return torch.randn(n, 2, H, W, generator=g, dtype=torch.float64)


def loss(heat: Tensor, scores: Tensor) -> Tensor:
    """A nonlinear loss on a map and the scores, with seeded weights."""
    g = torch.Generator().manual_seed(3)
    r, q = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (heat, scores))
    return (r * heat).sum() + (heat.square() * r.abs()).sum() + (q * scores.sin()).sum()


def through_autograd(model: nn.Module, f: Middle, x: Tensor, target: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    scores = f(x)
    (heat,) = torch.autograd.grad(scores.gather(1, target[:, None]).sum(), x, create_graph=True)
    return list(torch.autograd.grad(loss(heat, scores), [x, *model.parameters()], materialize_grads=True))


def through_engine(model: nn.Module, net: Net, x: Tensor, target: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    heat, scores = net.differentiable_gradient(x, target)
    return list(torch.autograd.grad(loss(heat, scores), [x, *model.parameters()], materialize_grads=True))


def product_loss(hv: Tensor, heat: Tensor, scores: Tensor) -> Tensor:
    """A nonlinear loss on Hessian-vector products, the map and the scores."""
    return loss(hv, scores) + loss(heat, scores)


def products_through_autograd(model: nn.Module, f: Middle, x: Tensor, vs: Tensor, target: Tensor) -> list[Tensor]:
    x, vs = x.detach().requires_grad_(), vs.detach().requires_grad_()
    scores = f(x)
    (heat,) = torch.autograd.grad(scores.gather(1, target[:, None]).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(heat, x, v, create_graph=True, materialize_grads=True)[0] for v in vs]
    value = product_loss(torch.stack(rows), heat, scores)
    return list(torch.autograd.grad(value, [x, vs, *model.parameters()], materialize_grads=True))


def products_through_engine(model: nn.Module, net: Net, x: Tensor, vs: Tensor, target: Tensor) -> list[Tensor]:
    x, vs = x.detach().requires_grad_(), vs.detach().requires_grad_()
    value = product_loss(*net.differentiable_hvp(x, vs, target))
    return list(torch.autograd.grad(value, [x, vs, *model.parameters()], materialize_grads=True))


def check(
    model: nn.Module, x: Tensor, beta: float | None = None, kind: str = "softplus", *, curved: bool = True
) -> None:
    """Scores, gradient, HVP in one and three directions, and gradients of losses on map and HVPs equal autograd's."""
    f = oracle(model, beta, kind)
    net = fastxai.compile(model)
    if beta is not None:
        named = {"activation": "softplus"} if kind == "softplus" else {"surrogate": "curvature"}
        net = fastxai.compile(model, beta=beta, **named)
    target = torch.arange(len(x)) % 3
    vs = directions(x, 3)
    report = net.report(x)
    assert report.engine, str(report)
    assert error(net(x), f(x)) < 1e-12
    g, hv = hvp(f, x, vs, target)
    assert not curved or float(hv.norm()) > 1e-6 * float(g.norm()), (
        "this network has no curvature: the test would show nothing"
    )
    assert error(net.gradient(x, target), g) < 1e-11
    assert error(net.hvp(x, vs[0], target), hv[0]) < 1e-10
    assert error(net.hvp(x, vs, target), hv, 2) < 1e-10
    names = ["x", *dict(model.named_parameters())]
    wants, gots = through_autograd(model, f, x, target), through_engine(model, net, x, target)
    for name, want, got in zip(names, wants, gots, strict=True):
        assert float((got - want).norm()) <= 1e-10 * float(want.norm()) + 1e-13, name
    if kind == "softplus":
        names = ["x", "v", *dict(model.named_parameters())]
        wants = products_through_autograd(model, f, x, vs[:2], target)
        gots = products_through_engine(model, net, x, vs[:2], target)
        for name, want, got in zip(names, wants, gots, strict=True):
            assert float((got - want).norm()) <= 1e-9 * float(want.norm()) + 1e-11, name


def build(middle: Middle, after: Middle = torch.tanh, seed: int = 0) -> nn.Module:
    return randomise(Sandwich(middle, after), seed).double()
