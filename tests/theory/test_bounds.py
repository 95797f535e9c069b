"""Bounds from the weights: the printed formulas, the norms of layers against dense matrices, and that they hold."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory.nets import BETA, Softplus, batch, smooth
from torch import Tensor, nn
from torch.func import hessian, jacrev

import fastxai
from fastxai import theory

NORMS = st.lists(st.floats(0.01, 20), min_size=1, max_size=6)


def dense_net(act: type[nn.Module], widths: list[int], *, head: bool, seed: int = 0) -> nn.Sequential:
    """Fully connected, one score; the activation follows the last layer too unless ``head``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in zip(widths, [*widths[1:], 1], strict=True):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*(layers[:-1] if head else layers)).double()


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix that a linear module is, [out, in], by autograd."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    return jacrev(lambda x: layer(x).flatten())(zero).reshape(-1, zero.numel()).detach()


@given(NORMS, st.floats(0.1, 2), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_formulas_as_printed(norms: list[float], slope: float, curvature: float) -> None:
    depth = len(norms)

    def product(m: int) -> float:
        return math.prod(n**2 for n in norms[:m]) * math.prod(norms[m:])

    eight = sum(product(m) * slope ** (depth + m - 2) * curvature for m in range(1, depth + 1))
    assert theory.hessian_bound(norms, slope, curvature) == pytest.approx(eight, rel=1e-12)
    headless = sum(product(m) * slope ** (depth + m - 3) * curvature for m in range(1, depth))
    got = theory.hessian_bound(torch.tensor(norms, dtype=torch.float64), slope, curvature, linear_head=True)
    assert got == pytest.approx(headless, rel=1e-12)
    constant = sum(product(m) for m in range(1, depth + 1))
    assert theory.weight_constant(norms) == pytest.approx(constant, rel=1e-12)
    assert theory.loose_softplus_bound(norms, 3.0) == pytest.approx(3 * constant, rel=1e-12)
    assert theory.softplus_bound(norms, 3.0) == pytest.approx(0.75 * constant, rel=1e-12)
    assert theory.relu_bound(norms, 3) == pytest.approx(math.sqrt(3) * math.prod(norms), rel=1e-12)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("widths", [[4], [5, 3], [4, 6, 3], [3, 4, 4, 4]])
def test_bounds_hold_on_dense_networks(widths: list[int], head: bool) -> None:
    """Both norms, for the network as [R] has it and for one whose score is linear; the spectral one is the tighter."""
    model = dense_net(Softplus, widths, head=head)
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    frobenius = [w.norm().item() for w in weights]
    spectral = [torch.linalg.matrix_norm(w, 2).item() for w in weights]
    worst = [0.0, 0.0]
    for x in torch.randn(10, widths[0], dtype=torch.float64):
        h = hessian(lambda v: model(v[None])[0, 0])(x)
        worst = [max(worst[0], h.norm().item()), max(worst[1], torch.linalg.matrix_norm(h, 2).item())]
    bounds = [theory.softplus_bound(norms, BETA, linear_head=head) for norms in (frobenius, spectral)]
    assert worst[0] <= bounds[0] * (1 + 1e-12) and worst[1] <= bounds[1] * (1 + 1e-12)
    assert (
        bounds[1] <= bounds[0] <= theory.softplus_bound(frobenius, BETA) <= theory.loose_softplus_bound(frobenius, BETA)
    )


def test_bound_is_attained_by_one_unit() -> None:
    """softplus_beta(w x) at 0: H = beta / 4 w w^T, with equality in [R] eq. 8, and a quarter of [M1] eq. 17."""
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    h = hessian(lambda x: Softplus()(w @ x))(torch.zeros(2, dtype=torch.float64))
    assert h.norm().item() == pytest.approx(theory.softplus_bound([5.0], BETA), rel=1e-12)
    assert 4 * h.norm().item() == pytest.approx(theory.loose_softplus_bound([5.0], BETA), rel=1e-12)


@pytest.mark.parametrize("head", [False, True])
def test_equation_8_is_the_sum_written_out(head: bool) -> None:
    """Three layers: what every curved unit adds to the Hessian, layer by layer, and the sum of the bounds on that."""
    model = dense_net(nn.Sigmoid, [4, 6, 3], head=head)
    a, b, c = (layer.weight.detach().norm().item() for layer in model if isinstance(layer, nn.Linear))
    net, x = fastxai.compile(nn.Sequential(*model)), torch.zeros(1, 4, dtype=torch.float64)
    slope, curvature = 1 / 4, 1 / (6 * math.sqrt(3))
    first, second, third = (
        curvature * a**2 * b * c * slope**2,
        curvature * a**2 * b**2 * c * slope**3,
        curvature * a**2 * b**2 * c**2 * slope**4,
    )
    expected = (first + second) / slope if head else first + second + third
    assert theory.hessian_bound([a, b, c], slope, curvature, linear_head=head) == pytest.approx(expected, rel=1e-12)
    if head:
        norms, smooth = theory.layer_norms(net, x), theory.smoothness(net, x)
        assert (norms - torch.tensor([a, b, c], dtype=torch.float64)).abs().max() < 1e-12
        got = theory.hessian_bound(norms, smooth.slope, smooth.curvature, linear_head=True)
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("head", [False, True])
def test_bound_is_almost_attained_by_a_deep_net_of_rank_one(head: bool) -> None:
    """Layers w e_1 v^T, each after the first aligned with the one before; all units saturated but the last curved one.

    There s'' = beta / 4, before it s' = 1: of eq. 8 the last term is attained, and the others are smaller by 1 / w_m.
    """
    torch.manual_seed(0)
    sizes, norms = [6, 5, 4, 1], [2.0, 3.0, 4.0]
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        layer = nn.Linear(n, m).double()
        column = torch.randn(n, dtype=torch.float64) if i == 0 else torch.eye(n, dtype=torch.float64)[0]
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[0] = norms[i] * column / column.norm()
        layers += [layer, Softplus()]
    layers = layers[:-1] if head else layers
    x = torch.zeros(6, dtype=torch.float64)
    curved = len([m for m in layers if isinstance(m, Softplus)])
    y = x
    for i, layer in enumerate(m for m in layers if isinstance(m, nn.Linear)):
        with torch.no_grad():
            layer.bias.copy_(-layer.weight @ y)
            layer.bias.add_(0.0 if i == curved - 1 else 50.0)
        y = Softplus()(layer(y)).detach()
    model = nn.Sequential(*layers)
    h = hessian(lambda v: model(v)[0])(x)
    attained = h.norm().item() / theory.softplus_bound(norms, BETA, linear_head=head)
    terms = [math.prod(norms) * math.prod(norms[: m + 1]) for m in range(curved)]
    assert attained == pytest.approx(terms[-1] / sum(terms), rel=1e-9)
    assert attained > 0.7


ACTIVATIONS = [nn.Softplus(3), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(0.7), nn.ELU(2.0)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_slope_and_curvature_are_the_least_upper_bounds(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 2)).double()
    found = theory.smoothness(fastxai.compile(model), torch.zeros(1, 2, dtype=torch.float64))
    a = torch.linspace(-12, 12, 48001, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(activation(a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    for bound, derivative in ((found.slope, first), (found.curvature, second)):
        assert 0.999 * bound < derivative.abs().max() < bound * (1 + 1e-6)
    assert found.jumps == (isinstance(activation, nn.ELU))


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(108, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * x)


def test_smoothness_of_views() -> None:
    x = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    layers = [nn.Conv2d(3, 2, 3), nn.ReLU6(), nn.Conv2d(2, 2, 1), nn.LeakyReLU(-2.0), nn.Flatten(), nn.Linear(32, 2)]
    model = nn.Sequential(*layers).double()
    net = fastxai.compile(model)
    assert theory.smoothness(net, x) == theory.Smoothness(2.0, math.inf, True, True)
    assert theory.smoothness(net.with_activation("softplus", 8.0), x) == theory.Smoothness(2.0, 6.0, False, False)
    estimate = fastxai.compile(model, surrogate="curvature", beta=8.0)
    assert theory.smoothness(estimate, x) == theory.Smoothness(2.0, 6.0, True, True)
    assert theory.smoothness(fastxai.compile(model, surrogate="none"), x) == theory.Smoothness(2.0, 0.0, True, True)
    assert not theory.smoothness(fastxai.compile(Square()), x.flatten(1)).piecewise_linear
    pooled = fastxai.compile(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)).double())
    assert theory.smoothness(pooled, x[:0]) == theory.Smoothness(1.0, 0.0, True, True)


GEOMETRY = [
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 4, (2, 3), stride=2, padding=(0, 1), bias=False),
    nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2),
    nn.Conv2d(2, 3, 3, stride=3, padding=1, padding_mode="circular"),
]


@pytest.mark.parametrize("layer", GEOMETRY, ids=str)
def test_norms_are_those_of_the_matrices(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    layer = layer.double()
    shape = (2, 6, 5)
    out = layer(torch.zeros(1, *shape, dtype=torch.float64))[0].numel()
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(out, 3)).double()
    net, x = fastxai.compile(model), torch.zeros(1, *shape, dtype=torch.float64)
    first, last = matrix(layer, shape), model.get_parameter("3.weight").detach()
    if layer.padding_mode == "zeros":
        norms = theory.layer_norms(net, x)
        assert (norms - torch.stack([first.norm(), last.norm()])).abs().max() < 1e-12
        spectral = theory.layer_norms(net, x, norm="spectral", steps=1000)
        expected = torch.stack([torch.linalg.matrix_norm(w, 2) for w in (first, last)])
        assert (spectral / expected - 1).abs().max() < 1e-12
    else:
        # Circular padding is a node of its own in front: its norm is a factor, so the product may be too large.
        norms = torch.stack([theory.layer_norms(net, x, norm=norm)[0] for norm in ("spectral", "frobenius")])
        true = torch.stack([torch.linalg.matrix_norm(first, 2), first.norm()])
        assert (norms >= true).all()
    kernel = theory.layer_norms(net, x, norm="kernel")
    assert (kernel - torch.stack([layer.weight.norm(), last.norm()])).abs().max() < 1e-12
    row = theory.layer_norms(net, x, target=1, norm="spectral")
    assert abs(row[1] - last[1].norm()) < 1e-12
    several = theory.layer_norms(net, x, target=torch.tensor([2, 1, 1]), norm="spectral")
    assert several.shape == (3, 2) and torch.equal(several[1], row) and torch.equal(several[2], row)
    assert abs(several[0, 1] - last[2].norm()) < 1e-12


def test_few_steps_make_a_norm_too_large_not_too_small() -> None:
    layer = nn.Conv2d(2, 5, 3, padding=1).double()
    net = fastxai.compile(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(150, 2)).double())
    x, true = torch.zeros(1, 2, 6, 5, dtype=torch.float64), torch.linalg.matrix_norm(matrix(layer, (2, 6, 5)), 2)
    frobenius = theory.layer_norms(net, x)[0]
    values = torch.stack([theory.layer_norms(net, x, norm="spectral", steps=k)[0] for k in (1, 4, 16, 32, 59, 60)])
    assert (values >= true * (1 - 1e-12)).all() and (values <= frobenius).all()
    assert values[0] == frobenius
    assert (values.diff() <= 0).all()
    assert values[-2] < 1.02 * true and abs(values[-1] / true - 1) < 1e-12


def test_what_joins_the_layers_counts() -> None:
    """Normalisation, a batch norm, an average pool before the activation, overlapping max-pools."""
    torch.manual_seed(1)
    bn = nn.BatchNorm2d(4)
    assert bn.running_var is not None
    bn.running_var.uniform_(0.5, 2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        bn,
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    model = model.double().eval()
    net = fastxai.compile(model, mean=(0.1, 0.2), std=(0.5, 0.25))
    x = torch.rand(1, 2, 12, 12, dtype=torch.float64)
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
    folded = nn.Conv2d(2, 4, 3, bias=False).double()
    with torch.no_grad():
        folded.weight.copy_(model.get_parameter("0.weight") * scale[:, None, None, None])
    # An average over 4 pixels has norm 1/2, division by std at most 4; 3x3 windows at stride 2 repeat a pixel 4 times.
    expected = [
        matrix(folded, (2, 12, 12)).norm() * 4 / 2,
        matrix(model[4], (4, 5, 5)).norm(),
        model.get_parameter("8.weight").norm() * 2,
    ]
    norms = theory.layer_norms(net, x)
    assert (norms / torch.stack(expected).detach() - 1).abs().max() < 1e-12


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_bounds_hold_on_a_convolutional_network(norm: str) -> None:
    net, x = smooth(), batch()
    kind = 2 if norm == "spectral" else "fro"
    norms = theory.layer_norms(net, x, 1, norm=norm)
    worst = torch.linalg.matrix_norm(theory.hessian(net, x, 1), kind).max().item()  # type: ignore[arg-type]
    bound = theory.softplus_bound(norms, BETA, linear_head=True)
    assert worst <= bound <= theory.softplus_bound(theory.layer_norms(net, x, norm=norm), BETA, linear_head=True)
    gradient = net.gradient(x, 1).flatten(1).norm(dim=1)
    curvature = theory.principal_curvatures(net, x, 1).norm.value
    assert (curvature <= bound / gradient).all()


@given(st.integers(0, 10**6), st.sampled_from([[3, 5], [4, 6, 5], [3, 4, 4, 4]]), st.floats(0.01, 3))
@settings(max_examples=25, deadline=None)
def test_relu_bound_holds_between_two_points(seed: int, widths: list[int], size: float) -> None:
    model = dense_net(nn.ReLU, widths, head=True, seed=seed)
    net = fastxai.compile(model)
    x = torch.randn(1, widths[0], dtype=torch.float64)
    path = x + torch.linspace(0, size, 100, dtype=torch.float64)[:, None, None] * torch.randn_like(x)
    kinks = int(theory.count_kinks(net, path))
    change = (net.gradient(path[-1], 0) - net.gradient(path[0], 0)).norm().item()
    norms = theory.layer_norms(net, x)
    assert change <= theory.relu_bound(norms, kinks) * (1 + 1e-9)
    assert change <= 2 * norms.prod() * (1 + 1e-9)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) + x)


def test_bad_networks() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="net must be a chain of layers, got branches at Add"):
        theory.layer_norms(fastxai.compile(Branches()), x)
    assert theory.layer_norms(fastxai.compile(Branches()), x, norm="kernel").shape == (2,)
    with pytest.raises(ValueError, match="net must end with a layer"):
        theory.layer_norms(fastxai.compile(nn.Sequential(nn.Linear(4, 3), nn.Softplus())), x)
    with pytest.raises(ValueError, match="net must end with a layer"):
        theory.layer_norms(fastxai.compile(nn.Softplus()), x)
    # Two activations in a row, or one on the input, have curvature that [R] eq. 8 has no term for.
    for layers in ([nn.Linear(4, 4), nn.Softplus(), nn.Tanh()], [nn.Softplus()]):
        with pytest.raises(ValueError, match="net must have a layer before each activation, got none before '"):
            theory.layer_norms(fastxai.compile(nn.Sequential(*layers, nn.Linear(4, 3))), x)


def test_bad_arguments() -> None:
    net, x = smooth(), batch()
    for norms in ([], [[1.0]], 3.0):
        with pytest.raises(ValueError, match="norms must hold one number per layer"):
            theory.weight_constant(norms)  # type: ignore[arg-type]
    for norms in ([-1.0], [math.nan], [math.inf, 0.0]):
        with pytest.raises(ValueError, match="norms must be finite and not negative, got "):
            theory.relu_bound(norms, 1)
    for norms in ("many", None, ["many"]):
        with pytest.raises(TypeError, match="norms must hold one number per layer, got "):
            theory.weight_constant(norms)  # type: ignore[arg-type]
    for call in (theory.weight_constant, lambda norms: theory.softplus_bound(norms, 1.0)):
        with pytest.raises(ValueError, match="norms must have a bound within float64's range"):
            call([1e200, 1e200, 0.0])
    with pytest.raises(ValueError, match="slope must be finite and not negative, got -1"):
        theory.hessian_bound([1.0], -1.0, 1.0)
    with pytest.raises(ValueError, match="curvature must be finite and not negative, got inf"):
        theory.hessian_bound([1.0], 1.0, math.inf)
    with pytest.raises(ValueError, match="beta must be finite and positive"):
        theory.softplus_bound([1.0], 0.0)
    with pytest.raises(ValueError, match="beta must be finite and positive"):
        theory.loose_softplus_bound([1.0], -1.0)
    with pytest.raises(ValueError, match="kinks must be an int of at least 0, got -1"):
        theory.relu_bound([1.0], -1)
    with pytest.raises(ValueError, match="norm must be one of"):
        theory.layer_norms(net, x, norm="nuclear")
    with pytest.raises(ValueError, match=r"target must be None or lie in 0 \.\. 3, got 4"):
        theory.layer_norms(net, x, 4)
    with pytest.raises(ValueError, match=r"target must be None or lie in 0 \.\. 3, got tensor"):
        theory.layer_norms(net, x, torch.tensor([0, -1]))
    for target in (torch.zeros(2), True, torch.tensor([True])):
        with pytest.raises(TypeError, match="target must be None, an int or a LongTensor"):
            theory.layer_norms(net, x, target)
    for other in (x[:0], torch.full_like(x, math.nan)):
        assert torch.equal(theory.layer_norms(net, other), theory.layer_norms(net, x))
        assert theory.smoothness(net, other) == theory.smoothness(net, x)


def test_norms_whose_squares_leave_float64() -> None:
    assert theory.relu_bound([1e-200], 4) == 2e-200 and theory.relu_bound([1e200], 4) == 2e200
    assert theory.weight_constant([1e200, 1e200]) == math.inf
