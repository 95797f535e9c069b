"""The table of activations along a path that every kernel backend runs, and its check against the reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from cases import ACTIVATIONS, close, label, place, scales
from torch import Tensor

import fastxai
from fastxai.kernels import interpolate
from fastxai.kernels.activation import Activation


@dataclass(frozen=True)
class PathCase:
    """One activation on K points of a path of [N, ...] rows, channels first or last, with or without a bias."""

    act: Activation
    shape: tuple[int, ...]
    points: int
    last: bool = False
    biased: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{label(self.act)}-{size}-K{self.points}{'-last' * self.last}{'-bias' * self.biased}"

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Return (a, t, bias, a_v, nu_v, nu_0), seeded; a_0 + b + t_k a_d is exact in float32, each in bfloat16."""
        seed, rest = torch.Generator().manual_seed(13), self.shape[1:]

        def draw(rows: int) -> Tensor:
            x = (torch.randn(rows, *rest, generator=seed) * 40).round().clamp(-100, 100) / 16
            return place(x, self.last, dtype, device)

        n, whole = self.shape[0], self.points * self.shape[0]
        t, bias = torch.arange(self.points) % 11 / 8, (torch.randn(rest[:1], generator=seed) * 10).round() / 16
        return draw(2 * n), t.to(device, dtype), bias.to(device, dtype), draw(n), draw(whole), draw(whole)


_PATHS = [
    ((2, 3, 5, 7), 3, True, True),
    ((1, 70, 3, 3), 5, False, True),
    ((63, 17), 4, False, True),
]
_SOFTPLUS_PATHS = [
    ((2, 5, 9, 11), 0, True, True),
    ((2, 5, 9, 11), 1, False, True),
    ((1, 5, 3, 3), 1, True, True),
    ((0, 3, 4, 4), 3, True, True),
    ((0, 3, 4, 4), 0, False, True),
    ((2, 3, 0, 4), 2, False, True),
    ((2, 0), 3, False, True),
    ((1, 1, 1, 1), 7, True, True),
    ((2, 600, 1, 1), 3, True, True),
    ((2, 600, 2, 1), 16, True, False),
    ((2, 3, 4, 5, 6), 3, False, True),
    ((11,), 2, False, False),
    ((2, 6, 67, 65), 3, False, True),
    ((2, 6, 67, 65), 3, True, True),
]
PATH_CASES = [
    *(PathCase(act, *structure) for act, structure in itertools.product(ACTIVATIONS, _PATHS)),
    *(PathCase(Activation("softplus", beta=10.0), *structure) for structure in _SOFTPLUS_PATHS),
]


def check_path(case: PathCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run the four functions of a path on a backend and compare with the reference in float64."""
    act, points, operands = case.act, case.points, case.tensors(dtype, device)
    before = [x.clone() for x in operands]
    a, t, bias, *rest = operands
    with fastxai.backend(backend):
        y, kept = interpolate.push(act, a, t, bias if case.biased else None)
        got = run_path(act, kept, t, *rest)
    assert all(torch.equal(x, old) for x, old in zip(operands, before, strict=True))
    order = torch.channels_last if case.last else torch.contiguous_format
    for x in (y, kept, *got):
        assert x.dtype == dtype and (x.is_contiguous(memory_format=order) or not x.numel())

    a, t, bias, a_v, nu_v, nu_0 = (x.to("cpu", torch.float64) for x in operands)
    bias = bias if case.biased else None
    with fastxai.backend("reference"):
        want_y, want_kept = interpolate.push(act, a, t, bias)
        _, primal = interpolate.push(Activation("identity"), a, t, bias)
        # what is stored in 2 bytes is rounded once: its sums are checked from there on
        want = run_path(act, kept.to("cpu", torch.float64), t, a_v, nu_v, nu_0)
    scale_y, scale_1, scale_2 = scales(act, primal)
    shape, along = (points, *a_v.shape), (-1, *[1] * a.dim())
    tangents, straight = scale_1.view(shape) * a_v.abs(), (scale_1 * nu_0.abs()).view(shape)
    curved = scale_2.view(shape) * a_v.abs() * nu_v.view(shape).abs()
    both, positions = straight + curved, t.view(along)
    close(kept, want_kept, want_kept.abs(), tolerance, "kept")
    close(y, want_y, scale_y, tolerance, "y")
    close(got[0], want[0], tangents.flatten(0, 1), tolerance, "y_v")
    close(got[1], want[1], straight.sum(0) if points else want[1], tolerance, "mu")
    close(got[2], want[2], torch.cat([both.sum(0), (positions * both).sum(0)]), tolerance, "M")
    close(got[3], want[3], torch.cat([curved.sum(0), (positions * curved).sum(0)]), tolerance, "M without nu_0")


def run_path(
    act: Activation, kept: Tensor, t: Tensor, a_v: Tensor, nu_v: Tensor, nu_0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y_v, mu, M, M without nu_0) of a path on the current backend."""
    return (
        interpolate.tangent(act, kept, a_v),
        interpolate.reduce(act, kept, nu_0, t.shape[0]),
        interpolate.reduce_primal(act, kept, a_v, nu_v, nu_0, t),
        interpolate.reduce_primal(act, kept, a_v, nu_v, None, t),
    )
