"""The maps that [M] studies, with its settings, on a network in its own input space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastxai._check import given, one_of
from fastxai.engine import Net
from fastxai.evaluation.task import Space
from fastxai.explainers import (
    LRP,
    BetaSmoothing,
    Explainer,
    Gradient,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    PatternAttribution,
    Patterns,
    SmoothGrad,
)

__all__ = ["METHODS", "explainer", "smoothed"]

_Build = Callable[[Net, Space, Patterns | None, Mapping[str, Any]], Explainer]


def _pattern_attribution(net: Net, space: Space, patterns: Patterns | None, options: Mapping[str, Any]) -> Explainer:
    return PatternAttribution(net, given(patterns, "patterns", "be given for pattern_attribution"), **options)


METHODS: dict[str, _Build] = {
    "gradient": lambda net, space, patterns, options: Gradient(net, **options),
    "input_x_gradient": lambda net, space, patterns, options: InputXGradient(net, **options),
    "integrated_gradients": lambda net, space, patterns, options: IntegratedGradients(net, **options),
    "guided_backprop": lambda net, space, patterns, options: GuidedBackprop(net, **options),
    "lrp": lambda net, space, patterns, options: LRP(net, low=space.low, high=space.high, **options),
    "pattern_attribution": _pattern_attribution,
}


def explainer(
    method: str, net: Net, space: Space, options: Mapping[str, Any] | None = None, patterns: Patterns | None = None
) -> Explainer:
    """Return the explainer of a method's name.

    Args:
        method: a name from ``METHODS``.
        net: takes inputs of the space.
        space: gives LRP its box.
        options: what the explainer's constructor takes by name beside the net.
        patterns: for "pattern_attribution".

    Raises:
        TypeError: an option is unknown to the explainer.
        ValueError: the method is unknown, or an option or the patterns do not fit.
    """
    return METHODS[one_of(method, "method", METHODS)](net, space, patterns, options or {})


def smoothed(base: Explainer, space: Space, settings: Mapping[str, Any], seed: int) -> Explainer:
    """Return the map by ``settings["defence"]``: "none", "beta_smoothing" (beta) or "smooth_grad" (noise, n_samples).

    The noise level counts in the range of valid inputs: sigma = noise (x_max - x_min) ([M1] supplement D).

    Raises:
        ValueError: the defence is unknown or a setting is out of range.
    """
    kind = one_of(settings.get("defence", "none"), "defence", ("none", "beta_smoothing", "smooth_grad"))
    if kind == "beta_smoothing":
        return BetaSmoothing(base, settings["beta"])
    if kind == "smooth_grad":
        return SmoothGrad(base, settings["n_samples"], seed=seed, stdev=settings["noise"] * space.span)
    return base
