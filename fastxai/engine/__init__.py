"""The engine: trace a model, build its graph, sweep jets through it."""

from fastxai.engine.net import Net, Report, compile

__all__ = ["Net", "Report", "compile"]
