"""Argument checks: every message names the argument, the contract and the value that came."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "NotFiniteError",
    "every_sample",
    "finite_samples",
    "given",
    "index_of",
    "instance",
    "not_negative",
    "numbers",
    "one_of",
    "positive",
    "require",
    "same_place",
    "shape",
    "tensor",
]

T = TypeVar("T")


class NotFiniteError(ValueError):
    """What a network makes of some samples is inf or nan."""


def require(condition: bool, name: str, contract: str, got: Any, kind: type[Exception] = ValueError) -> None:
    """Raise ``kind("<name> must <contract>, got <got>")`` unless the condition holds."""
    if not condition:
        raise kind(f"{name} must {contract}, got {got}")


def given(value: T | None, name: str, contract: str, got: Any = None, kind: type[Exception] = ValueError) -> T:
    """Return the value if it is not None; ``kind`` otherwise."""
    require(value is not None, name, contract, got, kind)
    assert value is not None
    return value


def instance(value: Any, name: str, kind: type[T], contract: str) -> T:
    """Return the value if it is of this kind; TypeError otherwise."""
    require(isinstance(value, kind), name, contract, type(value).__name__, TypeError)
    return value


def tensor(value: Any, name: str, floating: bool = True) -> Tensor:
    """Return the value if it is a (floating point) tensor; TypeError otherwise."""
    require(isinstance(value, Tensor), name, "be a torch.Tensor", type(value).__name__, TypeError)
    if floating:
        require(value.is_floating_point(), name, "have a floating point dtype", value.dtype, TypeError)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positive(value: float, name: str) -> float:
    """Return the value as a float if it is finite and above zero; ValueError otherwise."""
    # torch.compile traces this with a symbolic value, which has no math.isfinite and no repr.
    if not (_is_number(value) and 0 < value < math.inf):
        require(False, name, "be finite and positive", repr(value))
    return float(value)


def not_negative(value: float, name: str) -> float:
    """Return the value as a float if it is finite and zero or above; ValueError otherwise."""
    if not (_is_number(value) and 0 <= value < math.inf):
        require(False, name, "be finite and not negative", repr(value))
    return float(value)


def numbers(value: Any) -> Tensor | None:
    """Return a number, or numbers of any shape, in float64 and on the CPU; None where the value is neither."""
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None


def one_of(value: Any, name: str, allowed: Iterable[Any]) -> Any:
    """Return the value if it is among those allowed; ValueError otherwise."""
    allowed = tuple(allowed)
    require(value in allowed, name, f"be one of {', '.join(map(repr, allowed))}", repr(value))
    return value


def shape(value: Tensor, name: str, expected: tuple[int, ...]) -> Tensor:
    """Return the tensor if its shape is the expected one; ValueError otherwise."""
    require(tuple(value.shape) == tuple(expected), name, f"have shape {list(expected)}", list(value.shape))
    return value


def every_sample(fits: Tensor, name: str, contract: str, got: str, kind: type[Exception] = ValueError) -> None:
    """Raise ``kind("<name> must <contract>, got <got> for samples [...]")`` unless all of fits [N, ...] is true."""
    if not fits.all():
        broken = (~fits.reshape(len(fits), -1).all(1)).nonzero()[:, 0].tolist()
        shown = f"{broken[:8]}"[:-1] + ", ...]" if len(broken) > 8 else f"{broken}"
        require(False, name, contract, f"{got} for samples {shown}", kind)


def finite_samples(values: Tensor, name: str, contract: str) -> Tensor:
    """Return the tensor [N, ...] if all of it is finite; NotFiniteError with the numbers of the others."""
    every_sample(values.isfinite(), name, contract, "inf or nan", NotFiniteError)
    return values


def index_of(index: Any, x: Tensor) -> Tensor:
    """Return the numbers of the samples x, LongTensor [N]; 0 .. N-1 where index is None.

    Raises:
        TypeError: index is no tensor of integers.
        ValueError: its shape is not [N].
    """
    if index is None:
        return torch.arange(len(x), device=x.device)
    whole = not (tensor(index, "index", False).is_floating_point() or index.dtype == torch.bool)
    require(whole, "index", "hold integers", index.dtype, TypeError)
    return shape(index, "index", (len(x),)).to(x.device, torch.long)


def same_place(value: Tensor, name: str, other: Tensor, other_name: str) -> Tensor:
    """Return the tensor if dtype and device are those of the other; ValueError otherwise."""
    require(value.dtype == other.dtype, name, f"have {other_name}'s dtype {other.dtype}", value.dtype)
    require(value.device == other.device, name, f"be on {other_name}'s device {other.device}", value.device)
    return value
