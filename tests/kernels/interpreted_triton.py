"""The Triton kernels on CPU tensors: ``test_triton.py`` runs this file in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import math

import pytest
import torch
from cases import JET_CASES, MIXED_CASES, JetCase, check_jet, check_mixed
from kernels import device_checks as checks
from path_cases import PATH_CASES, PathCase, check_path
from pool_cases import POOL_CASES, PoolCase, check_pool
from share_cases import SHARE_CASES, ShareCase, check_share
from step_cases import STEP_CASES, StepCase, check_step

import fastxai
from fastxai.kernels import activation as jets
from fastxai.kernels.activation import Activation
from fastxai.kernels.max_pool import Window

BACKEND = ("triton", "cpu")
# the interpreter takes seconds for the largest planes and windows of the table; more than 16 positions loop
SMALL_POOLS = [
    *(case for case in POOL_CASES if math.prod(case.shape) < 5000 and math.prod(case.window.kernel) < 30),
    PoolCase(Window((5, 4), (1, 1), (2, 1), (1, 2)), (1, 3, 6, 7), 2, True),
]
# two blocks at most, and one 4-d shape an activation
SMALL_PATHS = [case for case in PATH_CASES if math.prod(case.shape) < 1100 and case.shape != (1, 70, 3, 3)]


@pytest.mark.parametrize("case", JET_CASES, ids=str)
def test_jet(case: JetCase) -> None:
    check_jet(case, "triton", torch.float32, checks.RELATIVE)


@pytest.mark.parametrize("dtype", list(checks.STORAGE), ids=str)
@pytest.mark.parametrize("act", [Activation("softplus", 3.0), Activation("gelu"), Activation("relu6")], ids=str)
def test_storage_and_in_place(act: Activation, dtype: torch.dtype) -> None:
    for shape in checks.SHAPES:
        checks.check_storage(*BACKEND, act, 1, dtype, shape)


@pytest.mark.parametrize("case", MIXED_CASES, ids=str)
def test_mixed(case: JetCase) -> None:
    check_mixed(case, "triton", torch.float32, checks.RELATIVE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.MIXED, ids=str)
def test_mixed_storage(case: JetCase, dtype: torch.dtype) -> None:
    check_mixed(case, "triton", dtype, checks.RELATIVE + checks.rounding(dtype, "cpu"))


@pytest.mark.parametrize("case", SMALL_PATHS, ids=str)
def test_path(case: PathCase) -> None:
    check_path(case, "triton", torch.float32, checks.RELATIVE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.PATHS, ids=str)
def test_path_storage(case: PathCase, dtype: torch.dtype) -> None:
    check_path(case, "triton", dtype, checks.RELATIVE + checks.rounding(dtype, "cpu"))


@pytest.mark.parametrize("case", SHARE_CASES, ids=str)
def test_share(case: ShareCase) -> None:
    check_share(case, "triton", torch.float32, checks.RELATIVE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.SHARES, ids=str)
def test_share_storage(case: ShareCase, dtype: torch.dtype) -> None:
    check_share(case, "triton", dtype, checks.RELATIVE + checks.rounding(dtype, "cpu"))


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0, 333.3])
def test_softplus_tails(beta: float) -> None:
    checks.check_softplus_tails(*BACKEND, beta)


def test_gelu_tail() -> None:
    """The value down to 1e-38, where float64 a (1 + erf) / 2 itself has nothing left: against log Phi."""
    a = torch.linspace(-13, 13, 2001)[:, None]
    with fastxai.backend("triton"):
        y, _ = jets.push(Activation("gelu"), a)
    want = a.double() * torch.special.log_ndtr(a.double()).exp()
    checks.close(y, want, want, "y")


def test_special_values() -> None:
    checks.check_special_values(*BACKEND)


@pytest.mark.parametrize("act", checks.SHARP, ids=str)
def test_beta_in_memory(act: Activation) -> None:
    checks.check_beta_in_memory(*BACKEND, act, torch.float32)


def test_beta_in_memory_and_storage() -> None:
    checks.check_beta_in_memory(*BACKEND, checks.SHARP[0], torch.bfloat16)


@pytest.mark.parametrize("case", SMALL_POOLS, ids=str)
def test_max_pool(case: PoolCase) -> None:
    check_pool(case, "triton", torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_max_pool_storage(dtype: torch.dtype) -> None:
    for case in SMALL_POOLS[2:4]:
        check_pool(case, "triton", dtype)


@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_attack_step(case: StepCase) -> None:
    check_step(case, "triton", torch.float32, 4e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attack_step_storage(dtype: torch.dtype) -> None:
    for case in STEP_CASES[::4]:
        check_step(case, "triton", dtype, checks.rounding(dtype, "cpu"))


def test_element_numbers_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastxai.kernels.triton.INT32_ELEMENTS", 0)
    check_jet(JetCase(Activation("softplus", 3.0), (2, 3, 5, 7), 1, biased=True), "triton", torch.float32, 2e-6)
    check_path(PathCase(Activation("softplus", 3.0), (2, 3, 5, 7), 3, biased=True), "triton", torch.float32, 2e-6)
    for case in SMALL_POOLS[2:4]:
        check_pool(case, "triton", torch.float32)
    for case in STEP_CASES[1::6]:
        check_step(case, "triton", torch.float32, 4e-7)
