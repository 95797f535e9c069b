"""Options, models, weights and outputs: what is wrong is named in one line, exit code 2; nothing is half-written."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from fastxai.cli import _common, main

TINY = """
import torch

class Pick(torch.nn.Module):
    def forward(self, x):
        return x.sort(dim=0).values.flatten(1)[:, :3]

def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )

def broken():
    model = build()
    torch.nn.init.constant_(model[0].weight, float("nan"))
    return model

def constant():
    model = build()
    torch.nn.init.zeros_(model[4].weight)
    return model

def odd():
    return Pick()

def needy(classes):
    return None

def number():
    return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A working folder with two images and a module of models, whose name no other test has."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)
    for name, pixels in zip(("a.png", "b.png"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "tinynets.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    return tmp_path


def call(words: str) -> int:
    return main(words.split())


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; return its one line on stderr."""
    before = set(Path.cwd().iterdir())
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    made = {path.name for path in set(Path.cwd().iterdir()) - before}
    assert made <= {"__pycache__"}
    return captured.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("explain gone.png", ["IMAGE", "gone.png"]),
        ("explain tinynets.py", ["IMAGE", "tinynets.py"]),
        ("explain a.png --model resnet", ["--model", "resnet", "torchvision:NAME"]),
        ("explain a.png --model torchvision:no_such_net", ["--model", "no_such_net"]),
        (
            "explain a.png --model torchvision:resnet18",
            ["--model torchvision:resnet18", "--pretrained", "--weights FILE"],
        ),
        ("explain a.png --pretrained", ["--pretrained", "torchvision:NAME", "--model demo"]),
        ("attack a.png --text x --model tinynets:build --pretrained", ["--pretrained", "torchvision:NAME", "tinynets"]),
        (
            "explain a.png --model torchvision:resnet18 --pretrained --weights w.safetensors",
            ["--pretrained and --weights w.safetensors exclude each other"],
        ),
        ("explain a.png --model no_such_module:build", ["--model", "no_such_module"]),
        ("explain a.png --model tinynets:gone", ["--model", "gone"]),
        ("explain a.png --model tinynets:needy", ["--model", "needy", "classes"]),
        ("explain a.png --model tinynets:number", ["--model", "Module", "int"]),
        ("explain a.png --size 0", ["--size", "0"]),
        ("explain a.png --size 7", ["--size", "7"]),
        ("explain a.png --std 1 0 1", ["--std must be finite and positive", "1.0 0.0 1.0"]),
        ("explain a.png --std 1 inf 1", ["--std must be finite and positive", "1.0 inf 1.0"]),
        ("explain a.png --mean 0 nan 0", ["--mean must be finite", "0.0 nan 0.0"]),
        ("explain a.png --beta -1", ["--beta", "-1"]),
        ("explain a.png --class 10", ["--class", "0 .. 9", "10"]),
        ("explain a.png --device cuda:99", ["--device", "cuda:99"]),
        ("explain a.png --device nowhere", ["--device", "nowhere"]),
        ("explain a.png --weights gone.safetensors", ["--weights", "gone.safetensors"]),
        ("explain a.png --weights a.png", ["--weights", "a.png"]),
        ("explain a.png --out map.bmp", ["--out", "map.bmp", ".png"]),
        ("explain a.png --out no/such/map.png", ["--out", "no/such/map.png"]),
        ("explain a.png --method pattern_attribution", ["--method pattern_attribution", "--patterns FILE"]),
        ("explain a.png --method pattern_attribution --patterns gone.safetensors", ["--patterns", "gone.safetensors"]),
        ("explain a.png --method pattern_attribution --patterns a.png", ["--patterns", "a.png", "safetensors"]),
        ("explain a.png --patterns gone.safetensors --method all", ["--patterns", "gone.safetensors"]),
        ("attack a.png --target gone.png", ["--target", "gone.png"]),
        ("attack a.png --target a.png --target b.png", ["--target", "2", "1"]),
        ("attack a.png --target b.png --steps 0", ["--steps", "0"]),
        ("attack a.png --target b.png --size 6 --model tinynets:build", ["--size must be at least 7, got 6"]),
        ("attack a.png --text x --seed -1", ["--seed must lie in 0 .. 2147483647, got -1"]),
        ("explain a.png --seed 2147483648", ["--seed must lie in 0 .. 2147483647, got 2147483648"]),
        (
            "attack b.png a.png --target b.png --size 8 --model tinynets:broken",
            ["--model must have finite scores, got inf or nan for b.png"],
        ),
        (
            "attack a.png --target b.png --size 8 --model tinynets:constant --method saliency",
            ["--method saliency: target_map must have a positive sum in every sample, got [0.0]"],
        ),
        ("demo --out demo.txt", ["--out", "demo.txt"]),
    ],
)
def test_what_is_wrong_is_named(words: str, parts: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(words, capsys)
    assert line.startswith(f"fastxai {words.split()[0]}: error: ")
    for part in parts:
        assert part in line


def test_wrong_weights_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(
        {"0.weight": torch.zeros(4, 3, 3, 3), "0.bias": torch.zeros(5), "head": torch.zeros(1)}, here / "w.safetensors"
    )
    line = refused("explain a.png --model tinynets:build --weights w.safetensors", capsys)
    assert "missing: 4.bias, 4.weight" in line
    assert "unexpected: head" in line
    assert "0.bias [5] for [4]" in line


def test_weights_are_loaded(here: Path) -> None:
    words = "explain a.png --model tinynets:build --size 9 --out {}.safetensors"
    assert main([*words.format("one").split(), "--seed", "1"]) == 0
    torch.manual_seed(1)
    save_file(sys.modules["tinynets"].build().state_dict(), here / "w.safetensors")
    assert main([*words.format("two").split(), "--seed", "2", "--weights", "w.safetensors"]) == 0
    one, two = load_file(here / "one.safetensors"), load_file(here / "two.safetensors")
    assert one.keys() == two.keys() == {"images", "attributions.gradient", "maps.gradient"}
    assert one["maps.gradient"].shape == (1, 9, 9)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


def test_torchvision_models_take_weights_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None).eval()
    save_file(model.state_dict(), here / "w.safetensors")
    words = (
        "explain a.png --model torchvision:squeezenet1_1 --weights w.safetensors --size 64 --out m.safetensors --json"
    )
    assert call(words) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        expected = model(normalise(load_file(here / "m.safetensors")["images"])).softmax(1).max(1)
    assert row["index"] == int(expected.indices)
    assert row["probability"] == pytest.approx(float(expected.values), rel=1e-4)
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    assert row["class"] == weights.meta["categories"][row["index"]]


def test_mean_and_std_reach_the_model(here: Path) -> None:
    words = "explain a.png --model tinynets:build --size 9 --out {}.safetensors".format
    assert call(words("plain")) == 0
    assert call(words("scaled") + " --mean .5 .5 .5 --std .5 .5 .5") == 0
    plain, scaled = load_file(here / "plain.safetensors"), load_file(here / "scaled.safetensors")
    assert not torch.allclose(plain["attributions.gradient"], scaled["attributions.gradient"])


def test_fallback_is_said_once_on_stderr(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explain a.png --model tinynets:odd --size 8 --json --out m.png") == 0
    captured = capsys.readouterr()
    assert captured.err.count("autograd fallback") == 1
    assert json.loads(captured.out)["command"] == "explain"


def test_methods_that_do_not_fit_the_model_are_left_out_unless_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "explain a.png --model tinynets:odd --size 8"
    assert call(f"{words} --method all --json --out m.safetensors") == 0
    captured = capsys.readouterr()
    fitting = json.loads(captured.out)["methods"]
    assert "gradient" in fitting and "lrp" not in fitting
    assert {f"attributions.{name}" for name in fitting} < load_file(here / "m.safetensors").keys()
    assert "fastxai: lrp is left out: --method: Pick cannot be explained by rules" in captured.err
    for named in ("--method lrp", "--method all --method lrp"):
        assert call(f"{words} {named}") == 2
        assert "error: --method: Pick cannot be explained by rules" in capsys.readouterr().err
    assert call("attack a.png --target b.png --model tinynets:odd --size 8 --method lrp") == 2
    assert "error: --method: Pick cannot be explained by rules" in capsys.readouterr().err


def test_unwritable_folder_is_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    monkeypatch.setattr(_common, "network", lambda options: pytest.fail("worked before it looked"))
    assert call("explain a.png --out map.png") == 2
    assert "--out map.png cannot be written: Permission denied" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(here: Path) -> None:
    (here / "map.png").write_text("old")

    class Figure:
        def savefig(self, file: Path, **_: object) -> None:
            file.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(_common.UsageError, match=r"map\.png.*No space left"):
        _common.write_figure([here / "map.png"], Figure)
    assert (here / "map.png").read_text() == "old"
    assert sorted(p.name for p in here.iterdir()) == ["a.png", "b.png", "map.png", "tinynets.py"]


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"a": [1.5, float("nan"), {"b": float("inf")}], "c": -float("inf"), "d": "NaN"}
    _common.show(Namespace(json=True), result, "for people")
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None, {"b": None}], "c": None, "d": "NaN"}
    _common.show(Namespace(json=False), result, "for people")
    assert capsys.readouterr().out == "for people\n"


def test_table_aligns() -> None:
    text = _common.table(["what", "n"], [["a", "1"], ["longer", "12345"]])
    assert text.splitlines() == ["what        n", "------  -----", "a           1", "longer  12345"]


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("demo", "explain", "attack"))
