"""One table that says which implementation runs where, and why.

Nothing here imports torch or Triton before it is asked which of them works.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from agentdb.errors import MissingDependencyError

__all__ = ["OPERATIONS", "Backend", "Choice", "choose", "explain", "require_torch", "triton_ops"]

Backend = Literal["torch", "triton"]

OPERATIONS: dict[str, tuple[Backend, ...]] = {
    # In the order of preference; what comes later is the fallback.
    "exact_scores": ("triton", "torch"),
    "finish": ("triton", "torch"),
    "group_max": ("triton", "torch"),
    "maxsim": ("triton", "torch"),
    "mmr": ("triton", "torch"),
    "near_pairs": ("triton", "torch"),
    "nearest": ("torch",),
    "prepare_queries": ("triton", "torch"),
    "rescore_groups": ("triton", "torch"),
    "segment_scores": ("triton", "torch"),
    "top": ("triton", "torch"),
}
"""Every operation and its implementations."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which implementation of an operation runs on a device, and the reason."""

    operation: str
    device: str
    backend: Backend
    reason: str


def require_torch() -> Any:
    """Return the module torch.

    Raises:
        MissingDependencyError: torch is not installed; names the extra.
    """
    try:
        return import_module("torch")
    except ImportError as error:
        raise MissingDependencyError(f"torch cannot be imported: install 'agentdb-lance[local]' ({error})") from error


@cache
def _triton() -> tuple[ModuleType | None, str]:
    try:
        module = import_module("agentdb.kernels.triton_ops")
    except Exception as error:  # a broken compiler may raise anything; `explain` shows it
        return None, f"{type(error).__name__}: {error}"
    return module, ""


def triton_ops() -> ModuleType:
    """Return the module of Triton launchers; only called where `choose` answered "triton"."""
    module, why = _triton()
    if module is None:
        raise MissingDependencyError(f"Triton cannot be imported: {why}")
    return module


def choose(operation: str, device: Any, *, prefer: Backend | None = None) -> Choice:
    """Return which implementation runs on a torch device.

    Args:
        operation: a key of `OPERATIONS`.
        device: a ``torch.device`` or its name.
        prefer: what the caller insists on; an implementation that cannot run is not taken, and the reason says so.
    """
    name = str(device)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if "triton" not in OPERATIONS[operation]:
        return Choice(operation, name, "torch", "there is no other implementation")
    if prefer == "torch":
        return Choice(operation, name, "torch", "the caller asked for torch")
    if not name.startswith("cuda") and not is_interpreted:
        return Choice(operation, name, "torch", f"Triton needs a CUDA device, and this is {name}")
    module, why = _triton()
    if module is None:
        return Choice(operation, name, "torch", f"Triton cannot be imported ({why})")
    reason = "in Triton's interpreter (TRITON_INTERPRET=1)" if is_interpreted else "a CUDA device and Triton"
    return Choice(operation, name, "triton", reason)


def explain(device: Any, *, prefer: Backend | None = None) -> dict[str, Choice]:
    """Return which implementation of every operation runs on a device, and why."""
    return {operation: choose(operation, device, prefer=prefer) for operation in sorted(OPERATIONS)}
