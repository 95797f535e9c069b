"""The elementwise kernels, paths, pools and shares against PyTorch: values first, then medians of interleaved runs.

``python bench/kernels.py [--device cpu|cuda] [--small]``. GB/s counts the bytes that must move, each operand once, the
same for both sides; the yardstick of a pull and of a path is a copy of as many bytes. On a GPU both backends run,
because a CUDA version is kept only where it is at least 10% faster than Triton's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from _measure import interleaved, machine, table
from torch import Tensor

import fastxai
from fastxai.kernels import activation as jets
from fastxai.kernels import interpolate, max_pool, proportional
from fastxai.kernels.activation import Activation
from fastxai.kernels.max_pool import Window

BETA = 10.0
POINTS = 16
ACT = Activation("softplus", BETA)
POOL = Window((2, 2), (2, 2))
# of the largest value: sums of terms of either sign have no relative error of their own
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
Result = tuple[Tensor, ...]


@dataclass
class Case:
    """One kernel, its rival, the bytes it must move, and what its results (put in comparable form) must equal."""

    name: str
    rival: str
    ours: Callable[[], Result]
    theirs: Callable[[], Result]
    moved: int
    exact: Result
    comparable: Callable[..., Result] = lambda *out: out
    rival_computes: bool = True


def slopes(kept: Tensor) -> Tensor:
    """s' = p from the kept number."""
    return torch.where(torch.signbit(kept), kept.abs(), 1 - kept.abs())


def push_cases(a: Tensor, a_v: Tensor) -> list[Case]:
    """The value with its derivative, and the order-1 push."""
    unit, jet = a.numel() * a.element_size(), torch.cat([a, a_v])
    y, p = -F.logsigmoid(-BETA * a.double()) / BETA, torch.sigmoid(BETA * a.double())

    def theirs() -> Result:
        p = torch.sigmoid(BETA * a)
        return F.softplus(a, BETA), p * a_v, p

    return [
        Case(
            "softplus, value and derivative", "F.softplus + torch.sigmoid",
            lambda: jets.push(ACT, a), lambda: (F.softplus(a, BETA), torch.sigmoid(BETA * a)),
            3 * unit, (y, p), lambda y, kept: (y, slopes(kept)),
        ),
        Case(
            "softplus, push of order 1", "F.softplus + torch.sigmoid * a_v",
            lambda: jets.push(ACT, jet, 1), theirs,
            5 * unit, (y, p * a_v.double(), p), lambda y, kept: (*y.chunk(2), slopes(kept)),
        ),
    ]  # fmt: skip


def pull_case(a: Tensor, a_v: Tensor, directions: int) -> Case:
    """The order-1 pull, beside a copy that moves as many bytes."""
    _, kept = jets.push(ACT, a)
    many = a_v.repeat(directions, 1, 1, 1)
    nu = torch.cat([a_v.flip(0), many.flip(0)])
    units = 2 + 2 * directions + 1 + directions
    source = torch.empty(units * a.numel() // 2, dtype=a.dtype, device=a.device).normal_()
    m = kept.double()
    p, q = slopes(m), m.abs()
    wide = nu.double().unflatten(0, (1 + directions, -1))
    mu = p * wide
    mu[1:] += BETA * q * (1 - q) * a_v.double() * wide[0]
    return Case(
        f"softplus, pull of order 1, S = {directions}", "copy",
        lambda: (jets.pull(ACT, kept, many, nu, directions),), lambda: (source.clone(),),
        units * a.numel() * a.element_size(), (mu.flatten(0, 1),), rival_computes=False,
    )  # fmt: skip


def path_cases(a: Tensor, a_v: Tensor) -> list[Case]:
    """POINTS points of a path for an eighth of the rows, there and back; each beside torch and beside a copy."""
    n = max(a.shape[0] // 8, 1)
    start, step = a[:n], a_v[:n]
    ends, t = torch.cat([start, step]), (torch.arange(POINTS, device=a.device).to(a.dtype) + 0.5) / POINTS
    y, kept = interpolate.push(ACT, ends, t)
    nu_v, nu_0 = y.flip(0), y.flip(1)
    stored = slopes(kept)

    def points(start: Tensor, step: Tensor) -> Tensor:
        return (start + t.to(start.dtype).view(-1, 1, 1, 1, 1) * step).flatten(0, 1)

    def sums(p: Tensor, m: Tensor, step: Tensor, nu_v: Tensor, nu_0: Tensor) -> Result:
        mu = (p * nu_0).unflatten(0, (POINTS, n)) + (BETA * m * (1 - m) * nu_v).unflatten(0, (POINTS, n)) * step
        return mu.sum(0), (t.to(mu.dtype).view(-1, 1, 1, 1, 1) * mu).sum(0)

    def theirs_push() -> Result:
        x = points(start, step)
        return F.softplus(x, BETA), torch.sigmoid(BETA * x)

    x, m, *wide = (z.double() for z in (points(start.double(), step.double()), kept, step, nu_v, nu_0))
    unit = step.numel() * step.element_size()
    cases = [
        Case(
            f"softplus, push of {POINTS} points", "interpolate + F.softplus + torch.sigmoid",
            lambda: interpolate.push(ACT, ends, t), theirs_push,
            (2 + 2 * POINTS) * unit, (-F.logsigmoid(-BETA * x) / BETA, torch.sigmoid(BETA * x)),
            lambda y, kept: (y, slopes(kept)),
        ),
        Case(
            f"softplus, sum over {POINTS} points", "multiply + sum",
            lambda: (interpolate.reduce(ACT, kept, nu_0, POINTS),),
            lambda: ((stored * nu_0).unflatten(0, (POINTS, n)).sum(0),),
            (1 + 2 * POINTS) * unit, ((slopes(m) * wide[2]).unflatten(0, (POINTS, n)).sum(0),),
        ),
        Case(
            f"softplus, sums of order 1 over {POINTS} points", "multiply, add + sum, twice",
            lambda: (interpolate.reduce_primal(ACT, kept, step, nu_v, nu_0, t),),
            lambda: sums(stored, stored, step, nu_v, nu_0),
            (3 + 3 * POINTS) * unit, sums(slopes(m), m.abs(), *wide), lambda m: m.chunk(2),
        ),
    ]  # fmt: skip
    source = torch.empty(cases[-1].moved // (2 * a.element_size()), dtype=a.dtype, device=a.device).normal_()

    def copied(case: Case) -> Case:
        part = source[: case.moved // (2 * a.element_size())]
        return replace(case, rival="copy", theirs=lambda: (part.clone(),), rival_computes=False)

    return cases + [copied(case) for case in cases]


def pool_cases(x: Tensor, x_v: Tensor) -> list[Case]:
    """2 x 2 max-pooling of two components by the argmax of the first, channels last."""
    x, x_v = (t.contiguous(memory_format=torch.channels_last) for t in (x, x_v))
    jet = torch.cat([x, x_v])
    size = (x.shape[2], x.shape[3])
    y, index = max_pool.push(jet, POOL, 2)
    nu = torch.randn_like(y)
    first, second = nu.chunk(2)
    _, where = F.max_pool2d(x, 2, return_indices=True)
    geometry = ((2, 2), (2, 2), (0, 0), (1, 1), False)

    def gathered(t: Tensor) -> Tensor:
        return t.flatten(2).gather(2, where.flatten(2)).view_as(where)

    def theirs_push() -> Result:
        return F.max_pool2d(x, 2, return_indices=True)[0], gathered(x_v)

    def theirs_pull() -> Result:
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(first, x, *geometry, where), backward(second, x_v, *geometry, where)

    moved = (jet.numel() + y.numel()) * x.element_size() + index.numel()
    exact_pull = tuple(F.max_unpool2d(half.double(), where, 2, output_size=size) for half in (first, second))
    return [
        Case(
            "max-pool, push of two components", "F.max_pool2d + gather",
            lambda: max_pool.push(jet, POOL, 2), theirs_push,
            moved, (gathered(x).double(), gathered(x_v).double()), lambda y, _: y.chunk(2),
        ),
        Case(
            "max-pool, pull of two components", "max_pool2d_backward, twice",
            lambda: (max_pool.pull(nu, POOL, index, size),), theirs_pull,
            moved, exact_pull, lambda mu: mu.chunk(2),
        ),
    ]  # fmt: skip


def share_cases(a: Tensor, a_v: Tensor) -> list[Case]:
    """Relevance over a stabilised sum, where y > 0, and the adjoint; the memory that this one takes is its own."""
    r, z, y, d, epsilon = a_v, a, a.flip(0), a_v.flip(0), 1e-6
    spare, unit = d.clone(), z.numel() * z.element_size()
    how = proportional.Shares(epsilon, sign=1)

    def theirs_share(r: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, r / torch.where(z < 0, z - epsilon, z + epsilon), 0)

    def theirs_adjoint(d: Tensor, z: Tensor, shares: Tensor, y: Tensor) -> Result:
        quotient = d / torch.where(z < 0, z - epsilon, z + epsilon)
        return torch.where(y > 0, quotient, 0), -quotient * shares

    def ours_adjoint() -> Result:
        return proportional.adjoint(spare.copy_(d), z, shares, how, y)

    shares = theirs_share(r, z, y)
    wide = [x.double() for x in (d, z, shares, y)]
    return [
        Case(
            "share, where y > 0", "where, add, divide, where",
            lambda: (proportional.share(r, z, how, y),), lambda: (theirs_share(r, z, y),),
            4 * unit, (theirs_share(r.double(), z.double(), y.double()),),
        ),
        Case(
            "share, adjoint and a copy", "the same in six steps",
            ours_adjoint, lambda: theirs_adjoint(d.clone(), z, shares, y), 8 * unit, theirs_adjoint(*wide),
        ),
    ]  # fmt: skip


def verify(case: Case, backend: str, result: Result, *, ours: bool) -> float:
    """Return the largest error relative to the largest value; SystemExit beyond the tolerance: no time is printed."""
    got = case.comparable(*result) if ours else result
    errors = [
        ((g.double() - e).abs().max() / e.abs().max().clamp(min=1e-30)).item()
        for g, e in zip(got, case.exact, strict=True)
    ]
    bound = TOLERANCE[got[0].dtype]
    if not max(errors) <= bound:
        raise SystemExit(f"{case.name}, {backend}: error {max(errors):.1e} above {bound:.0e}; no time is reported")
    return max(errors)


def run(case: Case, backends: list[str], repeats: int, device: str) -> list[list[str]]:
    """Check every contender, time all of them in one interleaved run, and return the table's rows."""

    def under(backend: str) -> Callable[[], Result]:
        def call() -> Result:
            with fastxai.backend(backend):
                return case.ours()

        return call

    calls: dict[str, Callable[[], Result]] = {name: under(name) for name in backends}
    errors = {name: f"{verify(case, name, call(), ours=True):.0e}" for name, call in calls.items()}
    errors[case.rival] = f"{verify(case, case.rival, case.theirs(), ours=False):.0e}" if case.rival_computes else ""
    calls[case.rival] = case.theirs
    seconds = interleaved(calls, repeats, least=2e-3, device=device)
    dtype = str(case.ours()[0].dtype).removeprefix("torch.")
    rows = []
    for name, s in seconds.items():
        figures = f"{s * 1e3:.3f}", f"{case.moved / s / 1e9:.1f}", f"{seconds[case.rival] / s:.2f}"
        rows.append([case.name, dtype, name, *figures, errors[name]])
    return rows


def main() -> None:
    """Run every case and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny operands: a test that everything runs")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    backends = ["triton", "cuda"] if args.device == "cuda" else ["cpu"]
    for name in backends:
        if fastxai.available()[name]:
            raise SystemExit(f"backend {name!r} cannot run here: {fastxai.available()[name]}")
    torch.manual_seed(0)
    print(machine())
    # on a GPU far above its second-level cache, so that what is timed is memory
    rows = 3 if args.small else 64 if args.device == "cpu" else 1024
    report = []
    for dtype in (torch.float32, torch.bfloat16) if args.device == "cuda" else (torch.float32,):
        a, a_v = (torch.randn(rows, 32, 32, 32, device=args.device).to(dtype) for _ in range(2))
        for case in [*push_cases(a, a_v), pull_case(a, a_v, 1), pull_case(a, a_v, 4)]:
            report += run(case, backends, args.repeats, args.device)
        for case in [*path_cases(a, a_v), *pool_cases(a, a_v), *share_cases(a, a_v)]:
            only_triton = [name for name in backends if name != "cuda"]  # there is no CUDA version of these
            report += run(case, only_triton, args.repeats, args.device)
    print(table(["kernel", "dtype", "by", "ms", "GB/s", "x rival", "error"], report))


if __name__ == "__main__":
    main()
