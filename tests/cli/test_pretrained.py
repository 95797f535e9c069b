"""``--pretrained``: torchvision's own weights through torchvision's own cache, here a folder of the test's."""

from __future__ import annotations

import email.message
import io
import json
import re
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import fastxai
from fastxai.cli import main

EXPLAIN = "explain a.png --model torchvision:{} --pretrained --json --out m.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image, and an empty cache in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path


def weights(name: str) -> Any:
    return torchvision.models.get_model_weights(name)["DEFAULT"]


def cached(name: str) -> Path:
    """Where torchvision keeps what it downloaded."""
    file = Path("home/hub/checkpoints", weights(name).url.rpartition("/")[2]).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def seeded(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options).eval()


def files() -> set[str]:
    return {str(file) for file in Path.cwd().rglob("*") if file.is_file()}


class Response(io.BytesIO):
    """What urlopen returns; the connection ends after ``breaks`` bytes."""

    def __init__(self, content: bytes, breaks: int | None = None) -> None:
        super().__init__(content[:breaks])
        self.breaks = breaks

    def info(self) -> email.message.Message:
        return email.message.Message()

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        if not found and self.breaks is not None:
            raise ConnectionResetError(104, "Connection reset by peer")
        return found


def old(name: str) -> str:
    """The name that a tensor of a DenseNet has in torchvision's file."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)


def offline(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no route to host")


@pytest.mark.filterwarnings("ignore:GoogLeNet runs on the autograd fallback")
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("squeezenet1_1", {}, None),
        # Its file has names of layers that its module has no more.
        ("densenet121", {}, 64),
        # With its weights comes a preparation of the input inside the model, which is off without them.
        ("googlenet", {"transform_input": True, "init_weights": False}, 64),
    ],
)
def test_weights_come_with_their_preparation(
    name: str, options: dict[str, Any], size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = seeded(name, **options)
    # Files as old as these have no counts of batches.
    state = {old(name): value for name, value in model.state_dict().items() if "num_batches" not in name}
    torch.save(state, cached(name))
    assert main([*EXPLAIN.format(name).split(), *([] if size is None else ["--size", str(size)])]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    found = load_file("m.safetensors")
    images, got = found["images"], found["attributions.gradient"]
    assert images.shape[2:] == (size or 224, size or 224)
    preset = weights(name).transforms()
    net = fastxai.compile(model, preset.mean, preset.std)
    want = net.gradient(images, net(images).argmax(1))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    assert row["class"] == weights(name).meta["categories"][row["index"]]


def test_a_download_is_kept_and_leaves_stdout_to_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "squeezenet1_1"
    content = io.BytesIO()
    torch.save(seeded(name).state_dict(), content)
    words = [*EXPLAIN.format(name).split(), "--size", "64"]
    with monkeypatch.context() as patch:
        # The name of the file holds the digest of the true weights.
        patch.setattr(torch.hub, "HASH_REGEX", re.compile(r"(?!)"))
        patch.setattr(torch.hub, "urlopen", lambda _: Response(content.getvalue()))
        assert main(words) == 0
    first = capsys.readouterr()
    assert weights(name).url in first.err
    assert cached(name).read_bytes() == content.getvalue()
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    assert main(words) == 0
    second = capsys.readouterr()
    assert json.loads(first.out) == json.loads(second.out)
    assert second.err == ""


@pytest.mark.parametrize(
    "words",
    [
        "explain a.png",
        "attack a.png --target a.png",
        "bounds a.png",
        "evaluate --data folder:. --out results",
        "study geometry --images . --out results",
    ],
)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (offline, "no route to host"),
        (lambda _: Response(bytes(1 << 20), 1 << 16), "Connection reset by peer"),
        (lambda _: Response(bytes(1 << 10)), "invalid hash value"),
    ],
    ids=["offline", "cut", "altered"],
)
def test_what_cannot_be_fetched_is_explained_and_leaves_no_file(
    words: str, answer: Any, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files()
    monkeypatch.setattr(torch.hub, "urlopen", answer)
    assert main([*words.split(), "--model", "torchvision:squeezenet1_1", "--pretrained"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith(f"fastxai {words.split()[0]}: error: --pretrained: ")
    for part in (weights("squeezenet1_1").url, str(cached("squeezenet1_1")), reason, "--weights FILE"):
        assert part in line
    assert "Traceback" not in captured.err and files() == before


class Runs:
    """Once loaded as an object, it has left a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ""),
        (b"<html>log in first</html>", ""),
        ({"classifier.1.weight": torch.zeros(1)}, "loading state_dict"),
        ({"classifier.1.weight": Runs()}, "eights only"),
    ],
    ids=["empty", "another file", "another model", "more than tensors"],
)
def test_a_damaged_file_in_the_cache_is_named(content: Any, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = cached("squeezenet1_1")
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    before = file.read_bytes(), files()
    assert main(EXPLAIN.format("squeezenet1_1").split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    for part in ("error: --pretrained: ", str(file), reason, "remove that file", "--weights FILE"):
        assert part in captured.err
    assert (file.read_bytes(), files()) == before
