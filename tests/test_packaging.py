"""The distribution: what it needs, what it holds, and that importing it is cheap and safe anywhere."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(code: str, **environment: str) -> str:
    """Return what a fresh interpreter prints, started outside the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_build_needs_no_torch() -> None:
    names = {re.split(r"[<>=~! ]", need)[0] for need in PROJECT["build-system"]["requires"]}
    assert names == {"scikit-build-core", "pybind11"}


def test_metadata_is_installed() -> None:
    distribution = importlib.metadata.distribution("fastxai")
    assert distribution.version == PROJECT["project"]["version"] == "0.1.0"
    assert distribution.metadata["Requires-Python"] == ">=3.11"
    assert distribution.metadata["License-Expression"] == "BSD-3-Clause"
    (script,) = [e for e in distribution.entry_points if e.group == "console_scripts"]
    assert (script.name, script.value) == ("fastxai", "fastxai.cli:main")


def test_the_package_is_typed() -> None:
    files = importlib.resources.files("fastxai")
    assert files.joinpath("py.typed").is_file() and files.joinpath("_C.pyi").is_file()


def test_the_stub_names_what_the_module_has() -> None:
    from fastxai import _C

    stub = set(re.findall(r"^(?:def )?(\w+)[(:]", (ROOT / "fastxai" / "_C.pyi").read_text(), flags=re.M))
    real = {name for name in dir(_C) if not name.startswith("_")}
    assert real <= stub
    assert {name for name in stub - real if not name.startswith("cuda_")} == set()


def test_importing_starts_nothing() -> None:
    code = (
        "import sys, fastxai, torch; from fastxai.kernels import activation, max_pool;"
        "print(torch.cuda.is_initialized(), 'fastxai.kernels.triton' in sys.modules, 'matplotlib' in sys.modules)"
    )
    assert run(code) == "False False False"


def test_the_module_loads_without_torch_or_gpu() -> None:
    """The extension stands alone: no link against torch, no second OpenMP runtime, no CUDA driver."""
    from fastxai import _C

    code = (
        "import importlib.util as u, sys;"
        f"s = u.spec_from_file_location('fastxai._C', {_C.__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "print(m.activation_names()[1], repr(m.parallel_runtime()), 'torch' in sys.modules)"
    )
    assert run(code, CUDA_VISIBLE_DEVICES="") == "softplus '' False"
    readelf = shutil.which("readelf")
    if readelf:
        needed = subprocess.run([readelf, "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"NEEDED.*(gomp|omp|torch|c10|cuda)", needed), needed


def test_compiler_flags_keep_the_tails_and_the_portability() -> None:
    text = re.sub(r"#.*", "", (ROOT / "CMakeLists.txt").read_text())
    assert not re.search(r"fast-math|use_fast_math|march|mtune", text)


def test_kernels_know_neither_python_nor_torch() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        included = set(re.findall(r"#include [<\"]([\w./]+)[>\"]", path.read_text()))
        foreign = {name for name in included if re.search(r"torch|ATen|c10|pybind11|Python\.h", name)}
        binds = path.name == "module.cpp" or path.parent.name == "bindings"
        assert not foreign or (binds and all(name.startswith("pybind11") for name in foreign))


def test_cpu_kernels_compile_for_arm() -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no cross compiler here: apt-get install g++-aarch64-linux-gnu")
    for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        subprocess.run([compiler, "-fsyntax-only", "-std=c++17", "-Wall", "-Werror", str(source)], check=True)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    settings = ["-C", "cmake.define.FASTXAI_CUDA=OFF", "-C", f"build-dir={tmp_path / 'build'}"]
    done = subprocess.run([*build, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastxai", "fastxai-0.1.0.dist-info"}
    assert {"fastxai/py.typed", "fastxai/_C.pyi", "fastxai/kernels/triton/activation.py"} <= set(names)
    assert {"fastxai/attacks/presets.toml", "fastxai/models/demo.safetensors"} <= set(names)
    assert any(re.fullmatch(r"fastxai/_C\..*\.so", name) for name in names)
    assert not [name for name in names if re.search(r"__pycache__|\.cpp$|\.cu$|(^|/)(tests|bench)/", name)]
    tracked = subprocess.run(["git", "ls-files", "fastxai"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= set(names)
