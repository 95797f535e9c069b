"""Heads: values and all three derivatives against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hvp, jacobian

from fastxai.engine.heads import head


def squared(z: Tensor, target: Tensor) -> Tensor:
    return z.square().sum(1) * z.gather(1, target[:, None])[:, 0]


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, target, reduction="none")


def first_score(z: Tensor, target: Tensor) -> Tensor:
    return z[:, 0]


FORMULAS = {
    "logit": ("logit", lambda z, k: z[torch.arange(len(z)), k]),
    "probability": ("probability", lambda z, k: F.log_softmax(z, 1).exp()[torch.arange(len(z)), k]),
    "squared": (squared, squared),
    "cross_entropy": ("cross_entropy", cross_entropy),
    "cross_entropy as a function": (cross_entropy, cross_entropy),
    "linear": (first_score, first_score),
    "constant": (lambda z, k: torch.ones_like(z[:, 0]), lambda z, k: 0 * z[:, 0] + 1),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_derivatives_equal_autograd(name, scale, mode):
    output, formula = FORMULAS[name]
    one = torch.ones(1, dtype=torch.float64)
    z, w, u = (scale * torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    k = torch.tensor([0, 1, 2, 3, 3, 0])
    first = jacobian(lambda z: formula(z, k).sum(), z)
    second = hvp(lambda z: formula(z, k).sum(), z, w)[1]
    third = jacobian(lambda t: hvp(lambda z: formula(z, k).sum(), z + t * u, w, create_graph=True)[1], one[:1] * 0)[
        ..., 0
    ]
    with mode():
        f = head(output)
        value, d1, d2, d3 = f.value(z, k), f.d1(z, k), f.d2(z, k, w), f.d3(z, k, u, w)
    torch.testing.assert_close(value, formula(z, k), rtol=1e-13, atol=0)
    torch.testing.assert_close(d1, first, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.zeros_like(z) if d2 is None else d2, second, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(torch.zeros_like(z) if d3 is None else d3, third, rtol=1e-10, atol=1e-13)
    assert f.linear <= (d2 is None and d3 is None)
    assert not any(d is not None and d.requires_grad for d in (d1, d2, d3))


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_do_not_interact(name):
    f = head(FORMULAS[name][0])
    z, w, k = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.tensor([0, 2, 1, 1, 0])
    three, both = f.d2(z, k, w), f.d2(z.repeat(2, 1), k.repeat(2), w.repeat(2, 1))
    torch.testing.assert_close(f.d1(z.repeat(2, 1), k.repeat(2)), f.d1(z, k).repeat(2, 1), rtol=0, atol=0)
    if three is not None:
        assert both is not None
        torch.testing.assert_close(both, three.repeat(2, 1), rtol=0, atol=0)


def test_no_rows():
    z, k = torch.empty(0, 3), torch.empty(0, dtype=torch.long)
    for name in FORMULAS:
        assert head(FORMULAS[name][0]).d1(z, k).shape == (0, 3)


def test_errors():
    with pytest.raises(ValueError, match="output must be one of 'logit', 'probability', 'cross_entropy', got 'margin'"):
        head("margin")
    with pytest.raises(ValueError, match=r"output\(logits, target\) must have shape \[2\], got \[\]"):
        head(lambda z, k: z.sum()).d1(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(TypeError, match=r"output\(logits, target\) must be a torch.Tensor, got float"):
        head(lambda z, k: 1.0).d1(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))  # type: ignore[arg-type,return-value]
