"""The evaluation settings of [F], table 2."""

from __future__ import annotations

from fastxai import _check

__all__ = ["radius_and_k"]

# eps of both attacks, in units of the [0, 1] image, and the k of Sum-Top-k.
_TABLE = {
    "mnist": (0.3, 50),
    "fashion_mnist": (0.1, 50),
    "cifar10": (0.03, 100),
    "gtsrb": (0.03, 100),
    "restricted_imagenet": (0.01, 300),
}


def radius_and_k(data: str) -> tuple[float, int]:
    """Return (eps, k) for a data set; ValueError if [F] has it not."""
    return _TABLE[_check.one_of(data, "data", _TABLE)]
