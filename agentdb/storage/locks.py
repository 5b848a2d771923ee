"""Locks between processes, pins of readers, and what happens to both after a fork.

All are *blocking* ``flock`` on small files of their own: the kernel queues the waiters, where SQLite's busy polling can
starve one for seconds. The files are never the database's: closing any descriptor of a SQLite file drops SQLite's own locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from agentdb.errors import StorageError, UnavailableError

__all__ = ["FileLock", "LockedError", "Pins", "close_after_fork", "fork_generation", "refuse_network_file_system"]


class _Holder(Protocol):
    def abandon(self) -> None: ...


_open_descriptors: weakref.WeakSet[_Holder] = weakref.WeakSet()
_generation = 0


def fork_generation() -> int:
    """Return how many forks lie between this process and the one that imported this module."""
    return _generation


def close_after_fork(holder: _Holder) -> None:
    """Have ``holder.abandon()`` called in every forked child, as long as the holder lives."""
    _open_descriptors.add(holder)


def _after_fork_in_child() -> None:
    """Close inherited lock descriptors: a child that keeps one keeps its dead parent's lock."""
    global _generation  # noqa: PLW0603 - a fork is an event of the process
    _generation += 1
    for holder in list(_open_descriptors):
        holder.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LockedError(StorageError):
    """A lock was not free in time; always retryable."""


class FileLock:
    """An exclusive lock that excludes other threads and other processes, fair among both as far as the kernel is.

    Waiting blocks in the kernel, on a helper thread only when the lock is not free at once, so that a waiter can time out:
    the helper then gives the lock back when it gets it.

    An interrupt (``KeyboardInterrupt``) may come between any two steps, even between the end of `acquire` and the next line of
    its caller. So the lock knows its owner, and whoever is interrupted can say `withdraw` without knowing how far it came.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = threading.Lock()  # for a few lines only, and only by `with`, which no interrupt splits
        self._owner: object | None = None  # one of this process at a time
        self._turns: deque[tuple[object, threading.Lock]] = deque()
        self._descriptor = -1
        self._waiter: _Waiter | None = None
        _open_descriptors.add(self)

    def _open(self) -> int:
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StorageError(f"cannot open lock file {self._path.name}: {error.strerror}") from error
        return self._descriptor

    def acquire(self, timeout_s: float, owner: object) -> bool:
        """Take the lock for an owner; False when it could not be had in time.

        Raises:
            StorageError: the lock file cannot be opened or locked.
        """
        deadline = time.monotonic() + timeout_s
        try:
            if self._take_turn(deadline, owner) and self._take_file_lock(deadline):
                return True
        except BaseException:
            self.withdraw(owner)
            raise
        self.withdraw(owner)
        return False

    def _take_turn(self, deadline: float, owner: object) -> bool:
        """Become the one of this process that may wait for the file lock."""
        with self._gate:
            if self._owner is None:
                self._owner = owner
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            signal = threading.Lock()
            signal.acquire()
            self._turns.append((owner, signal))
        signal.acquire(timeout=left)
        return self._owner is owner

    def owned_by(self, owner: object) -> bool:
        """Whether this owner has the lock."""
        return self._owner is owner

    def _take_file_lock(self, deadline: float) -> bool:
        if self._waiter is not None:
            # An earlier waiter timed out; its thread may still be queued, or may hold the lock by now.
            return self._await(self._waiter, deadline)
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(f"cannot lock {self._path.name}: {error.strerror}") from error
        if deadline <= time.monotonic():
            return False
        self._waiter = _Waiter(descriptor, f"agentdb-lock-{self._path.name}")
        return self._await(self._waiter, deadline)

    def _await(self, waiter: _Waiter, deadline: float) -> bool:
        taken = waiter.claim(deadline)
        if taken or waiter.finished:
            self._waiter = None
        if not taken and waiter.error is not None:
            raise StorageError(f"cannot lock {self._path.name}: {waiter.error.strerror}") from waiter.error
        if not taken and waiter.finished:
            return self._take_file_lock(deadline)
        return taken

    def withdraw(self, owner: object) -> None:
        """Give the lock back, or stop waiting for it; nothing if neither is the case. Any thread may."""
        with self._gate:
            if self._owner is not owner:
                for turn in self._turns:
                    if turn[0] is owner:
                        self._turns.remove(turn)
                        return
                return
            # While a waiter has yet to say whether the lock came, it is the waiter's to give back: given back here, it would be
            # missing to the next one of this process, who believes the waiter.
            if self._descriptor >= 0 and (self._waiter is None or self._waiter.disown()):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            while self._turns and self._turns[0][0] is owner:
                self._turns.popleft()  # Its own, left by whoever was interrupted while handing over to it.
            if self._turns:
                self._owner, signal = self._turns[0]
                signal.release()
                self._turns.popleft()
            else:
                self._owner = None

    @contextlib.contextmanager
    def held(self, timeout_s: float, what: str) -> Iterator[None]:
        """Hold the lock for a block.

        Raises:
            LockedError: it could not be had in time.
        """
        owner = object()
        try:
            if not self.acquire(timeout_s, owner):
                raise LockedError(f"{what} is locked by another writer; waited {timeout_s:g} s", retryable=True)
            yield
            self.withdraw(owner)
        except BaseException:
            self.withdraw(owner)
            raise

    def close(self) -> None:
        """Close the descriptor; a held lock is released by that."""
        descriptor, self._descriptor = self._descriptor, -1
        # A helper thread still blocked on the descriptor keeps it: closing under it would let the number be reused.
        if descriptor >= 0 and (self._waiter is None or self._waiter.finished):
            os.close(descriptor)

    def abandon(self) -> None:
        """Close the descriptor in a forked child, where no helper thread runs."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class _Waiter:
    """One blocking ``flock`` on a thread. If nobody claims the lock in time, it is given back at once when it comes."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._gate = threading.Lock()
        self._came = threading.Lock()
        self._came.acquire()
        self._wanted = True
        self._granted = False
        self.finished = False
        self.error: OSError | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self.error = error
        with self._gate:
            if self.error is None and self._wanted:
                self._granted = True
            elif self.error is None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.finished = True
        self._came.release()

    def disown(self) -> bool:
        """Have the lock given back when it comes; whether it has come already, so that it is the caller's to give back."""
        with self._gate:
            self._wanted = self._granted = False
            return self.finished

    def claim(self, deadline: float) -> bool:
        """Wait for the lock; called by one owner of a turn at a time."""
        try:
            with self._gate:
                self._wanted = True
                finished = self.finished
            if not finished:
                self._came.acquire(timeout=max(deadline - time.monotonic(), 0))
            with self._gate:
                # Timed out: if it comes now, it is given back.
                self._wanted = False
                granted, self._granted = self._granted, False
        except BaseException:
            with self._gate:
                # Interrupted: what came already goes with the turn.
                self._wanted = self._granted = False
            raise
        return granted


_PIN = struct.Struct("<Q")
_NONE = (1 << 64) - 1


class Pins:
    """What the readers of this process may still need, published for every cleaner.

    A pin file holds one number, the *floor*: no snapshot of this process is older than that commit. A snapshot registers
    with the newest commit that the process knows *before* it reads the catalogue, so its floor can only be too low. The file
    is held under ``flock``; a file whose lock is free belonged to a process that died.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._path = directory / f"{name}.pin"
        self._mutex = threading.Lock()
        self._active: dict[int, int] = {}
        self._idle: set[int] = set()
        self._next = 0
        self._known = 0
        self._published = 0
        temporary = directory / f"{name}.new"
        try:
            self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.write(self._descriptor, _PIN.pack(0))
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._map = mmap.mmap(self._descriptor, _PIN.size)
            # Locked before it has its final name, so that no cleaner takes it for a dead one.
            temporary.rename(self._path)
        except OSError as error:
            raise StorageError(f"cannot publish a pin: {error.strerror}") from error
        _open_descriptors.add(self)

    def register(self) -> int:
        """Pin everything from the newest known commit on; return a token for `release`. Call before the snapshot."""
        with self._mutex:
            self._next += 1
            self._active[self._next] = self._known
            return self._next

    def again(self, token: int | None) -> int:
        """Pin for an iterator what a pin that is still held pins (None: as `register` does); `busy` ignores it."""
        with self._mutex:
            self._next += 1
            self._active[self._next] = self._known if token is None else self._active[token]
            self._idle.add(self._next)
            return self._next

    def release(self, token: int) -> None:
        """End a pin."""
        with self._mutex:
            self._active.pop(token, None)
            self._idle.discard(token)
            if not self._active:
                self._publish()

    def active(self) -> bool:
        """Whether a reader of this process is pinned."""
        return bool(self._active)

    def busy(self) -> bool:
        """Whether a call that reads is on its way; an iterator that nobody may ever finish is none."""
        return len(self._active) > len(self._idle)

    def learn(self, commit: int) -> None:
        """Remember that ``commit`` exists, so that later snapshots pin no more than they need."""
        if commit > self._known:
            with self._mutex:
                self._known = max(self._known, commit)

    def publish(self) -> None:
        """Raise the published floor to the oldest active pin, or to the newest known commit if there is none."""
        with self._mutex:
            self._publish()

    def _publish(self) -> None:
        floor = min(self._active.values(), default=self._known)
        # In a forked child the map is the parent's, and the descriptor is gone.
        if floor != self._published and self._descriptor >= 0:
            self._published = floor
            _PIN.pack_into(self._map, 0, floor)

    def floor(self) -> int:
        """Return the oldest commit that any living process may still read; dead processes' pins are removed.

        Read the catalogue first: whoever pins after that reads that state or a newer one.
        """
        self.publish()
        floor = self._published
        for path in self._directory.iterdir():
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError):
                value = _read_pin(path)
                if value is not None:
                    floor = min(floor, value)
        return floor

    def close(self) -> None:
        """Remove this process's pin."""
        with self._mutex:
            if self._descriptor < 0:
                return
            self._path.unlink(missing_ok=True)
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def abandon(self) -> None:
        """Close the descriptor in a forked child; the pin is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._map.close()  # It has a duplicate of the descriptor, which keeps the lock as well.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _read_pin(path: Path) -> int | None:
    """Return a living process's floor; None for a dead one's, which is removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            data = os.pread(descriptor, _PIN.size, 0)
            return int(_PIN.unpack(data)[0]) if len(data) == _PIN.size else 0
        if path.suffix == ".pin" or time.time() - os.fstat(descriptor).st_mtime > 60:
            path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "ceph", "glusterfs"}
)


def refuse_network_file_system(path: Path, mounts: Callable[[], str] | None = None) -> None:
    """Refuse a directory whose file system does not keep locks and shared memory between machines.

    Raises:
        UnavailableError: the path lies on a network file system.
    """
    try:
        text = mounts() if mounts is not None else Path("/proc/self/mounts").read_text()
    except OSError:
        return  # No such list on this system: the caller's documentation names what is supported.
    best, kind = "", ""
    resolved = str(path.resolve())
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise UnavailableError(
            f"{path} lies on a network file system ({kind}), whose locks and shared memory several machines cannot rely on; "
            "use a local disk"
        )
