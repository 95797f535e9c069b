"""What the sources must keep to: imports go one way, files stay small, some things are never used."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastxai"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))

# Each part may import those before it and the leaves, which import no part but one another. Private modules of the
# package itself (_check, _backend) are for everyone.
ORDER = ("kernels", "ops", "engine", "explainers", "attacks", "training", "evaluation", "sweep", "cli")
LEAVES = ("metrics", "data", "results", "viz")
OTHERS = {
    "theory": {"kernels", "ops", "engine", *LEAVES},
    "models": {"ops", *LEAVES},
    "report": {"results", "viz"},
    "studies": set(),
}


def may_import(part: str) -> set[str]:
    """Return the parts that a part may import, itself included."""
    if part in LEAVES:
        return set(LEAVES)
    if part in OTHERS:
        return OTHERS[part] | {part}
    below = set(ORDER[: ORDER.index(part) + 1])
    if part == "kernels":
        return {part}
    models = {"models"} if ORDER.index(part) > ORDER.index("engine") else set()
    theory = {"theory"} if ORDER.index(part) >= ORDER.index("evaluation") else set()
    reports = {"report", "studies"} if part in ("sweep", "cli") else set()
    return below | models | set(LEAVES) | theory | reports


def part_of(path: Path) -> str:
    """Return the part that a file belongs to; "" for the files of the package itself."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else ""


def imported_modules(path: Path) -> set[str]:
    """Return the dotted fastxai modules that a file imports anywhere, annotations-only imports included."""
    found: set[str] = set()
    package = ["fastxai", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "fastxai"}


def parts_imported(path: Path) -> set[str]:
    names = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    return {name.split(".")[1] for name in imported_modules(path) if name.count(".")} & names


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert {"kernels", "ops", "engine"} <= {part_of(path) for path in SOURCES}
    assert len(NATIVE) >= 3
    assert "fastxai.engine.graph" in imported_modules(PACKAGE / "engine" / "core.py")
    assert parts_imported(PACKAGE / "engine" / "jets.py") == {"engine", "kernels"}


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "":
        allowed = {*ORDER, *LEAVES, *OTHERS} if path.name in ("__init__.py", "__main__.py") else set()
    else:
        assert part in (*ORDER, *LEAVES, *OTHERS), f"{part} is no part of the architecture"
        allowed = may_import(part)
    assert parts_imported(path) <= allowed


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=ids)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=ids)
def test_nothing_forbidden(path: Path) -> None:
    """No unsafe maths flags, no machine of its own, no pickle, no settings from the environment."""
    found = re.findall(r"-ffast-math|march=native|\bpickle\b|os\.environ|\bgetenv\b", path.read_text())
    assert found == []
    if path.suffix == ".py":
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "load"]
        torch_load = [c for c in named if isinstance(c.func.value, ast.Name) and c.func.value.id == "torch"]  # type: ignore[attr-defined]
        assert torch_load == [], "torch.load unpickles; weights are safetensors"


def test_the_build_file_uses_no_forbidden_flag() -> None:
    lines = (ROOT / "CMakeLists.txt").read_text().splitlines()
    code = "\n".join(line.split("#")[0] for line in lines)
    assert not re.search(r"ffast-math|march=native", code)
