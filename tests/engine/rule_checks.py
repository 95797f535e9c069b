"""What the tests of rules share: small networks, zennit's maps with their derivatives, and a recursion of our own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import zennit.composites as zc
import zennit.types
from engine.nets import randomise
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.layer import Sum

import fastxai

Map = Callable[[Tensor], tuple[Tensor, Tensor]]
PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
LeafRule = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def from_page(name: str) -> dict[str, Any]:
    """Run the file of that name in docs/rules.md and return what it defines."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (body,) = [block for block in blocks if block.startswith(f"# {name}\n")]
    names: dict[str, Any] = {"__name__": name}
    exec(compile(body, str(PAGE), "exec"), names)
    return names


class Skip(nn.Module):
    """x + body(x), with a module for the sum where a peer's hooks need one."""

    def __init__(self, body: nn.Module, *, hooked: bool = False) -> None:
        super().__init__()
        self.body, self.sum, self.hooked = body, Sum(), hooked

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(torch.stack([x, self.body(x)], -1)) if self.hooked else x + self.body(x)


class Fork(nn.Module):
    """Two branches, concatenated."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class Gate(nn.Module):
    """Squeeze and excite: a product of two tensors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(torch.tanh(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate.view(-1, x.shape[1], 1, 1)


class TokenMean(nn.Module):
    """Mean over the tokens of [N, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vgg(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), act(), nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False), act(),
        nn.Conv2d(6, 6, 3, padding=1, groups=2), act(), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
        nn.Linear(54, 8), act(), nn.Linear(8, 4),
    )  # fmt: skip


def normed(act: Callable[[], nn.Module]) -> nn.Module:
    """One batch norm that folds; one behind an activation, that does not."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), act(), nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(6),
        nn.Conv2d(6, 5, 3, bias=False), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


def residual(act: Callable[[], nn.Module], *, hooked: bool = False) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), act(), nn.Conv2d(6, 6, 3, padding=1))
    raw = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), act(), nn.Conv2d(6, 6, 1))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), act(), Skip(body, hooked=hooked), act(), Skip(raw, hooked=hooked),
        nn.Conv2d(6, 6, 2), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def forked(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), act(), Fork(nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), act()), nn.Conv2d(4, 2, 1)),
        nn.Conv2d(5, 4, 3), act(), nn.Flatten(), nn.Linear(4 * 36, 4),
    )  # fmt: skip


def geometry(act: Callable[[], nn.Module]) -> nn.Module:
    """Reflected border, overlapping max-pool, depthwise convolution, average pool with a ceiling."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), act(),
        nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 6, 3, groups=6, bias=False), act(),
        nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def tokens(act: Callable[[], nn.Module]) -> nn.Module:
    """Dense layers on [N, T, C]."""
    body = nn.Sequential(nn.Linear(6, 6), act(), nn.Linear(6, 6, bias=False))
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(100, 6), act(), Skip(body), nn.Linear(6, 5), act(), TokenMean(), nn.Linear(5, 4)
    )


def shared(act: Callable[[], nn.Module]) -> nn.Module:
    """One convolution at two places."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, act(), conv, act(), nn.Flatten(), nn.Linear(300, 4))


def gated(act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), act(), Gate(4), nn.Conv2d(4, 4, 3), act(), nn.Flatten(), nn.Linear(144, 4))


NETS: dict[str, Callable[..., nn.Module]] = {
    f.__name__: f for f in (vgg, normed, residual, forked, geometry, tokens, shared, gated)
}
HOOKED = ("vgg", "normed", "residual", "forked")  # what zennit's hooks reach
RULED = tuple(name for name in NETS if name != "gated")  # what LRP has rules for


def softplus() -> nn.Module:
    """Softplus whose second derivative PyTorch does not cut off."""
    return nn.Softplus(2.0, threshold=200)


def make(name: str, act: Callable[[], nn.Module] = nn.ReLU, **options: Any) -> nn.Module:
    """Return a seeded float64 net of [N, 3, 10, 10]."""
    return randomise(NETS[name](act, **options)).double()


def merged(model: nn.Module) -> nn.Module:
    """Return a copy with every batch norm folded that follows a convolution.

    zennit's own folding leaves a division by sqrt(1 + eps) (0.5.1), or an eps that torch 2.11 refuses (1.0.0).
    """
    model, before = copy.deepcopy(model), ("", model)
    for name, leaf in list(model.named_modules()):
        if isinstance(leaf, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            model.set_submodule(before[0], fuse_conv_bn_eval(before[1], leaf))
            model.set_submodule(name, nn.Identity())
        if not list(leaf.children()):
            before = (name, leaf)
    return model


def without_biases(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for vector in (getattr(module, "bias", None), getattr(module, "running_mean", None)):
            if isinstance(vector, Tensor):
                vector.detach().zero_()
    return model


def images(n: int = 3, size: int = 10, *, raw: bool = True) -> Tensor:
    """Return seeded inputs: signed, or pixels in [0, 1]."""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, size, size, dtype=torch.float64, generator=g)
    return 3 * x - 1.5 if raw else x


def loss(h: Tensor) -> Tensor:
    """Return a random quadratic function of a map."""
    g = torch.Generator().manual_seed(9)
    a, b = (torch.randn(h.shape, dtype=h.dtype, generator=g) for _ in range(2))
    return (a * h.square() + b * h).sum()


def chosen(scores: Tensor, target: Tensor, seed: str) -> Tensor:
    """Return the relevance that starts at the scores."""
    onehot = F.one_hot(target, scores.shape[1]).to(scores.dtype)
    return onehot * scores if seed == "score" else onehot


def zennit_composite(convolution: Any, dense: Any, first: Any = None) -> Any:
    layers = [*zc.layer_map_base(), (zennit.types.Convolution, convolution), (nn.Linear, dense)]
    start = [] if first is None else [((zennit.types.Convolution, nn.Linear), first)]
    return zc.SpecialFirstLayerMapComposite(layers, start)


def by_zennit(model: nn.Module, composite: Any, x: Tensor, target: Tensor, seed: str = "one") -> tuple[Tensor, Tensor]:
    """Return zennit's map and the gradient of ``loss`` on it.

    Its rules build a graph only for a covector that requires one, and its hooks would act in the second backward too.
    """
    model = merged(model)
    x = x.clone().requires_grad_()
    with composite.context(model) as hooked:
        scores = hooked(x)
        start = chosen(scores, target, seed)
        (h,) = grad(scores, x, start if start.requires_grad else start.requires_grad_(), create_graph=True)
        with composite.inactive():
            (dx,) = grad(loss(h), x, materialize_grads=True)
    return h.detach(), dx


def compiled(model: nn.Module, beta: float | None) -> fastxai.Net:
    """Return the net, or its softplus view."""
    return fastxai.compile(model) if beta is None else fastxai.compile(model, activation="softplus", beta=beta)


def differentiated(explain: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map and the gradient of ``loss`` on it."""
    x = x.clone().requires_grad_()
    h = explain(x)[0]
    (dx,) = grad(loss(h), x, materialize_grads=True)
    return h.detach(), dx


def vjp(f: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Return J^T r of a function at x, with a graph."""
    if not x.requires_grad:
        x = x.detach().requires_grad_()
    return grad(f(x), x, r, create_graph=True)[0]


def recursion(module: nn.Module, x: Tensor, rule: LeafRule) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return a network's output, and the function that takes relevance back to x, in operations of autograd.

    ``rule(module, x, y, r)`` is the relevance of a leaf's input.
    """
    match module:
        case nn.Sequential():
            steps = []
            for child in module:
                x, back = recursion(child, x, rule)
                steps.append(back)
            return x, lambda r: [r := back(r) for back in reversed(steps)][-1]
        case Fork():
            (a, back_a), (b, back_b) = recursion(module.a, x, rule), recursion(module.b, x, rule)
            return torch.cat([a, b], 1), lambda r: back_a(r[:, : a.shape[1]]) + back_b(r[:, a.shape[1] :])
    y = module(x)
    return y, lambda r: rule(module, x, y, r)


def slopes(explain: Map, leaves: Sequence[Tensor], step: float = 1e-6) -> list[tuple[float, float]]:
    """Return for each leaf the slope of ``loss`` on map and scores along a random direction: by backward, by a step.

    Leaves are edited in place; the first is the input.
    """
    g = torch.Generator().manual_seed(13)
    h, scores = explain(leaves[0])
    grads = grad(loss(h) + loss(scores), leaves, allow_unused=True)
    found = []
    for leaf, slope in zip(leaves, grads, strict=True):
        direction, kept, values = torch.randn(leaf.shape, dtype=leaf.dtype, generator=g), leaf.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                leaf.add_(direction, alpha=sign * step)
                h, scores = explain(leaves[0])
                values.append(loss(h) + loss(scores))
                leaf.copy_(kept)
        backward = 0.0 if slope is None else float((slope * direction).sum())
        found.append((backward, float(values[0] - values[1]) / (2 * step)))
    return found


def worst(found: Sequence[tuple[float, float]]) -> float:
    """Return the largest relative difference; slopes below a ten-thousandth of the largest count as that."""
    floor = 1e-4 * max(abs(want) for _, want in found)
    return max(abs(got - want) / max(abs(want), floor) for got, want in found)
