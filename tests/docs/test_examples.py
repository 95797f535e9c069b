"""The examples run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from attacks.nets import REPOSITORY, load
from data.test_cifar10 import sample, write_records
from safetensors.torch import load_file

from fastxai.models import CNN


def test_train_demo_trains_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = sample(130)
    write_records(tmp_path / "data_batch_1.bin", images, labels)
    write_records(tmp_path / "test_batch.bin", images[:20], labels[:20])
    monkeypatch.chdir(tmp_path)
    threads, script = torch.get_num_threads(), load(REPOSITORY / "examples" / "train_demo.py")
    monkeypatch.setattr(sys, "argv", ["train_demo.py", "--data", ".", "--epochs", "2", "--out", "weights.safetensors"])
    for epochs in (2, 0):
        script.main()
        *printed, last = capsys.readouterr().out.splitlines()
        assert len(printed) == epochs and last.startswith("float16 weights: test accuracy ")
    torch.set_num_threads(threads)
    weights = load_file("weights.safetensors")
    CNN().load_state_dict(weights)
    assert {t.dtype for t in weights.values()} == {torch.float16}
    assert (tmp_path / "train_demo" / "checkpoint.json").is_file() and (tmp_path / "train_demo" / "log.csv").is_file()
