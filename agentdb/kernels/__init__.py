"""Exact similarity: one specification in numpy, and implementations that are held equal to it.

Importing this imports neither torch nor Triton; `choice` is the one table that says what runs where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentdb.kernels.choice import Choice, explain
    from agentdb.kernels.index import DeviceIndex, Neighbours, SearchCounts

__all__ = ["Choice", "DeviceIndex", "Neighbours", "SearchCounts", "explain"]

_HOME = {
    "Choice": "choice",
    "DeviceIndex": "index",
    "Neighbours": "index",
    "SearchCounts": "index",
    "explain": "choice",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"agentdb.kernels.{_HOME[name]}"), name)
