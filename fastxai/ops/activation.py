"""Activations whose value and two derivatives are fused kernels, for any model.

Each is differentiable any number of times, in backward and forward mode, and works in torch.func and torch.compile.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastxai import _check
from fastxai.kernels.formulas import SECOND, Activation
from fastxai.ops import _registry
from fastxai.ops._formula import formula, needs_formula

__all__ = ["Softplus", "elu", "gelu", "leaky_relu", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh"]


def _apply(x: Tensor, name: str, beta: float = 1.0, alpha: float = 0.01, second: str = "own") -> Tensor:
    _check.tensor(x, "x")
    if needs_formula(x):
        return formula(Activation(name, beta, alpha, second), x)
    return _registry.activation(_registry.configured(name, beta, alpha, second), x)


def _second(surrogate: str | None) -> str:
    return "own" if surrogate is None else _check.one_of(surrogate, "surrogate", SECOND[1:])


def _finite(value: float, name: str) -> float:
    _check.require(isinstance(value, (int, float)), name, "be a number", type(value).__name__, TypeError)
    _check.require(math.isfinite(value), name, "be finite", value)
    return float(value)


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth ReLU, without the threshold beyond which torch's own has s'' = 0.

    s(x) = log(1 + exp(beta x)) / beta;  s' = p;  s'' = beta p (1 - p), p = sig(beta x).

    Args:
        x: any shape, floating point.
        beta: sharpness; finite and > 0.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.
        ValueError: beta is not finite and positive.

    >>> fastxai.ops.softplus(torch.tensor([-1.0, 0.0, 1.0]), beta=10.0)
    tensor([4.5399e-06, 6.9315e-02, 1.0000e+00])
    """
    return _apply(x, "softplus", _check.positive(beta, "beta"))


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function.

    s(x) = 1 / (1 + exp(-x));  s' = s (1 - s);  s'' = s (1 - s)(1 - 2s).

    Args:
        x: any shape, floating point.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.

    >>> fastxai.ops.sigmoid(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    return _apply(x, "sigmoid")


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent.

    s(x) = tanh(x) = 2 sig(2x) - 1;  s' = 1 - s^2;  s'' = -2 s (1 - s^2).

    Args:
        x: any shape, floating point.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.

    >>> fastxai.ops.tanh(torch.tensor([0.5, 1.0]))
    tensor([0.4621, 0.7616])
    """
    return _apply(x, "tanh")


def silu(x: Tensor) -> Tensor:
    """Swish.

    s(x) = x sig(x).

    Args:
        x: any shape, floating point.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.

    >>> fastxai.ops.silu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7311])
    """
    return _apply(x, "silu")


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit.

    s(x) = x Phi(x), Phi the normal distribution function, or its tanh approximation.

    Args:
        x: any shape, floating point.
        approximate: "none" or "tanh".

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.
        ValueError: unknown approximation.

    >>> fastxai.ops.gelu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8413])
    """
    _check.one_of(approximate, "approximate", ("none", "tanh"))
    return _apply(x, "gelu_tanh" if approximate == "tanh" else "gelu")


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit.

    s(x) = x above zero, alpha (exp(x) - 1) below; s'' jumps at zero.

    Args:
        x: any shape, floating point.
        alpha: minus the limit at -infinity; finite.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor, or alpha not a number.
        ValueError: alpha is not finite.

    >>> fastxai.ops.elu(torch.tensor([-1.0, 1.0]))
    tensor([-0.6321,  1.0000])
    """
    return _apply(x, "elu", alpha=_finite(alpha, "alpha"))


def relu(x: Tensor, surrogate: str | None = None, beta: float = 1.0) -> Tensor:
    """ReLU with a second derivative of choice.

    s(x) = max(x, 0);  s'(0) = 0.

    "curvature" keeps value and first derivative and sets s'' = beta p (1 - p), p = sig(beta x) ([F]): the gradient's
    gradient then moves although the true one is zero almost everywhere. It is the derivative of no function, so
    finite differences of the gradient do not show it.

    Args:
        x: any shape, floating point; finite where a curvature surrogate meets torch.func or torch.compile.
        surrogate: "curvature", "none" (s'' = 0, on purpose) or None (s'' = 0, as in torch).
        beta: sharpness of the curvature surrogate; finite and > 0.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.
        ValueError: unknown surrogate, or beta not finite and positive.

    >>> fastxai.ops.relu(torch.tensor([-1.0, 2.0]), surrogate="curvature", beta=30.0)
    tensor([0., 2.])
    """
    return _apply(x, "relu", _check.positive(beta, "beta"), second=_second(surrogate))


def relu6(x: Tensor, surrogate: str | None = None, beta: float = 1.0) -> Tensor:
    """ReLU6 with a second derivative of choice.

    s(x) = min(max(x, 0), 6);  the curvature surrogate is s'' = c(x) - c(x - 6), c = beta p (1 - p).

    Args:
        x: as in ``relu``.
        surrogate: as in ``relu``.
        beta: as in ``relu``.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor.
        ValueError: unknown surrogate, or beta not finite and positive.

    >>> fastxai.ops.relu6(torch.tensor([-1.0, 2.0, 7.0]))
    tensor([0., 2., 6.])
    """
    return _apply(x, "relu6", _check.positive(beta, "beta"), second=_second(surrogate))


def leaky_relu(x: Tensor, negative_slope: float = 0.01, surrogate: str | None = None, beta: float = 1.0) -> Tensor:
    """Leaky ReLU with a second derivative of choice.

    s(x) = x above zero, negative_slope x below;  the surrogate is s'' = (1 - negative_slope) beta p (1 - p).

    Args:
        x: as in ``relu``.
        negative_slope: the derivative below zero, and at zero; finite.
        surrogate: as in ``relu``.
        beta: as in ``relu``.

    Returns:
        A tensor of x's shape.

    Raises:
        TypeError: x is not a floating point tensor, or negative_slope not a number.
        ValueError: unknown surrogate, negative_slope not finite, or beta not finite and positive.

    >>> fastxai.ops.leaky_relu(torch.tensor([-1.0, 2.0]))
    tensor([-0.0100,  2.0000])
    """
    slope = _finite(negative_slope, "negative_slope")
    return _apply(x, "leaky_relu", _check.positive(beta, "beta"), slope, _second(surrogate))


class Softplus(nn.Module):
    """``softplus`` as a module, to put where a model has nn.ReLU.

    Args:
        beta: sharpness; finite and > 0.

    Raises:
        ValueError: beta is not finite and positive.

    >>> fastxai.ops.Softplus(beta=10.0)
    Softplus(beta=10.0)
    """

    def __init__(self, beta: float = 1.0) -> None:
        """Check beta and keep it."""
        super().__init__()
        self.beta = _check.positive(beta, "beta")

    def forward(self, x: Tensor) -> Tensor:
        """Return softplus(x), shape as ``x``."""
        return softplus(x, self.beta)

    def extra_repr(self) -> str:
        """Return the settings that repr() shows."""
        return f"beta={self.beta}"
