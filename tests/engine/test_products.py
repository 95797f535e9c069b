"""Losses on Hessian-vector products: every gradient against triple-backward autograd, and the norm they estimate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from engine.nets import directions, error, oracle, zoo
from engine.small import batch, small, smooth
from torch import Tensor, nn

import fastxai

ZETA = 1e-2
TARGET = torch.tensor([0, 2, 1, 1])


def head(output: str, scores: Tensor, target: Tensor) -> Tensor:
    """f by plain torch."""
    picked = {"logit": scores, "probability": scores.softmax(1), "cross_entropy": -scores.log_softmax(1)}[output]
    return picked.gather(1, target[:, None]).sum()


def penalty(hv: Tensor, scores: Tensor, target: Tensor, merged: bool) -> Tensor:
    """zeta mean ||H v||^2, with the cross-entropy where it is merged."""
    value = ZETA * hv.flatten(2).square().sum(2).mean()
    return value + F.cross_entropy(scores, target) if merged else value


def by_autograd(
    model: nn.Module, beta: float | None, x: Tensor, vs: Tensor, target: Tensor, output: str, merged: bool
) -> list[Tensor]:
    x, vs = x.detach().requires_grad_(), vs.detach().requires_grad_()
    scores = oracle(model, beta)(x)
    (g,) = torch.autograd.grad(head(output, scores, target), x, create_graph=True)
    hv = torch.stack([torch.autograd.grad(g, x, v, create_graph=True)[0] for v in vs])
    leaves = [x, vs, *model.parameters()]
    return list(torch.autograd.grad(penalty(hv, scores, target, merged), leaves, materialize_grads=True))


def by_engine(net: fastxai.Net, x: Tensor, vs: Tensor, target: Tensor, output: str, merged: bool) -> list[Tensor]:
    x, vs = x.detach().requires_grad_(), vs.detach().requires_grad_()
    hv, _, scores = net.differentiable_hvp(x, vs, target, output=output)
    leaves = [x, vs, *net.model.parameters()]
    return list(torch.autograd.grad(penalty(hv, scores, target, merged), leaves, materialize_grads=True))


def compare(model: nn.Module, gots: list[Tensor], wants: list[Tensor]) -> None:
    names = ["x", "v", *dict(model.named_parameters())]
    for name, got, want in zip(names, gots, wants, strict=True):
        assert float((got - want).norm()) <= 1e-10 * float(want.norm()) + 1e-14, name


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Softplus(3.0, threshold=1e9), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("merged", [False, True], ids=["alone", "with cross-entropy"])
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("name", ["cnn", "resnet20", "mlp"])
def test_penalty_equals_triple_backward(name: str, probes: int, merged: bool) -> None:
    (model, x), beta = (mlp(), torch.randn(4, 6).double()) if name == "mlp" else zoo(name), 5.0
    if name != "mlp":
        model, x, beta = model, x[:2, :, :24, :24] if name == "resnet20" else x[:2], 10.0
    vs, target = directions(x, probes), TARGET[: len(x)]
    net = fastxai.compile(model, activation="softplus", beta=beta)
    assert net.report(x).engine
    wants = by_autograd(model, beta, x, vs, target, "logit", merged)
    compare(model, by_engine(net, x, vs, target, "logit", merged), wants)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("output", ["logit", "probability", "cross_entropy"])
def test_heads(output: str, probes: int) -> None:
    model, x = small(), batch()
    vs = directions(x, probes)
    wants = by_autograd(model, 3.0, x, vs, TARGET, output, True)
    compare(model, by_engine(smooth(model), x, vs, TARGET, output, True), wants)


def test_values_equal_hvp_and_gradient() -> None:
    net, x = smooth(small()), batch()
    vs = directions(x, 3)
    hv, gradient, scores = net.differentiable_hvp(x, vs, 1)
    assert torch.equal(hv, net.hvp(x, vs, 1))
    assert error(gradient, net.gradient(x, 1)) < 1e-14 and error(scores, net(x)) < 1e-14
    one, _, _ = net.differentiable_hvp(x, vs[0], 1)
    assert one.shape == x.shape and error(one, hv[0]) < 1e-13


def test_gradcheck() -> None:
    model = small()
    x, v = batch(2).requires_grad_(), directions(batch(2), 2).requires_grad_()

    def both(x: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # gradcheck edits parameters between a product and its backward, which one net rightly refuses.
        return smooth(model).differentiable_hvp(x, v, 1, output="probability")

    assert torch.autograd.gradcheck(both, (x, v, *model.parameters()), atol=1e-7, fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: both(x.detach(), v)[0], (v,), atol=1e-8)


def test_only_what_is_asked_for() -> None:
    model, x = small(), batch()
    net, vs = smooth(model), directions(x, 1)
    assert not any(t.requires_grad for t in net.differentiable_hvp(x, vs, 1, parameters=False))
    hv, _, _ = net.differentiable_hvp(x.requires_grad_(), vs, 1, parameters=False)
    hv.square().sum().backward()
    assert x.grad is not None and all(p.grad is None for p in model.parameters())
    wants = by_autograd(model, 3.0, x, vs, torch.full((4,), 1), "logit", False)
    torch.testing.assert_close(x.grad * ZETA / 4, wants[0], rtol=1e-10, atol=1e-14)
    for out in range(3):  # each output alone has a gradient
        value = net.differentiable_hvp(x, vs, 1)[out].square().sum()
        assert torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)[0].isfinite().all()


@pytest.mark.parametrize("output", ["logit", "cross_entropy"])
def test_fallback_equals_engine(output: str) -> None:
    model, x = small(), batch()
    slow = fastxai.compile(model, activation="softplus", beta=3.0, fallback=True)
    vs = directions(x, 2)
    wants = by_engine(slow, x, vs, TARGET, output, True)
    compare(model, by_engine(smooth(model), x, vs, TARGET, output, True), wants)
    assert error(slow.hvp(x, vs, TARGET), smooth(model).hvp(x, vs, TARGET), 2) < 1e-12


def test_under_autocast_nothing_is_rounded() -> None:
    model, x = small(torch.float32), batch(dtype=torch.float32)
    net, vs = smooth(model), directions(x, 1)
    want = net.hvp(x, vs, 1)
    with torch.autocast("cpu", torch.bfloat16):
        got, _, scores = net.differentiable_hvp(x, vs, 1)
        assert torch.equal(net.hvp(x, vs, 1), want) and torch.equal(got, want)
        (got.square().sum() + scores.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_no_samples_and_no_directions() -> None:
    net, x = smooth(small()), batch()
    none, v = (torch.zeros(*shape, *x.shape[1:]).double().requires_grad_() for shape in ((0,), (2, 0)))
    hv, gradient, scores = net.differentiable_hvp(none, v)
    assert hv.shape == (2, 0, *x.shape[1:]) and gradient.shape == (0, *x.shape[1:]) and scores.shape == (0, 3)
    for part in (hv, gradient, scores):
        leaves = [none, v, *net.model.parameters()]
        found = torch.autograd.grad(part.sum(), leaves, retain_graph=True, materialize_grads=True)
        assert all(one.shape == leaf.shape and not one.any() for one, leaf in zip(found, leaves, strict=True))
    assert net.hvp(x, x.new_zeros(0, *x.shape)).shape == (0, *x.shape)


def test_norm_and_its_estimate() -> None:
    net, x = smooth(small()), batch(3)

    def f(one: Tensor) -> Tensor:
        return oracle(net.model, 3.0)(one[None])[0, 1]

    want = torch.stack([torch.autograd.functional.hessian(f, one).norm() for one in x])  # type: ignore[union-attr]
    torch.testing.assert_close(net.hessian_norm(x, 1, None), want, rtol=1e-10, atol=0)
    index = torch.arange(3)
    for kind in ("gaussian", "rademacher"):
        many = net.hessian_norm(x, 1, 3000, kind=kind, index=index)
        torch.testing.assert_close(many, want, rtol=0.05, atol=0)
        few = net.hessian_norm(x, 1, 5, kind=kind, seed=3, index=index)
        torch.testing.assert_close(few[1:], net.hessian_norm(x[1:], 1, 5, kind=kind, seed=3, index=index[1:]))
        error = fastxai.theory.frobenius_norm(net, x, 1, probes=5, kind=kind, seed=3, index=index)
        torch.testing.assert_close(few, error.value)


def test_errors() -> None:
    model, x = small(), batch()
    net = smooth(model)
    with pytest.raises(ValueError, match="surrogate must not be 'curvature' where H v is differentiated"):
        fastxai.compile(model, surrogate="curvature", beta=2.0).differentiable_hvp(x, x)
    with pytest.raises(ValueError, match=r"v must have shape \[4, 2, 6, 5\] or \[S, N, ...\], got \[4, 2, 6\]"):
        net.differentiable_hvp(x, x[..., 0])
    with pytest.raises(ValueError, match="output must be one of 'logit', 'probability', 'cross_entropy', got 'loss'"):
        net.differentiable_hvp(x, x, output="loss")
    for probes in (0, 1.5, "all"):
        with pytest.raises(ValueError, match="probes must be a positive int, or None for all basis vectors"):
            net.hessian_norm(x, probes=probes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be one of 'rademacher', 'gaussian', got 'uniform'"):
        net.hessian_norm(x, kind="uniform")
    hv, _, _ = net.differentiable_hvp(x, x)
    (slope,) = torch.autograd.grad(hv.square().sum(), net.model.heads, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        slope.sum().backward()
    hv, _, _ = net.differentiable_hvp(x, x)
    with torch.no_grad():
        net.model.heads.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|weights changed between"):
        hv.sum().backward()
