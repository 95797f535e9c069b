"""The table of proportional shares that every kernel backend runs, and its check against the reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from cases import close, place
from torch import Tensor

import fastxai
from fastxai.kernels import proportional
from fastxai.kernels.proportional import Shares


@dataclass(frozen=True)
class ShareCase:
    """Shares of one shape, channels first or last, everywhere (sign 0) or where y has a sign."""

    shape: tuple[int, ...]
    sign: int = 0
    kappa: float = 1.0
    epsilon: float = 1e-6
    last: bool = False
    alone: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size}-s{self.sign}-k{self.kappa:g}-e{self.epsilon:g}{'-last' * self.last}{'-alone' * self.alone}"

    @property
    def how(self) -> Shares:
        return Shares(self.epsilon, self.kappa, self.sign, self.alone)

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Return (r, z, y, d), seeded, with zeros of either sign in z and y."""
        seed = torch.Generator().manual_seed(17)
        r, z, y, d = ((torch.randn(self.shape, generator=seed) * 40).round() / 16 for _ in range(4))
        for x, step in ((z, 7), (y, 5)):
            x.view(-1)[::step], x.view(-1)[1::step] = 0.0, -0.0
        return tuple(place(x, self.last, dtype, device) for x in (r, z, y, d))


SHARE_CASES = [
    *(
        ShareCase((2, 3, 5, 7), sign, kappa, 1e-6, last, alone)
        for sign, kappa, last, alone in itertools.product((0, 1, -1), (1.0, -0.7), (False, True), (False, True))
    ),
    *(ShareCase(shape, 1, 2.0, 0.25) for shape in ((), (1,), (0, 3), (2, 3, 0, 4), (11,), (63, 17), (2, 3, 4, 5, 6))),
    *(ShareCase((4, 16, 33, 35), sign, 2.0, 1e-9, True) for sign in (0, -1)),
]


def check_share(case: ShareCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run share and adjoint on a backend and compare with the reference in float64."""
    operands = case.tensors(dtype, device)
    r, z, y, d = operands
    spare = d.clone(memory_format=torch.preserve_format)
    with fastxai.backend(backend):
        shares = proportional.share(r, z, case.how, y if case.sign else None)
        t, dz = proportional.adjoint(spare, z, shares, case.how, y if case.sign else None)
    if case.alone:
        assert not any(bool(found[z == 0].any()) for found in (shares, t, dz))
    assert all(torch.equal(x, old) for x, old in zip(operands, case.tensors(dtype, device), strict=True))
    assert all(x.dtype == dtype and x.stride() == z.stride() for x in (shares, t, dz))

    wide = [x.to("cpu", torch.float64) for x in (r, z, y, d, shares)]
    with fastxai.backend("reference"):
        want = proportional.share(wide[0], wide[1], case.how, wide[2])
        # S is rounded where it is stored: its product is checked from there on
        want_t, want_dz = proportional.adjoint(wide[3], wide[1], wide[4], case.how, wide[2])
    close(shares, want, want.abs(), tolerance, "S")
    close(t, want_t, want_t.abs(), tolerance, "t")
    close(dz, want_dz, want_dz.abs(), tolerance, "dz")
