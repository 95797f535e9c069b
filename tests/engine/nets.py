"""The networks that the engine is tested on, and float64 autograd oracles that share no formula with the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Scores = Callable[[Tensor], Tensor]

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"

# Name -> (spatial size, beta): sizes small, and odd where the architecture pads by size; beta |a| is of the order of
# ten, as above that the rounding of the float32 pre-activation itself costs more than 1e-5 of s''.
ZOO = {
    "cnn": (32, 10.0),
    "vgg16": (32, 10.0),
    "alexnet": (64, 10.0),
    "resnet18": (33, 2.0),
    "densenet121": (33, 10.0),
    "squeezenet": (75, 0.01),
    "resnet20": (32, 10.0),
    "efficientnet_lite0": (49, 0.5),
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill parameters and statistics with seeded numbers that keep activations near one; in eval mode."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=g)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=g)
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=g)
                    module.bias.normal_(0, 0.1, generator=g)
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=g)
                module.running_var.uniform_(0.7, 1.5, generator=g)
                module.num_batches_tracked.zero_()
    return model.eval()


def _torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        model = getattr(models, name)(num_classes=10)
        if name in ("vgg16", "alexnet"):
            # The same layers with narrow heads: 4096 units cost gigabytes in float64 and test nothing more.
            wide = [i for i, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
            features = model.classifier[wide[0]].in_features
            for i, (a, b) in zip(wide, ((features, 32), (32, 32), (32, 10)), strict=True):
                model.classifier[i] = nn.Linear(a, b)
    return randomise(model.to_empty(device="cpu"))


def _shared(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    if not (SHARED / "nets.py").exists():
        pytest.skip(f"{SHARED} is not here")
    spec = importlib.util.spec_from_file_location("shared_nets", SHARED / "nets.py")
    assert spec is not None and spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets.load(name), lambda x: nets.prepare(name, x)


class Prepared(nn.Module):
    """A model with its input preparation inside."""

    def __init__(self, model: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.prepare = model, prepare

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.prepare(x))


def zoo(name: str, dtype: torch.dtype = torch.float64, n: int = 2) -> tuple[nn.Module, Tensor]:
    """Return one of the eight networks in eval mode, and a seeded batch in [0, 1]."""
    shared = {
        "squeezenet": "imagenet_squeezenet10",
        "resnet20": "cifar10_resnet20",
        "efficientnet_lite0": "imagenet_efficientnet_lite0",
    }
    if name in shared:
        model: nn.Module = Prepared(*_shared(shared[name])).eval()
    elif name == "cnn":
        from fastxai.models import CNN

        model = randomise(CNN())
    else:
        model = _torchvision(name)
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, ZOO[name][0], ZOO[name][0], generator=g, dtype=torch.float64)
    return model.to(dtype), x.to(dtype)


def softplus(a: Tensor, beta: float) -> Tensor:
    """softplus_beta as autograd differentiates it exactly, any number of times."""
    return -F.logsigmoid(-beta * a) / beta


class _Bent(torch.autograd.Function):
    """A ReLU-like function whose derivative is the step and whose double backward is the curvature c."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, step: Tensor, c: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(a, step, c)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *nu: Tensor) -> tuple[Tensor, None, None, None]:
        a, step, c = ctx.saved_tensors
        return nu[0] * _BentSlope.apply(a, step, c), None, None, None  # type: ignore[operator]


class _BentSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, step: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(c)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, *nu: Tensor) -> tuple[Tensor, None, None]:
        return nu[0] * ctx.saved_tensors[0], None, None


def _smooth(name: str, alpha: float, a: Tensor, beta: float) -> Tensor:
    if name == "relu6":
        return softplus(a, beta) - softplus(a - 6, beta)
    return softplus(a, beta) if name == "relu" else alpha * a + (1 - alpha) * softplus(a, beta)


def _bent(name: str, alpha: float, a: Tensor, beta: float) -> Tensor:
    with torch.no_grad():
        c = beta * torch.sigmoid(beta * a) * torch.sigmoid(-beta * a) * (1 - alpha)
        if name == "relu6":
            c = c - beta * torch.sigmoid(beta * (a - 6)) * torch.sigmoid(beta * (6 - a))
        inside = (a > 0) & (a < 6) if name == "relu6" else a > 0
        step = torch.where(inside, torch.ones_like(a), torch.full_like(a, alpha))
        y = step * a if name != "relu6" else a.clamp(0, 6)
    return _Bent.apply(a, step, c, y)  # type: ignore[return-value]


class _Replace(TorchFunctionMode):
    """Exact softplus for F.softplus (whose s'' stops at its threshold), and another function for ReLU-like ones."""

    def __init__(self, beta: float | None, kind: str) -> None:
        super().__init__()
        self.beta, self.kind = beta, kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        spelled = getattr(func, "__name__", "")
        name = spelled.rstrip("_")
        a, rest = (args[0], args[1:]) if args else (None, ())
        alpha = 0.0
        if name == "softplus":
            return softplus(a, rest[0] if rest else kwargs.get("beta", 1.0))
        if self.beta is None:
            return func(*args, **kwargs)
        if name == "hardtanh" and (*rest, kwargs.get("min_val"), kwargs.get("max_val"))[:2] == (0.0, 6.0):
            name = "relu6"
        elif name in ("clamp", "clamp_min") and (rest[0] if rest else kwargs.get("min")) == 0:
            name = "relu" if (rest[1] if len(rest) > 1 else kwargs.get("max")) is None else "relu6"
        elif name == "leaky_relu":
            alpha = rest[0] if rest else kwargs.get("negative_slope", 0.01)
        if name not in ("relu", "relu6", "leaky_relu"):
            return func(*args, **kwargs)
        inplace = spelled.endswith("_") or kwargs.get("inplace") or (bool(rest) and rest[-1] is True)
        y = (_smooth if self.kind == "softplus" else _bent)(name, alpha, a.clone() if inplace else a, self.beta)
        return a.copy_(y) if inplace else y


def oracle(model: nn.Module, beta: float | None = None, kind: str = "softplus") -> Scores:
    """Return the model as autograd sees it; ReLU-like activations smoothed ("softplus") or bent ("curvature")."""

    def scores(x: Tensor) -> Tensor:
        with _Replace(beta, kind):
            return model(x)

    return scores


def chosen(f: Scores, x: Tensor, target: Tensor | int) -> Tensor:
    scores = f(x)
    target = torch.full((len(x),), target) if isinstance(target, int) else target
    return scores.gather(1, target[:, None]).sum()


def gradient(f: Scores, x: Tensor, target: Tensor | int) -> Tensor:
    """nabla g_k(x) by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(chosen(f, x, target), x)[0]


def hvp(f: Scores, x: Tensor, vs: Tensor, target: Tensor | int) -> tuple[Tensor, Tensor]:
    """(nabla g_k(x), H v [S, N, ...]) by double backward, one direction after the other."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(chosen(f, x, target), x, create_graph=True)
    rows = [torch.autograd.grad(g, x, v, retain_graph=True, materialize_grads=True)[0] for v in vs]
    return g.detach(), torch.stack(rows)


def error(got: Tensor, want: Tensor, lead: int = 1) -> float:
    """The largest relative L2 error over the samples (and directions) of the leading dimensions."""
    assert got.shape == want.shape, (got.shape, want.shape)
    got, want = got.detach().double().flatten(lead), want.detach().double().flatten(lead)
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=1e-300)).max())


def directions(x: Tensor, s: int, seed: int = 5) -> Tensor:
    """S seeded directions [S, N, ...]."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(s, *x.shape, generator=g, dtype=torch.float64).to(x.dtype)
