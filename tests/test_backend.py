"""Which backend a tensor gets, how to override it, and how the compiled module agrees with Python."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

import fastxai
from fastxai import _backend
from fastxai.kernels import _native, activation
from fastxai.kernels.activation import Activation


def test_every_backend_is_usable_or_says_why() -> None:
    reasons = fastxai.available()
    assert tuple(reasons) == _backend.BACKENDS
    assert reasons["reference"] == "" and reasons["cpu"] == ""
    if not torch.cuda.is_available():
        assert reasons["triton"] and reasons["cuda"]


def test_the_device_and_dtype_choose() -> None:
    assert _backend.pick(torch.zeros(1)) == "cpu"
    assert _backend.pick(torch.zeros(1).double()) == "cpu"
    assert _backend.pick(torch.zeros(1).bfloat16()) == "reference"
    assert _backend.pick(torch.zeros(1, device="meta")) == "reference"


def test_the_override_nests_and_ends() -> None:
    x = torch.zeros(1)
    with fastxai.backend("reference"):
        assert _backend.pick(x) == "reference"
        with fastxai.backend("cpu"):
            assert _backend.pick(x) == "cpu"
        assert _backend.pick(x) == "reference"
    with pytest.raises(RuntimeError, match="inside"), fastxai.backend("reference"):
        raise RuntimeError("inside")
    assert _backend.pick(x) == "cpu"


def test_the_override_belongs_to_one_thread() -> None:
    seen = []
    with fastxai.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_backend.pick(torch.zeros(1))))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_errors_name_the_backend() -> None:
    with pytest.raises(ValueError, match="backend must be one of 'reference', 'cpu', 'triton', 'cuda', got 'gpu'"):
        fastxai.backend("gpu").__enter__()
    with fastxai.backend("cpu"), pytest.raises(TypeError, match=r"backend 'cpu' must get .* got torch.bfloat16"):
        activation.push(Activation("relu"), torch.zeros(1, 1).bfloat16())
    with pytest.raises(RuntimeError, match=r"fastxai\._C has no cpu_nothing"):
        _native.function("cpu_nothing")


def test_low_precision_storage_on_the_reference() -> None:
    act, a = Activation("softplus", beta=3.0), torch.randn(4, 3, 2, 2).bfloat16()
    y, kept = activation.push(act, a, 1)
    mu = activation.pull(act, kept, a[2:], a, 1)
    assert y.dtype == kept.dtype == mu.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), activation.push(act, a.float(), 1)[0], rtol=2**-8, atol=1e-3)


def test_names_agree_with_the_compiled_formulas() -> None:
    from fastxai import _C

    assert tuple(_C.activation_names()) == activation.NAMES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's OpenMP runtime is borrowed on Linux only")
def test_threads_come_from_the_runtime_torch_loaded() -> None:
    from fastxai import _C

    assert _C.parallel_runtime() == "GOMP_parallel"


def test_kernels_inside_parallel_python_threads() -> None:
    """Each caller's team is its own: concurrent calls give the bits of a lone one."""
    act, a = Activation("softplus", beta=10.0), torch.randn(8, 16, 40, 40)
    want = activation.push(act, a)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: results.append(activation.push(act, a))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(got, w) for pair in results for got, w in zip(pair, want, strict=True))
