"""Importing is light, and every public name is there."""

from __future__ import annotations

import subprocess
import sys

import fastxai

CHECK = """
import sys
import fastxai, torch
heavy = [name for name in ("matplotlib", "skimage", "PIL", "torchvision", "captum", "triton") if name in sys.modules]
assert not heavy, heavy
assert not torch.cuda.is_initialized()
fastxai.viz.heatmap, fastxai.data.load_images, fastxai.models.CNN, fastxai.ops.softplus, fastxai.cli.main
assert not torch.cuda.is_initialized()
"""


def test_import_is_light_and_submodules_come_at_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    # Names in capitals come first, as ruff has them.
    assert fastxai.__all__ == sorted(fastxai.__all__, key=lambda name: (not name.isupper(), name))
    assert all(getattr(fastxai, name) is not None for name in fastxai.__all__)
    assert not hasattr(fastxai, "no_such_name")
