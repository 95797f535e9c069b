"""The compiled CUDA launchers, and on a GPU the same table as the interpreted Triton kernels for both GPU backends."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from cases import ACTIVATIONS, JET_CASES, MIXED_CASES, JetCase, check_jet, check_mixed, label
from kernels import device_checks as checks
from path_cases import PATH_CASES, PathCase, check_path
from pool_cases import POOL_CASES, PoolCase, check_pool
from share_cases import SHARE_CASES, ShareCase, check_share
from step_cases import STEP_CASES, StepCase, check_step

import fastxai
from fastxai import _backend
from fastxai.kernels import activation as jets
from fastxai.kernels import max_pool
from fastxai.kernels.activation import Activation

BACKENDS = ("triton", "cuda")
LAUNCHERS = ("cuda_activation_push", "cuda_activation_pull", "cuda_activation_pull_primal")
LAUNCHERS += ("cuda_mixed_push", "cuda_mixed_pull")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = fastxai.available()[request.param]
    if reason:
        pytest.skip(f"backend {request.param!r}: {reason}")
    return request.param


def test_launchers_are_in_the_extension_if_it_was_built_with_cuda() -> None:
    module = _backend.extension()
    assert isinstance(module, ModuleType), module
    assert [hasattr(module, name) for name in LAUNCHERS] == [module.has_cuda] * len(LAUNCHERS)


def test_an_unusable_gpu_backend_says_why() -> None:
    for name in BACKENDS:
        reason = fastxai.available()[name]
        usable = torch.cuda.is_available() and (name == "triton" or _backend.extension().has_cuda)
        assert (reason == "") == usable and (usable or "CUDA" in reason or "triton" in reason)


@pytest.mark.parametrize("case", JET_CASES, ids=str)
def test_jet(backend: str, case: JetCase) -> None:
    check_jet(case, backend, torch.float32, checks.RELATIVE, "cuda")


@pytest.mark.parametrize("dtype", list(checks.STORAGE), ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS, ids=label)
def test_storage_and_in_place(backend: str, act: Activation, dtype: torch.dtype) -> None:
    for shape in (*checks.SHAPES, ((3, 7, 19, 23), False, True), ((4, 32, 33, 33), True, True)):
        checks.check_storage(backend, "cuda", act, 1, dtype, shape)


@pytest.mark.parametrize("case", MIXED_CASES, ids=str)
def test_mixed(backend: str, case: JetCase) -> None:
    check_mixed(case, backend, torch.float32, checks.RELATIVE, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.MIXED, ids=str)
def test_mixed_storage(backend: str, case: JetCase, dtype: torch.dtype) -> None:
    check_mixed(case, backend, dtype, checks.RELATIVE + checks.rounding(dtype, "cuda"), "cuda")


@pytest.mark.parametrize("case", PATH_CASES, ids=str)
def test_path(backend: str, case: PathCase) -> None:
    check_path(case, backend, torch.float32, checks.RELATIVE, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.PATHS, ids=str)
def test_path_storage(backend: str, case: PathCase, dtype: torch.dtype) -> None:
    check_path(case, backend, dtype, checks.RELATIVE + checks.rounding(dtype, "cuda"), "cuda")


@pytest.mark.parametrize("case", SHARE_CASES, ids=str)
def test_share(backend: str, case: ShareCase) -> None:
    check_share(case, backend, torch.float32, checks.RELATIVE, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", checks.SHARES, ids=str)
def test_share_storage(backend: str, case: ShareCase, dtype: torch.dtype) -> None:
    check_share(case, backend, dtype, checks.RELATIVE + checks.rounding(dtype, "cuda"), "cuda")


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0, 333.3])
def test_softplus_tails(backend: str, beta: float) -> None:
    checks.check_softplus_tails(backend, "cuda", beta)


@pytest.mark.parametrize("dtype", list(checks.STORAGE), ids=str)
@pytest.mark.parametrize("act", checks.SHARP, ids=label)
def test_beta_in_memory(backend: str, act: Activation, dtype: torch.dtype) -> None:
    if backend == "cuda":
        with pytest.raises(TypeError, match="beta must be a number"):
            checks.check_beta_in_memory(backend, "cuda", act, dtype)
    else:
        checks.check_beta_in_memory(backend, "cuda", act, dtype)


def test_special_values(backend: str) -> None:
    checks.check_special_values(backend, "cuda")


@pytest.mark.parametrize("dtype", list(checks.STORAGE), ids=str)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool(backend: str, case: PoolCase, dtype: torch.dtype) -> None:
    check_pool(case, backend, dtype, "cuda")


@pytest.mark.parametrize("dtype", list(checks.STORAGE), ids=str)
@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_attack_step(case: StepCase, dtype: torch.dtype) -> None:
    reason = fastxai.available()["triton"]
    if reason:
        pytest.skip(f"backend 'triton': {reason}")
    check_step(case, "triton", dtype, max(4e-7, checks.rounding(dtype, "cuda")), "cuda")


def test_more_elements_than_one_grid(backend: str) -> None:
    """The CUDA kernels stride over what exceeds their grid; the last element must be reached."""
    a = torch.randn(2, 1 << 23, device="cuda")
    with fastxai.backend(backend):
        y, kept = jets.push(Activation("softplus", 3.0), a, 1)
        mu = jets.pull(Activation("softplus", 3.0), kept, a[1:], a, 1)
    with fastxai.backend("reference"):
        want = jets.push(Activation("softplus", 3.0), a.double(), 1)
        want_mu = jets.pull(Activation("softplus", 3.0), want[1], a[1:].double(), a.double(), 1)
    torch.testing.assert_close((y.double(), mu.double()), (want[0], want_mu), rtol=1e-5, atol=1e-5)


def test_memory_that_is_not_16_byte_aligned(backend: str) -> None:
    act, a = Activation("softplus", 3.0), torch.randn(2 * 64 + 1, device="cuda")
    with fastxai.backend(backend):
        y, kept = jets.push(act, a[1:].view(2, 64), 1)
        want, want_kept = jets.push(act, a[1:].view(2, 64).clone(), 1)
        mu = jets.pull(act, kept, a[1:65].view(1, 64), a[1:].view(2, 64), 1)
        want_mu = jets.pull(act, want_kept, a[1:65].view(1, 64).clone(), a[1:].view(2, 64).clone(), 1)
    torch.testing.assert_close((y, kept, mu), (want, want_kept, want_mu), rtol=1e-6, atol=1e-6)


def test_capture_in_a_cuda_graph_on_a_side_stream(backend: str) -> None:
    """No launch synchronises, allocates outside PyTorch or strays from the current stream."""
    act, window = Activation("softplus", 3.0), max_pool.Window((2, 2), (2, 2))
    x = torch.randn(4, 16, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last)

    def step() -> torch.Tensor:
        with fastxai.backend(backend):
            y, kept = jets.push(act, x, 1)
            pooled, index = max_pool.push(y, window, 2)
            nu = max_pool.pull(pooled, window, index, (8, 8))
            return jets.pull(act, kept, x[2:], nu, 1)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    want = step()
    graph.replay()
    torch.testing.assert_close(captured, want, rtol=0, atol=0)
