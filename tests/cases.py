"""The table of activation jets that every kernel backend runs, and the checks against the float64 reference.

A backend's test is ``@pytest.mark.parametrize("case", JET_CASES, ids=str)`` around ``check_jet(case, backend, ...)``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

import fastxai
from fastxai.kernels import activation, formulas, mixed
from fastxai.kernels.activation import RELU_LIKE, Activation

ACTIVATIONS = (
    *(Activation(name, beta=3.0, alpha=1.0 if name == "elu" else 0.1) for name in activation.NAMES),
    *(Activation(name, beta=5.0, alpha=0.1, second=second) for name in RELU_LIKE for second in ("curvature", "none")),
    Activation("softplus", beta=0.3),
    Activation("softplus", beta=50.0),
    Activation("leaky_relu", alpha=-0.5),
    Activation("elu", alpha=0.7),
)


def label(act: Activation) -> str:
    """Return a readable test id."""
    return f"{act.name}-b{act.beta:g}-a{act.alpha:g}-{act.second}"


def place(x: Tensor, last: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Move x to dtype, device and memory order."""
    order = torch.channels_last if last else torch.contiguous_format
    return x.to(device, dtype).contiguous(memory_format=order)


@dataclass(frozen=True)
class JetCase:
    """One activation on one shape: [(1+S)N, ...], channels first or last, with or without a bias."""

    act: Activation
    shape: tuple[int, ...]
    directions: int = 0
    last: bool = False
    biased: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{label(self.act)}-{size}-S{self.directions}{'-last' * self.last}{'-bias' * self.biased}"

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (a, nu, bias or None), seeded and on a grid that a + bias does not leave, even in bfloat16."""
        seed = torch.Generator().manual_seed(7)
        size = ((1 + self.directions) * self.shape[0], *self.shape[1:])
        a, nu = ((torch.randn(size, generator=seed) * 40).round().clamp(-100, 100) / 16 for _ in range(2))
        bias = None
        if self.biased:
            bias = (torch.randn(self.shape[1], generator=seed) * 10).round().to(device, dtype) / 16
        return place(a, self.last, dtype, device), place(nu, self.last, dtype, device), bias


_STRUCTURES = [
    ((2, 3, 5, 7), 0, False, False),
    ((2, 3, 5, 7), 1, True, True),
    ((3, 70, 3, 3), 3, True, True),
    ((2, 5, 9, 11), 2, False, True),
    ((63, 17), 1, False, True),
]
_SOFTPLUS_STRUCTURES = [
    ((0, 3, 4, 4), 1, True, True),
    ((2, 3, 0, 4), 1, False, True),
    ((0, 1, 9, 1), 3, False, True),
    ((1, 3, 0, 1, 2), 2, False, True),
    ((2, 0, 3, 3), 1, False, True),
    ((2, 0), 1, False, True),
    ((1, 1, 1, 1), 1, False, True),
    ((2, 600, 1, 1), 1, False, True),
    ((2, 600, 2, 1), 1, True, True),
    ((1, 4, 2, 2), 4, False, True),
    ((2, 3, 50, 41), 2, False, True),
    ((5, 513, 3), 1, False, True),
    ((2, 3, 4, 5, 6), 1, False, True),
    ((11,), 2, False, False),
    ((4, 16, 33, 35), 1, True, True),
]
JET_CASES = [
    *(JetCase(act, *structure) for act, structure in itertools.product(ACTIVATIONS, _STRUCTURES)),
    *(JetCase(Activation("softplus", beta=10.0), *structure) for structure in _SOFTPLUS_STRUCTURES),
]


def scales(act: Activation, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the magnitudes of the terms that sum to s, s', s'' at a (float64): what an error is relative to.

    Softplus, and whatever else is a product, is held to its own value.
    """
    with fastxai.backend("reference"):
        y, kept = activation.push(act, a)
    d1, d2 = activation.derivatives(act, kept)
    p, size = torch.sigmoid(a), a.abs()

    def slope(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    match act.name:
        case "silu":
            return y.abs(), p + size * slope(a), slope(a) * (2 + size)
        case "gelu":
            density = torch.exp(-a * a / 2) * (2 * torch.pi) ** -0.5
            return size, 1 + size * density, density * (2 + a * a)
        case "gelu_tanh":
            c = (2 / torch.pi) ** 0.5
            u, du, ddu = c * (size + 0.044715 * size**3), c * (1 + 3 * 0.044715 * a * a), 6 * c * 0.044715 * size
            dt = 4 * slope(2 * u)
            # exp at the rounded argument 2u
            d2 = (dt * du + size * dt * (ddu / 2 + du * du)) * (1 + 2 * u)
            return size, 1 + size * dt * du, d2
        case "softplus6":
            low, high = slope(act.beta * a), slope(act.beta * (a - 6))
            tails = [torch.log1p(torch.exp(-(act.beta * z).abs())) / act.beta for z in (a, a - 6)]
            small = [torch.sigmoid(-(act.beta * z).abs()) for z in (a, a - 6)]
            inside = ((a > 0) & (a < 6)).to(a.dtype)
            return a.clamp(0, 6) + tails[0] + tails[1], inside + small[0] + small[1], act.beta * (low + high)
        case "leaky_softplus":
            return y.abs() + 2 * abs(act.alpha) * size, d1.abs() + abs(act.alpha), d2.abs()
        case "relu6" if act.second == "curvature":
            return y.abs(), d1, act.beta * (slope(act.beta * a) + slope(act.beta * (a - 6)))
    return y.abs(), d1.abs(), d2.abs()


def third_scale(act: Activation, a: Tensor) -> Tensor:
    """Return the magnitude of the terms that sum to s''' at a (float64)."""
    size = a.abs()

    def slope(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    match act.name:
        case "softplus" | "leaky_softplus":
            return act.beta**2 * slope(act.beta * a)
        case "softplus6":
            return act.beta**2 * (slope(act.beta * a) + slope(act.beta * (a - 6)))
        case "sigmoid":
            return 7 * slope(a)
        case "tanh":
            return 40 * slope(2 * a)
        case "silu":
            return slope(a) * (3 + 3 * size)
        case "gelu":
            return torch.exp(-a * a / 2) * size * (4 + a * a)
        case "gelu_tanh":
            c, k = (2 / torch.pi) ** 0.5, 0.044715
            u, du, ddu = c * (size + k * size**3), c * (1 + 3 * k * a * a), 6 * c * k * size
            bend = ddu + 2 * du * du
            return slope(2 * u) * (6 * bend + size * (12 * c * k + 12 * du * ddu + 20 * du**3)) * (1 + 2 * u)
    return formulas.third(act, a).abs()


def close(got: Tensor, want: Tensor, scale: Tensor, tolerance: float, what: str) -> None:
    """Assert |got - want| <= tolerance * scale for each element, numbers far below the smallest normal one aside."""
    assert got.shape == want.shape, what
    if not want.numel():
        return
    info = torch.finfo(got.dtype)
    # bfloat16 has so few denormal numbers that one of them is more than a thousandth of the smallest normal one
    error = (got.to("cpu", torch.float64) - want).abs() - max(1e-3, info.eps) * info.smallest_normal
    worst = (error - tolerance * scale).argmax()
    assert bool((error <= tolerance * scale).all()), (
        f"{what}: got {got.flatten()[worst]}, want {want.flatten()[worst]}, scale {scale.flatten()[worst]}"
    )


def check_jet(case: JetCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run push, pull and pull_primal on a backend and compare with the reference in float64."""
    act, s = case.act, case.directions
    a, nu, bias = case.tensors(dtype, device)
    before = [x.clone() for x in (a, nu)]
    a_v, nu_v, nu_0 = a[case.shape[0] :], nu[: case.shape[0]], nu[case.shape[0] :]
    with fastxai.backend(backend):
        y, kept = activation.push(act, a, s, bias)
        mu = activation.pull(act, kept, a_v if s else None, nu, s)
        if s:
            primal = activation.pull_primal(act, kept, a_v, nu_v, nu_0, s)
            curved = activation.pull_primal(act, kept, a_v, nu_v, None, s)
    assert torch.equal(a, before[0]) and torch.equal(nu, before[1])
    assert y.dtype == kept.dtype == mu.dtype == dtype
    assert y.stride() == a.stride() and mu.stride() == nu.stride()

    wide = [None if x is None else x.to("cpu", torch.float64) for x in (a, nu, bias)]
    n = case.shape[0]
    with fastxai.backend("reference"):
        want_y, want_kept = activation.push(act, wide[0], s, wide[2])
        want_mu = activation.pull(act, want_kept, wide[0][n:] if s else None, wide[1], s)
        want_curved = activation.pull_primal(act, want_kept, wide[0][n:], wide[1][:n], None, s)
    biased = wide[0][:n] + (0 if bias is None else wide[2].view(-1, *[1] * (a.dim() - 2)))
    scale_y, scale_1, scale_2 = scales(act, biased)
    a_v, nu_v, nu_0 = (x.abs() for x in (wide[0][n:], wide[1][:n], wide[1][n:]))
    repeat = (s, *[1] * (a.dim() - 1))  # primal scales beside each direction
    scale_curved = scale_2.repeat(repeat) * a_v * nu_v.repeat(repeat)
    scale_primal = scale_1.repeat(repeat) * nu_0 + scale_curved
    close(kept, want_kept, want_kept.abs(), tolerance, "kept")
    close(y, want_y, torch.cat([scale_y, scale_1.repeat(repeat) * a_v]), tolerance, "y")
    close(mu, want_mu, torch.cat([scale_1 * nu_v, scale_primal]), tolerance, "mu")
    if s:
        close(primal, want_mu[n:], scale_primal, tolerance, "mu_0")
        close(curved, want_curved, scale_curved, tolerance, "mu_0 without nu_0")


MIXED_CASES = [case for case in JET_CASES if case.directions and not case.biased and case.act.second != "curvature"]
MIXED_CASES += [
    JetCase(act, (2, 3, 5, 7), directions, last)
    for act in ACTIVATIONS
    if act.second == "own"
    for directions, last in ((1, True), (3, False))
]


def check_mixed(case: JetCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run push and pull of order 2 on a backend and compare with the reference in float64."""
    act, s, n = case.act, case.directions, case.shape[0]
    (a, nu, _), seed = case.tensors(dtype, device), torch.Generator().manual_seed(23)
    added, bar = (((torch.randn(a.shape, generator=seed) * 20).round() / 16).to(a) for _ in range(2))
    added, bar = (place(x, case.last, dtype, device) for x in (added, bar))
    with fastxai.backend("reference"):
        kept = activation.push(act, a[:n].to("cpu", torch.float64))[1].to(a)
    before = [x.clone() for x in (kept, a, added, nu, bar)]
    with fastxai.backend(backend):
        y = mixed.push(act, kept, a[n:], added, s)
        mu = mixed.pull(act, kept, a[n:], added, nu, bar, s)
    assert all(map(torch.equal, (kept, a, added, nu, bar), before))
    assert y.dtype == mu.dtype == dtype and y.stride() == added.stride() and mu.stride() == bar.stride()

    kept, a, added, nu, bar = (x.to("cpu", torch.float64) for x in (kept, a, added, nu, bar))
    with fastxai.backend("reference"):
        want_y = mixed.push(act, kept, a[n:], added, s)
        want_mu = mixed.pull(act, kept, a[n:], added, nu, bar, s)
    primal = case.tensors(torch.float64, "cpu")[0][:n]
    (_, size_1, size_2), size_3 = scales(act, primal), third_scale(act, primal)
    v, w, u, nu_v, nu_0, bar_0, bar_v = (
        x.abs().unflatten(0, (-1, n)) if n else x.new_zeros(1, *x.shape)
        for x in (a[n:], added[:n], added[n:], nu[:n], nu[n:], bar[:n], bar[n:])
    )
    scale_y = torch.cat([size_1 * w[0] + size_2 * (u * v).sum(0), (size_1 * u).flatten(0, 1)])
    once = size_1 * bar_0[0] + size_2 * (w[0] * nu_v[0] + (u * nu_0 + v * bar_v).sum(0))
    scale_mu = torch.cat([once + size_3 * nu_v[0] * (u * v).sum(0), (size_1 * bar_v + size_2 * u * nu_v).flatten(0, 1)])
    close(y, want_y, scale_y, tolerance, "y")
    close(mu, want_mu, scale_mu, tolerance, "mu")
