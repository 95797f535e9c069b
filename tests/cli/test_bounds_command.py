"""``fastxai bounds``: every number is what the library gives, and what does not apply says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastxai
from fastxai import theory
from fastxai.cli import main
from fastxai.data import load_images, noisy
from fastxai.models import DEMO_MEAN, DEMO_STD

NETS = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last((self.second(y) + y).mean((2, 3)))

class Sorted(nn.Linear):
    def forward(self, x):
        return super().forward(torch.sort(x.flatten(1), dim=1).values)

def chain(act):
    layers = nn.Conv2d(3, 4, 3), act, nn.AvgPool2d(3), nn.Conv2d(4, 5, 2), act
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, 3))

def smooth():
    return chain(nn.ReLU())

def curved():
    return chain(nn.GELU())

def steep():
    return chain(nn.LeakyReLU(-2.0))

def residual():
    return Residual()

def unknown():
    return Sorted(192, 3)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)
    for name, pixels in zip(("a.png", "b.png"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "boundednets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "boundednets", raising=False)
    return tmp_path


def printed(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["bounds", *words.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_numbers_are_the_librarys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed("a.png b.png --beta 5 --class 2 --noise 0.001 --probes 3 --steps 4 --seed 6", capsys)
    base = fastxai.compile(fastxai.models.demo(), DEMO_MEAN, DEMO_STD)
    net, x = base.with_activation("softplus", 5.0), load_images(["a.png", "b.png"], 32)
    other = noisy(x, 0.001, seed=6)
    index = torch.arange(2)
    frobenius = theory.frobenius_norm(net, x, 2, probes=3, seed=6, index=index).value.tolist()
    spectral = theory.spectral_norm(net, x, 2, steps=4, seed=6, index=index).value.tolist()
    wide, narrow = (theory.layer_norms(net, x, 2, norm=norm) for norm in ("frobenius", "spectral"))
    path = torch.stack([x + t / 8 * (other - x) for t in range(9)])
    change = theory.path_change(net, path, 2, nodes=2, samples=1, steps=4, probes=3)
    moved = (base.gradient(other, 2) - base.gradient(x, 2)).flatten(1).norm(dim=1).tolist()
    kinks = theory.count_kinks(base, torch.stack([x + t / 16 * (other - x) for t in range(17)])).tolist()
    expected = [
        (frobenius, [theory.softplus_bound(wide, 5.0, linear_head=True)] * 2),
        (spectral, [theory.softplus_bound(narrow, 5.0, linear_head=True)] * 2),
        (frobenius, [theory.loose_softplus_bound(wide, 5.0)] * 2),
        (change.moved.tolist(), (change.total + change.jumps).tolist()),
        (change.moved.tolist(), (change.spectral * change.length + change.jumps).tolist()),
        (change.moved.tolist(), (change.frobenius * change.length + change.jumps).tolist()),
        (moved, [theory.relu_bound(wide, n) for n in kinks]),
        (moved, [theory.relu_bound(narrow, n) for n in kinks]),
    ]
    assert report["kinks"] == kinks and min(kinks) > 4
    assert len(report["rows"]) == len(expected)
    for row, (measured, bound) in zip(report["rows"], expected, strict=True):
        assert row["measured"] == pytest.approx(measured, rel=1e-4)
        assert row["bound"] == pytest.approx(bound, rel=1e-4)
        assert row["ratio"] == pytest.approx([a / b for a, b in zip(measured, bound, strict=True)], rel=1e-4)
        assert row["median"] == pytest.approx({name: median(row[name]) for name in ("measured", "bound", "ratio")})
        assert all(0 < ratio < 1 for ratio in row["ratio"])
    assert ["jumps" in row["note"] for row in report["rows"]] == [False] * 3 + [True] * 3 + [False] * 2
    assert report["layer_norms"]["spectral"][0] == pytest.approx(narrow.tolist(), rel=1e-5)
    assert [row["file"] for row in report["images"]] == ["a.png", "b.png"] and report["explained_class"] == 2


def test_the_predicted_class_has_its_own_row_of_the_last_layer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "a.png b.png --model boundednets:smooth --size 8 --probes 2 --steps 2 --exact-kinks"
    report = printed(words, capsys)
    torch.manual_seed(0)
    net, x = fastxai.compile(sys.modules["boundednets"].smooth()), load_images(["a.png", "b.png"], 8)
    assert [row["index"] for row in report["images"]] == net(x).argmax(1).tolist()
    for kind, norms in report["layer_norms"].items():
        for image, found in zip(report["images"], norms, strict=True):
            own = theory.layer_norms(net, x, image["index"], norm=kind).tolist()
            assert found == pytest.approx(own, rel=1e-5)
    exact = theory.segment_kinks(net, x, noisy(x, 0.005))
    assert report["kinks"] == (exact.units + exact.winners).tolist()
    assert all(row["note"] == "" for row in report["rows"][:6])
    assert [row["source"] for row in report["rows"][3:6]] == [
        "int ||H dx||, [R] eq. 4",
        "max ||H||_2 L",
        "max ||H||_F L, [R] eq. 5",
    ]
    assert [row["note"].endswith(" kinks") for row in report["rows"]] == [False] * 6 + [True] * 2
    assert all(0 < r < 1.0001 for row in report["rows"][:6] for r in row["ratio"])


def test_what_does_not_apply_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "a.png --size 8 --probes 2 --steps 2 --model boundednets:"
    chain = "does not apply: net must be a chain of layers, got branches at Add"
    report = printed(few + "residual", capsys)
    assert [row["note"] for row in report["rows"]] == [chain] * 3 + [""] * 3 + [chain] * 2
    assert [row["bound"] is None for row in report["rows"]] == [True] * 3 + [False] * 3 + [True] * 2
    assert all(row["median"]["measured"] > 0 for row in report["rows"][:6]) and report["kinks"] is None

    report = printed(few + "curved --beta 0.5", capsys)
    notes = [row["note"] for row in report["rows"]]
    assert notes[:2] == ["", ""] and notes[3:6] == [""] * 3
    assert notes[2] == "does not apply: an activation is steeper, or bends more, than softplus of beta 0.5"
    reason = "the network as given is not piecewise linear, or an activation is steeper than ReLU"
    assert notes[6:] == [f"does not apply: {reason}"] * 2
    assert all(0 < row["ratio"][0] < 1.0001 for row in report["rows"] if row["ratio"])

    report = printed(few + "smooth --beta 30 --noise 30", capsys)
    assert all(row["note"].startswith("the integral's 16 points miss ") for row in report["rows"][3:6])

    report = printed(few + "steep", capsys)
    assert [row["note"] for row in report["rows"][6:]] == [f"does not apply: {reason}"] * 2
    assert "steeper" in report["rows"][2]["note"] and all(row["ratio"][0] < 1 for row in report["rows"][:2])

    report = printed(few + "unknown", capsys)
    assert all(row["note"].startswith("does not apply: ") for row in (*report["rows"][:3], *report["rows"][6:]))
    assert "Sorted cannot be explained by rules" in report["rows"][0]["note"]


def test_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bounds a.png --size 8 --probes 2 --steps 2 --model boundednets:residual"
    assert main(words.split(" ")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["medians", "of", "1", "measured", "bound", "ratio"]
    assert len(lines) == 10
    assert lines[2].startswith("||H||_F <= [R] eq. 8, Frobenius norms ")
    assert " ".join(lines[2].split()).endswith("- - does not apply: net must be a chain of layers, got branches at Add")
    assert lines[5].startswith("map change <= int ||H dx||, [R] eq. 4 ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.png --noise 0", "--noise must be finite and positive, got 0.0"),
        ("a.png --probes 0", "--probes must be at least 1, got 0"),
        ("a.png --steps 0", "--steps must be at least 1, got 0"),
        ("a.png --beta -1", "--beta must be finite and positive, got -1.0"),
        ("a.png --class 10", "--class must lie in 0 .. 9, got 10"),
        ("none.png", "IMAGE: "),
    ],
)
def test_errors(here: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", *words.split()]) == 2
    assert message in capsys.readouterr().err
