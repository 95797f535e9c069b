"""The table of attack steps that every backend runs, and the checks against plain formulas in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cases import place
from torch import Tensor

import fastxai
from fastxai.kernels import attack_step


@dataclass(frozen=True)
class StepCase:
    """One step on images [N, C, ...], channels first or last, with or without frozen samples."""

    kind: str
    shape: tuple[int, ...]
    last: bool = False
    frozen: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{'x'.join(map(str, self.shape))}{'-last' * self.last}{'-frozen' * self.frozen}"

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Return (x, origin, three gradients), seeded; gradients of 1e-12 and 1e6 and zeros among them."""
        seed = torch.Generator().manual_seed(7)
        origin = torch.rand(self.shape, generator=seed)
        x = origin + 0.1 * torch.randn(self.shape, generator=seed)
        gradients = [torch.randn(self.shape, generator=seed) * scale for scale in (1.0, 1e-3, 1e2)]
        for g in gradients:
            g.flatten()[::7] = 0
            g[1:2] *= 1e-12 if dtype != torch.float16 else 1e-2
            g[2:3] *= 1e6 if dtype != torch.float16 else 1e2
        return tuple(place(t, self.last, dtype, device) for t in (x, origin, *gradients))

    def box(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
        """Return bounds that differ by channel and cut some values off."""
        channels = torch.arange(self.shape[1])
        return (0.05 + 0.01 * (channels % 5)).to(device, dtype), (0.95 - 0.02 * (channels % 3)).to(device, dtype)

    def mask(self, device: str) -> Tensor | None:
        return (torch.arange(self.shape[0]) % 2 == 0).to(device) if self.frozen else None


_STRUCTURES = [
    ((3, 3, 8, 8), False, False),
    ((3, 3, 7, 9), True, True),
    ((4, 1, 5, 5), False, True),
    ((2, 17, 3, 3), True, False),
    ((5, 130), False, True),
    ((3, 3, 41, 37), False, False),
    ((1, 70, 3, 3), True, False),
    ((0, 3, 4, 4), False, True),
    ((2, 3, 0, 4), False, False),
    ((2, 4, 3, 2, 3), False, False),
]
STEP_CASES = [StepCase(kind, *structure) for kind in ("adam", "sign", "l2") for structure in _STRUCTURES]


def _expected_adam(x: Tensor, gradients: list[Tensor], box: tuple[Tensor, ...], lr: float) -> list[Tensor]:
    """Adam from torch.optim, clamped after each step."""
    low, high = (b.view(1, -1, *[1] * (x.dim() - 2)) for b in box)
    leaf = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr)
    iterates = []
    for g in gradients:
        leaf.grad = g
        optimizer.step()
        with torch.no_grad():
            leaf.copy_(leaf.clamp(low, high))
        iterates.append(leaf.detach().clone())
    return iterates


def _expected_projection(
    kind: str, x: Tensor, gradient: Tensor | None, origin: Tensor, alpha: float, eps: float, box: tuple[Tensor, ...]
) -> Tensor:
    low, high = (b.view(1, -1, *[1] * (x.dim() - 2)) for b in box)
    flat = x.flatten(1)
    if gradient is not None:
        g = gradient.flatten(1)
        flat = flat + alpha * (g.sign() if kind == "sign" else torch.nn.functional.normalize(g, dim=1, eps=1e-300))
    offset = flat - origin.flatten(1)
    if kind == "sign":
        offset = offset.clamp(-eps, eps)
    else:
        offset = offset * (eps / offset.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
    return (origin + offset.view(x.shape)).clamp(low, high)


def _close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Images are of order 1: the error is absolute, and Adam's m and v are looked at by what they do."""
    assert got.shape == want.shape
    assert bool(((got.to("cpu", torch.float64) - want).abs() <= tolerance).all())


def _check_numbers_in_memory(
    want: list[Tensor], gradients: list[Tensor], box: tuple[Tensor, Tensor], frozen: Tensor | None
) -> None:
    """Adam's corrections, read from memory, take the steps that their numbers took."""
    x, state = want[0], attack_step.moments(want[0])
    rates = torch.empty(2, dtype=torch.float64, device=x.device)
    for t, g in enumerate(gradients, 1):
        rates.copy_(torch.tensor(attack_step.corrections(0.02, t), dtype=torch.float64))
        x = attack_step.adam_clamp(x, g, state, 0.02, rates, box, frozen)
        assert torch.equal(x, want[t])


def check_step(case: StepCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run a step on a backend and compare with float64; inputs stay untouched, frozen samples stay equal."""
    x, origin, *gradients = case.tensors(dtype, device)
    box, frozen = case.box(dtype, device), case.mask(device)
    given = [t.clone() for t in (x, origin, *gradients)]
    wide = [t.to("cpu", torch.float64) for t in (x, origin, *gradients, *box)]
    stays = torch.zeros(case.shape[0], dtype=torch.bool) if frozen is None else frozen.cpu()
    with fastxai.backend(backend):
        if case.kind == "adam":
            got, state = [x], attack_step.moments(x)
            for t, g in enumerate(gradients, 1):
                got.append(attack_step.adam_clamp(got[-1], g, state, 0.02, t, box, frozen))
            _check_numbers_in_memory(got, gradients, box, frozen)
            moments = [torch.zeros_like(wide[0]) for _ in range(2)]
            for g in wide[2:5]:
                moments = [0.9 * moments[0] + 0.1 * g, 0.999 * moments[1] + 0.001 * g * g]
            for ours, want in zip(state, moments, strict=True):
                want[stays] = 0
                bound = (1e-14 if dtype == torch.float64 else 2e-6) * want.abs().sum()
                assert bool(((ours.cpu().double() - want).abs() <= bound).all())
            wants = _expected_adam(wide[0], wide[2:5], tuple(wide[5:]), 0.02)
            got = got[1:]
        else:
            step = {"sign": attack_step.sign_project_clip, "l2": attack_step.l2_project_clip}[case.kind]
            sizes = {"sign": (0.05, 0.08), "l2": (0.3, 0.6)}[case.kind]
            got = [step(x, g, origin, *sizes, box, frozen) for g in (*gradients, None)]
            wants = [
                _expected_projection(case.kind, wide[0], g, wide[1], *sizes, tuple(wide[5:]))
                for g in (*wide[2:5], None)
            ]
    for ours, want in zip(got, wants, strict=True):
        assert ours.dtype == dtype and ours.stride() == x.stride()
        assert ours.data_ptr() != x.data_ptr() or not x.numel()
        assert torch.equal(ours.cpu()[stays], x.cpu()[stays])
        _close(ours.cpu()[~stays], want[~stays], tolerance * len(got))
    assert all(torch.equal(a, b) for a, b in zip(given, (x, origin, *gradients), strict=True))
