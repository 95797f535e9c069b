"""Bounds from the weights: the printed formulas, the norms of layers against dense matrices, and that they hold."""

from __future__ import annotations

import math

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


def test_bad_arguments() -> None:
    net, x = smooth(), batch()
    for norms in ([], [[1.0]], 3.0):
        with pytest.raises(ValueError, match="norms must hold one number per layer"):
            theory.weight_constant(norms)  # type: ignore[arg-type]
    for norms in ([-1.0], [math.nan]):
        with pytest.raises(ValueError, match="norms must be zero or positive"):
            theory.relu_bound(norms, 1)
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
    with pytest.raises(ValueError, match="x must hold an input"):
        theory.layer_norms(net, x[:0])
    with pytest.raises(ValueError, match=r"points must have shape \[T \+ 1, N, ...\]"):
        theory.count_kinks(net, x[:1])
