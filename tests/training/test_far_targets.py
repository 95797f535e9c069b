"""FAR with target maps of its own: functions, and masks of the data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training.far_nets import EPS, LAMBDA, POINTS, SETTINGS, batch, cnn

import fastxai
from fastxai import IFIA, AdversarialIFIA
from fastxai.training import AAT, FAR, AdvAAT, Objective, masks


def test_target_maps_of_ones_own() -> None:
    """S_T may be given, with channels or without; it counts as constant."""
    model, (x, y) = cnn(), batch()
    net = fastxai.compile(model)
    explainer = fastxai.Gradient(net)
    given = torch.rand(4, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    for target, reduce in ((given, None), (given[:, 0], "abs_sum")):
        attack = IFIA(explainer, eps=EPS, steps=2, seed=1)
        options: dict[str, Any] = {"eps": EPS, "steps": 2, "seed": 1, "lambda_": LAMBDA}
        term = FAR("eq5", explainer, target_map=lambda _, target=target: target, **options)
        loss = Objective(net, [term])(x, y)
        found = attack.perturb(x, y, target.detach())
        h = explainer.attribute(found.images, y)
        if reduce:
            h, goal = (fastxai.explainers.reduce_map(t, how) for t, how in ((h, reduce), (target, None)))
        else:
            goal = target
        d = fastxai.attacks.dissimilarities.pcl(h, goal)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y) + LAMBDA * d.mean(), rtol=1e-10, atol=0)
        loss.backward()
        assert given.grad is None


@pytest.mark.parametrize("channels", [True, False])
def test_masks_are_the_target(channels: bool) -> None:
    """AAT and AdvAAT take S_T from the batch: in the attack, which starts at x, and in the loss."""
    model, (x, y) = cnn(), batch()
    net, g = fastxai.compile(model), torch.Generator().manual_seed(4)
    given = torch.rand(4, 1, 6, 6, generator=g, dtype=torch.float64)
    given = given if channels else given[:, 0]
    explainer = fastxai.IntegratedGradients(net, n_steps=POINTS, method="midpoint")
    options: dict[str, Any] = {**SETTINGS, "seed": (5, 0), "restarts": 2}
    for term, attack in (
        (AAT(EPS, LAMBDA, POINTS, target_map=masks, restarts=2, **SETTINGS), IFIA(explainer, eps=EPS, **options)),
        (
            AdvAAT(EPS, LAMBDA, POINTS, target_map=masks, restarts=2, **SETTINGS),
            AdversarialIFIA(explainer, eps=EPS, lambda_=LAMBDA, **options),
        ),
    ):
        loss = Objective(net, [term])(x, y, masks=given)
        images = attack.perturb(x, y, given).images
        assert (images != x).any()
        h, goal = explainer.attribute(images, y), given
        if not channels:
            h, goal = fastxai.explainers.reduce_map(h), fastxai.explainers.reduce_map(given, None)
        d = fastxai.attacks.dissimilarities.pcl(h, goal)
        natural = F.cross_entropy(model(images if isinstance(attack, AdversarialIFIA) else x), y)
        torch.testing.assert_close(loss, natural + LAMBDA * d.mean(), rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="data must have masks where they are the target map"):
        Objective(net, [term])(x, y)


@pytest.mark.parametrize("dissimilarity", ["pcl", "top_k"])
@pytest.mark.parametrize("bare", [True, False])
def test_samples_without_marks_have_their_own_map(dissimilarity: str, bare: bool) -> None:
    model, (x, y) = cnn(), batch()
    net, g = fastxai.compile(model), torch.Generator().manual_seed(4)
    given = torch.rand(4, 1, 6, 6, generator=g, dtype=torch.float64)
    given[1] = 0
    explainer = fastxai.Gradient(net)
    own = explainer.attribute(x, y).detach()
    full = torch.cat([given[:1], own[1:2], given[2:]])
    given, full = (given[:, 0], full.abs()[:, 0]) if bare else (given, full)
    options: dict[str, Any] = {**SETTINGS, "eps": EPS, "dissimilarity": dissimilarity, "k": 5}
    term = FAR("eq6", explainer, target_map=masks, lambda_=LAMBDA, **options)
    found, want = (Objective(net, [term])(x, y, masks=one) for one in (given, full))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=0)
    assert Objective(net, [term])(x, y, masks=torch.zeros_like(given)).isfinite()


def test_masks_of_any_dtype() -> None:
    model, (x, y) = cnn(), batch()
    given = torch.rand(4, 6, 6) > 0.5
    objective = Objective(fastxai.compile(model), [AAT(EPS, LAMBDA, POINTS, target_map=masks, restarts=1, **SETTINGS)])
    losses = [objective.eval()(x, y, masks=one) for one in (given, given.byte(), given.float(), given.double())]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    torch.testing.assert_close(objective(x, y, masks=given, step=torch.tensor(0)), losses[0])
    for wrong, message in (
        (given[:3], r"masks must have shape \[4, 1, 6, 6\] or \[4, 6, 6\], got \[3"),
        ("none", "masks must be a torch.Tensor, got str"),
        (given.to(torch.complex64), "masks must be real, got torch.complex64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            objective(x, y, masks=wrong)
