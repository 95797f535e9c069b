"""The tables of cases that every kernel backend runs, and the checks against the float64 reference.

A backend's test is ``@pytest.mark.parametrize("case", JET_CASES, ids=str)`` around ``check_jet(case, backend, ...)``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

import fastxai
from fastxai.kernels import activation, formulas, interpolate, max_pool, mixed, proportional
from fastxai.kernels.activation import RELU_LIKE, Activation
from fastxai.kernels.max_pool import Window

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


@dataclass(frozen=True)
class ShareCase:
    """Shares of one shape, channels first or last, everywhere (sign 0) or where y has a sign."""

    shape: tuple[int, ...]
    sign: int = 0
    kappa: float = 1.0
    epsilon: float = 1e-6
    last: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size}-s{self.sign}-k{self.kappa:g}-e{self.epsilon:g}{'-last' * self.last}"

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Return (r, z, y, d), seeded, with zeros of either sign in z and y."""
        seed = torch.Generator().manual_seed(17)
        r, z, y, d = ((torch.randn(self.shape, generator=seed) * 40).round() / 16 for _ in range(4))
        for x, step in ((z, 7), (y, 5)):
            x.view(-1)[::step], x.view(-1)[1::step] = 0.0, -0.0
        return tuple(place(x, self.last, dtype, device) for x in (r, z, y, d))


SHARE_CASES = [
    *(
        ShareCase((2, 3, 5, 7), sign, kappa, 1e-6, last)
        for sign, kappa, last in itertools.product((0, 1, -1), (1.0, -0.7), (False, True))
    ),
    *(ShareCase(shape, 1, 2.0, 0.25) for shape in ((), (1,), (0, 3), (2, 3, 0, 4), (11,), (63, 17), (2, 3, 4, 5, 6))),
    *(ShareCase((4, 16, 33, 35), sign, 2.0, 1e-9, True) for sign in (0, -1)),
]


def check_share(case: ShareCase, backend: str, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    """Run share and adjoint on a backend and compare with the reference in float64."""
    operands = case.tensors(dtype, device)
    r, z, y, d = operands
    how = (case.epsilon, case.kappa, y if case.sign else None, case.sign)
    spare = d.clone(memory_format=torch.preserve_format)
    with fastxai.backend(backend):
        shares = proportional.share(r, z, *how)
        t, dz = proportional.adjoint(spare, z, shares, *how)
    assert all(torch.equal(x, old) for x, old in zip(operands, case.tensors(dtype, device), strict=True))
    assert all(x.dtype == dtype and x.stride() == z.stride() for x in (shares, t, dz))

    wide = [x.to("cpu", torch.float64) for x in (r, z, y, d, shares)]
    how = (case.epsilon, case.kappa, wide[2], case.sign)
    with fastxai.backend("reference"):
        want = proportional.share(wide[0], wide[1], *how)
        # S is rounded where it is stored: its product is checked from there on
        want_t, want_dz = proportional.adjoint(wide[3], wide[1], wide[4], *how)
    close(shares, want, want.abs(), tolerance, "S")
    close(t, want_t, want_t.abs(), tolerance, "t")
    close(dz, want_dz, want_dz.abs(), tolerance, "dz")


@dataclass(frozen=True)
class PoolCase:
    """One window on one shape: [KN, C, H, W], channels first or last."""

    window: Window
    shape: tuple[int, int, int, int]
    components: int = 1
    last: bool = False

    def __str__(self) -> str:
        w = self.window
        pairs = "-".join("x".join(map(str, p)) for p in (w.kernel, w.stride, w.padding, w.dilation))
        size = "x".join(map(str, self.shape))
        return f"{pairs}{'-ceil' * w.ceil_mode}-{size}-K{self.components}{'-last' * self.last}"

    def tensor(self, dtype: torch.dtype, device: str) -> Tensor:
        """Return x with many ties, and with NaN and infinities among component 0."""
        seed = torch.Generator().manual_seed(11)
        x = torch.randint(-3, 4, (self.components * self.shape[0], *self.shape[1:]), generator=seed).float()
        special = torch.rand(x[: self.shape[0]].shape, generator=seed)
        for low, value in ((0.00, torch.nan), (0.01, torch.inf), (0.02, -torch.inf)):
            x[: self.shape[0]][(special > low) & (special < low + 0.01)] = value
        return place(x, self.last, dtype, device)


WINDOWS = (
    Window((2, 2), (2, 2)),
    Window((3, 3), (2, 2), (1, 1)),
    Window((3, 3), (2, 2)),
    Window((3, 3), (2, 2), ceil_mode=True),
    Window((2, 2), (2, 2), ceil_mode=True),
    Window((3, 3), (1, 1), (1, 1)),
    Window((3, 2), (1, 3), (1, 0), (2, 1)),
    Window((2, 2), (3, 3)),
    Window((5, 1), (2, 1), (2, 0)),
    Window((13, 15), (1, 1)),
)
POOL_CASES = [
    *(PoolCase(w, (2, 5, 13, 15), 3, last) for w in WINDOWS for last in (False, True)),
    *(PoolCase(w, (2, 300, 14, 16), 2, last) for w in WINDOWS[:2] for last in (False, True)),
    *(PoolCase(WINDOWS[0], (0, 3, 8, 8), 2, last) for last in (False, True)),
    *(PoolCase(WINDOWS[1], (2, 0, 8, 8), 2, last) for last in (False, True)),
    PoolCase(WINDOWS[0], (3, 1, 6, 6), 1, True),
    PoolCase(WINDOWS[0], (3, 7, 2, 2), 2, True),
]


def check_pool(case: PoolCase, backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Run push, push at a given index, and pull on a backend; all are exact, so compare bit by bit."""
    x = case.tensor(dtype, device)
    n, k, window = case.shape[0], case.components, case.window
    with fastxai.backend(backend):
        y, index = max_pool.push(x, window, k)
        again, _ = max_pool.push(x[n:], window, k - 1, index) if k > 1 else (y[n:], index)
        nu = (y.nan_to_num(1, 2, 3) + 1).round()
        mu = max_pool.pull(nu, window, index, (x.shape[2], x.shape[3]))
    with fastxai.backend("reference"):
        want_y, want_index = max_pool.push(x.cpu(), window, k)
        want_mu = max_pool.pull(nu.cpu(), window, want_index, (x.shape[2], x.shape[3]))
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(y.cpu(), want_y, **exact)
    torch.testing.assert_close(index.cpu(), want_index, **exact)
    torch.testing.assert_close(again, y[n:], **exact)
    torch.testing.assert_close(mu.cpu(), want_mu, **exact)
    if case.last and x.numel():
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, index, mu))
