"""Constant areas: equal windows keep equal values, so pools choose torch's winners and dead outputs share nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastxai
from fastxai.engine.nodes.conv2d import Conv2d
from fastxai.kernels import winograd

FRAMES = {
    "black": (0.0, 10, 22, 8, 24),
    "white": (1.0, 10, 22, 8, 24),
    "odd": (0.0, 9, 24, 7, 26),
    "bars": (0.0, 4, 27, 0, 32),
}


def framed(name: str, channels: int, size: int = 32) -> Tensor:
    """Noise in a frame of one value."""
    value, top, bottom, left, right = FRAMES[name]
    x = torch.full((3, channels, size, size), value)
    seed = torch.Generator().manual_seed(0)
    x[:, :, top:bottom, left:right] = torch.rand(3, channels, bottom - top, right - left, generator=seed)
    return x


def no_bias() -> nn.Module:
    """Its kinks lie where a convolution of nothing is zero."""
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 1024, 4))


def max_pools(kernel: int) -> nn.Module:
    layers = [nn.Conv2d(3, 32, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(32, 32, kernel, padding=kernel // 2)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(32 * 225, 4))


NETS = {
    "demo": fastxai.models.demo,
    "3x3": lambda: max_pools(3),
    "5x5": lambda: max_pools(5),
    "no bias": no_bias,
    "mnist": lambda: fastxai.models.MNISTCNN(),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_torch_s(name: str, frame: str) -> None:
    torch.manual_seed(0)
    model = NETS[name]().eval()
    x = framed(frame, 1)[:, :, 2:30, 2:30] if name == "mnist" else framed(frame, 3)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    got = fastxai.compile(model).gradient(x, 1)
    assert (got - want).norm() <= 2e-6 * want.norm()


def test_which_convolutions_others_compare() -> None:
    layers = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.MaxPool2d(2), layers[2], nn.ReLU())
    net = fastxai.compile(nn.Sequential(plain, nn.Flatten(), nn.Linear(16 * 64, 2)))
    x = torch.rand(2, 16, 16, 16)
    net(x)
    (runtime, _), *_ = net._core.runtimes.values()
    assert runtime is not None
    convolutions = [node for node in runtime.graph.nodes if isinstance(node, Conv2d)]
    assert [node.compared for node in convolutions] == [True, True, False]
    if not _registers():
        return
    tiles = [runtime.weights.prepared(x)[node.index][0][2].scheme for node in convolutions]
    assert [scheme.exact for scheme in tiles] == [True, True, False]


def _registers() -> int:
    return fastxai.kernels._native.vector_registers()


@pytest.mark.parametrize("kernel", [3, 5])
def test_exact_tiles_see_their_windows_alone(kernel: int) -> None:
    """Exact zeros beside large values; equal outputs of a constant, and along whatever changes in one direction."""
    if not _registers():
        pytest.skip("no Winograd kernel for this processor")
    x, weight = torch.zeros(1, 16, 12, 12), torch.randn(16, 16, kernel, kernel)
    x[0, :, 6:, 7:] = 1e3 * torch.randn(16, 6, 5)
    packed = winograd.pack(weight, winograd.Scheme(kernel, 2))
    assert packed.scheme.exact
    exact = winograd.conv(x, packed, None, (1, 1))
    want = torch.conv2d(x, weight, padding=1)
    assert torch.equal(exact == 0, want == 0)
    flat = winograd.conv(torch.full_like(x, 0.3), packed, None, (0, 0))
    assert bool((flat == flat[:, :, :1, :1]).all())
    beside = torch.where(torch.arange(12) < 7, 0.3, torch.randn(1, 16, 12, 12))
    inside = winograd.conv(beside, packed, None, (0, 0))[..., : 8 - kernel]
    assert torch.equal(inside, flat[..., : 8 - kernel])
    rows = torch.randn(1, 16, 12, 1).expand(1, 16, 12, 12)
    for changing, along in ((rows, 3), (rows.mT, 2)):
        y = winograd.conv(changing, packed, None, (0, 0))
        assert torch.equal(y, y.narrow(along, 0, 1).expand_as(y))


def dead_units(kernel: int, channels: int, size: int) -> nn.Module:
    """Biases alone drive units whose inputs are zero: over a stabilizer of 1e-9 their shares are a billion."""
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv2d(channels, 32, kernel, padding=kernel // 2), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(32, 32, kernel, padding=kernel // 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * size**2, 10))
    with torch.no_grad():
        model[0].bias.sub_(0.3)
    return model


def lrp_and_slope(model: nn.Module, composite: str, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The map, and the gradient of a weighted sum of it."""
    box = {"low": 0.0, "high": 1.0} if composite.endswith(("zb", "box")) else {}
    leaf = x.clone().requires_grad_()
    h = fastxai.LRP(fastxai.compile(model), composite, **box).attribute(leaf, 1)
    return h.detach(), torch.autograd.grad((h * weights).sum(), leaf)[0]


@pytest.mark.parametrize(("kernel", "channels"), [(3, 3), (3, 16), (5, 32)])
@pytest.mark.parametrize("composite", ["zplus_zb", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_dead_outputs_share_nothing(composite: str, kernel: int, channels: int) -> None:
    model = dead_units(kernel, channels, 16)
    x, weights = torch.rand(4, channels, 16, 16), torch.randn(4, channels, 16, 16)
    x[:, :, 4:, :9] = 0
    got = lrp_and_slope(model, composite, x, weights)
    with fastxai.backend("reference"):
        direct = lrp_and_slope(model, composite, x, weights)
    wanted = lrp_and_slope(copy.deepcopy(model).double(), composite, x.double(), weights.double())
    # Shares over sums of both signs are as badly conditioned in torch's own float32.
    for ours, theirs, want in zip(got, direct, wanted, strict=True):
        off, most = (ours - want).norm() / want.norm(), 2e-5 + 4 * (theirs - want).norm() / want.norm()
        assert off <= most, (off, most)
