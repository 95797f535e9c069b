"""The network of [R] fig. 11, the one for [F]'s MNIST, and the trained one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastxai.data import demo_photos
from fastxai.models import CLASSES, CNN, DEMO_MEAN, DEMO_STD, MNISTCNN, demo
from fastxai.models.demo import WEIGHTS


def test_cnn_is_the_papers_network():
    torch.manual_seed(0)
    net = CNN().double().eval()
    assert sum(p.numel() for p in net.parameters()) == 1_116_970
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    p = dict(net.named_parameters())

    def conv(h, name):
        return F.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], padding=1).clamp(min=0)

    h = F.max_pool2d(conv(conv(x, "conv1"), "conv2"), 2)
    h = F.max_pool2d(conv(conv(h, "conv3"), "conv4"), 2).flatten(1)
    assert h.shape == (3, 4096)
    h = (h @ p["linear1.weight"].T + p["linear1.bias"]).clamp(min=0)
    torch.testing.assert_close(net(x), h @ p["linear2.weight"].T + p["linear2.bias"])


def test_mnist_cnn_layer_by_layer():
    torch.manual_seed(0)
    net = MNISTCNN().double().eval()
    assert sum(p.numel() for p in net.parameters()) == 3_274_634
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    p = dict(net.named_parameters())
    h = x
    for name in ("conv1", "conv2"):
        h = F.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], padding=2).clamp(min=0)
        h = F.max_pool2d(h, 2)
    assert h.shape == (3, 64, 7, 7)
    h = (h.flatten(1) @ p["linear1.weight"].T + p["linear1.bias"]).clamp(min=0)
    torch.testing.assert_close(net(x), h @ p["linear2.weight"].T + p["linear2.bias"])


@pytest.mark.parametrize(("network", "places", "shape"), [(CNN, 5, (3, 32, 32)), (MNISTCNN, 3, (1, 28, 28))])
def test_activation_factory_makes_one_module_a_place(network, places, shape):
    net = network(lambda: nn.Softplus(beta=5), classes=4)
    activations = [module for module in net.modules() if isinstance(module, nn.Softplus)]
    assert len({id(module) for module in activations}) == places
    assert not any(isinstance(module, nn.ReLU) for module in net.modules())
    assert net(torch.zeros(0, *shape)).shape == (0, 4)
    assert list(net.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize("network", [CNN, MNISTCNN])
def test_wrong_arguments(network):
    with pytest.raises(TypeError, match="activation must be a callable"):
        network("relu")
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        network(classes=0)


def test_demo_is_ready_to_use():
    net = demo()
    assert not net.training
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())
    assert WEIGHTS.stat().st_size < 3_000_000


def test_demo_names_the_photos():
    images, names = demo_photos()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (DEMO_MEAN, DEMO_STD))
    with torch.no_grad():
        chances = demo()((images - mean) / std).softmax(1)
    assert names == ["cat", "motorcycle"]
    assert [CLASSES[i] for i in chances.argmax(1).tolist()] == ["cat", "automobile"]
    assert (chances.amax(1) > 0.5).all()


def test_missing_weights(monkeypatch, tmp_path):
    # The package's name `demo` is the function, so the module is reached through it.
    monkeypatch.setitem(demo.__globals__, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="train_demo"):
        demo()
