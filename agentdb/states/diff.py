"""What changed between two values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agentdb.storage.values import encode_value

__all__ = ["Change", "diff_values"]

_MAX_DIFF_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. Applied in order, the changes of a diff turn the old value into the new one.

    Attributes:
        path: keys and list positions that lead to the place; ``()`` is the whole value.
        op: ``"add"``: ``new`` is set or inserted there; ``"remove"``: ``old`` is taken away; ``"replace"``.
    """

    path: tuple[Any, ...]
    op: Literal["add", "remove", "replace"]
    old: Any = None
    new: Any = None


def diff_values(old: Any, new: Any, path: tuple[Any, ...], changes: list[Change]) -> None:
    """Append the changes that turn ``old`` into ``new``; see `AgentStates.diff`."""
    if type(old) is type(new) and len(path) < _MAX_DIFF_DEPTH:
        if type(old) is dict:
            changes.extend(Change((*path, key), "remove", old=old[key]) for key in old if key not in new)
            for key, value in new.items():
                if key in old:
                    diff_values(old[key], value, (*path, key), changes)
                else:
                    changes.append(Change((*path, key), "add", new=value))
            return
        if type(old) is list:
            _diff_lists(old, new, path, changes)
            return
    if type(old) is not type(new) or encode_value(old) != encode_value(new):
        changes.append(Change(path, "replace", old=old, new=new))


def _diff_lists(old: list[Any], new: list[Any], path: tuple[Any, ...], changes: list[Change]) -> None:
    a = [encode_value(item) for item in old]
    b = [encode_value(item) for item in new]
    shorter = min(len(a), len(b))
    head = 0
    while head < shorter and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < shorter - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    both = shorter - head - tail
    for i in range(head, head + both):
        if a[i] != b[i]:
            diff_values(old[i], new[i], (*path, i), changes)
    # Positions are those at the time when a change is applied: from the end when removing, upwards when adding.
    changes.extend(Change((*path, i), "remove", old=old[i]) for i in range(len(a) - tail - 1, head + both - 1, -1))
    changes.extend(Change((*path, i), "add", new=new[i]) for i in range(head + both, len(b) - tail))
