"""Which attacks may have their iterations recorded (``fastxai.compile(capture=True)``)."""

from __future__ import annotations

from torch import Tensor

from fastxai.engine import Net
from fastxai.engine.capture import Graphs
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    Saliency,
    SmoothGrad,
)

__all__ = ["graphs_for", "graphs_of"]

# Shorter attacks are ordinary calls: before torch records it waits for the device and empties its caches, once a call.
LEAST = 30

_FIXED = (Gradient, InputXGradient, Saliency, GuidedBackprop, PatternAttribution, LRP)


def _fixed(explainer: Explainer) -> bool:
    """Return whether the map is the same device work at every call.

    Exact types: what a subclass, or an object that was given a method of its own, does in Python a graph would freeze,
    and so it would what functions of the user do.
    """
    while type(explainer) is SmoothGrad or type(explainer) is BetaSmoothing:
        if "map_and_scores" in vars(explainer):
            return False
        explainer = explainer.explainer
    if "map_and_scores" in vars(explainer):
        return False
    if type(explainer) is IntegratedGradients:
        whole = isinstance(explainer.n_steps, int) and isinstance(explainer.output, str)
        return whole and not callable(explainer.baselines)
    return type(explainer) in _FIXED


def graphs_of(net: Net, x: Tensor, steps: int) -> Graphs | None:
    """Return graphs for one call of an attack on images x, or None where its iterations are ordinary calls.

    They belong to that call, whose constants they refer to.
    """
    return _graphs(net, net._core.graphs, x, steps)


def _graphs(net: Net, kept: Graphs | None, x: Tensor, steps: int) -> Graphs | None:
    if kept is None or steps < LEAST or not kept.serves(x) or not net.report(x).engine:
        return None
    return kept.another()


def graphs_for(explainer: Explainer, x: Tensor, steps: int, *, unasked: bool = False) -> Graphs | None:
    """Return graphs as ``graphs_of`` does for an attack on a map; ``unasked`` on a CPU where the net says nothing."""
    kept = explainer.net._core.graphs
    if kept is None and unasked and x.device.type == "cpu":
        kept = explainer.net._core.unasked
    return _graphs(explainer.net, kept, x, steps) if _fixed(explainer) else None
