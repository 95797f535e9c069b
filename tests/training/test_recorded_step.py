"""Steps that are recorded whole train like ordinary ones, bit for bit, and leave nothing stale behind."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.tape import TapeRecorder, taped
from torch import Tensor, nn
from training.test_fit import CONFIG, data, model, same

import fastxai
from fastxai.engine.capture import Graphs, Recording
from fastxai.training import CrossEntropy, FitConfig, HessianNorm, Objective, fit
from fastxai.training._step import Step

SETTINGS = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 0.02},
    "no momentum": {"momentum": 0.0},
    "two batches a step, clipped": {"accumulate": 2, "clip": 0.5},
    "bf16": {"precision": "bf16"},
}


class Refusing(TapeRecorder):
    """Runs the same calls, and never records one."""

    def record(self, function: Any, device: torch.device, pool: Any) -> Recording:
        raise RuntimeError("it is not wanted")


def normalised(seed: int = 0) -> nn.Module:
    """Batch norm in training mode, another statistic at every step, and a scale that the engine folds."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Softplus(5.0), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * 3 * 3, 3),
    )  # fmt: skip


def objective(made: nn.Module | None = None) -> Objective:
    net = fastxai.compile(model() if made is None else made)
    return Objective(net, [CrossEntropy(label_smoothing=0.1), 1e-3 * HessianNorm(seed=2, probes=2)])


def trained(config: FitConfig, recorder: TapeRecorder, made: nn.Module | None = None, **options: Any) -> Objective:
    ours = objective(made)
    with taped(ours.net), warnings.catch_warnings():
        ours.net._core.graphs = Graphs(recorder=recorder)
        warnings.filterwarnings("error" if type(recorder) is TapeRecorder else "ignore", message=".*is not captured")
        fit(ours, data(), config, progress=False, **options)
    return ours


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each step that is no replay."""
    seen, whole = [], Step._whole

    def counted(step: Step, *args: Any) -> Any:
        seen.append(step.objective.step)
        return whole(step, *args)

    monkeypatch.setattr(Step, "_whole", counted)
    return seen


@pytest.mark.parametrize("make", [model, normalised])
@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_steps_train_alike(name: str, make: Any, calls: list[int]) -> None:
    config = replace(CONFIG, epochs=2, **SETTINGS[name])
    steps = config.epochs * (52 // 8 // config.accumulate)
    want = trained(config, Refusing(), make())
    assert len(calls) == steps
    got = trained(config, TapeRecorder(), make())
    # The optimizer's state appears with its first step, which starts the count anew.
    stateless = name == "no momentum"
    assert len(calls) == steps + (3 if stateless else 4)
    assert same(got, want) and got.step == want.step == steps * config.accumulate
    plain = objective(make())
    fit(plain, data(), config, progress=False)
    for mine, theirs in zip(got.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4)
    x = torch.randn(4, 2, 6, 6)
    for one in (got, plain):
        assert torch.equal(one.net.gradient(x, 1), fastxai.compile(one.model).gradient(x, 1)), "weights are seen"


def test_the_log_is_that_of_ordinary_steps() -> None:
    rows = []
    for recorder in (Refusing(), TapeRecorder()):
        ours = objective()
        with taped(ours.net), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours.net._core.graphs = Graphs(recorder=recorder)
            rows.append(fit(ours, data(), replace(CONFIG, epochs=3), progress=False))
            assert set(ours.parts) == {"cross_entropy", "hessian_norm"}
    for one, other in zip(*rows, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
        assert isinstance(one["lr"], float)


def test_a_recorded_run_that_stops_goes_on_exactly(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=3, optimizer="adam", lr=0.02)
    whole = trained(config, TapeRecorder(), out=tmp_path / "whole")

    def killed(ours: Objective) -> dict[str, float]:
        if ours.step >= 12:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        trained(config, TapeRecorder(), out=tmp_path / "parts", measure=killed)
    assert same(trained(config, TapeRecorder(), model(7), out=tmp_path / "parts"), whole)


def test_what_is_measured_and_frozen_between_epochs_is_seen(calls: list[int]) -> None:
    def between(ours: Objective) -> dict[str, float]:
        ours.eval()
        first = ours.model[0]  # type: ignore[index]
        first.requires_grad_(ours.step > 10)
        got = ours.net.hessian_norm(torch.ones(2, 2, 6, 6), 1)
        assert torch.equal(got, fastxai.compile(ours.model).hessian_norm(torch.ones(2, 2, 6, 6), 1))
        return {"norm": float(got.mean())}

    config = replace(CONFIG, epochs=3)
    want = trained(config, Refusing(), measure=between)
    ordinary = len(calls)
    got = trained(config, TapeRecorder(), measure=between)
    assert same(got, want) and 3 < len(calls) - ordinary < ordinary


@pytest.mark.parametrize("terms", [lambda: [HessianNorm(direction=lambda net, x, y: x)], lambda: [_Own()]])
def test_terms_of_the_users_are_not_recorded(terms: Any) -> None:
    net = fastxai.compile(model())
    slow = fastxai.compile(model(), fallback=True)
    with taped(net), taped(slow):
        assert Step(Objective(slow, [CrossEntropy()]), CONFIG, data().images)._graphs is None
        assert Step(Objective(net, terms()), CONFIG, data().images)._graphs is None
        assert Step(Objective(net, [CrossEntropy()]), CONFIG, data().images)._graphs is not None
    assert Step(Objective(net, [CrossEntropy()]), CONFIG, data().images)._graphs is None


class _Own(CrossEntropy):
    """A term that does something else at every call."""


@pytest.fixture
def gpu() -> str:
    reason = fastxai.available()["triton"]
    if reason:
        pytest.skip(f"backend 'triton': {reason}")
    return "cuda"


@pytest.mark.parametrize("make", [model, normalised])
@pytest.mark.parametrize("name", SETTINGS)
def test_gpu_recorded_steps_train_alike(gpu: str, name: str, make: Any) -> None:
    config, results = replace(CONFIG, epochs=3, **SETTINGS[name]), []
    for recorder in (None, _Never()):
        net = fastxai.compile(make().to(gpu), capture=True)
        if recorder is not None:
            net._core.graphs = Graphs(recorder=recorder)
        ours = Objective(net, [CrossEntropy(), 1e-3 * HessianNorm(seed=2)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore" if recorder else "error", message=".*is not captured")
            fit(ours, data().to(gpu), config, progress=False)
        results.append(ours)
        x = torch.randn(4, 2, 6, 6, device=gpu)
        assert torch.equal(net.gradient(x, 1), fastxai.compile(ours.model).gradient(x, 1))
    assert same(*results)


class _Never(Refusing):
    """Refuses on a GPU."""


def test_gpu_steps_wait_for_nothing(gpu: str) -> None:
    net = fastxai.compile(model().to(gpu), capture=True)
    ours, images = Objective(net, [CrossEntropy(), HessianNorm()]), data().to(gpu)
    step = Step(ours.train(), replace(CONFIG, optimizer="adam"), images.images)
    index = torch.arange(8, device=gpu)
    samples: tuple[Tensor, Tensor, Tensor, None] = (images.plain(index), images.labels[index], index, None)
    try:
        for number in range(9):
            if number == 5:
                torch.cuda.set_sync_debug_mode("error")
            step(0.01, [samples])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step._graphs is not None and len(step._graphs) == 1 and ours.step == 9
