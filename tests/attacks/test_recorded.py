"""Attacks whose iterations are recorded take the steps of ordinary ones, bit for bit; what cannot be is not."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attacks.nets import CHANNELS, cnn, pairs
from engine.tape import taped
from torch import Tensor

import fastxai
from fastxai.attacks import IFIA, PGD, AdversarialIFIA, Ball, Manipulation, Restarts
from fastxai.attacks._ascent import Ascent
from fastxai.attacks._recorded import graphs_for
from fastxai.attacks._task import Task
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)

REACH: dict[str, Any] = {"eps": 0.2, "steps": 9, "bounds": CHANNELS, "seed": 3}
TOP: dict[str, Any] = {"dissimilarity": "top_k"}
MAPS: dict[str, Callable[[fastxai.Net], Explainer]] = {
    "gradient": Gradient,
    "input_x_gradient": InputXGradient,
    "saliency": Saliency,
    "guided_backprop": GuidedBackprop,
    "integrated_gradients": lambda net: IntegratedGradients(net, n_steps=5, method="riemann_right"),
    "lrp": lambda net: LRP(net, "zplus_zb", low=-3.0, high=3.0),
    "smooth_grad": lambda net: SmoothGrad(Gradient(net), 3, stdev=0.1),
    "beta_smoothing": lambda net: BetaSmoothing(Gradient(net), 0.8),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "in a ball": {"ball": Ball(0.05), "beta": 5.0},
    "in an L2 ball, descending": {"ball": Ball(0.3, "l2"), "optimizer": "descent"},
    "restarts that stop": {"restarts": Restarts(3, sigma=0.05), "stop": 0.25, "judge_every": 3, "lr": 0.05},
    "logits, judged always": {"output": "logits", "judge_every": 1},
}


def attack(explainer: Explainer, **changes: Any) -> Manipulation:
    return Manipulation(explainer, **({"steps": 9, "lr": 5e-3, "bounds": CHANNELS, "judge_every": 4} | changes))


def same(one: Any, other: Any) -> bool:
    """Are all tensors of two results equal?"""
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            if not torch.equal(mine, theirs):
                return False
        elif isinstance(mine, dict):
            if not all(torch.equal(mine[name].nan_to_num(), theirs[name].nan_to_num()) for name in mine):
                return False
        elif dataclasses.is_dataclass(mine) and not same(mine, theirs):
            return False
    return True


@pytest.fixture(autouse=True)
def _short_ones_too_and_no_refusal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fastxai.attacks._recorded.LEAST", 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not captured")
        yield


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of an iteration had: a replay is none."""
    calls, moved = [], Task.moved

    def counted(task: Task, *args: Any) -> Any:
        calls.append(len(task.rows))
        return moved(task, *args)

    monkeypatch.setattr(Task, "moved", counted)
    return calls


@pytest.mark.parametrize("name", MAPS)
def test_every_map_is_manipulated_alike(name: str, moves: list[int]) -> None:
    net, (x, target_map) = fastxai.compile(cnn(), capture=False), pairs()
    made = attack(MAPS[name](net))
    with fastxai.backend("reference"):
        want = made.perturb(x, target_map)
    with taped(net):
        got = made.perturb(x, target_map)
    assert moves == [3] * 9 + [3] * 3
    assert same(got, want) and not torch.equal(got.images, x)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_manipulated_alike(name: str, moves: list[int]) -> None:
    net, (x, target_map) = fastxai.compile(cnn(), capture=False), pairs()
    made = attack(Gradient(net), **SETTINGS[name])
    with fastxai.backend("reference"):
        want = made.perturb(x, target_map)
    ordinary = moves.copy()
    with taped(net):
        got = made.perturb(x, target_map)
    recorded = [count for size in dict.fromkeys(ordinary) for count in [size] * min(3, ordinary.count(size))]
    assert moves[len(ordinary) :] == recorded
    assert same(got, want)
    if made.stop is not None:
        assert want.history["map"].isnan().any(), "rows came to leave"


def test_smooth_networks_are_recorded_too(moves: list[int]) -> None:
    net, (x, target_map) = fastxai.compile(cnn(torch.nn.Softplus(3.0)), capture=False), pairs()
    made = attack(Gradient(net), beta=None)
    with fastxai.backend("reference"):
        want = made.perturb(x, target_map)
    with taped(net):
        assert same(made.perturb(x, target_map), want) and len(moves) == 9 + 3


def test_new_weights_between_two_attacks_are_seen() -> None:
    model, (x, target_map) = cnn(), pairs()
    net = fastxai.compile(model, capture=False)
    with taped(net):
        before = attack(Gradient(net)).perturb(x, target_map)
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        after = attack(Gradient(net)).perturb(x, target_map)
    with fastxai.backend("reference"):
        want = attack(Gradient(fastxai.compile(model, capture=False))).perturb(x, target_map)
    assert same(after, want) and not same(after, before)


class Mine(Gradient):
    """An explainer of the user's own, which counts its calls."""

    calls = 0

    def map_and_scores(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return super().map_and_scores(*args, **options)


ASCENTS: dict[str, Callable[[fastxai.Net], Any]] = {
    "ifia": lambda net: IFIA(Gradient(net), restarts=3, **REACH),
    "ifia of integrated gradients": lambda net: IFIA(IntegratedGradients(net, n_steps=3), k=5, **TOP, **REACH),
    "in an L2 ball": lambda net: IFIA(InputXGradient(net), norm="l2", **(REACH | {"eps": 2.0})),
    "going on": lambda net: IFIA(Gradient(net), freeze=False, random_start=True, dissimilarity="mass_centre", **REACH),
    "of a smooth view": lambda net: IFIA(BetaSmoothing(Gradient(net), 3.0), **REACH),
    "adversarial": lambda net: AdversarialIFIA(SmoothGrad(Gradient(net), 2), lambda_=0.3, **REACH),
    "pgd": lambda net: PGD(net, random_start=True, restarts=2, **REACH),
}


@pytest.mark.parametrize("name", ASCENTS)
def test_every_ascent_is_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, iterate = [], Ascent._iterate
    monkeypatch.setattr(Ascent, "_iterate", lambda *args: (calls.append(0), iterate(*args))[1])
    net, (x, _) = fastxai.compile(cnn(), capture=False), pairs()
    made = ASCENTS[name](net)
    with fastxai.backend("reference"):
        want = made.perturb(x)
    ordinary = len(calls)
    with taped(net):
        got = made.perturb(x)
    assert ordinary == 9 and len(calls) == 9 + 3
    assert same(got, want) and not torch.equal(want.images, x)


def test_rows_that_leave_an_ordinary_ascent_are_frozen_in_a_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, _) = fastxai.compile(cnn(), capture=False), pairs(8)
    made = IFIA(Gradient(net), rel_stepsize=0.5, **(REACH | {"eps": 3.0}))
    with taped(net):
        got = made.perturb(x)
    with fastxai.backend("reference"):
        dropped = made.perturb(x)
        monkeypatch.setattr("fastxai.attacks._map_ascent._rows_alike", lambda explainer: False)
        assert same(made.perturb(x), got)
    gone = got.history["dissimilarity"].isnan()
    assert gone.any() and not gone.any(0).all() and torch.equal(dropped.history["dissimilarity"].isnan(), gone)
    # Another number of rows, another order of summation.
    torch.testing.assert_close(dropped.dissimilarity, got.dissimilarity, rtol=1e-9, atol=1e-12)


def test_what_may_do_something_else_at_every_call_is_not_recorded() -> None:
    (x, target_map), model = pairs(), cnn()
    net = fastxai.compile(model, capture=False)
    own = Mine(net)
    others = [own, SmoothGrad(own, 2), IntegratedGradients(net, baselines=torch.zeros_like, n_steps=3)]
    others.append(IntegratedGradients(net, n_steps="auto"))
    others.append(Gradient(fastxai.compile(model, fallback=True)))
    for explainer in others:
        with taped(explainer.net):
            assert graphs_for(explainer, x, 9) is None and graphs_for(Gradient(net), x[:0], 9) is None
    assert graphs_for(Gradient(net), x, 9) is None, "nobody asked for graphs"
    with taped(net):
        assert graphs_for(Gradient(net), x, 9) is not None and graphs_for(Gradient(net), x, 2) is None
        attack(own, steps=9).perturb(x, target_map)
    assert own.calls > 9


@pytest.fixture
def gpu() -> str:
    reason = fastxai.available()["triton"]
    if reason:
        pytest.skip(f"backend 'triton': {reason}")
    return "cuda"


@pytest.mark.parametrize("name", MAPS)
def test_gpu_manipulates_every_map_alike(gpu: str, name: str) -> None:
    """Not in float64, whose reference formulas divide by beta: a GPU rounds that otherwise for a number."""
    model, pair = cnn().to(gpu, torch.float32), [t.to(gpu, torch.float32) for t in pairs()]
    plain, net = fastxai.compile(model, capture=False), fastxai.compile(model, capture=True)
    for changes in SETTINGS.values():
        want = attack(MAPS[name](plain), **changes).perturb(*pair)
        assert same(attack(MAPS[name](net), **changes).perturb(*pair), want)


@pytest.mark.parametrize("name", ASCENTS)
def test_gpu_ascends_alike(gpu: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are frozen in both: fewer of them might be summed in another order."""
    monkeypatch.setattr("fastxai.attacks._map_ascent._rows_alike", lambda explainer: False)
    model, x = cnn().to(gpu), pairs()[0].to(gpu)
    want = ASCENTS[name](fastxai.compile(model, capture=False)).perturb(x)
    assert same(ASCENTS[name](fastxai.compile(model, capture=True)).perturb(x), want)


def test_gpu_backend_of_numbers_is_not_recorded(gpu: str) -> None:
    reason = fastxai.available()["cuda"]
    if reason:
        pytest.skip(f"backend 'cuda': {reason}")
    model, pair = cnn().to(gpu, torch.float32), [t.to(gpu, torch.float32) for t in pairs()]
    with fastxai.backend("cuda"):
        want = attack(Gradient(fastxai.compile(model, capture=False))).perturb(*pair)
        assert same(attack(Gradient(fastxai.compile(model, capture=True))).perturb(*pair), want)


def test_gpu_iterations_wait_for_nothing(gpu: str) -> None:
    """Replays in torch's strictest mode: all that waits comes before the first iteration or after the last."""
    model, pair = cnn().to(gpu, torch.float32), [t.to(gpu, torch.float32) for t in pairs()]
    net = fastxai.compile(model, capture=True)

    task = Task(attack(Gradient(net), steps=40, judge_every=100), *pair, None, None)

    class Bar:
        def update(self) -> None:
            if len(task.history) == 3:
                torch.cuda.set_sync_debug_mode("error")

    try:
        task._iterate(Bar())  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(task.history) == 40
