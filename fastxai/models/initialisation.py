"""Weights to begin with: the seven initialisations that [F] compares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fastxai._check import one_of

__all__ = ["INITIALISATIONS", "initialise"]

# [F] appendix A.3: the standard deviation and the bias of CUST, the bound of UNI.
_SPREAD, _BIAS, _BOUND = 0.1, 0.1, 0.1

_Fill = Callable[[Tensor], object]

# What fills the weights, and the biases.
_FILLS: dict[str, tuple[_Fill, _Fill]] = {
    "normal": (partial(nn.init.normal_, std=_SPREAD), partial(nn.init.constant_, val=_BIAS)),
    "uniform": (partial(nn.init.uniform_, a=-_BOUND, b=_BOUND), partial(nn.init.uniform_, a=-_BOUND, b=_BOUND)),
    "he_uniform": (nn.init.kaiming_uniform_, nn.init.zeros_),
    "he_normal": (nn.init.kaiming_normal_, nn.init.zeros_),
    "glorot_uniform": (nn.init.xavier_uniform_, nn.init.zeros_),
    "glorot_normal": (nn.init.xavier_normal_, nn.init.zeros_),
}
INITIALISATIONS = ("pytorch", *_FILLS)


@torch.no_grad()
def initialise(model: nn.Module, name: str) -> nn.Module:
    """Draw the weights and biases of every convolution and dense layer anew, in place; return the model.

    ==================  =====  ==========================================  =====================
    name                [F]    weights                                     biases
    ==================  =====  ==========================================  =====================
    "pytorch"           PTD    U(-b, b), b = 1 / sqrt(fan_in)              U(-b, b)
    "normal"            CUST   N(0, 0.1^2)                                 0.1
    "uniform"           UNI    U(-0.1, 0.1)                                U(-0.1, 0.1)
    "he_uniform"        HU     U(-b, b), b = sqrt(6 / fan_in)              0
    "he_normal"         HN     N(0, 2 / fan_in)                            0
    "glorot_uniform"    GU     U(-b, b), b = sqrt(6 / (fan_in + fan_out))  0
    "glorot_normal"     GN     N(0, 2 / (fan_in + fan_out))                0
    ==================  =====  ==========================================  =====================

    [F] appendix A.3. Other layers, such as batch norm, stay as they are. Random numbers are torch's own: seed them
    with ``torch.manual_seed``.

    Raises:
        ValueError: there is no such initialisation.

    >>> from fastxai.models import MNISTCNN, initialise
    >>> float(initialise(MNISTCNN(), "uniform").linear1.weight.abs().max()) <= 0.1
    True
    """
    one_of(name, "name", INITIALISATIONS)
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if name == "pytorch":
            module.reset_parameters()
            continue
        weights, biases = _FILLS[name]
        weights(module.weight)
        if module.bias is not None:
            biases(module.bias)
    return model
