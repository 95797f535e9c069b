"""Every command and every Python snippet of the pages runs."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastxai.cli import demo, main
from fastxai.data import demo_photos, save_png

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a page shows of a library that the tests do without; only its syntax is checked.
NOT_RUN = re.compile(r"^```python not-run\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```(.*?)\n.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)#?([^)\s]*)\)")
FEW_STEPS = {
    "bounds": ["--probes", "2", "--steps", "2"],
    "demo": ["--steps", "2"],
    "attack": ["--steps", "2"],
    "evaluate": ["--images", "2", "--methods", "gradient"],
    "explain": [],
    "train": ["--set", "fit.epochs=1", "--set", "fit.batch=4"],
    "study geometry": ["--pairs", "2", "--steps", "2", "--only", "manipulation", "--methods", "gradient"],
    "study robustness": [
        *("--networks", "wd0_relu_hess0", "--epochs", "1", "--set", "fit.batch=4", "--samples", "4"),
        *("--only", "accuracy"),
    ],
    "study far": ["--epochs", "1", "--set", "data.epoch=8", "--set", "fit.batch=4", "--samples", "2"],
}


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def anchors(page: Path) -> set[str]:
    """The names that headings get on GitHub."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def write_idx(folder: Path) -> None:
    """Eight images and their labels in each of the files of MNIST."""
    folder.mkdir()
    noise = np.random.default_rng(2)
    for part in ("train", "t10k"):
        for kind, shape, most in (("images-idx3", (8, 28, 28), 256), ("labels-idx1", (8,), 10)):
            header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
            values = noise.integers(0, most, shape, np.uint8)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the pages speak of."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    for name, pixels in zip(("cat.jpg", "car.jpg"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    for image, name in zip(*demo_photos(), strict=True):
        save_png(image, tmp_path / "photos" / f"{name}.png")
    (tmp_path / "data").mkdir()
    for file in ("data_batch_1.bin", "test_batch.bin"):
        # CIFAR-10's records: a label and 32x32 pixels, channel by channel.
        records = np.random.default_rng(1).integers(0, 256, (8, 3073), np.uint8)
        records[:, 0] %= 10
        records.tofile(tmp_path / "data" / file)
    for name in ("mnist", "fashion-mnist"):
        write_idx(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks that start with a file name as their comment."""
    for language, ending in (("python", "py"), ("toml", "toml")):
        for body in blocks(page, language):
            if re.match(rf"# \w+\.{ending}\n", body):
                (folder / body.split()[1]).write_text(body)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_snippets_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(page, folder)
    monkeypatch.syspath_prepend(folder)
    names: dict[str, object] = {"__name__": "snippet"}
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), names)


def check_words(words: list[str], folder: Path) -> None:
    """Run a fastxai command; of every other one check that what it names is there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    match words:
        case ["fastxai", command, *rest]:
            few = FEW_STEPS[f"{command} {rest[0]}" if command == "study" else command]
            assert main([command, *rest, *few]) == 0
        case ["pip", "install", *rest]:
            for extra in re.findall(r"\[(\w+)\]", " ".join(rest)):
                assert extra in settings["project"]["optional-dependencies"]
            assert rest[-1].startswith(".")
        case ["pytest" | "python" | "ruff" | "pyright" | ".ci/run", *_]:
            for word in words:
                if "/" in word or word.endswith((".py", ".md")):
                    assert (ROOT / word.split("::")[0]).exists(), word
        case ["git", "clone", *_] | ["cd", *_] | ["python3", "-m", "venv", *_] | [".", *_]:
            pass
        case _:
            raise AssertionError(f"no check for the command {shlex.join(words)!r}")


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_commands_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROUNDS", 1)
    write_files(page, folder)
    for words in commands(page):
        check_words(words, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_block_escapes_by_its_marking(page: Path) -> None:
    """A block of another marking would be checked by nothing."""
    assert set(FENCED.findall(page.read_text())) <= {"python", "python not-run", "sh", "text", "toml"}
    for body in blocks(page, "toml"):
        assert tomllib.loads(body) and body.startswith("# "), "a command reads it by this name"
    for body in NOT_RUN.findall(page.read_text()):
        ast.parse(body)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_paths_exist(page: Path) -> None:
    text = FENCED.sub("", page.read_text())
    for target, anchor in LINK.findall(text):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"
    for name in re.findall(r"`((?:fastxai|csrc|tests|bench|examples|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_installed_script_is_the_main_function() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["scripts"] == {"fastxai": "fastxai.cli:main"}
    assert shutil.which("bash") is None or (ROOT / ".ci" / "run").stat().st_mode & 0o111
