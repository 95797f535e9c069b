"""Every node type alone in a tiny network, in every spelling, against float64 autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from engine.sandwich import C, H, Middle, W, build, check, sample
from torch import Tensor, nn

import fastxai

conv = partial(nn.Conv2d, C)
CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: conv(5, 1),
    "3x3": lambda: conv(5, 3),
    "no-bias": lambda: conv(5, 3, bias=False),
    "padded": lambda: conv(5, 3, padding=1),
    "over-padded": lambda: conv(5, 2, padding=3),
    "stride": lambda: conv(5, 3, stride=2, padding=1),
    "stride-that-skips-the-rim": lambda: conv(5, 2, stride=3),
    "asymmetric-kernel": lambda: conv(5, (1, 3), padding=(0, 2), stride=(2, 1)),
    "dilation": lambda: conv(5, 3, dilation=2, padding=2),
    "dilation-and-stride": lambda: conv(5, 2, dilation=(1, 3), stride=2, padding=1),
    "groups": lambda: conv(6, 3, padding=1, groups=2),
    "groups-and-stride": lambda: conv(6, 3, padding=1, groups=2, stride=2),
    "depthwise": lambda: conv(4, 3, padding=1, groups=4),
    "depthwise-multiplier": lambda: conv(8, 3, padding=1, groups=4, bias=False),
    "same": lambda: conv(5, 3, padding="same"),
    "same-even": lambda: conv(5, (2, 4), padding="same"),
    "same-even-dilated": lambda: conv(5, 2, padding="same", dilation=(3, 1)),
    "valid": lambda: conv(5, 3, padding="valid"),
    "reflect": lambda: conv(5, 3, padding=(2, 1), padding_mode="reflect"),
    "replicate": lambda: conv(5, 3, padding=(1, 2), padding_mode="replicate"),
    "circular": lambda: conv(5, 3, padding=(2, 1), padding_mode="circular"),
    "circular-same-even": lambda: conv(5, 4, padding="same", padding_mode="circular"),
    "reflect-same": lambda: conv(5, 4, padding="same", padding_mode="reflect"),
}

NORMS: dict[str, Callable[[], nn.Module]] = {
    "folded": lambda: nn.Sequential(conv(5, 3), nn.BatchNorm2d(5)),
    "folded-no-bias": lambda: nn.Sequential(conv(5, 3, bias=False), nn.BatchNorm2d(5)),
    "folded-no-affine": lambda: nn.Sequential(conv(5, 3), nn.BatchNorm2d(5, affine=False)),
    "folded-twice": lambda: nn.Sequential(conv(5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5)),
    "depthwise": lambda: nn.Sequential(conv(C, 3, groups=C), nn.BatchNorm2d(C, eps=1e-2)),
    "not-folded": lambda: nn.BatchNorm2d(C),
    "not-folded-no-affine": lambda: nn.BatchNorm2d(C, affine=False),
    "before-padded-conv": lambda: nn.Sequential(nn.BatchNorm2d(C), conv(5, 3, padding=1)),
    "after-dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, 6), nn.BatchNorm1d(6)),
    "of-sequences": lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(C), nn.Tanh()),
    "dense-on-sequences": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(H * W, 5), nn.BatchNorm1d(C)),
}

POOLS: dict[str, Middle] = {
    "max": nn.MaxPool2d(2),
    "max-overlap": nn.MaxPool2d(3, 2, padding=1),
    "max-ceil": nn.MaxPool2d(2, ceil_mode=True),
    "max-ceil-overlap": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max-asymmetric": nn.MaxPool2d((3, 2), (1, 3), padding=(1, 0)),
    "max-dilation": nn.MaxPool2d(2, stride=1, dilation=(3, 2)),
    "max-functional": lambda x: F.max_pool2d(x, 3, stride=1),
    "max-torch": lambda x: torch.max_pool2d(x, 2),
    "max-global": nn.MaxPool2d((H, W)),
    "avg": nn.AvgPool2d(2),
    "avg-overlap-padding": nn.AvgPool2d(3, 2, padding=1),
    "avg-no-padding-counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "avg-ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "avg-ceil-padding": nn.AvgPool2d((3, 2), 2, padding=1, ceil_mode=True, count_include_pad=False),
    "avg-divisor": nn.AvgPool2d(2, divisor_override=3),
    "avg-functional": lambda x: F.avg_pool2d(x, (2, 3), stride=(1, 2)),
    "adaptive-one": nn.AdaptiveAvgPool2d(1),
    "adaptive": nn.AdaptiveAvgPool2d((3, 4)),
    "adaptive-none": nn.AdaptiveAvgPool2d((None, 2)),
    "adaptive-larger": nn.AdaptiveAvgPool2d((9, 8)),
    "adaptive-same": nn.AdaptiveAvgPool2d((H, W)),
    "adaptive-max-one": nn.AdaptiveMaxPool2d(1),
    "adaptive-max-same": nn.AdaptiveMaxPool2d((None, W)),
    "adaptive-max-rows": nn.AdaptiveMaxPool2d((H, 1)),
    "mean-space": lambda x: x.mean((2, 3)),
    "mean-keepdim": lambda x: x.mean([-2, -1], keepdim=True),
    "mean-twice": lambda x: x.mean(-1).mean(-1),
    "mean-channels": lambda x: torch.mean(x, dim=1),
}

SHAPES: dict[str, Middle] = {
    "flatten": nn.Flatten(),
    "flatten-some": lambda x: torch.flatten(x, 1, 2),
    "view": lambda x: x.view(x.shape[0], -1),
    "view-size": lambda x: x.view(x.size(0), 2, C // 2 * H, W),
    "view-minus-one": lambda x: x.view(-1, C, H * W),
    "reshape": lambda x: x.reshape(len(x), W, C * H),
    "reshape-tuple": lambda x: torch.reshape(x, (-1, C * H, W)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute-tuple": lambda x: torch.permute(x, (0, 3, 1, 2)),
    "permute-then-dense": nn.Sequential(nn.Flatten(2), nn.Linear(H * W, 5)),
    "transpose": lambda x: x.transpose(1, -1),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "channel-shuffle": lambda x: x.view(x.shape[0], 2, 2, H, W).transpose(1, 2).reshape(x.shape[0], C, H, W),
    "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2),
    "squeeze-all": lambda x: x.mean((2, 3), keepdim=True).squeeze(),
    "squeeze-two": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1),
    "clone": lambda x: x.clone(),
    "channels-last": lambda x: x.to(memory_format=torch.channels_last).contiguous(memory_format=torch.channels_last),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "chunk-uneven": lambda x: torch.chunk(x, 3, dim=2)[2],
    "split": lambda x: torch.split(x, [1, 3], 1)[1],
    "split-size": lambda x: x.split(3, dim=2)[1],
    "split-all-read": lambda x: torch.cat([t.tanh() for t in reversed(x.split(1, 1))], 1),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "narrow-from-the-end": lambda x: x.narrow(1, -2, 2),
    "slice": lambda x: x[:, 1:3],
    "slice-strided": lambda x: x[:, :, ::2, 1::3],
    "slice-ellipsis": lambda x: x[..., 1:-1],
    "slice-negative": lambda x: x[:, -2:, :-1],
    "slices-overlap": lambda x: torch.cat([x[:, :3], x[:, 1:]], 1),
    "permuted-channels": lambda x: x[:, [2, 0, 3, 1]],
    "repeated-channels": lambda x: x[:, [2, 2, -1]],
    "flip": lambda x: x.flip(1),
    "flip-space": lambda x: torch.flip(x, [2, 3]),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad-value": lambda x: F.pad(x, (1, 0, 2, 1), value=0.7),
    "pad-channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "pad-negative": lambda x: F.pad(x, (-1, 2, 0, -2)),
    "pad-reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "pad-replicate": nn.ReplicationPad2d((1, 2, 0, 3)),
    "pad-circular": lambda x: F.pad(x, (1, 0, 2, 3), mode="circular"),
    "pad-zero-module": nn.ZeroPad2d((1, 0, 0, 1)),
    "pad-module": nn.ConstantPad2d(1, -0.3),
    "shortcut-a": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "identity": nn.Identity(),
    "dropout": nn.Dropout(0.5),
    "dropout2d": nn.Dropout2d(0.5),
    "dropout-functional": lambda x: F.dropout(x, 0.9, training=False),
}

ARITHMETIC: dict[str, Middle] = {
    "add": lambda x: x + x.flip(2),
    "add-self": lambda x: x + x,
    "add-alpha": lambda x: torch.add(x, x.flip(1), alpha=-0.3),
    "add-number": lambda x: 0.5 + x,
    "add-tensor": lambda x: x + torch.linspace(-1, 1, W, dtype=x.dtype),
    "sub": lambda x: x.flip(3) - x * 0.5,
    "sub-number": lambda x: x - 0.25,
    "rsub-number": lambda x: 1 - x,
    "rsub-tensor": lambda x: torch.ones(C, 1, 1, dtype=x.dtype) - x,
    "torch-rsub": lambda x: torch.rsub(x, x.flip(1), alpha=2),
    "neg": lambda x: -x,
    "mul-number": lambda x: 3 * x * -0.5,
    "mul-tensor": lambda x: x * torch.linspace(-1, 1, H, dtype=x.dtype)[:, None],
    "mul-two": lambda x: x * x.flip(1),
    "mul-self": lambda x: x * x,
    "mul-broadcast": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "mul-broadcast-both": lambda x: x.mean(1, keepdim=True) * x.mean((2, 3), keepdim=True),
    "mul-chunks": lambda x: torch.mul(*x.chunk(2, 1)),
    "div-number": lambda x: x / 0.3,
    "div-tensor": lambda x: torch.div(x, torch.linspace(1, 2, W, dtype=x.dtype)),
    "cat": lambda x: torch.cat([x, x.flip(2), x[:, :1]], 1),
    "cat-space": lambda x: torch.cat((x, x[..., :2]), dim=-1),
    "concat": lambda x: torch.concat([x.sigmoid(), x], axis=1),
    "softmax": lambda x: x.softmax(1),
    "softmax-last": nn.Softmax(-1),
    "log-softmax": lambda x: F.log_softmax(x, dim=1),
    "attention-of-channels": lambda x: x * (3 * x.mean((2, 3), keepdim=True)).softmax(1),
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution(make: Callable[[], nn.Module]) -> None:
    check(build(make()), sample())


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_batch_norm(make: Callable[[], nn.Module]) -> None:
    check(build(make()), sample())


@pytest.mark.parametrize("middle", POOLS.values(), ids=POOLS)
def test_pooling(middle: Middle) -> None:
    check(build(middle), sample())


@pytest.mark.parametrize("middle", SHAPES.values(), ids=SHAPES)
def test_shapes(middle: Middle) -> None:
    check(build(middle), sample())


@pytest.mark.parametrize("middle", ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic(middle: Middle) -> None:
    check(build(middle), sample())


SMOOTH: dict[str, Middle] = {
    "softplus": nn.Softplus(),
    "softplus-beta": nn.Softplus(beta=5),
    "softplus-functional": lambda x: F.softplus(x, beta=3.0),
    "sigmoid": nn.Sigmoid(),
    "sigmoid-method": lambda x: x.sigmoid(),
    "sigmoid-inplace": lambda x: torch.sigmoid_(x.clone()),
    "tanh": nn.Tanh(),
    "tanh-functional": lambda x: F.tanh(x),
    "tanh-inplace": lambda x: x.tanh_(),
    "silu": nn.SiLU(),
    "silu-inplace": nn.SiLU(inplace=True),
    "silu-functional": lambda x: F.silu(x),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "gelu-functional": lambda x: F.gelu(x, approximate="tanh"),
    "elu": nn.ELU(),
    "elu-alpha-inplace": nn.ELU(0.5, inplace=True),
    "elu-functional": lambda x: F.elu(x, 1.5),
}

RELUS: dict[str, Middle] = {
    "relu": nn.ReLU(),
    "relu-inplace": nn.ReLU(inplace=True),
    "relu-functional": lambda x: F.relu(x),
    "relu-functional-inplace": lambda x: F.relu(x, inplace=True),
    "relu-function-inplace": lambda x: F.relu_(x),
    "relu-torch": lambda x: torch.relu(x),
    "relu-method": lambda x: x.relu(),
    "relu-method-inplace": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp-min": lambda x: torch.clamp_min(x, 0),
    "relu6": nn.ReLU6(),
    "relu6-inplace": nn.ReLU6(inplace=True),
    "relu6-functional": lambda x: F.relu6(x),
    "hardtanh": nn.Hardtanh(0.0, 6.0),
    "hardtanh-functional": lambda x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh-named": lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0),
    "clamp-six": lambda x: torch.clamp(x, 0, 6),
    "leaky": nn.LeakyReLU(),
    "leaky-slope": nn.LeakyReLU(0.3, inplace=True),
    "leaky-functional": lambda x: F.leaky_relu(x, 0.2),
}


class Wide(nn.Module):
    """Spread the sandwich's values over [-6, 10], so that both kinks of a ReLU6 lie inside."""

    def __init__(self, act: Middle) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * self.act(8 * x + 2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("act", SMOOTH.values(), ids=SMOOTH)
def test_smooth_activation(act: Middle, backend: str) -> None:
    if fastxai.available()[backend]:
        pytest.skip(fastxai.available()[backend])
    with fastxai.backend(backend):
        check(build(Wide(act)), sample())


@pytest.mark.parametrize("kind", ["softplus", "curvature"])
@pytest.mark.parametrize("act", RELUS.values(), ids=RELUS)
def test_relu_like_activation(act: Middle, kind: str) -> None:
    model = build(Wide(act))
    check(model, sample())
    check(model, sample(), beta=0.7, kind=kind)


@pytest.mark.parametrize("kind", ["softplus", "curvature"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)], ids=repr)
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.LeakyReLU(-0.2), nn.SiLU()], ids=repr)
def test_pool_behind_activation(act: nn.Module, pool: nn.Module, kind: str) -> None:
    check(build(nn.Sequential(conv(5, 3), nn.BatchNorm2d(5), act, pool)), sample(), beta=2.0, kind=kind)
