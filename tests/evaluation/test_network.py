"""Accuracy and norms against the same thing by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from evaluation.small import SPACE, coloured, small_net
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fastxai
from fastxai import theory
from fastxai.evaluation import accuracy, correct, hessian_norms, mean_norm, weight_norms


def smooth_net(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 4, 3, padding=1), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    return nn.Sequential(*layers, activation(), nn.Linear(5, 3)).double().eval()


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_accuracy(chunk: int) -> None:
    net, x = fastxai.compile(small_net()), SPACE.enter(coloured(10))
    labels = torch.arange(10) % 3
    labels[7] += 1
    expected = small_net()(x).argmax(1) == labels
    assert torch.equal(correct(net, x, labels, chunk=chunk), expected)
    assert accuracy(net, x, labels, chunk=chunk) == pytest.approx(expected.float().mean().item())
    assert accuracy(small_net(), x, labels) == accuracy(net, x, labels)
    assert 0 < accuracy(net, x, labels) < 1
    by_number = accuracy(lambda numbers: net(x[numbers]), torch.arange(10), labels, chunk=chunk)
    assert by_number == accuracy(net, x, labels)


def test_accuracy_of_nothing_and_errors() -> None:
    x = torch.rand(2, 4)
    assert torch.tensor(accuracy(nn.Identity(), x[:0], torch.arange(0))).isnan()
    with pytest.raises(ValueError, match=r"labels must have shape \[2\]"):
        correct(nn.Identity(), x, torch.arange(3))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        correct(nn.Identity(), x.tolist(), torch.arange(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must hold integers"):
        correct(nn.Identity(), x, torch.zeros(2))
    with pytest.raises(ValueError, match="chunk must be an int of at least 1"):
        correct(nn.Identity(), x, torch.arange(2), chunk=0)


def test_weight_norms_are_those_of_convolutions_and_dense_layers() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Sequential(shared, nn.ReLU(), shared), nn.Conv1d(6, 2, 2)
    )
    expected = {name: model.get_parameter(f"{name}.weight").norm().item() for name in ("0", "2.0", "3")}
    assert weight_norms(model) == pytest.approx(expected) and list(weight_norms(model)) == ["0", "2.0", "3"]
    assert weight_norms(nn.ReLU()) == {}
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        weight_norms(fastxai.compile(model))  # type: ignore[arg-type]


def test_a_parametrised_weight_is_the_one_that_the_layer_uses() -> None:
    layer = weight_norm(nn.Linear(4, 3))
    layer.parametrizations.weight.original0.data.fill_(2.0)  # type: ignore[union-attr]
    assert weight_norms(layer)[""] == pytest.approx(2 * 3**0.5)


def test_weight_norms_of_a_chain_are_the_kernel_norms_of_theory() -> None:
    model = small_net()
    norms = theory.layer_norms(fastxai.compile(model), SPACE.enter(coloured(1)), norm="kernel")
    torch.testing.assert_close(torch.tensor(list(weight_norms(model).values())), norms)


def test_hessian_norm_on_the_image_is_that_of_dhd() -> None:
    """H on the [0, 1] image is D H D with D = diag(1 / std)."""
    model, x = smooth_net(), images(3)
    net, image_net = fastxai.compile(model), fastxai.compile(model, SPACE.mean, SPACE.std)
    classes = net(SPACE.enter(x)).argmax(1)
    h = theory.hessian(net, SPACE.enter(x), classes)
    d = (1 / torch.tensor(SPACE.std, dtype=torch.float64)).repeat_interleave(36)
    exact = {"space": h.flatten(1).norm(dim=1), "image": (d[:, None] * h * d).flatten(1).norm(dim=1)}
    found = {
        "space": hessian_norms(net, SPACE.enter(x), probes=None),
        "image": hessian_norms(image_net, x, probes=None, chunk=2),
    }
    torch.testing.assert_close(found, exact)
    assert (exact["image"] > 9 * exact["space"]).all()
    # By random directions too: D H D v, with the same v.
    v = torch.randn(x.shape, dtype=torch.float64)
    scale = d.view(3, 6, 6)
    by_hand = scale * net.hvp(SPACE.enter(x), scale * v, classes)
    torch.testing.assert_close(image_net.hvp(x, v, classes), by_hand)


def test_random_probes_average_to_the_norm() -> None:
    net, x = fastxai.compile(smooth_net()), images(2)
    exact = hessian_norms(net, x, 1, probes=None)
    torch.testing.assert_close(hessian_norms(net, x, 1, probes=4000), exact, rtol=0.05, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    net, x = fastxai.compile(smooth_net()), images(7)
    target = torch.arange(7) % 3
    expected = net.hessian_norm(x, target, 2, seed=5, index=torch.arange(7))
    torch.testing.assert_close(hessian_norms(net, x, target, probes=2, seed=5, chunk=chunk), expected)
    part = hessian_norms(net, x[4:], target[4:], probes=2, seed=5, index=torch.arange(4, 7), chunk=chunk)
    torch.testing.assert_close(part, expected[4:])
    assert not torch.allclose(hessian_norms(net, x, target, probes=2, seed=6), expected)
    torch.testing.assert_close(
        hessian_norms(net, x, 2, probes=2, chunk=chunk), hessian_norms(net, x, torch.full((7,), 2), probes=2)
    )


@pytest.mark.parametrize("fallback", [False, True])
def test_a_piecewise_linear_net_has_none(fallback: bool) -> None:
    net = fastxai.compile(smooth_net(nn.ReLU), fallback=fallback)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norms = hessian_norms(net, images(3), chunk=2)
    assert torch.equal(norms, torch.zeros(3, dtype=torch.float64)) and mean_norm(norms) is None
    smooth = net.with_activation("softplus", 5.0)
    norms = hessian_norms(smooth, images(3))
    assert mean_norm(norms) == pytest.approx(norms.mean().item()) and bool((norms > 0).all())


def test_empty_and_errors() -> None:
    net = fastxai.compile(smooth_net())
    assert hessian_norms(net, images(0)).shape == (0,) and mean_norm(torch.zeros(0)) is None
    with pytest.raises(ValueError, match="probes must be"):
        hessian_norms(net, images(2), probes=0)
    with pytest.raises(ValueError, match=r"index must have shape \[2\]"):
        hessian_norms(net, images(2), index=torch.arange(3))
    with pytest.raises(ValueError, match="chunk must be an int of at least 1"):
        hessian_norms(net, images(2), chunk=0)
