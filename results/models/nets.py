"""[R]'s network as ``fastxai train`` left it with several settings; inputs normalised by ``MEAN`` and ``STD``."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from fastxai.models import CNN, DEMO_MEAN, DEMO_STD

MEAN, STD = DEMO_MEAN, DEMO_STD


def _load(name: str, beta: float | None) -> nn.Module:
    model = CNN(nn.ReLU if beta is None else lambda: nn.Softplus(beta))
    model.load_state_dict(load_file(Path(__file__).with_name(f"{name}.safetensors")))
    return model.eval()


def relu() -> nn.Module:
    """ReLU, weight decay 5e-4."""
    return _load("relu", None)


def beta10() -> nn.Module:
    """softplus with beta 10, weight decay 5e-4."""
    return _load("beta10", 10.0)


def robust() -> nn.Module:
    """softplus with beta 10, weight decay 5e-4, Hessian penalty 1e-6 on the batch's sum."""
    return _load("robust", 10.0)
