"""What GPU backends are checked for beyond ``cases``: 2-byte storage, work in place, tails, special values."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from cases import JetCase, place
from path_cases import PathCase
from share_cases import ShareCase
from torch import Tensor

import fastxai
from fastxai.kernels import activation as jets
from fastxai.kernels import interpolate, mixed
from fastxai.kernels.activation import Activation
from fastxai.kernels.formulas import dials

RELATIVE = 2e-6
STORAGE = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
INTERPRETED_BFLOAT16 = 2.0**-7  # Triton's interpreter truncates where a GPU rounds to nearest
ROOTED = ("silu", "gelu", "gelu_tanh", "leaky_softplus")

# (rows, C, ...), channels last, bias: odd sizes in both layouts, sizes of whole 16-byte accesses, no spatial axes
SHAPES = (
    ((2, 3, 5, 7), False, True),
    ((2, 3, 5, 7), True, True),
    ((2, 16, 4, 4), True, False),
    ((5, 7), False, True),
)

PATHS = [
    PathCase(Activation(name, 3.0), *structure)
    for name in ("softplus", "gelu", "relu6")
    for structure in (((2, 3, 5, 7), 5, True, True), ((2, 16, 4, 4), 3), ((5, 7), 2, False, True))
]


SHARP = [Activation(name) for name in ("softplus", "softplus6", "leaky_softplus", "gelu")]
SHARP += [Activation(name, second="curvature") for name in ("relu", "relu6", "leaky_relu")]


MIXED = [
    JetCase(Activation(name, 3.0), *structure)
    for name in ("softplus", "silu", "relu6")
    for structure in (((2, 3, 5, 7), 1, True), ((2, 16, 4, 4), 2), ((5, 7), 3))
]


# float16 has no room for 1 / 1e-6
SHARES = [ShareCase((2, 3, 5, 7), sign, 2.0, 0.25, True) for sign in (0, -1)] + [ShareCase((5, 7), 1, 1.0, 0.25)]


def rounding(dtype: torch.dtype, device: str) -> float:
    """The relative error of storing one number."""
    return INTERPRETED_BFLOAT16 if dtype == torch.bfloat16 and device == "cpu" else STORAGE[dtype]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, last: bool = False, scale: float = 1.0) -> Tensor:
    x = (torch.randn(shape) * scale).clamp(-4.5 * scale, 4.5 * scale)
    return place(x, last, dtype, device)


def close(got: Tensor, want: Tensor, magnitude: Tensor, what: str) -> None:
    """Each element within 2e-6 of its terms' magnitude, plus the rounding of its storage."""
    stored = rounding(got.dtype, got.device.type)
    bound = (RELATIVE + stored) * magnitude.abs() + (2.0**-24 if got.dtype == torch.float16 else 1e-37)
    error = (got.cpu().double() - want).abs()
    worst = int((error - bound).argmax()) if error.numel() else 0
    assert bool((error <= bound).all()), (
        f"{what}[{worst}] = {got.flatten()[worst].item()!r}, want {want.flatten()[worst].item()!r}"
    )


def numbers(act: Activation, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s', s'' in float64, and what their errors are measured against: themselves unless they have a root."""
    d1, d2 = jets.derivatives(act, kept)
    floor1 = 1.0 if act.name in ROOTED else 0.0
    floor2 = 1.0 if act.name in ROOTED else act.beta if act.name == "relu6" and act.second == "curvature" else 0.0
    return d1, d2, d1.abs() + floor1, d2.abs() + floor2


def check_storage(
    backend: str,
    device: str,
    act: Activation,
    directions: int,
    dtype: torch.dtype,
    case: tuple[tuple[int, ...], bool, bool],
) -> None:
    """Push and both pulls, each also in place, against the float64 reference of the same numbers."""
    torch.manual_seed(0)
    (rows, *rest), last, biased = case
    scale = 2.0 / act.beta if act.name == "softplus" else 1.0
    a = draw((rows * (1 + directions), *rest), dtype, device, last=last, scale=scale)
    _check_jet(backend, act, directions, a, draw((rest[0],), dtype, device, scale=scale) if biased else None)


def _check_jet(backend: str, act: Activation, directions: int, a: Tensor, bias: Tensor | None) -> None:
    n = a.shape[0] // (1 + directions)
    wide, a_v = a.cpu().double(), a[n:]
    want, want_kept = jets._push_reference(act, wide, directions, None if bias is None else bias.cpu().double())
    with fastxai.backend(backend):
        y, kept = jets.push(act, a, directions, bias)
        spare = a.clone(memory_format=torch.preserve_format)
        y_over, kept_over = jets.push(act, spare, directions, bias, overwrite=True)
    assert y.stride() == a.stride() and kept.stride() == a[:n].stride()
    assert torch.equal(y, y_over) and torch.equal(kept, kept_over) and torch.equal(spare[n:], a_v)
    assert kept_over.data_ptr() == spare.data_ptr()
    primal = want_kept if act.name in ROOTED else want[:n]
    # the bias is added before anything else: its rounding is the input's, not the formula's
    slip = 2.0**-22 * (wide[:n].abs() + bias.abs().max().item()) if bias is not None else torch.zeros_like(primal)
    close(y[:n], want[:n], primal.abs() + slip / RELATIVE, "y")
    d1, _, m1, _ = numbers(act, want_kept)
    m2 = jets.derivatives(replace(act, second="own"), want_kept)[1].abs() + (1.0 if act.name in ROOTED else 0.0)
    repeat = (directions, *[1] * (a.dim() - 1))
    spread = (m1 + slip * m2 / RELATIVE).repeat(repeat)
    close(y[n:], d1.repeat(repeat) * wide[n:], spread * wide[n:], "y_v")
    relative = act.beta if act.name == "softplus" else 0.0
    close(kept, want_kept, want_kept.abs() * (1 + relative * slip / RELATIVE) + slip / RELATIVE, "kept")
    _check_pulls(backend, act, directions, kept, a_v)


def _check_pulls(backend: str, act: Activation, directions: int, kept: Tensor, a_v: Tensor) -> None:
    n, last = kept.shape[0], kept.dim() == 4 and not kept.is_contiguous()
    nu = draw((n * (1 + directions), *kept.shape[1:]), kept.dtype, str(kept.device), last=last)
    repeat = (directions, *[1] * (kept.dim() - 1))
    d1, d2, m1, m2 = (part.repeat(repeat) for part in numbers(act, kept.cpu().double()))
    wide, tangent = nu.cpu().double(), a_v.cpu().double()
    nu_v = wide[:n].repeat(repeat)
    want_v, size_v = (part[:n] * wide[:n] for part in (numbers(act, kept.cpu().double())[0::2]))
    with fastxai.backend(backend):
        mu = jets.pull(act, kept, a_v if directions else None, nu, directions)
        spare = nu.clone(memory_format=torch.preserve_format)
        over = jets.pull(act, kept, a_v if directions else None, spare, directions, overwrite=True)
    assert torch.equal(mu, over) and over.data_ptr() == spare.data_ptr() and mu.stride() == nu.stride()
    close(mu[:n], want_v, size_v, "mu_v")
    curved, curved_size = d2 * tangent * nu_v, (m2 * tangent * nu_v).abs()
    straight, straight_size = d1 * wide[n:], (m1 * wide[n:]).abs()
    close(mu[n:], straight + curved, straight_size + curved_size, "mu_0")
    if directions == 0:
        return
    with fastxai.backend(backend):
        both = jets.pull_primal(act, kept, a_v, nu[:n], nu[n:], directions)
        spare = nu.clone(memory_format=torch.preserve_format)
        over = jets.pull_primal(act, kept, a_v, nu[:n], spare[n:], directions, overwrite=True)
        alone = jets.pull_primal(act, kept, a_v, nu[:n], None, directions)
    assert torch.equal(both, over) and torch.equal(spare[:n], nu[:n])
    close(both, straight + curved, straight_size + curved_size, "mu_0 of pull_primal")
    close(alone, curved, curved_size, "mu_0 of pull_primal without nu_0")


def check_softplus_tails(backend: str, device: str, beta: float) -> None:
    """float32 softplus: value, kept number, s' and s'' within 2e-6 relative of float64 for |beta a| up to 1e4."""
    z = torch.cat([torch.logspace(-12, 4, 300), torch.linspace(0.0, 86.0, 300)])
    a = (torch.cat([z, -z]) / beta).to(device)[:, None]
    act, one = Activation("softplus", beta), torch.ones_like(a)
    want, want_kept = jets._push_reference(act, a.cpu().double(), 0, None)
    with fastxai.backend(backend):
        y, kept = jets.push(act, a)
        slope = jets.pull(act, kept, None, one)
        curvature = jets.pull_primal(act, kept, one, one, None)
    d1, d2 = jets.derivatives(act, want_kept)
    for got, exact, what in ((y, want, "y"), (kept, want_kept, "kept"), (slope, d1, "s'"), (curvature, d2, "s''")):
        assert bool(got.isfinite().all())
        # below 2^-126 float32 is denormal: absolute there
        small = (2.0**-126 * max(1.0, beta, 1 / beta)) / RELATIVE
        close(got, exact, exact.abs() + small * (exact.abs() < 1e3 * small * RELATIVE), what)


def check_special_values(backend: str, device: str) -> None:
    """NaN passes, infinities saturate, -0.0 keeps its sign in the kept number."""
    a = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0]).to(device)[:, None]
    with fastxai.backend(backend):
        for name in ("softplus", "sigmoid", "tanh", "relu", "relu6", "leaky_relu", "elu", "identity"):
            y, _ = jets.push(Activation(name, alpha=0.5), a)
            want, _ = jets._push_reference(Activation(name, alpha=0.5), a.cpu().double(), 0, None)
            torch.testing.assert_close(y.cpu().double(), want, rtol=RELATIVE, atol=0, equal_nan=True)
        _, kept = jets.push(Activation("softplus", 3.0), a)
        slope = jets.pull(Activation("softplus", 3.0), kept, None, torch.ones_like(a))
    assert kept.flatten().tolist()[1:] == [0.0, -0.0, -0.5, 0.5]
    assert kept.flatten()[2].signbit() and not kept.flatten()[1].signbit() and kept[0].isnan()
    assert slope.flatten().tolist()[1:] == [1.0, 0.0, 0.5, 0.5] and slope[0].isnan()


def check_beta_in_memory(backend: str, device: str, act: Activation, dtype: torch.dtype) -> None:
    """A beta that kernels read from memory gives the bits of the same number, and is read anew at every call."""
    memory = torch.empty(3, dtype=torch.float64, device=device)
    live = replace(act, beta=memory)
    a, nu, other, bar = (draw((6, 3, 5, 7), dtype, device) for _ in range(4))
    t = torch.linspace(0, 1, 3, device=device, dtype=dtype)
    for row, beta in zip(dials([2.5, 71.3], torch.device(device)), (2.5, 71.3), strict=True):
        memory.copy_(row)
        results = []
        for s in (live, replace(act, beta=beta)):
            with fastxai.backend(backend):
                y, kept = jets.push(s, a, 2)
                mu = jets.pull(s, kept, a[2:], nu, 2)
                primal = jets.pull_primal(s, kept, a[2:], nu[:2], None, 2)
                results.append([y, kept, mu, primal])
                if s.second != "curvature":
                    results[-1] += [mixed.push(s, kept, a[2:], other, 2), mixed.pull(s, kept, a[2:], other, nu, bar, 2)]
                y, kept = interpolate.push(s, a[:4], t)
                results[-1] += [y, kept, interpolate.tangent(s, kept, a[:2]), interpolate.reduce(s, kept, nu, 3)]
                results[-1].append(interpolate.reduce_primal(s, kept, a[:2], nu, bar, t))
        assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))
