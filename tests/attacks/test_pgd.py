"""PGD: the algorithm step by step, the best loss, and what it attacks."""

from __future__ import annotations

import pytest
import torch
from attacks.nets import CHANNELS, REPOSITORY, cnn, load
from torch import Tensor, nn
from torch.nn import functional

import fastxai
from fastxai import PGD, AdversarialIFIA, Gradient

LOW, HIGH = (torch.tensor(b, dtype=torch.float64).view(1, 3, 1, 1) for b in CHANNELS)
Y = torch.tensor([0, 1, 2, 3])


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def attack(**changes) -> PGD:
    changes = {"eps": 0.2, "steps": 6, "bounds": CHANNELS} | changes
    return PGD(changes.pop("net", cnn()), **changes)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_step_by_step(norm, steps):
    plain = load(REPOSITORY / "bench" / "references" / "ifia.py")
    x, one = images(), attack(norm=norm, steps=steps, rel_stepsize=0.3)
    result, model = one.perturb(x, Y), cnn().requires_grad_(False)
    shaped = plain.Settings(0.2, one.step_size, steps, norm, plain.gradient, plain.pcl, LOW, HIGH)
    for n in range(4):
        iterates, losses = plain.adversarial_ifia(model, x[n : n + 1], x[n : n + 1], Y[n].item(), shaped, 0.0)
        torch.testing.assert_close(result.history["loss"][:, n], torch.tensor(losses, dtype=torch.float64))
        best = max(range(steps + 1), key=losses.__getitem__)
        assert result.best_step[n] == best and result.best_restart[n] == 0
        torch.testing.assert_close(result.images[n : n + 1], iterates[best], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"norm": "l2", "eps": 2.0, "restarts": 3}, {"random_start": True}])
def test_it_is_adversarial_ifia_without_maps(changes):
    x, net = images(), fastxai.compile(cnn())
    settings = {"eps": 0.2, "steps": 5, "bounds": CHANNELS} | changes
    ours, other = (
        PGD(net, **settings).perturb(x, Y),
        AdversarialIFIA(Gradient(net), **settings, lambda_=0.0).perturb(x, Y),
    )
    torch.testing.assert_close(ours.images, other.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.history["loss"], other.history["loss"])
    assert torch.equal(ours.best_restart, other.best_restart)


def test_the_highest_loss_of_all_restarts_and_iterates_is_returned():
    x = images()
    result = attack(restarts=4, rel_stepsize=2.0).perturb(x, Y)
    loss = functional.cross_entropy(cnn()(result.images), Y, reduction="none").detach()
    torch.testing.assert_close(result.terms["loss"], loss)
    torch.testing.assert_close(loss, result.history["loss"].amax(0))
    assert bool((loss >= attack(rel_stepsize=2.0).perturb(x, Y).terms["loss"] - 1e-12).all())
    assert torch.equal(result.class_kept, cnn()(result.images).argmax(1) == cnn()(x).argmax(1))
    assert bool(((result.images - x).abs() <= 0.2 * (1 + 1e-12)).all())
    assert bool(((result.images >= LOW) & (result.images <= HIGH)).all())


def test_a_batch_is_its_samples():
    x, index, one = images(), torch.tensor([5, 0, 9, 3]), attack(restarts=3, random_start=True)
    together = one.perturb(x, Y, index=index)
    parts = [one.perturb(x[n : n + 1], Y[n : n + 1], index=index[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), together.images, rtol=0, atol=1e-12)
    assert torch.equal(torch.cat([part.best_restart for part in parts]), together.best_restart)


def test_it_attacks_the_model_as_given_in_eval_mode():
    x, model = images(), cnn()
    want = attack(net=model).perturb(x, Y).images
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(attack(net=model).perturb(x, Y).images, want, rtol=0, atol=1e-13)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for net in (
        fastxai.compile(cnn(), activation="softplus", beta=2.0),
        fastxai.compile(cnn(), surrogate="curvature", beta=2.0),
        fastxai.compile(cnn(), fallback=True),
    ):
        torch.testing.assert_close(attack(net=net).perturb(x, Y).images, want, rtol=0, atol=1e-12)


def test_edges():
    x = images()
    none = attack(restarts=2).perturb(x[:0], Y[:0])
    assert none.images.shape == (0, 3, 8, 8) and none.history["loss"].shape == (7, 0)
    still = attack(steps=0).perturb(x, Y)
    assert torch.equal(still.images, x) and bool(still.class_kept.all())
    torch.testing.assert_close(attack().perturb(x).images, attack().perturb(x, cnn()(x).argmax(1)).images)
    preset = PGD.preset(cnn(), "mnist")
    assert (preset.eps, preset.steps, preset.step_size) == (0.3, 40, pytest.approx(0.009))
    flat = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    assert PGD(flat, eps=0.1, norm="l2").perturb(torch.rand(5, 6, dtype=torch.float64)).images.shape == (5, 6)


def test_errors():
    with pytest.raises(TypeError, match=r"net must be a compiled net or a torch\.nn\.Module, got str"):
        PGD("resnet", eps=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"y must lie in 0 \.\. 4, got 7 \.\. 7"):
        attack().perturb(images(), 7)
    with pytest.raises(ValueError, match="x must have the model's dtype"):
        attack().perturb(images().float())
    with pytest.raises(ValueError, match="eps must be finite and positive"):
        attack(eps=float("inf"))
