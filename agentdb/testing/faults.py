"""Fault injection: every place where the engine touches the disk is counted, and a chosen one fails.

Four kinds of places, each the real thing underneath: what SQLite writes, truncates and forces to the disk (a VFS over the
platform's own), our own fsyncs, every step that writes Lance data (failing before it is done, and after), and SQLite's commit
(before, and after). Not for use beside other work: while active, every SQLite connection opened through apsw is watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import apsw

from agentdb.errors import StorageError
from agentdb.storage import backup, cold, engine, files
from agentdb.storage.cold import Revision
from agentdb.storage.core import Core, WriteView
from agentdb.storage.indices import Segment

__all__ = ["Event", "FaultError", "Faults", "inject_faults"]

Kind = Literal["sqlite-write", "sqlite-truncate", "sqlite-sync", "fsync", "lance", "commit"]
Flavour = Literal["error", "full", "torn"]

_VFS_NAME = "agentdb-faults"
_STEPS = (
    "append",
    "delete",
    "add_columns",
    "index",
    "rebuild_indices",
    "merge_indices",
    "extend_indices",
    "put_index",
    "drop_index",
    "compact",
    "purge",
    "settle",
    "remove_versions",
)


class FaultError(StorageError):
    """What an injected failure of a Lance step raises: the class that callers get from the real one."""


@dataclass(frozen=True, slots=True)
class Event:
    """One place that was passed: ``what`` names the file or the step, ``after`` that the step was already done."""

    kind: Kind
    what: str
    after: bool = False


class Faults:
    """Counts the places passed since `arm` or `reset`, and makes one fail.

    Attributes:
        count: how many places were passed.
        sync: whether an fsync that succeeds is done at all.
        fired: the place that failed first, or None.
        events: every place passed, where `record` is set.
    """

    def __init__(self, *, sync: bool = True) -> None:
        self.sync = sync
        self._mutex = threading.Lock()
        self._at: int | None = None
        self._flavour: Flavour = "error"
        self._sticky = False
        self.count = 0
        self.fired: Event | None = None
        self.record = False
        self.events: list[Event] = []

    def arm(self, at: int, *, flavour: Flavour = "error", sticky: bool = False) -> None:
        """Let the ``at``-th place from now on fail, counted from 1; with ``sticky`` every later one too.

        Args:
            at: 1 or more.
            flavour: ``"error"``: the device fails. ``"full"``: it is full. ``"torn"``: the same, after half of the write.
            sticky: the device stays as it is until `disarm`.
        """
        with self._mutex:
            self._at, self._flavour, self._sticky = at, flavour, sticky
            self.count, self.fired = 0, None

    def disarm(self) -> None:
        """Let everything succeed from now on."""
        with self._mutex:
            self._at = None

    def reset(self) -> None:
        """Disarm, and forget what was counted and recorded."""
        with self._mutex:
            self._at, self.count, self.fired = None, 0, None
            self.events.clear()

    def passes(self, kind: Kind, what: str, *, after: bool = False) -> Flavour | None:
        """Count one place; return how it must fail, or None if it may go on."""
        event = Event(kind, what, after)
        with self._mutex:
            self.count += 1
            if self.record:
                self.events.append(event)
            if self._at is None or self.count < self._at or (self.count > self._at and not self._sticky):
                return None
            if self.fired is None:
                self.fired = event
            return self._flavour


@contextlib.contextmanager
def inject_faults(*, sync: bool = True) -> Iterator[Faults]:
    """Watch the engine for a block; databases must be opened inside it, and closed before its end.

    Args:
        sync: False: fsyncs are counted, but not done. Much faster, and the same to everything but a power failure.
    """
    faults = Faults(sync=sync)
    vfs = _FaultyVFS(faults)
    try:
        with contextlib.ExitStack() as stack:
            _watch_fsync(faults, stack)
            _watch_lance(faults, stack)
            _watch_commit(faults, stack)
            yield faults
    finally:
        vfs.unregister()


# --- SQLite -----------------------------------------------------------------------------------------------------------


class _FaultyVFS(apsw.VFS):
    """The platform's VFS, whose files count what is written."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._base = apsw.vfs_names()[0]  # the default so far
        super().__init__(_VFS_NAME, self._base, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _FaultyFile(self._base, self._faults, name, flags)


class _FaultyFile(apsw.VFSFile):
    def __init__(self, base: str, faults: Faults, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._faults = faults
        # Temporary files belong to one statement, not to the database.
        self._what = Path(path).name if path else None

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        flavour = self._passes("sqlite-write")
        if flavour == "torn":
            super().xWrite(data[: len(data) // 2], offset)
        self._fail(flavour, apsw.SQLITE_IOERR_WRITE)
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._fail(self._passes("sqlite-truncate"), apsw.SQLITE_IOERR_TRUNCATE)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._fail(self._passes("sqlite-sync"), apsw.SQLITE_IOERR_FSYNC)
        if self._faults.sync:
            super().xSync(flags)

    def _passes(self, kind: Kind) -> Flavour | None:
        return None if self._what is None else self._faults.passes(kind, self._what)

    @staticmethod
    def _fail(flavour: Flavour | None, code: int) -> None:
        if flavour == "error":
            raise _sqlite_error(code)
        if flavour is not None:
            raise apsw.FullError("injected")


def _sqlite_error(code: int) -> Exception:
    error: Any = apsw.IOError("injected")
    error.extendedresult = code  # what SQLite is told
    return error  # type: ignore[no-any-return]


# --- our own fsyncs ---------------------------------------------------------------------------------------------------


def _watch_fsync(faults: Faults, stack: contextlib.ExitStack) -> None:
    real = files.fsync_file

    def fsync_file(path: Path) -> None:
        flavour = faults.passes("fsync", str(path))
        if flavour is not None:
            number = errno.EIO if flavour == "error" else errno.ENOSPC
            raise OSError(number, os.strerror(number))
        if faults.sync:
            real(path)

    # `fsync_directory` goes through it, in every module that took the name.
    for module in (files, backup, cold, engine):
        if getattr(module, "fsync_file", None) is real:
            _replace(stack, module, "fsync_file", fsync_file)


# --- Lance ------------------------------------------------------------------------------------------------------------


def _watch_lance(faults: Faults, stack: contextlib.ExitStack) -> None:
    for step in _STEPS:
        _replace(stack, Revision, step, _watched_step(faults, step, getattr(Revision, step)))
    _replace(stack, Segment, "build", _watched_step(faults, "build", Segment.build))


def _watched_step(faults: Faults, step: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def watched(self: Any, *args: Any, **named: Any) -> Any:
        if faults.passes("lance", step) is not None:
            raise FaultError(f"injected before {step}")
        result = real(self, *args, **named)
        if faults.passes("lance", step, after=True) is not None:
            raise FaultError(f"injected after {step}")
        return result

    return watched


# --- commits ----------------------------------------------------------------------------------------------------------


def _watch_commit(faults: Faults, stack: contextlib.ExitStack) -> None:
    real = Core._commit

    def commit(self: Core, view: WriteView) -> None:
        if faults.passes("commit", "commit") is not None:
            raise apsw.IOError("injected before COMMIT")
        real(self, view)
        if faults.passes("commit", "commit", after=True) is not None:
            raise apsw.IOError("injected after COMMIT")

    _replace(stack, Core, "_commit", commit)


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
