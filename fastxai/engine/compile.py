"""``fastxai.compile``: from a module to a net."""

from __future__ import annotations

import torch
from torch import nn

from fastxai import _check
from fastxai.engine.core import Core, Statistics
from fastxai.engine.net import Net

__all__ = ["compile"]


def compile(
    model: nn.Module,
    mean: Statistics = None,
    std: Statistics = None,
    activation: str | None = None,
    beta: float | None = None,
    surrogate: str | None = None,
    *,
    fallback: bool = False,
    capture: bool | None = None,
) -> Net:
    """Compile a classifier for fast first and second derivatives.

    Args:
        model: maps [N, ...] to scores [N, K]; evaluated in eval mode always, its weights shared.
        mean: one number or one a channel; the net then takes x and feeds the model (x - mean) / std. Maps are in x's
            space.
        std: alike, positive.
        activation: None keeps the model's own; "softplus" replaces ReLU-like ones by softplus_beta.
        beta: sharpness of the softplus, or of the curvature surrogate; > 0.
        surrogate: how ReLU-like activations bend at order 1: "curvature" ([F]: s'' = beta p(1-p), forward and map are
            ReLU's) or "none" (s'' = 0 on purpose); an error beside ``activation``.
        fallback: run everything on plain autograd (maps are then differentiable any number of times).
        capture: True records scores, gradients, Hessian-vector products and the iterations of attacks at their third
            call for a shape, and replays them, on a GPU as CUDA graphs: for networks and batches so small that Python
            takes longer than computing. The same numbers; each of the eight recordings kept holds memory of its own.
            None does so on a CPU for the iterations of ``Manipulation`` alone, False for nothing.

    Raises:
        TypeError: model is no module.
        ValueError: a setting is unknown, or two contradict each other.

    >>> net = fastxai.compile(torch.nn.Linear(4, 3))
    >>> net(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    _check.require(isinstance(model, nn.Module), "model", "be a torch.nn.Module", type(model).__name__, TypeError)
    for name, given, least in (("mean", mean, -torch.inf), ("std", std, 0)):
        contract = f"be finite{'' if least < 0 else ' and positive'}"
        values = _check.given(_check.numbers([] if given is None else given), name, contract, repr(given))
        _check.require(bool((values.isfinite() & (values > least)).all()), name, contract, given)
    _check.require(capture in (True, False, None), "capture", "be True, False or None", capture)
    base = Net(Core(model, mean, std, fallback=fallback, capture=capture), None, None, None)
    if activation is None and surrogate is None and beta is None:
        return base
    return Net(base._core, activation, beta, surrogate, base if activation else None)
