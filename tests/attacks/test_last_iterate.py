"""The last iterate, which an attack tells beside the best one that keeps the class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attacks.nets import CHANNELS, cnn, pairs

import fastxai
from fastxai.attacks import Manipulation, Restarts
from fastxai.explainers import Gradient


@pytest.fixture(autouse=True)
def _reference_backend():
    with fastxai.backend("reference"):
        yield


def test_the_last_iterate_is_told_beside_the_best():
    x, target_map = pairs()
    attack = Manipulation(Gradient(cnn()), steps=12, lr=0.05, beta=20.0, gamma=0.0, bounds=CHANNELS, judge_every=1)
    result = attack.perturb(x, target_map)
    one = replace(attack, judge_every=12).perturb(x, target_map)
    # Judged at its end alone, an attack returns its last iterate or the original.
    moved = one.best_step == 12
    assert moved.any() and torch.equal(one.last_class_kept, result.last_class_kept)
    assert one.last_class_kept[moved].all()
    torch.testing.assert_close(one.last_pcc[moved], one.metrics.to_target.pcc[moved])
    torch.testing.assert_close(result.last_pcc, one.last_pcc)
    # Where scores are nearly equal the class does not last: what is returned keeps it all the same.
    even = cnn()
    with torch.no_grad():
        even[-1].bias.sub_(even(x).mean(0))
    far = replace(attack, explainer=Gradient(even)).perturb(x, target_map)
    assert far.class_kept.all() and not far.last_class_kept.all()


def test_the_last_iterate_is_that_of_the_returned_restart():
    x, target_map = pairs()
    even = cnn()
    with torch.no_grad():
        even[-1].bias.sub_(even(x).mean(0))
    attack = Manipulation(
        Gradient(even), steps=12, lr=0.05, beta=20.0, gamma=0.0, bounds=CHANNELS, judge_every=3, stop=0.2,
        restarts=Restarts(3, sigma=0.3),
    )  # fmt: skip
    whole = attack.perturb(x, target_map)
    ones = [attack.perturb(x[n : n + 1], target_map[n : n + 1], index=torch.tensor([n])) for n in range(len(x))]
    for name in ("best_restart", "last_class_kept", "last_pcc", "images"):
        torch.testing.assert_close(getattr(whole, name), torch.cat([getattr(one, name) for one in ones]))
    # Rows left, of other samples than the first, and not for the restart that began at the image.
    done = whole.metrics.to_target.pcc >= 0.2
    assert done.any() and whole.best_restart.any()
    torch.testing.assert_close(whole.last_pcc[done], whole.metrics.to_target.pcc[done])


def test_the_last_iterate_of_what_stopped_is_the_returned_one():
    x, target_map = pairs()
    result = Manipulation(Gradient(cnn()), steps=5, stop=-1.0, bounds=CHANNELS).perturb(x, target_map)
    assert result.last_class_kept.all()
    torch.testing.assert_close(result.last_pcc, result.metrics.to_target.pcc)
