"""The loop: it learns, stops and goes on exactly, logs, and refuses what it cannot do."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastxai
from fastxai.training import (
    AAT,
    Batch,
    Checkpoint,
    CrossEntropy,
    Dataset,
    FitConfig,
    HessianNorm,
    Objective,
    PGDAdversarial,
    Term,
    fit,
)

CONFIG = FitConfig(epochs=4, batch=8, lr=0.1, weight_decay=1e-4, seed=3)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(5.0), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 3, 3)
    )


def data(n: int = 52) -> Dataset:
    """Images whose class is where the bright patch is."""
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (n,), generator=g)
    images = torch.randint(60, (n, 2, 6, 6), generator=g)
    images[torch.arange(n), :, 2 * labels] += 150
    return Dataset(images.to(torch.uint8), labels, mean=(0.3, 0.3), std=(0.25, 0.25), pad=1, flip=True)


def objective(seed: int = 0) -> Objective:
    return Objective(fastxai.compile(model(seed)), [CrossEntropy(), 1e-4 * HessianNorm(seed=2)])


def same(one: Objective, other: Objective) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_learns(optimizer: str) -> None:
    trained = objective()
    config = replace(CONFIG, epochs=15, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.02)
    rows = fit(trained, data(), config, progress=False)
    assert [row["epoch"] for row in rows] == list(range(1, 16))
    assert rows[-1]["cross_entropy"] < 0.5 * rows[0]["cross_entropy"]
    expected = rows[-1]["cross_entropy"] + 1e-4 * rows[-1]["hessian_norm"]
    assert rows[-1]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_going_on_ends_where_an_undisturbed_run_ends(tmp_path: Path, optimizer: str, schedule: str) -> None:
    config = replace(CONFIG, optimizer=optimizer, schedule=schedule, lr=0.02, clip=1.0, accumulate=2)
    whole = objective()
    rows = fit(whole, data(), config, out=tmp_path / "whole", progress=False)

    class Killed(Exception):
        pass

    def kill(trained: Objective) -> dict[str, float]:
        if trained.step >= 9:
            raise Killed
        return {}

    for seed in (0, 7):  # the second starts from other weights, which the checkpoint replaces
        stopped = objective(seed)
        if seed == 0:
            with pytest.raises(Killed):
                fit(stopped, data(), config, out=tmp_path / "parts", measure=kill, progress=False)
            assert not same(stopped, whole)
        else:
            again = fit(stopped, data(), config, out=tmp_path / "parts", progress=False)
    assert same(stopped, whole)
    for one, other in zip(rows, again, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    finished = objective(9)
    assert fit(finished, data(), config, out=tmp_path / "parts", progress=False) == again and same(finished, whole)


def test_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = objective()
    fit(trained, data(), replace(CONFIG, epochs=1, schedule="constant"), out=tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1.safetensors", "checkpoint.json", "log.csv"]

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fastxai._files.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        fit(objective(), data(), replace(CONFIG, epochs=2, schedule="constant"), out=tmp_path, progress=False)
    monkeypatch.undo()
    found = Checkpoint.load(tmp_path)
    assert found is not None and found.state["epoch"] == 1
    (tmp_path / "checkpoint-1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        Checkpoint.load(tmp_path)


def test_weights_that_diverge_are_named_as_such() -> None:
    """Whoever finds them first: the loss, or an attack within a term."""
    attacks = ([CrossEntropy()], [AAT(0.1, n_steps=2, steps=1, restarts=1)], [PGDAdversarial(0.1, steps=1)])
    for terms in attacks:
        diverging = Objective(fastxai.compile(model()), terms)
        plain = Dataset(data().images, data().labels)
        config = replace(CONFIG, epochs=1, optimizer="sgd", schedule="constant", lr=1e30)
        with pytest.raises(ValueError, match=r"must stay finite; lower lr or set clip \(epoch 1\)"):
            fit(diverging, plain, config, progress=False)


class Counting(CrossEntropy):
    """A term with state that is nobody's business."""

    def __init__(self) -> None:
        super().__init__()
        self._calls, self.table = 0, {"a": 1}

    def __call__(self, batch: Batch) -> torch.Tensor:
        self._calls += 1
        return super().__call__(batch)


def test_private_state_of_terms_is_not_compared(tmp_path: Path) -> None:
    term = Counting()
    for epochs in (1, 2):
        config = replace(CONFIG, epochs=epochs, schedule="constant")
        rows = fit(Objective(fastxai.compile(model()), [term]), data(), config, out=tmp_path, progress=False)
    assert len(rows) == 2 and term.made_with()["table"] == {"a": 1}
    term.table["a"] = 2
    with pytest.raises(ValueError, match="objective's counting must have the settings of the run"):
        fit(
            Objective(fastxai.compile(model()), [term]), data(), replace(config, epochs=3), out=tmp_path, progress=False
        )


def test_terms_with_other_settings_do_not_go_on(tmp_path: Path) -> None:
    once = replace(CONFIG, epochs=1, schedule="constant")

    def with_probes(probes: int) -> Objective:
        return Objective(fastxai.compile(model()), [CrossEntropy(), 1e-4 * HessianNorm(probes=probes)])

    fit(with_probes(1), data(), once, out=tmp_path, progress=False)
    with pytest.raises(
        ValueError, match=r"objective's hessian_norm must have the settings of the run in .*'probes': 2"
    ):
        fit(with_probes(2), data(), replace(once, epochs=2), out=tmp_path, progress=False)
    assert len(fit(with_probes(1), data(), replace(once, epochs=2), out=tmp_path, progress=False)) == 2


def test_log_and_measure(tmp_path: Path) -> None:
    seen: list[int] = []

    def measure(trained: Objective) -> dict[str, float]:
        seen.append(trained.step)
        return {"accuracy": 0.5}

    rows = fit(objective(), data(), CONFIG, out=tmp_path, measure=measure, progress=False)
    assert seen == [6, 12, 18, 24] and rows[0]["accuracy"] == 0.5
    with (tmp_path / "log.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in read] == [row["loss"] for row in rows]
    assert set(read[0]) == {"epoch", "loss", "cross_entropy", "hessian_norm", "lr", "seconds", "accuracy"}


def test_tensorboard(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match="tensorboard"):
            fit(objective(), data(), CONFIG, out=tmp_path, board=True, progress=False)
        return
    fit(objective(), data(), CONFIG, out=tmp_path, board=True, progress=False)
    assert list(tmp_path.glob("events*"))


def test_bf16(tmp_path: Path) -> None:
    rows = fit(objective(), data(), replace(CONFIG, precision="bf16", epochs=6), progress=False)
    assert rows[-1]["loss"] < rows[0]["loss"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 5), st.integers(0, 2**40))
def test_augmentation_shifts_and_mirrors(pad: int, flip: bool, n: int, seed: int) -> None:
    images = torch.randint(256, (6, 3, 5, 4), dtype=torch.uint8)
    one = Dataset(images, torch.zeros(6, dtype=torch.long), pad=pad, flip=flip)
    index = torch.randperm(6)[:n]
    x = one.augmented(index, (seed,))
    assert x.shape == (n, 3, 5, 4)
    padded = nn.functional.pad(images, (pad, pad, pad, pad)).float() / 255
    for row, number in zip(x, index.tolist(), strict=True):
        crops = [
            padded[number, :, top : top + 5, left : left + 4]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
        candidates = crops + [crop.flip(2) for crop in crops] * flip
        assert any(torch.equal(row, crop) for crop in candidates)
    if n:
        assert torch.equal(one.augmented(index[:1], (seed,)), x[:1])


def test_augmentation_uses_all_shifts() -> None:
    images = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 1] = 255
    one = Dataset(images, torch.zeros(400, dtype=torch.long), pad=1, flip=True)
    seen = one.augmented(torch.arange(400), (0,)).sum(0)[0]
    places = torch.zeros(5, 5)
    places[1:4, 0:5] = 1  # columns 0 .. 2, and mirrored 2 .. 4
    assert ((seen > 0) == (places > 0)).all()
    assert seen[1:4].sum() == 400 and seen[1:4, [0, 1, 3, 4]].min() > 10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 5), st.sampled_from([torch.bool, torch.uint8, torch.float32]))
def test_masks_move_with_their_images(pad: int, flip: bool, n: int, dtype: torch.dtype) -> None:
    """Masks that are the images' own pixels stay so, with channels and without."""
    images = torch.randint(2, (6, 3, 5, 4), dtype=torch.uint8)
    index = torch.randperm(6)[:n]
    for masks, channel in ((images.to(dtype), slice(None)), (images[:, 1].to(dtype), 1)):
        one = Dataset(images, torch.zeros(6, dtype=torch.long), pad=pad, flip=flip, masks=masks)
        moved = one.augmented_masks(index, (7,))
        assert moved is not None and moved.dtype == torch.float32
        assert torch.equal(moved, (one.augmented(index, (7,)) * 255).round()[:, channel])
        assert one.to("cpu").masks is masks
    assert Dataset(images.double(), one.labels, masks=masks).augmented_masks(index, (7,)).dtype == torch.double  # type: ignore[union-attr]
    assert Dataset(images, one.labels).augmented_masks(index, (7,)) is None


def test_masks_reach_the_terms(tmp_path: Path) -> None:
    """Every batch's masks belong to its images."""

    class Seen(Term):
        def __call__(self, batch: Batch) -> torch.Tensor:
            assert batch.masks is not None
            seen.append((batch.x, batch.masks))
            return batch.scores.sum() * 0

    one, seen = replace(data(), mean=None, std=None, masks=data().images), []
    fit(Objective(fastxai.compile(model()), [Seen()]), one, replace(CONFIG, epochs=1), progress=False)
    assert len(seen) == 6
    for x, masks in seen:
        torch.testing.assert_close(x * 255, masks)


def test_an_epoch_may_be_a_part_of_the_data() -> None:
    """Another part every time; the rest goes as for data of that size."""
    one = replace(data(50), epoch=20)
    parts = [torch.cat(list(one.order(8, (1, epoch)))) for epoch in range(30)]
    assert {len(part) for part in parts} == {16} and torch.cat(parts).unique().numel() == 50
    assert torch.equal(parts[0], torch.cat(list(data(50).order(8, (1, 0))))[:16])
    trained = objective()
    fit(trained, one, replace(CONFIG, epochs=3), progress=False)
    assert trained.step == 6
    assert replace(one, epoch=80).per_epoch == data(50).per_epoch == 50
    with pytest.raises(ValueError, match="data must hold a batch of 8 at least, got 7"):
        fit(trained, replace(one, epoch=7), CONFIG, progress=False)


def test_order_is_a_permutation() -> None:
    one = data(50)
    batches = list(one.order(8, (1, 2)))
    assert [len(b) for b in batches] == [8] * 6 and torch.cat(batches).unique().numel() == 48
    assert torch.equal(torch.cat(batches), torch.cat(list(one.order(8, (1, 2)))))
    assert not torch.equal(torch.cat(batches), torch.cat(list(one.order(8, (1, 3)))))


def test_schedules() -> None:
    rates = {name: [FitConfig(schedule=name, lr=1.0).rate(p / 8) for p in range(9)] for name in ("cosine", "step")}
    assert (
        rates["cosine"][0] == 1 and rates["cosine"][8] == pytest.approx(0) and rates["cosine"][4] == pytest.approx(0.5)
    )
    assert rates["step"] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    cycle = FitConfig(lr=2.0)
    assert [cycle.rate(p) for p in (0, 0.125, 0.25, 1)] == pytest.approx([0, 1, 2, 0])
    assert FitConfig(schedule="constant", lr=0.3).rate(0.9) == 0.3


def test_config_files(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[fit]\nepochs = 3\nlr = 1\nschedule = "cosine"\n')
    assert FitConfig.load(file) == FitConfig(epochs=3, lr=1, schedule="cosine")
    assert FitConfig.of(CONFIG.table()) == CONFIG


def test_errors(tmp_path: Path) -> None:
    for kind, message, settings_ in (
        (ValueError, "epochs must be at least 1, got 0", {"epochs": 0}),
        (TypeError, "epochs must be int, got 2.5", {"epochs": 2.5}),
        (ValueError, "lr must be finite and not negative, got -1", {"lr": -1}),
        (ValueError, "optimizer must be one of 'sgd', 'adam', got 'lbfgs'", {"optimizer": "lbfgs"}),
        (ValueError, "schedule must be one of", {"schedule": "warm"}),
        (ValueError, "precision must be one of 'fp32', 'bf16', got 'fp16'", {"precision": "fp16"}),
    ):
        with pytest.raises(kind, match=message):
            FitConfig(**settings_)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[fit\] must be one of .*, got 'learning_rate'"):
        FitConfig.of({"learning_rate": 1})
    with pytest.raises(ValueError, match="data must hold a batch of 80 at least, got 52"):
        fit(objective(), data(), replace(CONFIG, batch=80), progress=False)
    with pytest.raises(ValueError, match="accumulate must leave one step of 52 samples, got 9"):
        fit(objective(), data(), replace(CONFIG, accumulate=9), progress=False)
    with pytest.raises(ValueError, match="loss must stay finite"):
        fit(objective(), data(), replace(CONFIG, lr=1e9, schedule="constant"), progress=False)
    fit(objective(), data(), replace(CONFIG, epochs=1), out=tmp_path, progress=False)
    for other in ([CrossEntropy()], [CrossEntropy(), 1e-3 * HessianNorm(seed=2)]):
        changed = Objective(fastxai.compile(model()), other)
        with pytest.raises(ValueError, match=r"objective must have the terms of the run in .*'hessian_norm': 0\.0001"):
            fit(changed, data(), replace(CONFIG, epochs=1), out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="config must be that of the run"):
        fit(objective(), data(), CONFIG, out=tmp_path, progress=False)
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels must have shape \[4\], got \[3\]"):
        Dataset(images, labels[:3])
    with pytest.raises(TypeError, match="labels must be int64"):
        Dataset(images, labels.int())
    with pytest.raises(TypeError, match=r"images must be uint8 or floating point, got torch\.int32"):
        Dataset(images.int(), labels)
    for mean in (0.5, (0.5, 0.5), [0.5, float("nan"), 0.5], "half", ()):
        with pytest.raises(ValueError, match="mean must hold one finite number, or one a channel, got "):
            Dataset(images, labels, mean, (0.2,))  # type: ignore[arg-type]
    for std in ((0.2, 0.0, 0.2), (-1.0,), (float("inf"),)):
        with pytest.raises(ValueError, match="std must hold one finite number above 0, or one a channel, got "):
            Dataset(images, labels, (0.5,), std)
    with pytest.raises(TypeError, match="flip must be a bool, got 1"):
        Dataset(images, labels, flip=1)  # type: ignore[arg-type]
    one = torch.arange(1)
    wanted = Dataset(images, labels, (0.5,) * 3, (0.2,) * 3).plain(one)
    for mean, std in (((0.5,), (0.2,)), (torch.tensor([0.5]), torch.tensor([0.2] * 3))):
        assert torch.equal(Dataset(images, labels, mean, std).plain(one), wanted)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"std must come with mean, got None"):
        Dataset(images, labels, mean=(0.5,) * 3)
    with pytest.raises(ValueError, match=r"masks must have shape \[4, 2, 2\] or \[4, 3, 2, 2\], got \[4, 2\]"):
        Dataset(images, labels, masks=images[:, 0, 0])
    with pytest.raises(ValueError, match="epoch must be an int of at least 1, got 0"):
        Dataset(images, labels, epoch=0)
    found = Checkpoint.load(tmp_path)
    assert found is not None
    other = Objective(fastxai.compile(nn.Sequential(nn.Flatten(), nn.Linear(72, 3))), [CrossEntropy()])
    with pytest.raises(ValueError, match="checkpoint must be of this model"):
        found.restore(other, torch.optim.SGD(other.parameters(), lr=0.1))
