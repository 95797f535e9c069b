"""[M] eq. 4 in plain autograd, from the paper: double backward through the softplus network.

loss = c P^2 mean_p (h(x_adv)_p - h_t,p)^2 + gamma mean_k (f(g(x_adv))_k - f(g(x))_k)^2
       per sample; f = softmax or identity
h = sum over channels of |map|, divided by its sum; beta(t) = beta_0 (beta_e / beta_0)^(t/T); Adam; clamp

Rule-based maps go down layer by layer through an nn.Sequential without batch norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Smooth(nn.Module):
    """ReLU while beta is None, else softplus_beta."""

    def __init__(self) -> None:
        super().__init__()
        self.beta: float | None = None

    def forward(self, a: Tensor) -> Tensor:
        # PyTorch's default threshold, 20, would set the second derivative to 0 beyond beta a = 20.
        return F.relu(a) if self.beta is None else F.softplus(a, self.beta, threshold=80)


def smoothed(model: nn.Module) -> nn.Module:
    """A copy of the model, in eval mode and with frozen weights, whose nn.ReLU modules are ``Smooth``."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        # named_children would name a module that is used twice only once.
        for name, child in module._modules.items():
            if isinstance(child, nn.ReLU):
                setattr(module, name, Smooth())
    return model


def set_beta(model: nn.Module, beta: float | None) -> None:
    for module in model.modules():
        if isinstance(module, Smooth):
            module.beta = beta


class Map(Protocol):
    """A map h [N, C, H, W] of the model at its present beta, and the scores [N, K]; x requires a gradient."""

    def __call__(self, model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]: ...


def gradient(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """nabla g_k."""
    scores = model(x)
    (h,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), x, create_graph=create_graph)
    return h, scores


def input_x_gradient(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """x * nabla g_k."""
    h, scores = gradient(model, x, classes, create_graph)
    return x * h, scores


def integrated_gradients(steps: int) -> Map:
    """x * mean_k nabla g_k((k / steps) x), k = 1 .. steps: zero baseline, the points of [M]'s code."""

    def explain(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        t = torch.arange(1, steps + 1, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1, 1) / steps
        h, scores = gradient(model, (t * x).flatten(0, 1), classes.repeat(steps), create_graph)
        # The last point is x itself.
        return x * h.view(steps, *x.shape).mean(0), scores[-len(x) :]

    return explain


def smooth_grad(explain: Map, noise: Tensor) -> Map:
    """Mean of a map over x + noise [S, C, H, W]."""

    def smoothed_map(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        rows = (x + noise.to(x)[:, None]).flatten(0, 1)
        h, _ = explain(model, rows, classes.repeat(len(noise)), create_graph)
        return h.view(len(noise), *x.shape).mean(0), model(x)

    return smoothed_map


Step = tuple[nn.Module, Tensor, Tensor]


def upwards(model: nn.Module, x: Tensor) -> tuple[list[Step], Tensor]:
    """Every layer of a plain nn.Sequential with its input and output, and the scores."""
    steps = []
    for layer in model.children():
        y = layer(x)
        steps.append((layer, x, y))
        x = y
    return steps, x


def transposed(layer: nn.Module, weight: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """W^T r of a convolution or a dense layer; x gives the shape."""
    if isinstance(layer, nn.Conv2d):
        return torch.nn.grad.conv2d_input(x.shape, weight, r, layer.stride, layer.padding)  # type: ignore[arg-type]
    return r @ weight


def applied(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """W x, without the bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding)  # type: ignore[arg-type]
    return x @ weight.T


def shaped(layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """Through what has no weight: a flattening, or a max-pool, whose winner takes all."""
    if isinstance(layer, nn.Flatten):
        return r.reshape(x.shape)
    assert isinstance(layer, nn.MaxPool2d), layer
    _, index = F.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding, return_indices=True)
    return torch.zeros_like(x).flatten(2).scatter_add(2, index.flatten(2), r.flatten(2)).view(x.shape)


def seed(scores: Tensor, classes: Tensor) -> Tensor:
    """Relevance 1 at the explained class."""
    return F.one_hot(classes, scores.shape[1]).to(scores.dtype)


def gate(layer: Smooth, a: Tensor) -> Tensor:
    """The derivative of the activation."""
    return (a > 0).to(a.dtype) if layer.beta is None else torch.sigmoid(layer.beta * a)


def guided_backprop(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """The gradient, of which each activation passes the positive part only."""
    steps, scores = upwards(model, x)
    r = seed(scores, classes)
    for layer, a, _ in reversed(steps):
        if isinstance(layer, Smooth):
            r = gate(layer, a) * F.relu(r)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            r = transposed(layer, layer.weight, a, r)
        else:
            r = shaped(layer, a, r)
    return r, scores


def pattern_attribution(patterns: Mapping[str, Tensor]) -> Map:
    """The gradient's way down with W * A in place of W; patterns by the weights' names."""

    def explain(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        names = {module: f"{name}.weight" for name, module in model.named_children()}
        steps, scores = upwards(model, x)
        r = seed(scores, classes)
        for layer, a, _ in reversed(steps):
            if isinstance(layer, Smooth):
                r = gate(layer, a) * r
            elif isinstance(layer, (nn.Conv2d, nn.Linear)):
                r = transposed(layer, layer.weight * patterns[names[layer]], a, r)
            else:
                r = shaped(layer, a, r)
        return r, scores

    return explain


def lrp(low: Tensor, high: Tensor, stabilizer: float = 1e-9) -> Map:
    """[M] eq. 1-3: z+ in every layer but the first, which has zB on the box [low, high], [1, C, 1, 1] each."""

    def explain(model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
        steps, scores = upwards(model, x)
        r = seed(scores, classes)
        for i, (layer, a, _) in reversed(list(enumerate(steps))):
            if isinstance(layer, Smooth):
                continue
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                r = shaped(layer, a, r)
                continue
            w = layer.weight
            plus, minus = w.clamp(min=0), w.clamp(max=0)
            if i > 0:
                z = applied(layer, plus, a)
                r = a * transposed(layer, plus, a, r / (z + stabilizer))
                continue
            lo, hi = low.to(a).expand_as(a), high.to(a).expand_as(a)
            z = applied(layer, w, a) - applied(layer, plus, lo) - applied(layer, minus, hi)
            s = r / (z + stabilizer)
            r = (
                a * transposed(layer, w, a, s)
                - lo * transposed(layer, plus, a, s)
                - hi * transposed(layer, minus, a, s)
            )
        return r, scores

    return explain


def heatmap(
    model: nn.Module, x: Tensor, classes: Tensor, create_graph: bool, explain: Map = gradient
) -> tuple[Tensor, Tensor]:
    """The map [N, H, W] with sum 1 and the scores [N, K]; x requires a gradient."""
    h, scores = explain(model, x, classes, create_graph)
    h = h.abs().sum(1)
    return h / h.sum((1, 2), keepdim=True), scores


def softmax(scores: Tensor) -> Tensor:
    return scores.softmax(1)


@dataclass
class Settings:
    steps: int
    lr: float
    beta: tuple[float, float] | None
    c: float
    gamma: float
    low: Tensor
    high: Tensor
    judge_every: int = 10
    explain: Map = gradient
    # A beta that belongs to the map: at every step and when it is judged.
    own: float | None = None
    # f, through which the loss sees the scores.
    output: Callable[[Tensor], Tensor] = softmax


@dataclass
class Plain:
    """The loop's result: the best judged iterate [N, C, H, W], its map, and whether its class is the original's."""

    images: Tensor
    maps: Tensor
    kept: Tensor


def manipulate(
    model: nn.Module,
    x: Tensor,
    target_map: Tensor,
    settings: Settings,
    after_step: Callable[[int, Tensor], None] = lambda step, images: None,
) -> Plain:
    """Run the attack on a model made by ``smoothed``; ``after_step`` sees every iterate."""
    pixels = x.shape[2] * x.shape[3]

    def map_term(h: Tensor) -> Tensor:
        return settings.c * pixels**2 * (h - target_map).square().mean((1, 2))

    def judge(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        set_beta(model, settings.own)
        h, _ = heatmap(model, images.detach().requires_grad_(), classes, False, settings.explain)
        set_beta(model, None)
        return h.detach(), map_term(h).detach(), model(images).argmax(1) == classes

    set_beta(model, None)
    classes = model(x).argmax(1)
    set_beta(model, settings.own)
    output = settings.output(model(x)).detach()
    best, best_term = x.clone(), judge(x)[1]
    x_adv = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x_adv], lr=settings.lr)
    for step in range(settings.steps):
        set_beta(model, settings.own)
        if settings.beta is not None:
            start, end = settings.beta
            set_beta(model, start * (end / start) ** (step / settings.steps))
        h, scores = heatmap(model, x_adv, classes, True, settings.explain)
        loss = map_term(h) + settings.gamma * (settings.output(scores) - output).square().mean(1)
        (x_adv.grad,) = torch.autograd.grad(loss.sum(), x_adv)
        optimizer.step()
        x_adv.data.clamp_(settings.low, settings.high)
        after_step(step, x_adv.detach())
        if (settings.steps - step - 1) % settings.judge_every == 0:
            _, term, held = judge(x_adv)
            better = held & (term < best_term)
            best = torch.where(better[:, None, None, None], x_adv.detach(), best)
            best_term = torch.where(better, term, best_term)
    h, _, kept = judge(best)
    return Plain(best, h, kept)
