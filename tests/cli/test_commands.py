"""The three commands: what they print, what they write, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.small import small_net
from PIL import Image
from safetensors.torch import load_file

import fastxai
from fastxai.attacks import Ball, Manipulation, _task, target_maps
from fastxai.cli import _plain, demo, main
from fastxai.cli._methods import METHODS
from fastxai.data import demo_photos, load_images
from fastxai.explainers import Explainer, Patterns
from fastxai.metrics import mse, pcc, ssim
from fastxai.models import DEMO_MEAN, DEMO_STD


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), np.uint8)
    for name, pixels in zip(("a.png", "b.png"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def net() -> fastxai.Net:
    return fastxai.compile(fastxai.models.demo(), DEMO_MEAN, DEMO_STD)


def call(words: str) -> int:
    return main(words.split())


def printed(words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main([*words.split(), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def is_picture(file: Path) -> None:
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 10


def test_explain(here: Path, net: fastxai.Net, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed("explain a.png b.png --out m.png --out m.safetensors --class 3 --beta 5", capsys)
    x = load_images(["a.png", "b.png"], 32)
    probability, index = net(x).softmax(1).max(1)
    assert [row["file"] for row in report["images"]] == ["a.png", "b.png"]
    assert [row["index"] for row in report["images"]] == index.tolist()
    assert [row["class"] for row in report["images"]] == [fastxai.models.CLASSES[k] for k in index]
    assert [row["probability"] for row in report["images"]] == pytest.approx(probability.tolist())
    saved = load_file("m.safetensors")
    expected = net.with_activation("softplus", 5.0).gradient(x, 3)
    torch.testing.assert_close(saved["attributions.gradient"], expected)
    torch.testing.assert_close(saved["maps.gradient"], fastxai.reduce_map(expected))
    assert (report["methods"], report["signed"], report["beta"]) == (["gradient"], False, 5.0)
    is_picture(here / "m.png")


EXPLAINERS: dict[str, Callable[[fastxai.Net], Explainer]] = {
    "gradient": fastxai.Gradient,
    "saliency": fastxai.Saliency,
    "input_x_gradient": fastxai.InputXGradient,
    "integrated_gradients": fastxai.IntegratedGradients,
    "smooth_grad": lambda net: fastxai.SmoothGrad(fastxai.Gradient(net), seed=5),
    "guided_backprop": fastxai.GuidedBackprop,
    "lrp": lambda net: fastxai.LRP(net, "zplus_zb", low=0.0, high=1.0),
    "pattern_attribution": lambda net: fastxai.PatternAttribution(net, Patterns.load("p.safetensors")),
}


@pytest.fixture
def patterns(here: Path, net: fastxai.Net) -> str:
    fastxai.PatternTrainer(net).fit([load_images(["a.png", "b.png"], 32)]).save("p.safetensors")
    return "--patterns p.safetensors"


@pytest.mark.parametrize("method", EXPLAINERS)
def test_explain_methods(method: str, here: Path, net: fastxai.Net, patterns: str) -> None:
    assert call(f"explain a.png --method {method} --seed 5 {patterns} --out m.safetensors") == 0
    saved = load_file("m.safetensors")
    expected = EXPLAINERS[method](net).attribute(load_images(["a.png"], 32)).detach()
    torch.testing.assert_close(saved[f"attributions.{method}"], expected)
    torch.testing.assert_close(saved[f"maps.{method}"], fastxai.reduce_map(expected))


def test_every_method_is_tested() -> None:
    assert set(EXPLAINERS) == set(METHODS)


def test_explain_by_all_methods(here: Path, net: fastxai.Net, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed("explain a.png b.png --method saliency --method all --out m.png --out m.safetensors", capsys)
    free = [name for name, method in METHODS.items() if not method.needs]
    assert report["methods"] == ["saliency", *(name for name in free if name != "saliency")]
    saved = load_file("m.safetensors")
    assert saved.keys() == {"images", *(f"{what}.{name}" for what in ("attributions", "maps") for name in free)}
    x = load_images(["a.png", "b.png"], 32)
    torch.testing.assert_close(saved["attributions.input_x_gradient"], x * saved["attributions.gradient"])
    is_picture(here / "m.png")


def test_all_methods_hold_those_whose_file_is_given(
    here: Path, patterns: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = printed(f"explain a.png --method all {patterns} --out m.safetensors", capsys)
    assert report["methods"] == list(METHODS)


def test_patterns_of_another_model_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Patterns({"other.weight": torch.ones(3, 4)}).save("p.safetensors")
    assert call("explain a.png --method pattern_attribution --patterns p.safetensors") == 2
    line = capsys.readouterr().err
    assert "patterns must hold a pattern of shape" in line and "other.weight" in line
    assert not (here / "fastxai-explain.png").exists()


def test_attack_on_patterns(here: Path, patterns: str) -> None:
    words = f"attack a.png --target b.png --method pattern_attribution {patterns} --steps 2 --out m.safetensors"
    assert call(words) == 0
    saved = load_file("m.safetensors")
    net = fastxai.compile(fastxai.models.demo(), DEMO_MEAN, DEMO_STD)
    expected = EXPLAINERS["pattern_attribution"](net).attribute(load_images(["b.png"], 32)).detach()
    torch.testing.assert_close(saved["target_maps"], fastxai.reduce_map(expected))


def test_explain_signed(here: Path, net: fastxai.Net, capsys: pytest.CaptureFixture[str]) -> None:
    words = "explain a.png --method gradient --method saliency --signed --class 2 --out m.png --out m.safetensors"
    assert printed(words, capsys)["signed"] is True
    saved = load_file("m.safetensors")
    gradient = net.gradient(load_images(["a.png"], 32), 2)
    torch.testing.assert_close(saved["maps.gradient"], gradient.sum(1))
    torch.testing.assert_close(saved["maps.saliency"], gradient.abs().sum(1))
    with Image.open(here / "m.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, blue = (pixels[..., 0] - pixels[..., 2] > 100), (pixels[..., 2] - pixels[..., 0] > 100)
    assert red.sum() > 1000 and blue.sum() > 1000
    middle = pixels.shape[1] * 2 // 3
    assert blue[:, middle:].sum() < 0.01 * red[:, middle:].sum()


def test_attack(here: Path, net: fastxai.Net, capsys: pytest.CaptureFixture[str]) -> None:
    words = "attack a.png b.png --target b.png --target a.png --steps 4 --lr 2e-3 --out a.safetensors --out t.png"
    report = printed(words, capsys)
    x = load_images(["a.png", "b.png"], 32)
    explainer = fastxai.Gradient(net)
    maps = fastxai.reduce_map(explainer.attribute(x)).detach()
    expected = Manipulation(explainer, steps=4, lr=2e-3).perturb(x, maps.flip(0))
    saved = load_file("a.safetensors")
    torch.testing.assert_close(saved["manipulated"], expected.images, rtol=0, atol=0)
    torch.testing.assert_close(saved["target_maps"], maps.flip(0))
    for i, row in enumerate(report["images"]):
        assert row["class_kept"] == bool(expected.class_kept[i])
        for key, a, b in (
            ("map_to_target_before", maps, maps.flip(0)),
            ("map_to_target", expected.maps, maps.flip(0)),
            ("map_to_original", expected.maps, maps),
        ):
            measured = {"pcc": float(pcc(a, b)[i]), "ssim": float(ssim(a, b)[i]), "mse": float(mse(a, b)[i])}
            assert row[key] == pytest.approx(measured, rel=1e-4, abs=1e-9)
        assert row["image"]["mse"] == pytest.approx(float(mse(expected.images, x)[i]), rel=1e-4)
    is_picture(here / "t.png")


def test_attack_with_a_preset_a_ball_and_a_stop(here: Path, net: fastxai.Net) -> None:
    words = (
        "attack a.png --text why? --method lrp --preset cifar10 --steps 3 --eps 0.003 --stop 0.9 --out l.safetensors"
    )
    assert call(words) == 0
    x, saved = load_images(["a.png"], 32), load_file("l.safetensors")
    explainer = fastxai.LRP(net, "zplus_zb", low=0.0, high=1.0)
    attack = Manipulation.preset(explainer, "cifar10", steps=3, ball=Ball(0.003), stop=0.9)
    assert attack.lr == pytest.approx(2e-4 * sum(DEMO_STD) / 3) and attack.beta is None
    target_map = target_maps.text((1, 32, 32), "why?")
    torch.testing.assert_close(saved["target_maps"], target_map)
    torch.testing.assert_close(saved["manipulated"], attack.perturb(x, target_map).images, rtol=0, atol=0)
    assert 0 < (saved["manipulated"] - x).abs().max() <= 0.003 + 1e-7


@pytest.mark.parametrize("method", ["gradient", "lrp"])
@pytest.mark.parametrize("preset", ["imagenet", "cifar10"])
def test_a_preset_keeps_the_images_of_a_network_without_mean_and_std(
    here: Path, preset: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "attacked.py").write_text("from evaluation.small import small_net as build\n")
    words = f"attack a.png b.png --target b.png --target a.png --preset {preset} --method {method} --steps 30 --size 8"
    report = printed(f"{words} --model attacked:build --out p.safetensors", capsys)
    saved, net = load_file("p.safetensors"), fastxai.compile(small_net())
    x, images = load_images(["a.png", "b.png"], 8), saved["manipulated"]
    assert torch.equal(saved["images"], x) and 0 <= images.min() < images.max() <= 1
    explainer = fastxai.Gradient(net) if method == "gradient" else fastxai.LRP(net, "zplus_zb", low=0.0, high=1.0)
    attack = Manipulation.preset(explainer, preset, mean=(0.0,) * 3, std=(1.0,) * 3, steps=30)
    expected = attack.perturb(x, target_maps.of(x.flip(0), explainer))
    torch.testing.assert_close(images, expected.images, rtol=0, atol=0)
    for i, row in enumerate(report["images"]):
        assert row["image"]["mse"] == pytest.approx(float(mse(images, x)[i]), rel=1e-4)
        assert row["image"]["ssim"] == pytest.approx(float(ssim(images, x, 1.0)[i]), rel=1e-4)
        assert row["image"]["pcc"] == pytest.approx(float(pcc(images, x)[i]), rel=1e-4)
    assert max(row["image"]["mse"] for row in report["images"]) > 0


def test_lrp_is_attacked_without_beta(here: Path, net: fastxai.Net) -> None:
    assert call("attack a.png --target b.png --method lrp --steps 3 --out l.safetensors") == 0
    explainer = fastxai.LRP(net, "zplus_zb", low=0.0, high=1.0)
    a, b = (load_images([name], 32) for name in ("a.png", "b.png"))
    expected = Manipulation(explainer, steps=3, beta=None).perturb(a, target_maps.of(b, explainer))
    torch.testing.assert_close(load_file("l.safetensors")["manipulated"], expected.images, rtol=0, atol=0)


def test_the_noise_of_an_attacked_map_is_redrawn(here: Path, net: fastxai.Net) -> None:
    assert call("attack a.png --target b.png --method smooth_grad --steps 3 --out s.safetensors") == 0
    a, b = (load_images([name], 32) for name in ("a.png", "b.png"))
    explainer = fastxai.SmoothGrad(fastxai.Gradient(net))
    target_map = fastxai.reduce_map(explainer.attribute(b)).detach()
    redrawn, fixed = (
        Manipulation(explainer, steps=3, redraw=again).perturb(a, target_map).images for again in (True, False)
    )
    manipulated = load_file("s.safetensors")["manipulated"]
    torch.testing.assert_close(manipulated, redrawn, rtol=0, atol=0)
    assert not torch.equal(manipulated, fixed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--text why? --eps -1", "--eps must be finite and positive, got -1.0"),
        ("--text why? --stop 2", "--stop must be a correlation"),
        ("--text . --steps 0", "--steps must be a positive int"),
        ("--text ' ' --steps 1", "--text: words must show something"),
        ("--target b.png --method smooth_grad --preset imagenet --beta 3 -1", "--beta must be finite and positive"),
    ],
)
def test_attack_errors(here: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "a.png", *shlex.split(words)]) == 2
    assert message in capsys.readouterr().err


def test_one_target_serves_all_images(here: Path) -> None:
    assert call("attack a.png b.png --target b.png --steps 1 --out a.safetensors") == 0
    maps = load_file("a.safetensors")["target_maps"]
    assert torch.equal(maps[0], maps[1])


def test_interrupt_keeps_the_best_so_far(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar(_task.tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if self.n == 3:
                raise KeyboardInterrupt
            return super().update(n)

    monkeypatch.setattr(_task, "tqdm", Bar)
    assert call("attack a.png --target b.png --steps 1000000 --out kept.safetensors") == 130
    assert "stopped after 4 of 1000000 steps; wrote kept.safetensors" in capsys.readouterr().err
    assert load_file("kept.safetensors")["manipulated"].shape == (1, 3, 32, 32)


def test_interrupt_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demo_photos", stop)
    assert main(["demo"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (here / "fastxai-demo.png").exists()


def test_demo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = printed("demo --steps 20", capsys)
    assert [(p["photo"], p["class"]) for p in report["photos"]] == [("cat", "cat"), ("motorcycle", "automobile")]
    assert report["class_kept"] is report["last_class_kept"] is True
    assert report["map_to_target"]["pcc"] > report["map_to_target_before"]["pcc"] + 0.05
    assert report["image"]["ssim"] > 0.9
    assert set(report["time"]["seconds_per_step"]) == {"fastxai", "autograd"}
    assert report["time"]["relative_difference_of_the_loss"] < 1e-9
    is_picture(here / "fastxai-demo.png")


def test_demo_prints_tables(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROUNDS", 1)
    assert call("demo --steps 2 --out d.safetensors") == 0
    shown = capsys.readouterr().out
    for part in (
        "cat: cat",
        "motorcycle: automobile",
        "class kept",
        "map to target's map, after",
        "plain PyTorch",
        "thread",
    ):
        assert part in shown
    assert load_file("d.safetensors")["recovered_maps"].shape == (2, 32, 32)


def test_plain_loop_is_the_same_attack(net: fastxai.Net) -> None:
    x, _ = demo_photos()
    x = torch.cat([x, x.flip(3)]).double()
    model = fastxai.models.demo().double()
    explainer = fastxai.Gradient(fastxai.compile(model, DEMO_MEAN, DEMO_STD))
    maps = fastxai.reduce_map(explainer.attribute(x)).detach().flip(0)
    attack = Manipulation(explainer, steps=6, lr=1e-3, c=20.0, gamma=300.0)
    result = attack.perturb(x, maps)
    images, losses = _plain.manipulate(model, x, maps, attack, DEMO_MEAN, DEMO_STD)
    torch.testing.assert_close(result.history["map"] + result.history["output"], losses, rtol=1e-9, atol=1e-12)
    assert (result.best_step == 6).any()
    at_the_end = result.best_step == 6
    # nn.Softplus is linear beyond beta a = 20, which costs e^-20 = 2e-9 of a slope; Adam divides by small gradients.
    torch.testing.assert_close(result.images[at_the_end], images[at_the_end], rtol=0, atol=1e-5 * attack.lr)
