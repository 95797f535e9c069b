"""FAR and its special cases against plain autograd: attack, loss and weights, step by step."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attacks.nets import REPOSITORY, load
from torch import Tensor, nn
from training.far_nets import BETA, EPS, LAMBDA, POINTS, SETTINGS, STEPS, batch, cnn

import fastxai
from fastxai import IFIA, PGD, AdversarialIFIA, _random
from fastxai.training import (
    AAT,
    FAR,
    AdvAAT,
    Align,
    CrossEntropy,
    HessianNorm,
    IGNorm,
    IGSumNorm,
    Objective,
    PerBatch,
    PGDAdversarial,
)


@pytest.fixture(scope="module")
def ifia() -> ModuleType:
    return load(REPOSITORY / "bench" / "references" / "ifia.py")


@pytest.fixture(scope="module")
def far() -> ModuleType:
    return load(REPOSITORY / "bench" / "references" / "far.py")


def starts(x: Tensor, index: Tensor, step: int, *, first: bool, restarts: int) -> Tensor:
    """Where the attacks begin, [R, N, ...]: at x first, or not."""
    u = 2 * _random.uniform((SETTINGS["seed"], step), index, range(int(first), restarts), x[0].numel()) - 1
    drawn = x + (EPS * u).to(x.dtype).view(-1, *x.shape)
    drawn = drawn.clamp(x - EPS, x + EPS).clamp(0, 1)
    return torch.cat([x[None], drawn]) if first else drawn


def special(name: str, **more: Any) -> FAR:
    options = {**SETTINGS, **more}
    outer = options.pop("outer", "curvature")
    match name:
        case "aat":
            return AAT(EPS, LAMBDA, POINTS, outer, **options)
        case "adv_aat":
            return AdvAAT(EPS, LAMBDA, POINTS, outer, **options)
        case "ig_norm":
            return IGNorm(EPS, LAMBDA, POINTS, outer=outer, **options)
        case "ig_sum_norm":
            return IGSumNorm(EPS, LAMBDA, POINTS, outer=outer, **options)
        case "ig_norm of the score":
            return IGNorm(EPS, LAMBDA, POINTS, "logit", outer, **options)
        case "align":
            return Align(EPS, LAMBDA, outer, **options)
    raise AssertionError(name)


def plain_of(name: str, ifia: ModuleType, far: ModuleType, outer: str) -> Any:
    """The same in plain autograd."""
    of_loss = "score" not in name
    path = far.integrated_gradients(POINTS, from_x=True, of_loss=of_loss)
    zero_path = far.integrated_gradients(POINTS)
    explain, d, adversarial, zero = {
        "aat": (zero_path, ifia.pcl, False, False),
        "adv_aat": (zero_path, ifia.pcl, True, False),
        "ig_norm": (path, ifia.l1, False, True),
        "ig_sum_norm": (path, ifia.l1, True, True),
        "ig_norm of the score": (path, ifia.l1, False, True),
        "align": (far.alignment, far.soft, False, True),
    }[name]
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (0.0, 1.0))
    settings = ifia.Settings(EPS, 1.2 * EPS / STEPS, STEPS, "linf", lambda *_: None, d, low, high)
    bend = BETA if outer == "curvature" else None
    return far.Plain(ifia, settings, explain, LAMBDA, adversarial, BETA, bend, zero)


def agree(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, restarts, outer",
    [
        ("aat", 2, "curvature"),
        ("aat", 1, "none"),
        ("adv_aat", 2, "curvature"),
        ("ig_norm", 2, "curvature"),
        ("ig_norm of the score", 1, "none"),
        ("ig_sum_norm", 2, "curvature"),
        ("align", 2, "curvature"),
    ],
)
def test_trains_as_plain_autograd_does(ifia: ModuleType, far: ModuleType, name: str, restarts: int, outer: str) -> None:
    model, copy, (x, y) = cnn(), cnn(), batch()
    # At x, where the maps are equal, PCL's gradient is rounding error, whose sign would count.
    at_x = name in ("ig_sum_norm", "align")
    term = special(name, restarts=restarts, outer=outer, random_start=None if at_x or name == "aat" else True)
    objective = Objective(fastxai.compile(model), [term])
    index = torch.tensor([7, 1, 30, 2])
    plain = plain_of(name, ifia, far, outer)
    for step in range(3):
        began = starts(x, index, step, first=at_x, restarts=restarts)
        for net, loss in ((model, objective(x, y, index)), (copy, far.loss(plain, copy, x, y, began))):
            net.zero_grad()
            loss.backward()
            if net is model:
                got = loss.detach()
            with torch.no_grad():
                for p in net.parameters():
                    assert p.grad is not None
                    p -= 0.05 * p.grad
        torch.testing.assert_close(got, loss.detach(), rtol=1e-10, atol=0)
        agree(model, copy)
    natural = F.cross_entropy(cnn()(x), y)
    assert abs(got - natural) > 1e-3


@pytest.mark.parametrize("ratio", [0.7, 1.0])
def test_pgd_adversarial_training(far: ModuleType, ratio: float) -> None:
    """The loss of a batch whose share is replaced; which share is a function of seed, step and sample."""
    model, copy, (x, y) = cnn(), cnn(), batch(6)
    index = torch.tensor([7, 1, 30, 2, 8, 4])
    term = PGDAdversarial(EPS, ratio, steps=STEPS, rel_stepsize=0.4, seed=5, random_start=True)
    objective = Objective(fastxai.compile(model), [term])
    chosen = []
    for step in range(3):
        u = _random.uniform((5, step, 1), index, range(1), 1)[0, :, 0]
        rows = u <= u.sort().values[math.ceil(ratio * 6) - 1]
        chosen.append(rows)
        began = starts(x, index, step, first=False, restarts=1)[0]
        images = far.pgd(copy, x, y, began, 0.4 * EPS, EPS, STEPS)
        wanted = F.cross_entropy(copy(torch.where(rows[:, None, None, None], images, x)), y)
        loss = objective(x, y, index)
        torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
        for net, value in ((model, loss), (copy, wanted)):
            grads = torch.autograd.grad(value, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    p -= 0.05 * g
        agree(model, copy)
    assert [int(rows.sum()) for rows in chosen] == [5 if ratio < 1 else 6] * 3
    assert (ratio == 1) == all(torch.equal(chosen[0], rows) for rows in chosen)


def test_the_share_is_rounded_up_and_not_by_a_rounding() -> None:
    for ratio, samples in itertools.product((1e-11, 0.07, 0.28, 0.3, 0.7, 1.0), range(1, 120)):
        assert PGDAdversarial(EPS, ratio)._attacked(samples) == math.ceil(Fraction(str(ratio)) * samples)


def test_lambda_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 5 is the natural loss and attacks nothing; eq. 6 is PGD's."""
    model, (x, y) = cnn(), batch()
    net = fastxai.compile(model)
    monkeypatch.setattr(IFIA, "perturb", lambda *_, **__: pytest.fail("attacked"))
    monkeypatch.setattr(AdversarialIFIA, "perturb", lambda *_, **__: pytest.fail("made maps"))
    for term in (AAT(EPS, 0), IGNorm(EPS, 0), Align(EPS, 0)):
        assert torch.equal(Objective(net, [term])(x, y), F.cross_entropy(model(x), y))
    images = PGD(net, eps=EPS, steps=2, seed=(0, 0), restarts=3).perturb(x, y).images
    for term in (
        AdvAAT(EPS, 0, steps=2),
        IGSumNorm(EPS, 0, steps=2, restarts=3),
        PGDAdversarial(EPS, 1, 2, restarts=3),
    ):
        torch.testing.assert_close(Objective(net, [term])(x, y), F.cross_entropy(model(images), y), rtol=1e-12, atol=0)


def test_composes_with_the_hessian_penalty() -> None:
    model, (x, y) = cnn(), batch()
    for layer in (1, 3, 6):
        model[layer] = nn.Softplus(3.0)
    net = fastxai.compile(model)
    terms = [special("aat"), 0.1 * HessianNorm(), 0.5 * PGDAdversarial(EPS, steps=2)]
    parts = [Objective(net, [term])(x, y) for term in terms]
    objective = Objective(net, terms)
    whole = objective(x, y)
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-12, atol=0)
    assert list(objective.parts) == ["aat", "hessian_norm", "pgd_adversarial"]
    wanted = torch.autograd.grad(torch.stack(parts).sum(), list(model.parameters()))
    for got, want in zip(torch.autograd.grad(whole, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


def test_names() -> None:
    terms = [AAT(1), AdvAAT(1), IGNorm(1), IGSumNorm(1), Align(1), PGDAdversarial(1)]
    assert [t.name for t in terms] == ["aat", "adv_aat", "ig_norm", "ig_sum_norm", "align", "pgd_adversarial"]


def test_passes_are_shared_where_modes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss runs no forward pass of its own, unless batch norm is in training mode; then its own statistics move."""
    x, y = batch()
    for norm, training in ((False, True), (True, False), (True, True)):
        for name in ("aat", "adv_aat"):
            model, calls = cnn(norm), []
            net = fastxai.compile(model)
            own = net.differentiable_scores
            monkeypatch.setattr(net, "differentiable_scores", lambda x, own=own, calls=calls: calls.append(x) or own(x))
            objective = Objective(net, [special(name)]).train(training)
            before = {key: t.clone() for key, t in model.state_dict().items()}
            objective(x, y).backward()
            assert len(calls) == (norm and training)
            if norm:
                moved = not torch.equal(before["1.running_mean"], model.state_dict()["1.running_mean"])
                assert moved == training
            if calls:
                assert torch.equal(calls[0], x) == (name == "aat")


def test_batch_norm_in_training_mode(ifia: ModuleType, far: ModuleType) -> None:
    """The loss is that of the present mode; maps and attack are those of eval mode."""
    model, (x, y) = cnn(norm=True), batch()
    objective = Objective(fastxai.compile(model), [special("aat")])
    with torch.no_grad():
        d = (objective.eval()(x, y) - F.cross_entropy(model(x), y)) / LAMBDA
        objective.train().step = 0
        wanted = F.cross_entropy(model(x), y) + LAMBDA * d
        model.load_state_dict(cnn(norm=True).state_dict())
        torch.testing.assert_close(objective(x, y), wanted, rtol=1e-12, atol=0)


def test_random_starts_belong_to_step_and_sample() -> None:
    model, (x, y) = cnn(), batch(6)
    objective = Objective(fastxai.compile(model), [special("aat", steps=0)])
    index = torch.arange(6) + 100
    objective.eval()
    whole = objective(x, y, index)
    parts = torch.stack([objective(x[i : i + 2], y[i : i + 2], index[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(parts.mean(), whole)
    shuffled = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(objective(x[shuffled], y[shuffled], index[shuffled]), whole)
    assert objective(x, y, index + 1) != whole
    objective.step = 1
    assert objective(x, y, index) != whole


def test_smoothed_views_and_autocast() -> None:
    """A smoothed explainer explains another function, so that its scores are not the model's."""
    model, (x, y) = cnn(), batch()
    net = fastxai.compile(model)
    smooth = fastxai.Gradient(net.with_activation("softplus", beta=2.0))
    objective = Objective(net, [FAR("eq6", smooth, eps=EPS, steps=2, lambda_=LAMBDA, seed=(4,))])
    loss = objective.eval()(x, y)
    images = AdversarialIFIA(smooth, eps=EPS, steps=2, lambda_=LAMBDA, seed=(4, 0)).perturb(x, y).images
    d = fastxai.attacks.dissimilarities.pcl(smooth.attribute(images, y), smooth.attribute(x, y))
    torch.testing.assert_close(loss, F.cross_entropy(model(images), y) + LAMBDA * d.mean(), rtol=1e-10, atol=0)
    single = cnn().float()
    objective = Objective(fastxai.compile(single), [special("adv_aat"), CrossEntropy()])
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(x.float(), y)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in single.parameters())


def test_the_outer_step_without_a_surrogate_is_that_of_the_plain_net() -> None:
    """Whatever surrogate view of the net the explainer has."""
    (x, y), gradients = batch(), {}
    for view in (False, True):
        for outer in ("curvature", "none"):
            model = cnn()
            net = fastxai.compile(model)
            one = fastxai.Gradient(net.with_surrogate("curvature", BETA) if view else net)
            Objective(net, [FAR("eq5", one, eps=EPS, lambda_=5.0, outer=outer, **SETTINGS)])(x, y).backward()
            gradients[view, outer] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for outer in ("curvature", "none"):
        torch.testing.assert_close(gradients[True, outer], gradients[False, outer], rtol=0, atol=1e-14)
    assert not torch.allclose(gradients[True, "curvature"], gradients[True, "none"])


def test_terms_tell_all_that_a_term_was_made_with() -> None:
    told = AAT(EPS, n_steps=6).made_with()
    assert told["outer"] == "curvature" and told["lambda_"] == 1.0
    assert told["attack"]["steps"] == 7 and told["attack"]["explainer"]["make"]["n_steps"] == 6
    assert AAT(EPS, n_steps=5).made_with() != told != AAT(EPS, n_steps=6, beta=2.0).made_with()
    assert IGNorm(EPS).made_with() != IGNorm(EPS, output="logit").made_with()
    baselines = torch.rand(1, 4)
    given = (baselines, baselines.clone(), baselines / 2)
    ig = [fastxai.IntegratedGradients(nn.Linear(4, 3), value) for value in given]
    one, alike, other = (json.dumps(FAR("eq5", each, eps=EPS).made_with()) for each in ig)
    assert one == alike != other
    scale = 4
    recursive = lambda net: recursive(net)  # noqa: E731
    makes = (
        fastxai.Gradient,
        fastxai.InputXGradient,
        lambda net: fastxai.Gradient(net),
        lambda net: fastxai.SmoothGrad(fastxai.Gradient(net), 2),
        lambda net: fastxai.SmoothGrad(fastxai.Gradient(net), 3),
        lambda net: fastxai.SmoothGrad(fastxai.Gradient(net), scale),
        lambda net, n=5: fastxai.SmoothGrad(fastxai.Gradient(net), n),
        lambda net, n=6: fastxai.SmoothGrad(fastxai.Gradient(net), n),
        lambda net, n=6: fastxai.SmoothGrad(fastxai.Gradient(net), n + 1),
        lambda net, n=6: fastxai.SmoothGrad(fastxai.Gradient(net), n - 1),
        lambda net: recursive if net is None else fastxai.Gradient(net),
    )
    told = [json.dumps(FAR("eq5", make, eps=EPS).made_with()) for make in makes]
    assert len(set(told)) == len(told) and '"Gradient"' in told[0]


def test_weights_are_not_shared_with_the_attack() -> None:
    """The attack leaves no gradients, frozen weights stay frozen, and no mode changes."""
    model, (x, y) = cnn(norm=True), batch()
    model[0].weight.requires_grad_(False)
    objective = Objective(fastxai.compile(model), [special("aat")])
    value = objective(x, y)
    assert all(p.grad is None for p in model.parameters()) and model.training and x.grad is None
    value.backward()
    assert model[0].weight.grad is None and model[0].bias.grad is not None


def test_errors() -> None:
    net, (x, y) = fastxai.compile(cnn()), batch()
    gradient = fastxai.Gradient(net)
    other = fastxai.Gradient(cnn())
    bare = PerBatch(lambda batch: gradient)

    def term(objective: str = "eq5", attribution: Any = gradient, **more: Any) -> FAR:
        return FAR(objective, attribution, **({"eps": EPS} | more))

    def trained(*given: Any) -> Tensor:
        return Objective(net, [term(*given)])(x, y)

    for kind, message, make in (
        (ValueError, "objective must be one of 'eq5', 'eq6', got 'eq7'", lambda: term("eq7")),
        (TypeError, "attribution must be an explainer, or a function that makes one", lambda: term("eq5", "gradient")),
        (
            TypeError,
            "attribution must make an explainer, got Net",
            lambda: Objective(net, [term("eq5", lambda net: net)])(x, y),
        ),
        (ValueError, "lambda_ must be finite and not negative, got -1", lambda: term(lambda_=-1)),
        (ValueError, "outer must be one of 'curvature', 'none', got 'exact'", lambda: term(outer="exact")),
        (TypeError, "target_map must be a function of the batch", lambda: term(target_map=x)),
        (
            ValueError,
            "attribution must explain the objective's net",
            lambda: Objective(net, [term("eq5", other)])(x, y),
        ),
        (ValueError, "reduce must not be set where S_T is 0", lambda: IGNorm(EPS, reduce="abs_sum")),
        (ValueError, "eps must be finite and positive, got 0", lambda: AAT(0)),
        (ValueError, "n_steps must be at least 1", lambda: AdvAAT(EPS, n_steps=0)),
        (TypeError, "n_steps must be an integer", lambda: IGNorm(EPS, n_steps="auto")),  # type: ignore[arg-type]
        (ValueError, "output must be one of", lambda: IGSumNorm(EPS, output="loss")),
        (TypeError, "unexpected keyword argument 'step'", lambda: Align(EPS, step=3)),
        (ValueError, "ratio must be at most 1, got 1.5", lambda: PGDAdversarial(EPS, 1.5)),
        (ValueError, "ratio must be finite and positive, got 0", lambda: PGDAdversarial(EPS, 0)),
        (ValueError, "x must lie within the bounds", lambda: Objective(net, [AAT(EPS)])(x + 1, y)),
        (TypeError, "make must be callable, got 3", lambda: PerBatch(3)),  # type: ignore[arg-type]
        (RuntimeError, "PerBatch has no map outside an objective", lambda: bare.map_and_scores(x)),
    ):
        with pytest.raises(kind, match=message):
            make()
    assert term("eq6", lambda_=0.3).attack.lambda_ == 0.3  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="no gradient where the attack starts"):
        Objective(net, [term(beta=None)])(x, y)
