"""Random numbers by counter: each is a function of its keys and its place, not of what was drawn before."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["normal", "uniform"]

# SplitMix64 (Steele, Lea, Flood 2014), its unsigned constants as int64, which wraps around.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def _wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def uniform(count: int, sample: Tensor, *keys: int) -> Tensor:
    """Return numbers of (0, 1), float64 [N, count], each row the stream of (sample, *keys).

    Args:
        count: how many for each sample.
        sample: LongTensor [N]; gives the device.
        keys: more keys, such as seed and restart.
    """
    state = _mix(sample + _STEP)
    for key in keys:
        state = _mix(state + _wrapped((key + 1) * _STEP))
    places = torch.arange(1, count + 1, device=sample.device) * _STEP
    # 52 bits and a half: neither 0 nor 1 after rounding.
    return (_shifted(_mix(state[:, None] + places), 12).double() + 0.5) * 2.0**-52


def normal(count: int, sample: Tensor, *keys: int) -> Tensor:
    """Return standard normal numbers, float64 [N, count]; arguments as in ``uniform`` (Box and Muller 1958)."""
    radius, angle = uniform(2 * count, sample, *keys).chunk(2, 1)
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
