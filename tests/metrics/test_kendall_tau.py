"""Kendall's tau-b: the kernel and the reference against SciPy and the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

import fastxai
from fastxai.metrics import kendall_tau

BACKENDS = ("cpu", "reference")


def tau(a, b, backend):
    with fastxai.backend(backend):
        return kendall_tau(a, b)


def pair_of(*shape, seed=0, levels=None, dtype=torch.float64):
    """Two correlated random maps; with ``levels`` heavily tied ones."""
    first, second = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    both = torch.stack((first, first + second))
    return (both if levels is None else (both * levels).round()).to(dtype).unbind(0)


def by_scipy(a, b):
    pairs = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    return torch.tensor([kendalltau(x, y).statistic for x, y in pairs], dtype=torch.float64)


def by_definition(a, b):
    """Over all pairs of elements, each one twice."""
    a, b = ((x.flatten(1)[:, :, None] - x.flatten(1)[:, None]).sign().double() for x in (a, b))
    return (a * b).sum((1, 2)) / (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("levels", [None, 20, 2, 0.5])
@pytest.mark.parametrize("shape", [(6, 2), (6, 3), (6, 15), (6, 16), (6, 17), (5, 3, 16, 16), (3, 9, 500)])
def test_it_equals_scipy(shape, levels, backend):
    a, b = pair_of(*shape, levels=levels)
    expected = by_scipy(a, b)
    varies = expected.isfinite()
    torch.testing.assert_close(tau(a, b, backend)[varies], expected[varies], rtol=0, atol=1e-14)
    assert not tau(a, b, backend)[~varies].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [None, 3])
def test_the_size_of_an_imagenet_map(levels, dtype):
    a, b = pair_of(2, 224, 224, levels=levels, dtype=dtype)
    value = tau(a, b, "cpu")
    torch.testing.assert_close(value, by_scipy(a, b).to(dtype), rtol=0, atol=1e-14)
    assert torch.equal(value, tau(a, b, "reference"))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 70), st.sampled_from([None, 0.7, 3]), st.sampled_from(BACKENDS))
@example(seed=0, size=1, levels=None, backend="cpu")
def test_properties(seed, size, levels, backend):
    a, b = pair_of(3, size, seed=seed, levels=levels)
    value = tau(a, b, backend)
    assert (value.abs() <= 1).all()
    assert torch.equal(value, tau(b, a, backend))
    assert torch.equal(-value, tau(-a, b, backend))
    assert torch.equal(value, tau(3 * a - 1, b.tanh() if levels is None else b.exp(), backend))
    assert torch.equal(tau(a, a, backend), (a != a[:, :1]).any(1).double())
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(value, tau(a[:, order], b[:, order], backend))
    torch.testing.assert_close(value, by_definition(a, b).nan_to_num(), rtol=0, atol=1e-14)


values = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e-308, 1e308, float("inf"), float("-inf"), 1 + 2**-52]
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=40), st.sampled_from(BACKENDS))
def test_extreme_values_keep_their_order(pairs, backend):
    a, b = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    greater = [
        (x[..., :, None] > x[..., None, :]).double() - (x[..., :, None] < x[..., None, :]).double() for x in (a, b)
    ]
    p = (greater[0] * greater[1]).sum()
    untied = greater[0].square().sum() * greater[1].square().sum()
    expected = p / untied.clamp(min=1).sqrt()
    torch.testing.assert_close(tau(a, b, backend)[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1, -1e300, 5e-324 * 2**40])
def test_doubles_that_differ_in_their_last_bits_keep_their_order(scale, backend):
    """Their upper halves, by which the kernel sorts first, are equal or nearly so."""
    a, b = (scale * (1 + x * 2**-40) for x in pair_of(4, 700, levels=100))
    assert 100 < len(a[0].unique()) < 600
    torch.testing.assert_close(tau(a, b, backend), by_scipy(a, b), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_has_no_order(dtype, backend):
    rising, constant = torch.arange(9, dtype=dtype), torch.full((9,), -3.5, dtype=dtype)
    a = torch.stack((rising, constant, constant, rising))
    b = torch.stack((constant, rising, constant, rising))
    assert tau(a, b, backend).tolist() == [0, 0, 0, 1]
    assert tau(a[:, :1], b[:, :1], backend).tolist() == [0, 0, 0, 0]


def test_both_zeros_tie():
    a, b = torch.tensor([[-0.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    expected = torch.tensor([(2 / 6**0.5)])
    for backend in BACKENDS:
        torch.testing.assert_close(tau(a, b, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_ties_count_exactly(backend):
    """70000 elements in two blocks: the counts exceed 32 bits."""
    n = 70000
    a, b = (torch.arange(n) >= n // 2).double()[None], (torch.arange(n) >= n // 2 - 1).double()[None]
    p, untied_a, untied_b = (n // 2) * (n // 2 - 1), (n // 2) ** 2, (n // 2 - 1) * (n // 2 + 1)
    expected = torch.tensor([p / (untied_a * untied_b) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(tau(a, b, backend), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads):
    a, b = pair_of(7, 3, 11, 11, levels=4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        value = tau(a, b, "cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(value, tau(a, b, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_and_batch_do_not_matter(backend):
    a, b = pair_of(5, 3, 9, 8)
    value = tau(a, b, backend)
    assert torch.equal(tau(a.contiguous(memory_format=torch.channels_last), b, backend), value)
    assert torch.equal(tau(a.mT.contiguous().mT, b, backend), value)
    assert torch.equal(tau(a[1::2].requires_grad_(), b[1::2], backend), value[1::2])
    assert tau(a[:0], b[:0], backend).shape == (0,)
    assert value.shape == (5,) and value.dtype == torch.float64 and not value.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_the_reference(dtype):
    a, b = pair_of(3, 8, 8, dtype=dtype)
    value = kendall_tau(a, b)
    assert value.dtype == dtype
    torch.testing.assert_close(value, kendall_tau(a.double(), b.double()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments(backend):
    a, b = pair_of(2, 8, 8)
    with pytest.raises(TypeError, match="b must have a floating point dtype"):
        tau(a, b.long(), backend)
    with pytest.raises(ValueError, match=r"b must have shape \[2, 8, 8\], got \[2, 8, 7\]"):
        tau(a, b[..., :7], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nan", [torch.nan, -torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_refused(dtype, nan, backend):
    a, b = pair_of(3, 8, 8, dtype=dtype)
    a[0, 0, 0], a[0, 0, 1] = torch.inf, -torch.inf
    b[1, 2, 3] = nan
    with pytest.raises(ValueError, match="b must have no NaN"):
        tau(a, b, backend)
    with pytest.raises(ValueError, match="a must have no NaN"):
        tau(b, a, backend)
    assert tau(a[::2], b[::2], backend).isfinite().all()


def test_too_many_elements_are_refused():
    big = torch.zeros(1).expand(1, 2**31)
    with pytest.raises(ValueError, match=r"a must have fewer than 2\^31 elements a sample"):
        kendall_tau(big, big)
