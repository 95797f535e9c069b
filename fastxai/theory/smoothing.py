"""Why SmoothGrad and softplus do the same: the one-layer theorem of [M] (theorem 2, [M1] eq. 30-37).

    E_eps [nabla g(x - eps)] = nabla g_{beta / ||w||}(x),      g(x) = relu(w x),  g_beta(x) = softplus_beta(w x)

for noise whose component along w has the density p_beta. [M1] takes independent components in an orthogonal basis that
contains w / ||w||. Independent noise per pixel is that only where w is along one pixel; elsewhere its projection on w
has the same variance and lies closer to a Gaussian.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastxai import _check

__all__ = ["density", "equivalent_beta", "equivalent_sigma", "smoothed_gradient"]

# beta sigma, where softplus_beta and the Gaussian-smoothed ReLU agree at their kink: log(2)/beta = sigma/sqrt(2 pi).
_PRODUCT = math.log(2) * math.sqrt(2 * math.pi)


def density(eps: Tensor, beta: float) -> Tensor:
    """Return p_beta(eps) = beta / (e^{beta eps / 2} + e^{-beta eps / 2})^2, elementwise ([M] theorem 2).

    It is the second derivative of softplus_beta, the logistic density; its standard deviation is pi / (sqrt(3) beta).

    Raises:
        TypeError: eps is no floating point tensor.
        ValueError: beta is not finite and positive.

    >>> fastxai.theory.density(torch.zeros(1), 4.0)
    tensor([1.])
    """
    # Through |eps| alone, so that nothing overflows: e^{-a} / (1 + e^{-a})^2, a = |beta eps|.
    decay = torch.exp(-(_check.positive(beta, "beta") * _check.tensor(eps, "eps")).abs())
    return beta * decay / (1 + decay).square()


def equivalent_sigma(beta: float) -> float:
    """Return sigma = log(2) sqrt(2 pi) / beta: the Gaussian noise that p_beta resembles ([M] section 4).

    A standard deviation ([M] says variance), chosen so that both smoothings give ReLU the same value at 0. It is 4 %
    below the standard deviation of p_beta itself.

    Raises:
        ValueError: beta is not finite and positive.

    >>> round(fastxai.theory.equivalent_sigma(1.0), 4)
    1.7375
    """
    return _PRODUCT / _check.positive(beta, "beta")


def equivalent_beta(sigma: float) -> float:
    """Return beta = log(2) sqrt(2 pi) / sigma: the inverse of ``equivalent_sigma``.

    Raises:
        ValueError: sigma is not finite and positive.

    >>> round(fastxai.theory.equivalent_beta(fastxai.theory.equivalent_sigma(0.8)), 6)
    0.8
    """
    return _PRODUCT / _check.positive(sigma, "sigma")


def smoothed_gradient(x: Tensor, w: Tensor, beta: float) -> Tensor:
    """Return nabla g_{beta / ||w||}(x) = w sig(beta w x / ||w||), the right side of [M] theorem 2.

    Args:
        x: inputs [N, D].
        w: weights of the one layer [D], finite and not all zero.
        beta: of the noise density p_beta.

    Returns:
        [N, D].

    Raises:
        TypeError: x or w is no floating point tensor.
        ValueError: shapes, dtypes or devices do not fit, w is zero or not finite, beta is not finite and positive.

    >>> fastxai.theory.smoothed_gradient(torch.zeros(1, 2), torch.tensor([3.0, 4.0]), 1.0)
    tensor([[1.5000, 2.0000]])
    """
    _check.require(_check.tensor(x, "x").dim() == 2, "x", "have shape [N, D]", list(x.shape))
    _check.shape(_check.same_place(_check.tensor(w, "w"), "w", x, "x"), "w", (x.shape[1],))
    # In float64, where no square of a float32 number is 0 or infinite.
    wide = w.double()
    length = torch.linalg.vector_norm(wide)
    _check.require(0 < length.item() < math.inf, "w", "be finite and not all zero", f"a norm of {length.item():.4g}")
    return torch.sigmoid(_check.positive(beta, "beta") * (x @ (wide / length).to(w.dtype)))[:, None] * w
