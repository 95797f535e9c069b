"""The public activations under torch.func, torch.autograd.functional and forward mode."""

from __future__ import annotations

from functools import partial

import torch
from ops.curves import BACKENDS, CASES, CURVED, EACH, EACH_CURVED, c, loss, points, tower
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd import functional as AF

from fastxai import ops
from fastxai.ops._formula import needs_formula


@EACH
def test_torch_func(name: str) -> None:
    ours, theirs = (partial(loss, f) for f in CASES[name])
    x, v = points(4).detach(), points(4).detach().flip(0)
    compare = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    compare(torch.func.grad(ours)(x), torch.func.grad(theirs)(x))
    compare(torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,)))
    compare(torch.func.hessian(ours)(x), torch.func.hessian(theirs)(x))
    compare(torch.func.jacrev(torch.func.jacrev(ours))(x), torch.func.hessian(theirs)(x))
    compare(torch.func.jvp(torch.func.grad(ours), (x,), (v,)), torch.func.jvp(torch.func.grad(theirs), (x,), (v,)))
    stacked = torch.stack([x, v, x + v])
    compare(torch.vmap(torch.func.grad(ours))(stacked), torch.vmap(torch.func.grad(theirs))(stacked))
    compare(torch.vmap(ours, in_dims=1)(stacked), torch.vmap(theirs, in_dims=1)(stacked))


@BACKENDS
@EACH
def test_torch_autograd_functional(name: str) -> None:
    ours, theirs = (partial(loss, f) for f in CASES[name])
    x, v = points(4).detach(), points(4).detach().flip(0)
    compare = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    wanted = torch.func.hessian(theirs)(x)
    compare(AF.hvp(ours, x, v)[1], wanted @ v)
    compare(AF.vhp(ours, x, v)[1], v @ wanted)
    compare(AF.hessian(ours, x), wanted)
    compare(AF.hessian(ours, x, vectorize=True), wanted)
    compare(AF.hessian(ours, x, vectorize=True, outer_jacobian_strategy="forward-mode"), wanted)
    compare(AF.jacobian(CASES[name][0], x, vectorize=True), AF.jacobian(CASES[name][1], x))


@BACKENDS
def test_hvp_is_not_zero() -> None:
    """An op without a backward of its own only warns and gives zeros; hvp differentiates once more than it returns."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    _, got = AF.hvp(lambda x: ops.softplus(x, 2.0).sum(), x, torch.ones_like(x))
    torch.testing.assert_close(got, c(x, 2.0), rtol=1e-12, atol=0)


def test_forward_mode_is_not_zero() -> None:
    """An op with only a backward strips tangents without a word."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    with forward_ad.dual_level():
        y = ops.softplus(forward_ad.make_dual(x, torch.ones_like(x)), 2.0)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, torch.sigmoid(2 * x), rtol=1e-12, atol=0)


@BACKENDS
def test_tangent_that_enters_through_the_cotangent() -> None:
    """The op has run already; the dual number meets its backward only, or its backward's backward."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    gy = torch.full_like(x, 3.0, requires_grad=True)
    y, t, s1 = ops.softplus(x, 2.0), torch.arange(5, dtype=torch.float64), torch.sigmoid(2 * x)
    (gx,) = torch.autograd.grad(y, x, gy, create_graph=True)

    def pull(gy: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, gy, retain_graph=True)[0]

    def pull_twice(ggx: Tensor) -> Tensor:
        return torch.stack(torch.autograd.grad(gx, (x, gy), ggx, retain_graph=True))

    second = torch.stack([c(x, 2.0) * 3 * t, s1 * t])
    for f, wanted in ((pull, s1 * t), (pull_twice, second)):
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(torch.ones_like(x), t))).tangent
        torch.testing.assert_close(tangent, wanted, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.func.jvp(f, (torch.ones_like(x),), (t,))[1], wanted, rtol=1e-12, atol=0)
        both = torch.vmap(lambda u, f=f: torch.func.jvp(f, (torch.ones_like(x),), (u,))[1])(torch.stack([t, -t]))
        torch.testing.assert_close(both, torch.stack([wanted, -wanted]), rtol=1e-12, atol=0)


def test_needs_formula_sees_every_transform() -> None:
    x, seen = torch.zeros(3), []

    def probe(t: Tensor) -> Tensor:
        seen.append((needs_formula(t), needs_formula(x)))
        return t.sum()

    torch.func.grad(probe)(x)
    torch.vmap(probe)(x)
    torch.func.jvp(probe, (x,), (x,))
    assert seen == [(True, True)] * 3
    assert not needs_formula(x)
    with forward_ad.dual_level():
        assert needs_formula(forward_ad.make_dual(x, x)) and not needs_formula(x)


def test_closed_over_by_a_transform() -> None:
    """A tensor that requires grad and is not the transform's own argument keeps its graph."""
    x = points(4)
    out = torch.func.grad(lambda w: (w * ops.softplus(x)).sum())(torch.ones(4, dtype=torch.float64))
    (g,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(g, torch.sigmoid(x), rtol=1e-12, atol=0)


@BACKENDS
@EACH_CURVED
def test_surrogate_tower_on_every_route(name: str) -> None:
    """s'' and its own derivatives, by backward over backward and by forward over backward."""
    ours, theirs, second = CURVED[name]
    x = torch.cat([points(9).detach(), torch.tensor([0.0, 6.0])]).requires_grad_()
    wanted = [*tower(theirs, x, 1), *tower(second, x, 2)]
    nested, by_func = ours, []
    for _ in range(4):
        nested = torch.func.grad(lambda t, f=nested: f(t).sum())
        by_func.append(nested(x.detach()))
    compare = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-13)
    for mine, other in zip(tower(ours, x, 4), wanted, strict=True):
        compare(mine, other)
    for mine, other in zip(by_func, wanted[1:], strict=True):
        compare(mine, other)
    flat = x.detach()
    gradient = torch.func.grad(lambda t: ours(t).sum())
    compare(torch.func.jvp(gradient, (flat,), (flat.cos(),))[1], wanted[2] * flat.cos())
    compare(torch.func.hessian(lambda t: ours(t).sum())(flat), torch.diag(wanted[2]))
    compare(torch.func.jacrev(gradient)(flat), torch.diag(wanted[2]))
    compare(AF.hvp(lambda t: ours(t).sum(), flat, flat.cos())[1], wanted[2] * flat.cos())
