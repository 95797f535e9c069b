"""The demo's yardstick: the same attack as one writes it in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastxai.attacks import Manipulation

__all__ = ["manipulate"]


def manipulate(
    model: nn.Module, x: Tensor, target_map: Tensor, attack: Manipulation, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Run ``attack`` on the Gradient map with nothing but autograd ([M] eq. 4).

    Args:
        model: its ReLUs are modules.
        x: images [N, 3, H, W] in [0, 1].
        target_map: [N, H, W], each sample's sum 1.
        attack: where steps, lr, beta, c and gamma come from.
        mean: per channel; the model takes (x - mean) / std.
        std: per channel.

    Returns:
        The last iterate [N, 3, H, W] and the loss of every iteration [T, N].
    """
    smooth = copy.deepcopy(model).requires_grad_(False)
    activations = [_replace(parent, name) for parent, name in _relus(smooth)]
    centre, spread = (x.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    with torch.no_grad():
        scores = model((x - centre) / spread)
    classes, output = scores.argmax(1, keepdim=True), scores.softmax(1)

    images = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([images], lr=attack.lr)
    losses = []
    for beta in attack.betas() or ():
        for activation in activations:
            activation.beta = beta
        scores = smooth((images - centre) / spread)
        (gradient,) = torch.autograd.grad(scores.gather(1, classes).sum(), images, create_graph=True)
        heat = gradient.abs().sum(1)
        heat = heat / heat.sum((1, 2), keepdim=True)
        map_term = attack.c * (heat[0].numel() * (heat - target_map)).square().mean((1, 2))
        output_term = attack.gamma * (scores.softmax(1) - output).square().mean(1)
        loss = map_term + output_term
        (images.grad,) = torch.autograd.grad(loss.sum(), images)
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        losses.append(loss.detach())
    return images.detach(), torch.stack(losses)


def _relus(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in model.modules() for name, child in m.named_children() if isinstance(child, nn.ReLU)]


def _replace(parent: nn.Module, name: str) -> nn.Softplus:
    softplus = nn.Softplus()
    setattr(parent, name, softplus)
    return softplus
