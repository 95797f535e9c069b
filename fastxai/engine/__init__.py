"""The engine: trace a model, build its graph, sweep jets through it."""

from fastxai.engine.compile import compile
from fastxai.engine.net import Net, Report

__all__ = ["Net", "Report", "compile"]
