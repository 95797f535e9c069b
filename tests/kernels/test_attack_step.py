"""Attack steps: every backend against plain formulas, layouts, threads, special values, messages."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import STEP_CASES, StepCase, check_step
from torch import Tensor

import fastxai
from fastxai.kernels import attack_step
from fastxai.kernels.attack_step import adam_clamp, l2_project_clip, moments, sign_project_clip

BACKENDS = ("reference", "cpu")
WIDE = torch.tensor([-100.0]), torch.tensor([100.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_step(case: StepCase, backend: str, dtype: torch.dtype) -> None:
    check_step(case, backend, dtype, 4e-7 if dtype == torch.float32 else 1e-15)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    kind=st.sampled_from(["adam", "sign", "l2"]),
    last=st.booleans(),
    frozen=st.booleans(),
)
def test_any_shape(shape, kind, last, frozen) -> None:
    check_step(StepCase(kind, shape, last, frozen), "cpu", torch.float64, 1e-15)


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(1e-6, 1e3),
    alpha=st.floats(-1e3, 1e3),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e30]),
    backend=st.sampled_from(BACKENDS),
    l2=st.booleans(),
)
def test_results_lie_in_ball_and_box(eps, alpha, scale, backend, l2) -> None:
    seed = torch.Generator().manual_seed(1)
    origin, x, g = torch.rand(3, 4, 2, 5, 5, generator=seed).unbind(0)
    box = torch.tensor([0.0, 0.1]), torch.tensor([1.0, 0.9])
    origin = origin.clamp(0.1, 0.9)
    with fastxai.backend(backend):
        step = l2_project_clip if l2 else sign_project_clip
        y = step(x, (g - 0.5) * scale, origin, alpha, eps, box)
    if l2:  # eps / |offset| and the sum with the origin are rounded
        length = (y - origin).double().flatten(1).norm(dim=1)
        assert bool((length <= eps * (1 + 1e-6) + 3e-7).all())
    else:
        assert bool(((y - origin).abs() <= eps).all())
    low, high = (b.view(1, 2, 1, 1) for b in box)
    assert bool(((y >= low) & (y <= high)).all())


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(1e-9, 1e3),
    scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 100.0]),
    double=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_the_ball_is_kept_to_the_last_bit(eps, scale, double, backend) -> None:
    seed, dtype = torch.Generator().manual_seed(2), torch.float64 if double else torch.float32
    origin = (torch.randn(1, 1, 5000, dtype=torch.float64, generator=seed) * scale).to(dtype)
    origin[0, 0, :4] = torch.tensor([0.0, 1.0, -1.0, 0.5])
    far = torch.where(torch.rand(origin.shape, generator=seed) < 0.5, -1e4, 1e4).to(dtype)
    box = torch.tensor([-1e5], dtype=dtype), torch.tensor([1e5], dtype=dtype)
    with fastxai.backend(backend):
        offset = (sign_project_clip(far, None, origin, 0.0, eps, box) - origin).abs()
    assert bool((offset <= eps).all())
    assert bool((offset >= eps - 4 * torch.finfo(dtype).eps * (origin.abs() + eps)).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_l2_have_the_length_asked_for(backend: str) -> None:
    for scale in (1e-38, 1e-30, 1.0, 1e30, 1e37):
        x, g = torch.zeros(2, 1, 9, 7), torch.randn(2, 1, 9, 7) * scale
        with fastxai.backend(backend):
            y = l2_project_clip(x, g, x, 0.25, 10.0, WIDE)
        torch.testing.assert_close(y.flatten(1).norm(dim=1), torch.tensor([0.25, 0.25]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend: str) -> None:
    g = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45]).view(1, 1, 6)
    x = torch.zeros(1, 1, 6)
    with fastxai.backend(backend):
        assert sign_project_clip(x, g, x, 0.5, 1.0, WIDE).flatten().tolist() == [0, 0, 0, 0.5, -0.5, 0.5]
        assert bool(l2_project_clip(x, g, x, 0.5, 1.0, WIDE).isnan().all())
        assert torch.equal(l2_project_clip(x, 0 * x, x, 0.5, 1.0, WIDE), x)
        assert adam_clamp(x, g, moments(x), 0.5, 1, WIDE)[0, 0, 2].isnan()
        infinite = torch.tensor([-math.inf]), torch.tensor([math.inf])
        moved = adam_clamp(x, torch.ones_like(x), moments(x), 1e6, 1, infinite)
        torch.testing.assert_close(moved, torch.full_like(x, -1e6))
        broken = torch.full_like(x, math.nan)
        assert bool(sign_project_clip(broken, None, x, 0.0, 1.0, WIDE).isnan().all())


def views() -> dict[str, Tensor]:
    return {
        "step": torch.rand(4, 3, 6, 10)[..., ::2],
        "transposed": torch.rand(4, 6, 3, 5).transpose(1, 3),
        "channels of channels last": torch.rand(4, 8, 5, 6).contiguous(memory_format=torch.channels_last)[:, 2:5],
        "rows": torch.rand(8, 3, 5, 6)[::2],
        "expanded": torch.rand(1, 3, 1, 6).expand(4, 3, 5, 6),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(views()))
def test_any_strides(name: str, backend: str) -> None:
    x = views()[name]
    g, origin = torch.randn(x.shape), torch.rand(x.shape).contiguous(memory_format=torch.channels_last)
    channels = torch.arange(2.0 * x.shape[1])
    box = channels[::2] * 0.01, 1 - channels[::2] * 0.01
    frozen = torch.tensor([True, False, False, True, False, True, True, False])[::2]
    with fastxai.backend(backend):
        for run in (
            lambda x, g, o: sign_project_clip(x, g, o, 0.1, 0.2, box, frozen),
            lambda x, g, o: l2_project_clip(x, g, o, 0.1, 0.2, box, frozen),
            lambda x, g, o: adam_clamp(x, g, moments(x), 0.1, 1, box, frozen),
        ):
            got, want = run(x, g, origin), run(x.contiguous(), g.contiguous(), origin.contiguous())
            torch.testing.assert_close(got, want, rtol=0, atol=1e-7)
        state = moments(x.contiguous())
        other = tuple(part.contiguous(memory_format=torch.channels_last) for part in state)
        adam_clamp(x, g, state, 0.1, 1, box)
        adam_clamp(x, g, other, 0.1, 1, box)
    assert all(torch.equal(one, two) and bool(one.any()) for one, two in zip(state, other, strict=True))


def test_threads_do_not_change_the_bits() -> None:
    x, g, origin = torch.rand(3, 5, 3, 65, 63).unbind(0)
    box = torch.zeros(3), torch.ones(3)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        state = moments(x)
        results.append(
            (
                adam_clamp(x, g, state, 0.1, 1, box),
                *state,
                sign_project_clip(x, g, origin, 0.1, 0.2, box),
                l2_project_clip(x, g, origin, 0.1, 0.2, box),
            )
        )
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_moments_are_wide() -> None:
    assert moments(torch.zeros(2, dtype=torch.bfloat16))[1].dtype == torch.float32
    assert moments(torch.zeros(2, dtype=torch.float64))[0].dtype == torch.float64
    x = torch.rand(2, 3, 4).bfloat16()
    box = torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()
    y = adam_clamp(x, x, moments(x), 0.1, 1, box)
    torch.testing.assert_close(y.float(), (x.float() - 0.1).clamp(0, 1), rtol=0, atol=2**-8)


X, BOX = torch.zeros(4, 3, 2), (torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: sign_project_clip(X[0, 0], None, X, 1, 1, BOX),
            ValueError,
            r"x must have shape \[N, C, ...\], got \[2",
        ),
        (lambda: sign_project_clip(X, X[:2], X, 1, 1, BOX), ValueError, r"gradient must have shape \[4, 3, 2\]"),
        (lambda: sign_project_clip(X, X.double(), X, 1, 1, BOX), ValueError, "gradient must have x's dtype"),
        (lambda: sign_project_clip(X, X, X[:2], 1, 1, BOX), ValueError, "origin must have shape"),
        (lambda: l2_project_clip(X, X, X, 1, 0.0, BOX), ValueError, "eps must be finite and positive, got 0.0"),
        (lambda: l2_project_clip(X, X, X, 1, 1, (BOX[0][:2], BOX[1])), ValueError, r"low must have shape \[3\]"),
        (lambda: l2_project_clip(X, X, X, 1, 1, (BOX[0], BOX[1].double())), ValueError, "high must have x's dtype"),
        (lambda: l2_project_clip(X, X, X, 1, 1, BOX, torch.zeros(4)), TypeError, "frozen must be boolean"),
        (
            lambda: l2_project_clip(X, X, X, 1, 1, BOX, torch.zeros(3).bool()),
            ValueError,
            r"frozen must have shape \[4\]",
        ),
        (lambda: adam_clamp(X, X, moments(X), 1, 0, BOX), ValueError, "t must be an int from 1, got 0"),
        (lambda: adam_clamp(X, X, moments(X), 1, torch.ones(3), BOX), ValueError, r"t must have shape \[2\]"),
        (lambda: adam_clamp(X, X, moments(X), 1, torch.ones(2), BOX), ValueError, "t must be float64"),
        (lambda: adam_clamp(X, X, moments(X[:2]), 1, 1, BOX), ValueError, "m must have shape"),
        (lambda: adam_clamp(X, X, moments(X.double()), 1, 1, BOX), ValueError, "m must have dtype torch.float32"),
    ],
)
def test_errors_name_the_argument(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_constants_are_those_of_torch() -> None:
    defaults = torch.optim.Adam([torch.zeros(1)]).defaults
    assert (*defaults["betas"], defaults["eps"]) == (attack_step.BETA_1, attack_step.BETA_2, attack_step.EPS)
