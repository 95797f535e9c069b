"""PatternAttribution against a recursion written out by hand, and its derivative against autograd and gradcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastxai
from fastxai.explainers import PatternAttribution, Patterns, PatternTrainer


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5), nn.ReLU(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip


def patterns_of(model: nn.Module) -> Patterns:
    return PatternTrainer(model).fit([torch.randn(60, 2, 6, 6, dtype=torch.float64)])


def by_hand(model: nn.Sequential, tensors: dict[str, Tensor], x: Tensor, k: int, beta: float | None) -> Tensor:
    """The recursion of the paper for this one architecture, in operations that autograd differentiates."""

    def act(a: Tensor) -> Tensor:
        return F.relu(a) if beta is None else -F.logsigmoid(-beta * a) / beta

    def gate(a: Tensor) -> Tensor:
        return (a > 0).to(a.dtype) if beta is None else torch.sigmoid(beta * a)

    conv, first, last = model[0], model[4], model[6]
    assert isinstance(conv, nn.Conv2d) and isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    a_1 = conv(x)
    pooled, where = F.max_pool2d(act(a_1), 2, return_indices=True)
    a_2 = first(pooled.flatten(1))
    r = (last.weight * tensors["6.weight"])[k].expand(len(x), -1)
    r = (r * gate(a_2)) @ (first.weight * tensors["4.weight"])
    spread = torch.zeros_like(a_1).flatten(2).scatter(2, where.flatten(2), r.view_as(pooled).flatten(2)).view_as(a_1)
    return F.conv_transpose2d(spread * gate(a_1), conv.weight * tensors["0.weight"], padding=1)


@pytest.mark.parametrize("beta", [None, 2.0])
def test_map_and_derivatives(beta: float | None) -> None:
    model = net()
    patterns = patterns_of(model)
    compiled = fastxai.compile(model) if beta is None else fastxai.compile(model, activation="softplus", beta=beta)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *model.parameters()]
    v = torch.randn(x.shape, dtype=torch.float64)
    ours = PatternAttribution(compiled, patterns).attribute(x, 1)
    oracle = by_hand(model, dict(patterns.tensors), x, 1, beta)
    assert torch.allclose(ours, oracle, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad((ours * v).sum(), leaves, allow_unused=True),
        torch.autograd.grad((oracle * v).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros((), dtype=v.dtype)
        assert torch.allclose(zero if a is None else a, zero if b is None else b, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    model = net(1)
    patterns = patterns_of(model)

    def explain(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        # gradcheck edits parameters between a map and its backward, which one net rightly refuses.
        smooth = fastxai.compile(model, activation="softplus", beta=1.0)
        return PatternAttribution(smooth, patterns).map_and_scores(x, 2)

    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(explain, (x, *model.parameters()), fast_mode=True)


def test_score_seed_scales_the_map() -> None:
    model = net()
    patterns, x = patterns_of(model), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    one = PatternAttribution(model, patterns).attribute(x, 0)
    scored = PatternAttribution(model, patterns, seed="score").attribute(x, 0)
    assert torch.allclose(scored, one * model(x)[:, 0, None, None, None])


def test_changed_weights_are_seen() -> None:
    model = net()
    patterns, x = patterns_of(model), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    explainer = PatternAttribution(model, patterns)
    explainer.attribute(x, 0)
    with torch.no_grad():
        model[6].weight.mul_(2)  # type: ignore[union-attr]
    assert torch.allclose(explainer.attribute(x, 0), by_hand(model, dict(patterns.tensors), x, 0, None))
