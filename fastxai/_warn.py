"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["warn"]


def warn(message: str) -> None:
    """Issue a UserWarning at the first line outside fastxai and torch that led here."""
    # At which depth that is differs by way: through an explainer, an attack, autograd.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _inside(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("fastxai", "torch")
