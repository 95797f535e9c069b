"""Keyed random numbers: each key a stream, each stream of its distribution, whatever the batch and the split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastxai import _random

INDEX = torch.arange(50)


def moments(z: Tensor) -> list[float]:
    z = z.double()
    return [z.mean().item(), z.var().item(), (z**4).mean().item()]


@pytest.mark.parametrize("draw", [_random.uniform, _random.normal, _random.signs])
def test_streams_depend_on_their_key_and_place_alone(draw):
    whole = draw((3, 5), INDEX, range(4), 200)
    assert whole.shape == (4, 50, 200) and whole.dtype == torch.float32
    assert torch.equal(draw((3, 5), INDEX[7:9], range(2, 4), 200), whole[2:, 7:9])
    assert torch.equal(draw((3, 5), INDEX.flip(0), range(4), 200), whole.flip(1))
    others = (
        draw((3, 6), INDEX, range(4), 200),
        draw((4, 5), INDEX, range(4), 200),
        whole.roll(1, 0),
        whole.roll(1, 1),
    )
    for other in others:
        both = torch.stack([whole.flatten(), other.flatten()]).corrcoef()
        assert both[0, 1].abs() < 5 / whole.numel() ** 0.5
    assert draw((3,), INDEX[:0], range(2), 7).shape == (2, 0, 7) and draw((3,), INDEX, range(0), 7).shape == (0, 50, 7)


def test_uniform_numbers_are_uniform():
    u = _random.uniform((1, 2), INDEX, range(1), 2001).flatten().double()
    assert bool(((u > 0) & (u <= 1)).all())
    # Kolmogorov-Smirnov at 1e5 draws: 1.95 / sqrt(n) has probability 1e-3.
    ranks = torch.arange(1, u.numel() + 1) / u.numel()
    assert (u.sort().values - ranks).abs().max() < 1.95 / u.numel() ** 0.5


def test_normal_numbers_and_signs_have_their_moments():
    z = _random.normal((1, 2), INDEX, range(1), 2001)
    n = z.numel()
    for got, want, spread in zip(moments(z), (0, 1, 3), (1, 2**0.5, 96**0.5), strict=True):
        assert abs(got - want) < 4 * spread / n**0.5
    assert bool(z.isfinite().all())
    signs = _random.signs((1, 2), INDEX, range(1), 2001)
    assert bool((signs.abs() == 1).all()) and signs.mean().abs() < 4 / n**0.5


@pytest.mark.parametrize("kind", _random.DISTRIBUTIONS)
def test_numbers_of_a_key_may_be_tensors(kind: str) -> None:
    x, index = torch.zeros(3, 5), torch.arange(3)
    for seed, step in ((0, 0), (7, 12), (2**62, -5)):
        want = _random.probes(kind, x, (seed, step), index, range(2))
        assert torch.equal(_random.probes(kind, x, (seed, torch.tensor(step)), index, range(2)), want)
    for wrong in (torch.tensor(1.0), torch.zeros(1, dtype=torch.long), 1.0):
        with pytest.raises(TypeError, match="seed must be an int"):
            _random.probes(kind, x, (0, wrong), index, range(2))  # type: ignore[arg-type]
