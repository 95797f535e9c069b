"""The train command: from a TOML file to weights; stopped and resumed; wrong files refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastxai
from fastxai.cli import main, train
from fastxai.cli._terms import terms
from fastxai.data import Labelled, labelled, save_npz
from fastxai.models import INITIALISATIONS
from fastxai.training import AAT, FAR, AdvAAT, Dataset, Objective

TOML = """
[data]
place = "npz:data.npz"
mean = [0.5, 0.4, 0.5]
std = [0.2, 0.2, 0.2]
pad = 1
flip = true

[model]
network = "tinysmooth:build"

[terms]
cross_entropy = 1.0
hessian_norm = { weight = 1e-4, probes = 2 }

[fit]
epochs = 2
batch = 8
lr = 0.05
weight_decay = 1e-4
seed = 3
"""
NETWORK = """
import torch

def build():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Softplus(10.0), torch.nn.AvgPool2d(4), torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    )

def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1))
"""
START = 'weights = "first/model.safetensors"\n\n'
INITIALISED = {"initialisation": "glorot_normal"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    parts = []
    for n in (24, 12):
        labels = torch.from_numpy(noise.integers(0, 3, n))
        images = torch.from_numpy(noise.integers(0, 60, (n, 3, 8, 8)).astype(np.uint8))
        images[torch.arange(n), labels] += 120
        parts.append(Labelled(images, labels, ("a", "b", "c")))
    save_npz("data.npz", *parts)
    Path("run.toml").write_text(TOML)
    Path("tinysmooth.py").write_text(NETWORK)
    return tmp_path


def words(out: str, *more: str) -> list[str]:
    return ["train", "--config", "run.toml", "--out", out, *more]


def test_trains_and_writes_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("out", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["epoch"] for row in result["rows"]] == [1, 2]
    assert result["rows"][1]["accuracy"] >= 0.5 and result["rows"][1]["hessian_norm"] > 0
    assert set(load_file("out/model.safetensors")) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    with Path("out/log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert main(words("out")) == 0
    printed = capsys.readouterr().out
    assert "out/model.safetensors: accuracy" in printed and "after 2 epochs" in printed


def test_stopped_and_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("whole")) == 0
    calls: list[int] = []
    real = train.accuracy

    def interrupted(*arguments: Any, **options: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(train, "accuracy", interrupted)
    assert main(words("parts")) == 130
    assert "the same command goes on from parts" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert not Path("parts/model.safetensors").exists()
    assert main(words("parts")) == 0
    whole, parts = (load_file(f"{name}/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("terms.hessian_norm=0", "[terms] {'cross_entropy': 1.0, 'hessian_norm': {'weight': 0.0001, 'probes': 2}}"),
        ("data.pad=0", "[data] {'mean': [0.5, 0.4, 0.5], 'std': [0.2, 0.2, 0.2], 'pad': 1, 'flip': True}"),
        ("model.activation='softplus'", "[model] {'network': 'tinysmooth:build'}"),
        ("fit.lr=0.01", "config must be that of the run in one"),
    ],
)
def test_a_folder_holds_one_run(folder: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("one", "--json")) == 0
    weights = Path("one/model.safetensors").read_bytes()
    assert main(words("one", "--set", change)) == 2
    assert said in capsys.readouterr().err
    assert Path("one/model.safetensors").read_bytes() == weights


def test_a_run_that_failed_before_its_first_epoch_holds_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("one", "--set", "fit.batch=800")) == 2
    assert main(words("one", "--set", "terms.hessian_norm=0")) == 0
    Path("data.npz").rename("moved.npz")
    assert main(words("one", "--set", "terms.hessian_norm=0", "--set", "data.place='npz:moved.npz'")) == 0
    # A folder of before settings were written goes on.
    Path("one/settings.json").unlink()
    assert main(words("one", "--set", "terms.hessian_norm=0", "--set", "data.place='npz:moved.npz'")) == 0


def test_settings_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("out", "--json", "--set", "fit.epochs=1", "--set", "terms.hessian_norm=0")) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 1 and "hessian_norm" not in rows[0]


def test_attributional_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every objective of [F] trains beside the Hessian penalty."""
    few = "eps = 0.3, steps = 2, restarts = 1, lambda = 0.5, n_steps = 2"
    lines = {name: f"{name} = {{ {few} }}" for name in ("aat", "adv_aat", "ig_norm", "ig_sum_norm")}
    lines["align"] = 'align = { eps = 0.3, steps = 2, outer = "none" }'
    lines["pgd_adversarial"] = "pgd_adversarial = { eps = 0.3, steps = 2, ratio = 0.5, weight = 2.0 }"
    for name, line in lines.items():
        Path("run.toml").write_text(TOML.replace("cross_entropy = 1.0", line))
        assert main(words(name, "--json", "--set", "fit.epochs=1")) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        weight = 2 if name == "pgd_adversarial" else 1
        assert row["loss"] == pytest.approx(weight * row[name] + 1e-4 * row["hessian_norm"])
    Path("run.toml").write_text(TOML.replace("cross_entropy = 1.0", "aat = { eps = -1 }"))
    assert main(words("wrong")) == 2
    assert "eps must be finite and positive, got -1" in capsys.readouterr().err


def test_maps_are_trained_towards_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data's masks are S_T; data without them is refused."""
    few = '{ eps = 0.05, steps = 1, restarts = 1, lambda = 4.0, n_steps = 2, target_map = "masks" }'
    text = TOML.replace("cross_entropy = 1.0", f"aat = {few}").replace("hessian_norm", "#")
    text = text.replace("epochs = 2", "epochs = 8")
    Path("run.toml").write_text(text)
    assert main(words("none")) == 2
    assert "data must have masks where they are the target map" in capsys.readouterr().err
    train, test = (labelled("npz:data.npz", part) for part in ("train", "test"))
    top = torch.zeros(24, 8, 8, dtype=torch.bool)
    top[:, :4] = True
    save_npz("data.npz", replace(train, masks=top), test)
    losses = []
    for mask in (top, ~top):
        save_npz("data.npz", replace(train, masks=mask), test)
        out = f"masks{int(mask[0, 0, 0])}"
        assert main(words(out, "--json")) == 0
        losses.append([row["aat"] for row in json.loads(capsys.readouterr().out)["rows"]])
    assert losses[0] != losses[1] and all(rows[-1] < rows[0] for rows in losses)
    Path("run.toml").write_text(text.replace('"masks"', '"mask"'))
    assert main(words("wrong")) == 2
    assert "[terms] aat.target_map must be one of 'masks', 'zeros', got 'mask'" in capsys.readouterr().err


def test_terms_of_a_table() -> None:
    """Attacks stay within [0, 1] as normalised; the run's seed is theirs."""
    data = Dataset(torch.zeros(1, 2, 1, 1), torch.zeros(1).long(), (0.5, 0.4), (0.5, 0.2))
    (term,) = terms({"aat": {"eps": 0.3, "lambda": 0.25}, "align": {"eps": 1, "weight": 0}}, 3, data)
    assert isinstance(term, AAT) and term.lambda_ == 0.25 and term.attack.seed == 3
    low, high = (torch.tensor(bound) for bound in term.attack.bounds)
    torch.testing.assert_close(torch.stack([low, high]), torch.tensor([[-1.0, -2], [1, 3]]))
    (term,) = terms({"adv_aat": {"eps": 0.3, "seed": 8}}, 3, Dataset(data.images, data.labels))
    assert isinstance(term, AdvAAT) and term.attack.bounds == (0, 1) and term.attack.seed == 8


def test_far_of_a_table() -> None:
    """Any map by its name, LRP's box being the images' range."""
    x, y = torch.rand(3, 2, 6, 6), torch.tensor([0, 1, 2])
    data = Dataset(x, y, (0.5, 0.4), (0.5, 0.2))
    net = fastxai.compile(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 6), torch.nn.Softplus(), torch.nn.Flatten()))
    ig = {"method": "integrated_gradients", "n_steps": 3}
    told = []
    for objective, asked in (("eq5", "gradient"), ("eq6", ig), ("eq6", {**ig, "n_steps": 4}), ("eq6", "lrp")):
        (term,) = terms({"far": {"objective": objective, "attribution": asked, "eps": 0.1, "lambda": 0.3}}, 3, data)
        assert isinstance(term, FAR) and term.lambda_ == 0.3 and term.attack.seed == 3
        Objective(net, [term])((x - 0.5) / 0.5, y).backward()
        told.append(json.dumps(term.made_with()))
    assert len(set(told)) == 4
    for wrong in ({}, {"attribution": "patterns"}, {"attribution": {"n_steps": 3}}):
        with pytest.raises(ValueError, match="attribution must be one of 'gradient', "):
            terms({"far": {"objective": "eq5", "eps": 0.1, **wrong}}, 3, data)


def test_builtin_network_and_initialisation() -> None:
    softplus = train.network({"activation": "softplus", "beta": 10}, 3)
    assert isinstance(softplus.act1, torch.nn.Softplus) and softplus.act1.beta == 10
    assert float(softplus.conv1.bias.detach().abs().max()) == 0  # type: ignore[union-attr, operator]
    same = train.network({"activation": "relu"}, 3)
    assert torch.equal(same.conv1.weight, softplus.conv1.weight)  # type: ignore[union-attr, arg-type]
    drawn = {name: train.network({"initialisation": name}, 3).conv1.weight for name in INITIALISATIONS}  # type: ignore[union-attr]
    assert torch.equal(drawn["he_normal"], same.conv1.weight)  # type: ignore[arg-type]
    assert len({float(weight.detach().sum()) for weight in drawn.values()}) == 7  # type: ignore[union-attr, arg-type]


def test_an_imported_network_is_initialised_where_that_is_asked_for(folder: Path) -> None:
    made = [train.network({"network": "tinysmooth:build", **more}, 3) for more in ({}, INITIALISED)]
    own, zero = (model[4].bias.detach() for model in made)  # type: ignore[index]
    assert float(own.abs().min()) > 0 and float(zero.abs().max()) == 0


def test_training_starts_from_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a step size of 0 the network stays where it began."""
    assert main(words("first")) == 0
    Path("still.toml").write_text(TOML.replace("lr = 0.05", "lr = 0.0").replace("[terms]", f"{START}[terms]"))
    assert main(["train", "--config", "still.toml", "--out", "second"]) == 0
    first, second = (load_file(f"{name}/model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(train.network({"network": "tinysmooth:build"}, 3)[4].bias, first["4.bias"])  # type: ignore[index]
    # Half as many digits are enough to begin with.
    save_file({name: tensor.half() for name, tensor in first.items()}, "half.safetensors")
    half = train.network({"network": "tinysmooth:build", "weights": "half.safetensors"}, 3)
    assert half[4].bias.dtype == torch.float32 and torch.equal(half[4].bias, first["4.bias"].half().float())  # type: ignore[index]


def test_the_network_for_mnist_is_trained_and_attacked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.arange(10) % 2
    images = (60 * torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))).byte()
    images[labels == 1, :, :14] += 150
    save_npz("grey.npz", *2 * [Labelled(images, labels, tuple("0123456789"))])
    Path("run.toml").write_text(
        '[data]\nplace = "npz:grey.npz"\n[model]\nnetwork = "mnist_cnn"\n[fit]\nepochs = 4\nbatch = 5\nlr = 0.01\n'
    )
    assert main(words("grey", "--json")) == 0
    accuracy = json.loads(capsys.readouterr().out)["rows"][-1]["accuracy"]
    assert accuracy > 0.5
    weights = ["--model", "fastxai.models:MNISTCNN", "--weights", "grey/model.safetensors", "--size", "28"]
    attack = ["--data", "npz:grey.npz", "--robustness", "mnist", "--methods", "gradient", "--images", "4"]
    assert main(["evaluate", *weights, *attack, "--out", "robust", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["robustness"]
    assert line["natural_accuracy"] + line["skipped"] == 1 and line["adversarial_accuracy"] <= line["natural_accuracy"]
    assert line["top_k"] < 1


@pytest.mark.parametrize(
    "change, message",
    [
        (("lr = 0.05", "learning_rate = 1"), r"[fit] must be one of"),
        (("epochs = 2", "epochs = 0"), "epochs must be at least 1, got 0"),
        (("[terms]", "[losses]"), "[losses] must be one of [data] [model] [terms] [fit]"),
        (("pad = 1", "padding = 1"), "[data] padding must be one of place mean std pad flip samples epoch"),
        (('place = "npz:data.npz"', 'place = "npz:none.npz"'), "none.npz"),
        (('place = "npz:data.npz"\n', ""), "[data] place must say where the images are"),
        (('"tinysmooth:build"', '"tinysmooth:absent"'), "[model] network tinysmooth:absent cannot be imported"),
        (('"tinysmooth:build"', '"tinysmooth:build"\ninitialise = "he"'), "[model] initialise must be one of network"),
        (('"tinysmooth:build"', '"cnn"\ninitialisation = "he"'), "[model] initialisation must be one of pytorch"),
        (('"tinysmooth:build"', '"cnn"\nweights = "none.safetensors"'), "weights none.safetensors: no such file"),
        (('"tinysmooth:build"', '"cnn"\nweights = "run.toml"'), "[model] weights run.toml is no safetensors file"),
        (
            ('"tinysmooth:build"', '"tinysmooth:build"\nweights = "other.safetensors"'),
            "does not fit the model; missing: 0.bias, 4.bias; unexpected: 1.weight; "
            "of another shape: 4.weight [3, 3] for [3, 16]",
        ),
        (
            ('"tinysmooth:build"', '"tinysmooth:build"\nweights = "nan.safetensors"'),
            "weights nan.safetensors must hold finite numbers, got others in 0.bias, 0.weight, 4.bias, 4.weight",
        ),
        (
            ('"tinysmooth:build"', '"cnn"\nweights = "other.safetensors"\ninitialisation = "uniform"'),
            "[model] initialisation uniform and weights other.safetensors exclude each other",
        ),
        (("pad = 1", "samples = -5"), "[data] samples must be an int of at least 1, got -5"),
        (("pad = 1", 'samples = "few"'), "[data] samples must be an int of at least 1, got few"),
        (("flip = true", 'flip = "yes"'), "flip must be a bool, got yes"),
        (("mean = [0.5, 0.4, 0.5]", "mean = [0.5, 0.5]"), "mean must hold one finite number, or one a channel"),
        (("std = [0.2, 0.2, 0.2]", "std = [0.0]"), "std must hold one finite number above 0, or one a channel"),
        (("mean = [0.5, 0.4, 0.5]", 'mean = "half"'), "mean must hold one finite number, or one a channel, got half"),
        (('place = "npz:data.npz"', "place = 3"), "[data] place must say where the images are"),
        (('"tinysmooth:build"', "3"), "[model] network must be one of cnn, mnist_cnn or package.module:function"),
        (('"tinysmooth:build"', '"tinysmooth:build"\nbeta = 0'), "[model] beta must be finite and positive, got 0"),
        (('"tinysmooth:build"', '"tinysmooth:build"\nbeta = -1'), "[model] beta must be finite and positive, got -1"),
        (('"tinysmooth:build"', '"mnist_cnn"'), "[model] does not take images [1, 3, 8, 8]: "),
        (('"tinysmooth:build"', '"tinysmooth:narrow"'), "[model] has 1 scores, [data] the label "),
        (("probes = 2", "probes = 0"), "probes must be a positive int"),
        (("probes = 2", "draws = 2"), "draws"),
        (("batch = 8", "batch = 800"), "data must hold a batch of 800"),
        (("[fit]", "[fit"), "--config run.toml"),
    ],
)
def test_wrong_files(folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str) -> None:
    assert change[0] in TOML
    own = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "4.weight": (3, 16), "4.bias": (3,)}
    save_file({name: torch.full(shape, torch.nan) for name, shape in own.items()}, "nan.safetensors")
    shapes = {"0.weight": (4, 3, 3, 3), "1.weight": (3,), "4.weight": (3, 3)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, "other.safetensors")
    Path("run.toml").write_text(TOML.replace(*change))
    assert main(words("out")) == 2
    assert message in capsys.readouterr().err
    assert not Path("out/model.safetensors").exists()


def test_a_table_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text("fit = 3\n")
    for more in ([], ["--set", "fit.epochs=1"]):
        assert main(words("out", *more)) == 2
        assert "[fit] must be one of [data] [model] [terms] [fit]" in capsys.readouterr().err


def test_missing_file_and_threads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "absent.toml", "--out", "out"]) == 2
    assert "absent.toml" in capsys.readouterr().err
    assert main(words("out", "--threads", "0")) == 2
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err
