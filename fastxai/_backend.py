"""Which kernel backends are usable here, why not, and which one a tensor gets."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["BACKENDS", "available", "backend", "chosen", "extension", "pick"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_override: ContextVar[str | None] = ContextVar("fastxai_backend", default=None)


@cache
def extension() -> ModuleType | ImportError:
    """Return the compiled module ``fastxai._C``, or the ImportError that says why it is missing."""
    try:
        from fastxai import _C
    except ImportError as error:
        return error
    return _C


@cache
def available() -> dict[str, str]:
    """Return ``{backend: ""}`` for each usable backend and ``{backend: reason}`` for the others.

    >>> fastxai.available()["reference"]
    ''
    """
    module = extension()
    missing = isinstance(module, ImportError)
    broken = f"fastxai._C did not load ({module}); reinstall with a C++17 compiler" if missing else ""
    gpu = "" if torch.cuda.is_available() else "torch sees no CUDA device"
    triton = "" if importlib.util.find_spec("triton") else "the package triton is not installed"
    cuda = broken or ("" if getattr(module, "has_cuda", False) else "fastxai._C was built without CUDA (FASTXAI_CUDA)")
    return {"reference": "", "cpu": broken, "triton": triton or gpu, "cuda": cuda or gpu}


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one kernel backend for everything inside the block.

    Args:
        name: "reference" (plain torch, any dtype and device), "cpu", "triton" or "cuda".

    Raises:
        ValueError: the name is unknown.

    >>> with fastxai.backend("reference"):
    ...     y = fastxai.ops.softplus(torch.zeros(3), beta=2.0)
    """
    token = _override.set(_check.one_of(name, "backend", BACKENDS))
    try:
        yield
    finally:
        _override.reset(token)


def chosen() -> str | None:
    """Return the backend that ``backend`` is in force for, or None."""
    return _override.get()


def pick(x: Tensor) -> str:
    """Return the backend that serves this tensor: the override, else the device's own, else "reference"."""
    name = _override.get()
    if name is None:
        name = "cpu" if x.device.type == "cpu" else "triton" if x.device.type == "cuda" else "reference"
        return name if not available()[name] and x.dtype in _DTYPES.get(name, ()) else "reference"
    if name != "reference" and x.dtype not in _DTYPES[name]:
        raise TypeError(f"backend {name!r} must get one of {_DTYPES[name]}, got {x.dtype}; use backend('reference')")
    return name
