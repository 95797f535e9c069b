"""The Triton kernels on CPU tensors: ``test_triton.py`` runs this file in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from kernels import device_checks as checks

import fastxai
from fastxai.kernels import activation as jets
from fastxai.kernels.activation import Activation

BACKEND = ("triton", "cpu")


@pytest.mark.parametrize("directions", [0, 1, 3])
@pytest.mark.parametrize("act", checks.ACTIVATIONS, ids=checks.title)
def test_activation(act: Activation, directions: int) -> None:
    for case in checks.CASES:
        checks.check_activation(*BACKEND, act, directions, torch.float32, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["softplus", "gelu", "relu6"])
def test_storage(name: str, dtype: torch.dtype) -> None:
    for case in checks.CASES[1:3]:
        checks.check_activation(*BACKEND, Activation(name), 1, dtype, case)


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


def test_more_than_one_program() -> None:
    checks.check_activation(*BACKEND, Activation("softplus", 3.0), 2, torch.float32, ((3, 7, 19, 23), False, True))


def test_special_values() -> None:
    checks.check_special_values(*BACKEND)


def test_empty() -> None:
    checks.check_empty(*BACKEND)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(("window", "size"), checks.WINDOWS, ids=str)
def test_max_pool(window: checks.Window, size: tuple[int, int], components: int) -> None:
    checks.check_max_pool(*BACKEND, window, size, torch.float32, components)


def test_max_pool_storage() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        checks.check_max_pool(*BACKEND, *checks.WINDOWS[1], dtype, 2)


def test_element_numbers_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastxai.kernels.triton.INT32_ELEMENTS", 0)
    checks.check_activation(*BACKEND, Activation("softplus", 3.0), 1, torch.float32, checks.CASES[0])
    checks.check_max_pool(*BACKEND, *checks.WINDOWS[1], torch.float32, 2)
