"""Results of studies: one JSON file a row."""

from fastxai.results.store import ResultStore as ResultStore
from fastxai.results.store import Row as Row
from fastxai.results.store import digest as digest

__all__ = ["ResultStore", "Row", "digest"]
