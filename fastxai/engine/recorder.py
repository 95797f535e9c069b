"""Recorders: how a device runs a function, writes down its work, and does that work again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Ran", "Recorder", "Recording"]


class Ran(RuntimeError):
    """A call that could not be recorded, and what it returned."""

    def __init__(self, reason: str, result: Any) -> None:
        super().__init__(reason)
        self.result = result


class Recording(ABC):
    """One recorded call.

    Attributes:
        outputs: what the function returned; every replay fills these tensors anew.
        pool: the memory of the recorded call, which others on the same device may share.
    """

    def __init__(self, outputs: Any, pool: Any) -> None:
        self.outputs, self.pool = outputs, pool

    @abstractmethod
    def replay(self) -> None:
        """Run the recorded work again."""


class Recorder(ABC):
    """How functions of no arguments are run and recorded on a device.

    Attributes:
        busy: it runs or records one now; what that calls in its turn is a part of it.
        trains: steps of training are worth recording.
        runs: a call that is recorded runs as well, and its errors are its own.
    """

    busy: bool = False
    trains: bool = True
    runs: bool = False

    @abstractmethod
    def serves(self, device: torch.device) -> bool:
        """Return whether calls on this device can be recorded now."""

    @abstractmethod
    def run(self, function: Callable[[], Any], device: torch.device, *, watch: bool) -> tuple[Any, str]:
        """Return (what the function returns, where it waited for the device: "" if it did not or was not watched)."""

    @abstractmethod
    def record(self, function: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        """Record one call; RuntimeError says why it cannot be, ``Ran`` among them that it is done all the same."""

    @abstractmethod
    def follow(self, device: torch.device) -> None:
        """Order what comes next on the current stream after the last replay, which uses the same memory."""
