"""Kinks along straight lines: against dense sampling and exact arithmetic, and the toy network of [R]."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastxai
from fastxai import theory
from fastxai.theory import _common


def mlp(widths: list[int], seed: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2)).double()


class Residual(nn.Module):
    """A kink may be that of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(torch.cat([self.second(y) + y, y], 1))
        return self.last(y[:, 2:6].mean((2, 3)))


def convolutional(pool: nn.Module, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(2, 3, 3), act(), pool)
    flat = first(torch.zeros(1, 2, 9, 8))
    width = nn.Conv2d(3, 4, 2)(flat).numel()
    return nn.Sequential(*first, nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(width, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: mlp([4, 7, 6, 5], 0), (4,)),
    "leaky": (lambda: mlp([4, 7, 6, 5], 1, nn.LeakyReLU), (4,)),
    "relu6": (lambda: mlp([4, 7, 6], 2, nn.ReLU6), (4,)),
    "residual": (Residual, (2, 5, 4)),
    "pool": (lambda: convolutional(nn.MaxPool2d(2)), (2, 9, 8)),
    "overlapping": (lambda: convolutional(nn.MaxPool2d(3, 2, 1)), (2, 9, 8)),
    "ceil, dilated": (lambda: convolutional(nn.MaxPool2d((2, 3), (2, 1), (0, 1), (2, 1), ceil_mode=True)), (2, 9, 8)),
    "pool of negatives": (lambda: convolutional(nn.MaxPool2d(2), lambda: nn.LeakyReLU(0.5)), (2, 9, 8)),
}


def model(name: str) -> nn.Module:
    torch.manual_seed(4)
    return NETS[name][0]().double()


def segment(name: str, n: int = 3, size: float = 1.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(9)
    x, noise = torch.randn(2, n, *NETS[name][1], generator=g, dtype=torch.float64)
    x *= 30 if name == "relu6" else 5
    return x, x + size * (noise - 2 * x)


@pytest.mark.parametrize("name", NETS)
def test_between_kinks_the_map_stays(name: str) -> None:
    net = fastxai.compile(model(name))
    x, other = segment(name)
    found = theory.segment_kinks(net, x, other)
    assert torch.equal(found.units + found.winners, torch.tensor([len(p) for p in found.positions]))
    assert (found.units > 2).all()
    assert bool((found.winners > 0).all()) is ("pool" in name or name in ("overlapping", "ceil, dilated"))
    for n, inside in enumerate(found.positions):
        assert (inside.diff() >= 0).all() and inside[0] >= 0 and inside[-1] <= 1
        t = torch.cat([torch.zeros(1), inside.unique(), torch.ones(1)])
        t = t[torch.cat([torch.ones(1, dtype=torch.bool), t.diff() > 1e-9])]
        shares = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
        at = t[:-1] + shares[:, None] * t.diff()
        d = other[n] - x[n]
        points = x[n] + at.flatten().view(-1, *[1] * d.dim()) * d
        h = net.gradient(points, 0).flatten(1).unflatten(0, (3, -1))
        assert (h - h[1]).abs().max() < 1e-10 * h.abs().max()


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("residual", "relu6")])
def test_units_are_those_that_dense_sampling_finds(name: str) -> None:
    net = fastxai.compile(model(name))
    x, other = segment(name, size=0.3)
    found = theory.segment_kinks(net, x, other)
    path = torch.stack([x + t * (other - x) for t in torch.linspace(0, 1, 1501, dtype=torch.float64)])
    assert torch.equal(found.units, theory.count_kinks(net, path))
    assert (theory.count_kinks(net, path[[0, -1]]) <= found.units).all()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1, dilation=2)], ids=str)
def test_winners_are_those_that_dense_sampling_finds(pool: nn.MaxPool2d) -> None:
    torch.manual_seed(1)
    conv, flatten = nn.Conv2d(2, 3, 2).double(), nn.Flatten()
    width = pool(conv(torch.zeros(1, 2, 7, 6, dtype=torch.float64))).numel()
    net = fastxai.compile(nn.Sequential(conv, pool, flatten, nn.Linear(width, 2).double()))
    x, other = torch.randn(2, 2, 2, 7, 6, dtype=torch.float64)
    found = theory.segment_kinks(net, x, other)
    path = torch.stack([x + t * (other - x) for t in torch.linspace(0, 1, 4001, dtype=torch.float64)])
    inside = conv(path.flatten(0, 1))
    winners = nn.functional.max_pool2d(
        inside, pool.kernel_size, pool.stride, pool.padding, pool.dilation, return_indices=True
    )[1]
    changes = (winners.unflatten(0, path.shape[:2]).diff(dim=0) != 0).sum((0, 2, 3, 4))
    assert torch.equal(found.winners, changes) and (found.units == 0).all() and (changes > 10).all()


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_unit_that_crosses_and_returns_is_found(seed: int) -> None:
    """Two points see it on one side only."""
    torch.manual_seed(seed)
    x, other = torch.randn(2, 1, 3, dtype=torch.float64)
    first, second = nn.Linear(3, 1).double(), nn.Linear(1, 1).double()
    with torch.no_grad():
        a, b = (float(first(v)) for v in (x, other))
        low, high = sorted((a, b))
        first.bias.sub_(low + 0.75 * (high - low))
        second.weight.fill_(-4.0)
        second.bias.fill_(0.25 * (high - low))
    net = fastxai.compile(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(1, 1).double()))
    (found,) = theory.segment_kinks(net, x, other).positions
    expected = [0.75, 0.8125] if b > a else [0.1875, 0.25]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9)
    # A third layer's unit sees a tent: up between the kinks' ends, down behind.
    tent = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        tent.get_parameter("0.weight").fill_(1.0)
        tent.get_parameter("0.bias").copy_(torch.tensor([0.0, -0.5]))
        tent.get_parameter("2.weight").copy_(torch.tensor([[1.0, -2.0]]))
        tent.get_parameter("2.bias").fill_(-0.25)
    line = fastxai.compile(tent)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    found = theory.segment_kinks(line, zero, one)
    assert found.positions[0].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert int(theory.count_kinks(line, torch.stack([zero, one]))) == 2


def test_toy_network_of_r() -> None:
    """[R] B.1: g = relu(w1 x) + relu(w2 x); the map changes by the sum of sgn(w v) w over the kinks: w2 - w1."""
    w = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    toy = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        toy.get_parameter("0.weight").copy_(w)
        toy.get_parameter("2.weight").fill_(1.0)
    net = fastxai.compile(toy)
    # From where w1 alone is on, over w2 x = 0 and w1 x = 0, to where w2 alone is; the first leg goes along w2.
    corners = torch.tensor([[[0.0, 2.0]], [[1.5, 0.5]], [[1.5, -3.0]]], dtype=torch.float64)
    change = torch.zeros(2, dtype=torch.float64)
    kinks = 0
    for a, b in pairwise(corners):
        found = theory.segment_kinks(net, a, b)
        for t in found.positions[0]:
            crossed = ((a + t * (b - a)) @ w.T).abs().argmin()
            change += ((b - a)[0] @ w[crossed]).sign() * w[crossed]
        kinks += int(found.weighted)
    start, end = net.gradient(corners[0], 0)[0], net.gradient(corners[-1], 0)[0]
    assert torch.equal(start, w[0]) and torch.equal(end, w[1])
    assert kinks == 2 and torch.equal(change, w[1] - w[0])
    assert (change - (end - start)).abs().max() == 0
    bound = theory.relu_bound(theory.layer_norms(net, corners[0]), kinks)
    assert change.norm().item() <= bound == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("name", [name for name in NETS if name not in ("residual", "relu6")])
def test_theorem_2_holds_from_the_first_kink_on(name: str, norm: str) -> None:
    net = fastxai.compile(model(name))
    x, other = segment(name, n=2)
    norms = theory.layer_norms(net, x, 0, norm=norm)
    tightest = 0.0
    for n in range(2):
        (positions,) = theory.segment_kinks(net, x[n : n + 1], other[n : n + 1]).positions
        for t in (positions[1:4] + positions[:3]) / 2:
            end = x[n : n + 1] + t * (other - x)[n : n + 1]
            kinks = int(theory.segment_kinks(net, x[n : n + 1], end).weighted)
            change = (net.gradient(end, 0) - net.gradient(x[n : n + 1], 0)).norm().item()
            tightest = max(tightest, change / theory.relu_bound(norms, kinks))
            assert change <= 2 * norms.prod()
    assert 0 < tightest <= 1


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_without_pools_gradients_are_at_most_the_product_of_the_norms_apart(seed: int) -> None:
    net = fastxai.compile(mlp([3, 5, 4, 4], seed))
    x = 3 * torch.randn(40, 3, dtype=torch.float64)
    h = net.gradient(x, 1)
    assert torch.cdist(h, h).max() <= theory.layer_norms(net, x, 1).prod() * (1 + 1e-12)


def test_pieces_that_fit_into_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pool", "residual"):
        net = fastxai.compile(model(name))
        x, other = segment(name)
        whole = theory.segment_kinks(net, x, other)
        with monkeypatch.context() as patch:
            patch.setattr(_common, "_BUDGET", 3 * 2**16)
            split = theory.segment_kinks(net, x, other)
        assert torch.equal(whole.units, split.units) and torch.equal(whole.winners, split.winners)
        for a, b in zip(whole.positions, split.positions, strict=True):
            assert (a - b).abs().max() < 1e-12
        for n in range(3):
            alone = theory.segment_kinks(net, x[n : n + 1], other[n : n + 1])
            assert (alone.positions[0] - whole.positions[n]).abs().max() < 1e-12


def test_ties_at_the_ends_go_to_the_networks_own_choice() -> None:
    """In a flat image every window is tied; the first pixel wins, and at once another."""
    net = fastxai.compile(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1)).double())
    flat = torch.ones(1, 1, 2, 4, dtype=torch.float64)
    other = torch.tensor([[[[1.0, 2.0, 5.0, 1.0], [3.0, 1.0, 1.0, 1.0]]]], dtype=torch.float64)
    out = theory.segment_kinks(net, flat, other)
    assert out.positions[0].tolist() == [0.0] and int(out.winners) == 1
    back = theory.segment_kinks(net, other, flat)
    assert back.positions[0].tolist() == [1.0] and int(back.winners) == 1
    still = theory.segment_kinks(net, flat, flat)
    assert still.positions[0].shape == (0,) and int(still.weighted) == 0


def test_an_envelope_may_have_several_corners() -> None:
    """Four lines over t: 0, 3 t - 1, 9 t - 5, 4 t - 3; they lead in turn, the last never."""
    net = fastxai.compile(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1)).double())
    x = torch.tensor([[[[0.0, -1.0], [-5.0, -3.0]]]], dtype=torch.float64)
    other = torch.tensor([[[[0.0, 2.0], [4.0, 1.0]]]], dtype=torch.float64)
    found = theory.segment_kinks(net, x, other)
    assert torch.allclose(found.positions[0], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    assert int(found.weighted) == 4


def test_layouts_types_and_empty_batches() -> None:
    net = fastxai.compile(model("pool"))
    x, other = segment("pool")
    expected = theory.segment_kinks(net, x, other)
    got = theory.segment_kinks(net, x.contiguous(memory_format=torch.channels_last), other.mT.contiguous().mT)
    assert torch.equal(got.units, expected.units) and torch.equal(got.winners, expected.winners)
    single = theory.segment_kinks(fastxai.compile(model("pool").float()), x.float(), other.float())
    assert (single.units - expected.units).abs().max() <= 1 and single.positions[0].dtype == torch.float64
    empty = theory.segment_kinks(net, x[:0], other[:0])
    assert empty.positions == () and empty.weighted.shape == (0,)
    linear = theory.segment_kinks(fastxai.compile(nn.Linear(3, 2)), torch.zeros(2, 3), torch.ones(2, 3))
    assert linear.weighted.tolist() == [0, 0] and [p.shape for p in linear.positions] == [(0,), (0,)]
    smooth = fastxai.compile(model("pool")).with_activation("softplus", 2.0)
    assert torch.equal(theory.segment_kinks(smooth, x, other).units, expected.units)


def test_kinks_are_counted_per_sample_and_layer() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    path = torch.randn(5, 3, 2, 6, 6, dtype=torch.float64)
    signs = []
    for x in path:
        first = model[0](x)
        second = model[3](model[2](model[1](first)))
        signs.append(torch.cat([first.flatten(1), second.flatten(1)], 1) > 0)
    expected = torch.stack(signs).diff(dim=0).sum((0, 2))
    assert torch.equal(theory.count_kinks(fastxai.compile(model), path), expected)
    smoothed = fastxai.compile(model, activation="softplus", beta=1.0)
    assert torch.equal(theory.count_kinks(smoothed, path), expected)
    assert theory.count_kinks(smoothed, path[:, :0]).shape == (0,)


def test_bad_arguments() -> None:
    net = fastxai.compile(mlp([3, 4], 0))
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"other must have shape \[2, 3\], got \[1, 3\]"):
        theory.segment_kinks(net, x, x[:1])
    with pytest.raises(ValueError, match="other must have x's dtype"):
        theory.segment_kinks(net, x, x.float())
    with pytest.raises(TypeError, match=r"net must come from fastxai\.compile"):
        theory.segment_kinks(nn.Linear(3, 2), x, x)  # type: ignore[arg-type]
    curved = fastxai.compile(mlp([3, 4], 0, nn.Tanh))
    with pytest.raises(ValueError, match="net must be piecewise linear, got tanh at '1'"):
        theory.segment_kinks(curved, x, x)
    with pytest.raises(ValueError, match="net must end with a layer"):
        theory.segment_kinks(fastxai.compile(mlp([3, 4], 0)[:2]), x, x)
    for ends, name in (((x, x / 0), "other"), ((x - torch.inf, x), "x")):
        with pytest.raises(ValueError, match=f"^{name} must be finite, got inf or nan"):
            theory.segment_kinks(net, *ends)
    with pytest.raises(ValueError, match="points must be finite, got inf or nan"):
        theory.count_kinks(net, torch.stack([x, x / 0]))
    with pytest.raises(ValueError, match=r"points must have shape \[T \+ 1, N, ...\]"):
        theory.count_kinks(net, x[None])
