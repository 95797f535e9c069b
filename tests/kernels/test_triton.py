"""The Triton kernels without a GPU: interpreted on the CPU in a process of their own, and compiled for Hopper."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastxai
from fastxai.kernels import activation as jets
from fastxai.kernels.activation import NAMES, Activation

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

POINTERS = ("y", "y_v", "kept", "a", "x", "mu", "mu_v", "mu_0", "m_0", "m_1", "a_v", "nu", "nu_v", "nu_0", "t")
POINTERS += ("r", "z", "d", "dz", "shares")
POINTERS += ("y_u", "bar")
POINTERS += ("out", "gradient", "m", "v", "low", "high", "origin")
FLOATS = ("beta_head", "beta_tail", "alpha", "epsilon", "kappa")
FLOATS += ("beta_1", "rest_1", "beta_2", "rest_2", "eps", "step", "correction")
HERE = Path(__file__).parent
CONSTANTS = {"CURVED": False, "WIDE": False, "BLOCK": 1024, "GIVEN": False, "ROWS": 1, "COLS": 1, "UNROLL": 4}
CONSTANTS |= {"KH": 2, "KW": 2, "SH": 2, "SW": 2, "PH": 0, "PW": 0, "DH": 1, "DW": 1, "LAST": True}


def test_kernels_under_the_interpreter() -> None:
    """Triton reads TRITON_INTERPRET at import, hence the second process."""
    if triton.__version__.startswith("3.6.") and not _arrays_are_indices():
        pytest.skip("triton 3.6's interpreter takes int() of arrays of one element, which this NumPy refuses")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_triton.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"\d{2,} passed", run.stdout) and "skipped" not in run.stdout


def _arrays_are_indices() -> bool:
    try:
        return int(np.ones(1)) == 1
    except TypeError:
        return False


def test_a_cpu_tensor_needs_the_interpreter() -> None:
    with fastxai.backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        jets.push(Activation("softplus"), torch.zeros(3, 2))


def compile_for_hopper(kernel: object, pointer: str, **constants: object) -> str:
    """Return the PTX for 16-byte aligned operands and sizes in multiples of 16; raise if it does not assemble."""
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):  # type: ignore[attr-defined]
        if name in constants or name in CONSTANTS:
            signature[name], values[(i,)] = "constexpr", constants.get(name, CONSTANTS.get(name))
        elif name == "beta_head" and "beta_tail" in constants:
            signature[name] = "*fp64"
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name in POINTERS:
            signature[name] = pointer
        else:
            signature[name] = "*u8" if name == "index" else "i32"
        if signature[name].startswith("*") or name in ("size", "x_size", "nu_size", "channels"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    options = {"num_warps": 8 if pointer == "*fp32" else 4, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def accesses(ptx: str, of: str) -> list[str]:
    return re.findall(rf"{of}\.global(\S*)", ptx)


@pytest.mark.parametrize("pointer", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("name", ["softplus", "gelu"])
def test_activation_kernels_assemble_with_16_byte_accesses(name: str, pointer: str) -> None:
    from fastxai.kernels.triton import activation as kernels

    act = NAMES.index(name)
    push = compile_for_hopper(kernels._push_kernel, pointer, ACT=act, DIRECTIONS=1, bias=None)
    pull = compile_for_hopper(kernels._pull_kernel, pointer, ACT=act, DIRECTIONS=1)
    # a, a_v -> y, y_v, kept;   kept, nu_v, nu_0, a_v -> mu_v, mu_0
    assert accesses(push, "ld") == [".v4.b32"] * 2 and accesses(push, "st") == [".v4.b32"] * 3
    assert accesses(pull, "ld") == [".v4.b32"] * 4 and accesses(pull, "st") == [".v4.b32"] * 2
    assert not any(".local" in ptx or ".approx" in ptx for ptx in (push, pull))


@pytest.mark.parametrize("pointer", ["*fp32", "*bf16"])
def test_mixed_kernels_assemble_with_16_byte_accesses(pointer: str) -> None:
    from fastxai.kernels.triton import mixed as kernels

    act = NAMES.index("softplus")
    push, pull = (
        compile_for_hopper(k, pointer, ACT=act, DIRECTIONS=1) for k in (kernels._push_kernel, kernels._pull_kernel)
    )
    # kept, a_w, a_u, a_v -> y_w, y_u;   kept, nu_v, bar_0, a_w, a_u, a_v, bar_v, nu_0 -> mu_v, mu_0
    assert accesses(push, "ld") == [".v4.b32"] * 4 and accesses(push, "st") == [".v4.b32"] * 2
    assert accesses(pull, "ld") == [".v4.b32"] * 8 and accesses(pull, "st") == [".v4.b32"] * 2
    assert not any(".local" in ptx or ".approx" in ptx for ptx in (push, pull))


@pytest.mark.parametrize("pointer", ["*fp32", "*bf16"])
def test_path_kernels_assemble_with_16_byte_accesses(pointer: str) -> None:
    from fastxai.kernels.triton import interpolate as kernels

    act = NAMES.index("softplus")
    push = compile_for_hopper(kernels._push_kernel, pointer, ACT=act, bias=None)
    tangent = compile_for_hopper(kernels._tangent_kernel, pointer, ACT=act)
    primal = compile_for_hopper(kernels._reduce_kernel, pointer, ACT=act)
    scalar = ".b32" if pointer == "*fp32" else ".b16"
    # a_0, a_d, t -> y, kept;   kept, a_v -> y_v;   kept, a_v, nu_v, nu_0, t -> M0, M1
    for ptx, loads, stores in ((push, 2, 2), (tangent, 2, 1), (primal, 4, 2)):
        wide = [kind for kind in accesses(ptx, "ld") if kind != scalar]
        assert wide == [".v4.b32"] * loads and accesses(ptx, "st") == [".v4.b32"] * stores
        assert ".local" not in ptx and ".approx" not in ptx


def test_kernels_with_beta_in_memory_assemble() -> None:
    from fastxai.kernels.triton import activation, interpolate, mixed

    kernels = [(activation, ("_push", "_pull")), (mixed, ("_push", "_pull")), (interpolate, ("_push", "_reduce"))]
    for module, names in kernels:
        for name in names:
            kernel = getattr(module, name + "_kernel")
            given = {"beta_tail": None, "bias": None, "ACT": NAMES.index("softplus"), "DIRECTIONS": 1}
            constants = {name: value for name, value in given.items() if name in kernel.arg_names}
            ptx = compile_for_hopper(kernel, "*fp32", **constants)
            assert len([kind for kind in accesses(ptx, "ld") if kind == ".b64"]) == 2
            assert ".local" not in ptx and ".approx" not in ptx


@pytest.mark.parametrize("pointer", ["*fp32", "*bf16"])
def test_share_kernels_assemble_with_16_byte_accesses(pointer: str) -> None:
    from fastxai.kernels.triton import proportional as kernels

    # r, z(, y) -> S;   d, z, S(, y) -> t, dz
    for kernel, loads, stores in ((kernels._share_kernel, 2, 1), (kernels._adjoint_kernel, 3, 2)):
        for masked in (0, 1):
            constants = {"SIGN": 1} if masked else {"SIGN": 0, "y": None}
            ptx = compile_for_hopper(kernel, pointer, **constants)
            assert accesses(ptx, "ld") == [".v4.b32"] * (loads + masked) and accesses(ptx, "st") == [".v4.b32"] * stores
            assert "div.rn.f32" in ptx and ".local" not in ptx and ".approx" not in ptx


def test_max_pool_kernels_assemble_with_16_byte_accesses() -> None:
    from fastxai.kernels.triton import max_pool as kernels

    push = compile_for_hopper(kernels._push_kernel, "*fp32", COMPONENTS=1)
    pull = compile_for_hopper(kernels._pull_kernel, "*fp32", COMPONENTS=1)
    # four window positions -> y, four index bytes;   four index bytes, nu -> mu
    assert accesses(push, "ld") == [".v4.b32"] * 4 and sorted(accesses(push, "st")) == [".b32", ".v4.b32"]
    assert sorted(accesses(pull, "ld")) == [".b32", ".v4.b32"] and accesses(pull, "st") == [".v4.b32"]


def test_attack_step_kernels_assemble_with_16_byte_accesses() -> None:
    from fastxai.kernels.triton import attack_step as kernels

    adam = compile_for_hopper(kernels._adam_kernel, "*fp32", frozen=None)
    sign = compile_for_hopper(kernels._sign_kernel, "*fp32", frozen=None)
    l2 = compile_for_hopper(kernels._l2_kernel, "*fp32", frozen=None)
    # x, gradient, m, v -> x', m, v;   x, gradient, origin -> x';   bounds are gathered
    for ptx, loads, stores in ((adam, 4, 3), (sign, 3, 1)):
        assert accesses(ptx, "ld").count(".v4.b32") == loads and accesses(ptx, "st") == [".v4.b32"] * stores
    assert not any(".local" in ptx or ".approx" in ptx for ptx in (adam, sign, l2))
