"""The eight networks: gradient and Hessian-vector product against float64 autograd, and where each operation runs.

Float32 is judged per sample against a float64 truth that routes every max-pool as the judged run did: a tie that
flips between precisions is no rounding error, and moves float32 autograd as much. Autograd runs in its default layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine.nets import ZOO, chosen, directions, error, gradient, hvp, oracle, zoo
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fastxai
from fastxai.kernels import max_pool

TARGET = torch.tensor([3, 7])
POOLED = ("cnn", "vgg16", "alexnet", "resnet18", "densenet121", "squeezenet")


@cache
def loaded(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = zoo(name, dtype)
    return model, x, directions(x, 2)


@cache
def truth(name: str, kind: str) -> tuple[Tensor, Tensor]:
    model, x, vs = loaded(name, torch.float64)
    return hvp(oracle(model, ZOO[name][1], kind), x, vs, TARGET)


@cache
def computed(name: str) -> tuple[Tensor, Tensor]:
    """The engine's gradient and its HVPs in two directions at once, by the backend that float64 gets by itself."""
    model, x, vs = loaded(name, torch.float64)
    net = fastxai.compile(model).with_activation("softplus", beta=ZOO[name][1])
    return net.gradient(x, TARGET), net.hvp(x, vs, TARGET)


@pytest.mark.parametrize("name", ZOO)
class TestFloat64:
    def test_smoothed_network_matches_autograd(self, name: str) -> None:
        g, hv = computed(name)
        assert error(g, truth(name, "softplus")[0]) < 1e-10
        assert error(hv, truth(name, "softplus")[1], 2) < 1e-10

    def test_reference_backend_matches_autograd(self, name: str) -> None:
        model, x, vs = loaded(name, torch.float64)
        net = fastxai.compile(model).with_activation("softplus", beta=ZOO[name][1])
        with fastxai.backend("reference"):
            g, hv = net.gradient(x, TARGET), net.hvp(x, vs[0], TARGET)
        assert error(g, truth(name, "softplus")[0]) < 1e-10
        assert error(hv, truth(name, "softplus")[1][0]) < 1e-10

    def test_curvature_surrogate_matches_autograd_with_relu_bent(self, name: str) -> None:
        model, x, vs = loaded(name, torch.float64)
        net = fastxai.compile(model, surrogate="curvature", beta=ZOO[name][1])
        assert error(net.gradient(x, TARGET), truth(name, "curvature")[0]) < 1e-10
        assert error(net.hvp(x, vs, TARGET), truth(name, "curvature")[1], 2) < 1e-10

    def test_plain_gradient_and_scores_match_autograd(self, name: str) -> None:
        model, x, _ = loaded(name, torch.float64)
        net = fastxai.compile(model)
        value, g = net.value_and_gradient(x, TARGET)
        with torch.no_grad():
            scores = model(x)
        assert error(net(x), scores) < 1e-12
        assert error(value[:, None], scores.gather(1, TARGET[:, None])) < 1e-12
        assert error(g, gradient(oracle(model), x, TARGET)) < 1e-10

    def test_every_operation_runs_on_the_engine(self, name: str) -> None:
        model, x, _ = loaded(name, torch.float64)
        report = fastxai.compile(model).report(x)
        assert report.engine
        assert report.reason == ""
        assert {where for _, _, where in report.rows} == {"engine"}
        assert len(report.rows) >= sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())

    def test_directions_together_equal_one_at_a_time(self, name: str) -> None:
        model, x, vs = loaded(name, torch.float64)
        net = fastxai.compile(model).with_activation("softplus", beta=ZOO[name][1])
        assert error(net.hvp(x, vs[1], TARGET), computed(name)[1][1]) < 1e-12

    def test_equals_jvp_of_grad(self, name: str) -> None:
        model, x, vs = loaded(name, torch.float64)
        f = oracle(model, ZOO[name][1])
        grad = torch.func.grad(lambda z: chosen(f, z, TARGET))
        want_g, want_hv = torch.func.jvp(grad, (x,), (vs[0],))
        assert error(computed(name)[0], want_g) < 1e-10
        assert error(computed(name)[1][0], want_hv) < 1e-10


def gather(x: Tensor, flat: Tensor) -> Tensor:
    """Pool x at flat positions [N, C, Ho, Wo]."""
    return x.flatten(2).gather(2, flat.flatten(2)).unflatten(2, flat.shape[2:])


class Pools(TorchFunctionMode):
    """Record the positions that max-pools choose ("record"), or pool at given ones."""

    def __init__(self, held: list[Tensor] | None = None) -> None:
        super().__init__()
        self.held, self.seen = held, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if "max_pool2d" not in name:
            return func(*args, **kwargs)
        if self.held is None:
            kwargs = {k: v for k, v in kwargs.items() if k != "return_indices"}
            y, flat = F.max_pool2d_with_indices(*args, **kwargs)
            self.seen.append(flat)
            return y
        self.seen.append(self.held[len(self.seen)])
        return gather(args[0], self.seen[-1])


def held(model: nn.Module, beta: float, positions: list[Tensor] | None) -> Any:
    """Return the smoothed model with its pools held; ``seen`` tells what its last call chose."""
    smooth = oracle(model, beta)

    def scores(x: Tensor) -> Tensor:
        pools = Pools(positions)
        with pools:
            out = smooth(x)
        scores.seen = pools.seen  # type: ignore[attr-defined]
        return out

    return scores


@contextmanager
def watch_pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Collect the flat positions that the engine's max-pools choose, in the order of their calls."""
    found: list[Tensor] = []
    push = max_pool.push

    def watched(x: Tensor, w: max_pool.Window, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        y, index = push(x, w, *args, **kwargs)
        at = index.long()
        rows = torch.arange(at.shape[2])[:, None] * w.stride[0] - w.padding[0] + at // w.kernel[1] * w.dilation[0]
        cols = torch.arange(at.shape[3]) * w.stride[1] - w.padding[1] + at % w.kernel[1] * w.dilation[1]
        found.append(rows * x.shape[3] + cols)
        return y, index

    with monkeypatch.context() as patch:
        patch.setattr(max_pool, "push", watched)
        yield found


def by_layer(found: list[Tensor], layers: int) -> list[Tensor]:
    """Join what the chunks of one call chose: chunk after chunk, each with every layer."""
    assert len(found) % layers == 0
    return [torch.cat(found[i::layers]) for i in range(layers)]


def per_sample(got: Tensor, want: Tensor) -> Tensor:
    got, want = got.detach().double().flatten(1), want.flatten(1)
    return (got - want).norm(dim=1) / want.norm(dim=1)


@pytest.mark.parametrize("name", ZOO)
def test_float32_is_as_exact_as_float32_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, vs = loaded(name, torch.float32)
    exact, _, _ = loaded(name, torch.float64)
    beta = ZOO[name][1]
    plain = held(model, beta, None)
    plain_g, plain_hv = hvp(plain, x, vs[:1], TARGET)
    layers = len(plain.seen)
    assert (layers > 0) == (name in POOLED)

    net = fastxai.compile(model).with_activation("softplus", beta=beta)
    with watch_pools(monkeypatch) as found:
        hv = net.hvp(x, vs[0], TARGET)
    positions = by_layer(found, layers) if layers else []
    with watch_pools(monkeypatch) as found:
        g = net.gradient(x, TARGET)
    assert all(map(torch.equal, positions, by_layer(found, layers) if layers else []))

    x64, v64 = x.double(), vs[:1].double()
    want_g, want_hv = hvp(held(exact, beta, positions), x64, v64, TARGET)
    same = all(map(torch.equal, positions, plain.seen))
    truth_g, truth_hv = (want_g, want_hv) if same else hvp(held(exact, beta, plain.seen), x64, v64, TARGET)
    for got, want, other, truth_of_other in ((g, want_g, plain_g, truth_g), (hv, want_hv[0], plain_hv[0], truth_hv[0])):
        ours, theirs = per_sample(got, want), per_sample(other, truth_of_other)
        assert (ours <= 2 * theirs).all(), (ours, theirs)
        assert (ours <= 1e-5).all(), ours


@pytest.mark.slow
def test_full_width_vgg16_matches_autograd() -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = models.vgg16(num_classes=1000).eval().double()
    x = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    g, hv = hvp(oracle(model, 10.0), x, directions(x, 1), 3)
    net = fastxai.compile(model).with_activation("softplus", beta=10.0)
    assert error(net.gradient(x, 3), g) < 1e-10
    assert error(net.hvp(x, directions(x, 1), 3), hv, 2) < 1e-10
