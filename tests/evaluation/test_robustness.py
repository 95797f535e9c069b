"""NA, AA, IN and CO: against the same thing by hand, however the data is cut."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from evaluation.small import coloured, small_net
from scipy.stats import kendalltau
from torch import Tensor, nn

import fastxai
from fastxai import evaluation
from fastxai.evaluation import Robustness, robustness
from fastxai.explainers import Explainer

NAMES = [one.name for one in fields(Robustness)]
LABELS = torch.tensor([0, 1, 2, 0, 2, 2, 0])
CHANGES = {"eps": 0.2, "k": 9, "steps": 3, "restarts": 2, "seed": 5}


def inputs(count: int = 7) -> Tensor:
    return coloured(count).double()


def explainer() -> Explainer:
    return fastxai.Gradient(fastxai.compile(small_net().double()))


def attack(one: Explainer | None = None, **changes: object) -> fastxai.IFIA:
    return fastxai.IFIA.preset(one or explainer(), "cifar10", **{**CHANGES, **changes})


def by_sorting(a: Tensor, b: Tensor, k: int) -> float:
    first, second = (set(x.flatten().argsort(descending=True)[:k].tolist()) for x in (a, b))
    return len(first & second) / k


@pytest.mark.parametrize("reduce", ["abs_sum", "sum", None])
def test_sample_by_sample(reduce: str | None) -> None:
    one, x = explainer(), inputs()
    found = robustness(attack(one), x, LABELS, reduce=reduce)
    assert 0 < found.correct.sum() < 7 and found.moved.any()
    for i in range(7):
        image, label, index = x[i : i + 1], LABELS[i : i + 1], torch.tensor([i])
        assert found.correct[i] == (one.net(image).argmax(1) == label)
        if not found.correct[i]:
            assert not found.withstood[i] and not found.moved[i] and found.top_k[i].isnan() and found.tau[i].isnan()
            continue
        fooled = fastxai.PGD(one.net, eps=0.2, steps=40, rel_stepsize=0.03).perturb(image, label, index=index)
        assert found.withstood[i] == (one.net(fooled.images).argmax(1) == label)
        other = attack(one).perturb(image, label, index=index).images
        assert one.net(other).argmax(1) == label and (other - image).abs().max() <= 0.2 + 1e-12
        maps = [one.attribute(each, label)[0].detach() for each in (image, other)]
        before, after = (h if reduce is None else (h.abs() if reduce == "abs_sum" else h).sum(0) for h in maps)
        assert found.top_k[i] == pytest.approx(by_sorting(before, after, 9), abs=1e-12)
        assert found.tau[i] == pytest.approx(kendalltau(before.flatten(), after.flatten())[0], abs=1e-12)
        assert found.moved[i] == (not torch.equal(other, image))


@pytest.mark.parametrize("one", [explainer(), fastxai.IntegratedGradients(small_net().double(), n_steps=4)])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(one: Explainer, chunk: int) -> None:
    x, index, done = inputs(), torch.arange(40, 47), []
    whole = robustness(attack(one), x, LABELS, index=index)
    parts = robustness(attack(one), x, LABELS, index=index, chunk=chunk, progress=done.append)
    assert done == [chunk] * (7 // chunk) + [1] * (7 % chunk)
    last = robustness(attack(one), x[5:], LABELS[5:], index=index[5:])
    for name in NAMES:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), equal_nan=True, rtol=0, atol=1e-9)
        torch.testing.assert_close(getattr(last, name), getattr(whole, name)[5:], equal_nan=True, rtol=0, atol=1e-9)


def test_random_starts_follow_the_numbers() -> None:
    x, random = inputs(), attack(steps=0, random_start=True, restarts=1)
    first, second = (robustness(random, x, LABELS, index=torch.arange(7) + start) for start in (0, 40))
    assert not torch.equal(first.tau[first.correct], second.tau[first.correct])


def test_the_summary() -> None:
    correct = torch.tensor([True, True, False, True])
    withstood, moved = torch.tensor([True, False, False, False]), torch.tensor([True, True, False, False])
    figures = (torch.tensor([0.5, 0.25, torch.nan, 0.75]), torch.tensor([0.5, -0.25, torch.nan, 0.5]))
    assert Robustness(correct, withstood, moved, *figures).summary() == {
        "natural_accuracy": 0.75,
        "adversarial_accuracy": 0.25,
        "top_k": 0.5,
        "kendall_tau": 0.25,
        "attack_success": pytest.approx(2 / 3),
        "skipped": 0.25,
    }


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_attack(count: int) -> None:
    one, x = explainer(), inputs(3)[:count]
    wrong = (one.net(x).argmax(1) + 1) % 3
    found = robustness(attack(one), x, wrong)
    assert all(len(getattr(found, name)) == count for name in NAMES) and found.tau.isnan().all()
    said = found.summary()
    assert all(said[name] != said[name] for name in ("top_k", "kendall_tau", "attack_success"))
    if count:
        assert (said["natural_accuracy"], said["adversarial_accuracy"], said["skipped"]) == (0, 0, 1)


def test_a_linear_model_has_maps_that_do_not_move() -> None:
    """Its gradient is the same everywhere, so no image beats x; its predictions fall."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    x = inputs()
    with pytest.warns(UserWarning, match="no gradient where the attack starts"):
        found = robustness(attack(fastxai.Gradient(model), eps=0.5), x, model(x).argmax(1))
    assert found.correct.all() and not found.moved.any() and not found.withstood.any()
    assert (found.top_k == 1).all() and (found.tau > 1 - 1e-12).all()


def test_layouts_and_grey_images() -> None:
    one, x = explainer(), inputs()
    whole = robustness(attack(one), x, LABELS)
    for other in (x.to(memory_format=torch.channels_last), x.repeat_interleave(2, 0)[::2]):
        found = robustness(attack(one), other, LABELS)
        torch.testing.assert_close(found.tau, whole.tau, equal_nan=True, rtol=0, atol=1e-9)
    torch.manual_seed(0)
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 6, 3)).double()
    x = x[:, :1, :7]
    found = robustness(attack(fastxai.IntegratedGradients(grey, n_steps=3)), x, grey(x).argmax(1))
    assert found.correct.all() and found.top_k.isfinite().all()


def test_the_adversary_has_the_ball_of_the_attack() -> None:
    one = replace(attack(), norm="l2", bounds=(-1.0, 2.0), restarts=4)
    pgd = evaluation.adversary(one)
    assert (pgd.eps, pgd.norm, pgd.bounds, pgd.seed, pgd.steps) == (0.2, "l2", (-1, 2), 5, 40)
    assert pgd.step_size == 0.2 * 0.03
    assert pgd.restarts == 1 and not pgd.random_start
    for data in ("mnist", "cifar10", "restricted_imagenet"):
        preset = fastxai.PGD.preset(one.explainer.net, data)
        same = evaluation.adversary(fastxai.IFIA.preset(one.explainer, data))
        assert same.net is preset.net.base and replace(same, net=preset.net) == preset  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"attack": explainer()}, TypeError, "attack must be a fastxai.IFIA, got Gradient"),
        ({"x": inputs()[0]}, ValueError, "x must have shape"),
        ({"x": inputs().long()}, TypeError, "x must have a floating point dtype"),
        ({"labels": LABELS[:3]}, ValueError, "labels must have shape"),
        ({"labels": LABELS.double()}, TypeError, "labels must hold integers"),
        ({"index": torch.arange(3)}, ValueError, "index must have shape"),
        ({"chunk": 0}, ValueError, "chunk must be an int of at least 1, got 0"),
        ({"reduce": "mean"}, ValueError, "reduce must be one of"),
        ({"attack": attack(k=65)}, ValueError, "k must be"),
        ({"x": inputs() + 2}, ValueError, "x must"),
        ({"x": inputs().masked_fill(inputs() > 0.9, torch.nan)}, ValueError, "x must be finite, got inf or nan for"),
        ({"labels": LABELS + 5}, ValueError, r"labels must lie in 0 \.\. 2, got 5 \.\. 7"),
        ({"index": [0, 1, 2, 3, 4, 5, 6]}, TypeError, "index must be a torch.Tensor, got list"),
    ],
)
def test_wrong_arguments(changes: dict[str, object], error: type[Exception], said: str) -> None:
    given = {"attack": attack(), "x": inputs(), "labels": LABELS, **changes}
    with pytest.raises(error, match=said):
        robustness(**given)  # type: ignore[arg-type]


def test_samples_that_would_be_skipped_are_checked_too() -> None:
    one, x = explainer(), inputs()
    wrong = (one.net(x).argmax(1) + 1) % 3
    with pytest.raises(ValueError, match="x must lie within the bounds"):
        robustness(attack(one), torch.cat([x[:6], x[6:] * 5]), wrong)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(192, 3).double())
    nn.init.constant_(broken[1].bias, torch.nan)
    with pytest.raises(ValueError, match="x must have finite scores, got inf or nan for samples"):
        robustness(attack(fastxai.Gradient(broken)), x, wrong)
