"""Files that may take far more memory than they have bytes, read by a process of their own that may not.

A PDF of fifty kilobytes can make its reader take gigabytes, or crash. Such files go to a worker process whose memory is
limited and that is killed when its time is over; what it does to itself is a `DocumentError` here. Workers are started when
they are needed, are used again, and end when the process that started them is gone, at the latest after the time of a document.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import msgpack

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing import detect
from agentdb.rag.parsing.archives import declared_bytes
from agentdb.rag.parsing.model import Block, DocumentError, EmbeddedImage, ParsedDocument, ParseLimits

__all__ = ["can_isolate", "needs_isolation", "parse_isolated", "serve"]

Reader = Callable[[bytes, str, ParseLimits], ParsedDocument]

_LARGE_MARKUP = 4 << 20
_LARGE_ARCHIVE = 16 << 20
_MOST_DOCUMENTS = 100
"""A worker ends after so many: what libraries lose in memory is gone with it."""
_GRACE_S = 2.0
_LENGTH = struct.Struct(">Q")
# The package above the parsers imports the whole database, which a worker has no use for.
_BOOT = """
import json, os, sys, types
sys.path[:] = json.loads(sys.argv[1])
import agentdb
rag = types.ModuleType("agentdb.rag")
rag.__path__ = [os.path.join(os.path.dirname(agentdb.__file__), "rag")]
sys.modules["agentdb.rag"] = rag
from agentdb.rag.parsing.isolated import serve
from agentdb.rag.parsing.parse import read_here
serve(read_here)
"""


def _import_paths() -> list[str]:
    """Return where modules are found from; what lies below a working directory that is gone is left out."""
    try:
        return [str(Path(path).absolute()) for path in sys.path]
    except FileNotFoundError:
        return [path for path in sys.path if Path(path).is_absolute()]


def can_isolate() -> bool:
    """Return whether a worker can be started: in a program that is frozen into one file there is no interpreter."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def needs_isolation(media_type: str, data: bytes) -> bool:
    """Return whether reading a file may take much more memory than it has bytes."""
    if media_type == "application/pdf":
        return True
    if media_type == "text/html":
        return len(data) > _LARGE_MARKUP
    if media_type in (detect.DOCX, detect.PPTX, detect.XLSX, detect.EPUB):
        return declared_bytes(data) > _LARGE_ARCHIVE
    return False


def parse_isolated(data: bytes, media_type: str, limits: ParseLimits) -> ParsedDocument:
    """Return what a worker reads.

    Raises:
        DocumentError: it cannot be read, or the worker came to its end over it.
        MissingDependencyError: a library is not installed.
    """
    worker = _POOL.take(limits)
    try:
        answer = worker.ask(data, media_type, limits)
    except BaseException:
        worker.end()
        raise
    _POOL.give_back(worker)
    if "error" in answer:
        if answer["reason"] == "missing":
            raise MissingDependencyError(answer["error"])
        raise DocumentError(answer["error"], reason=answer["reason"])
    return _unpacked(answer)


class _Worker:
    """One process that reads a document at a time."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.served = 0
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _BOOT,
                json.dumps(_import_paths()),
                str(memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.sep,  # the caller's may be gone, or be unmounted while the worker waits
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes, media_type: str, limits: ParseLimits) -> Mapping[str, Any]:
        """Return the answer.

        Raises:
            DocumentError: there is none, because the worker died or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.served += 1
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(limits.timeout_s + _GRACE_S, kill)
        timer.daemon = True
        timer.start()
        try:
            asked = {"media_type": media_type, "limits": asdict(limits), "seconds": limits.timeout_s + 2 * _GRACE_S + 1}
            _send(self._process.stdin, asked, data)
            found = _receive(self._process.stdout)
        except OSError:
            found = None
        finally:
            timer.cancel()
            timer.join()
        if is_late.is_set():
            raise DocumentError(f"the document was not read within {limits.timeout_s:g} s", reason="too_slow")
        if found is None:
            raise DocumentError(
                f"reading the document took more than {limits.max_memory_bytes} bytes of memory "
                "(ParseLimits.max_memory_bytes), or crashed its reader",
                reason="unsafe",
            )
        return found[0]

    def end(self) -> None:
        """End the process and wait until it is gone."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                # What is left in the buffer has no reader any more.
                continue
        self._process.wait()


class _Pool:
    """Workers that wait for the next document."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._foreign: list[_Worker] = []

    def take(self, limits: ParseLimits) -> _Worker:
        """Return a worker that lives, with the memory that the limits allow."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _Worker(limits.max_memory_bytes)
            if worker.is_alive and worker.memory_bytes == limits.max_memory_bytes:
                return worker
            worker.end()

    def give_back(self, worker: _Worker) -> None:
        """Keep a worker for the next document, or end it."""
        with self._lock:
            if worker.served < _MOST_DOCUMENTS and len(self._idle) < (os.cpu_count() or 1):
                self._idle.append(worker)
                return
        worker.end()

    def end(self) -> None:
        """End all that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def begin_anew(self) -> None:
        """Forget all workers, in a process that was forked: they answer to its parent."""
        # Another thread may have held the lock. The workers are not let go of, which would wait for them.
        self._lock = threading.Lock()
        self._foreign += self._idle
        self._idle = []


_POOL = _Pool()
atexit.register(_POOL.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.begin_anew)


# --- what goes through the pipes: the length of a header, the header, the length of the data, the data


def _send(pipe: IO[bytes], header: Mapping[str, Any], data: bytes = b"") -> None:
    packed = msgpack.packb(header)
    pipe.write(_LENGTH.pack(len(packed)) + packed + _LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Return a header and its data, or None at the end of the pipe."""
    parts: list[bytes] = []
    for _ in range(2):
        length = pipe.read(_LENGTH.size)
        if len(length) < _LENGTH.size:
            return None
        (wanted,) = _LENGTH.unpack(length)
        parts.append(pipe.read(wanted))
        if len(parts[-1]) < wanted:
            return None
    return msgpack.unpackb(parts[0], strict_map_key=False), parts[1]


def _packed(document: ParsedDocument) -> dict[str, Any]:
    return {
        "text": document.text,
        "media_type": document.media_type,
        "title": document.title,
        "blocks": [(one.kind, one.start, one.end, one.level, one.page, one.language) for one in document.blocks],
        "images": [(one.data, one.media_type, one.caption, one.page, one.at) for one in document.images],
        "metadata": dict(document.metadata),
        "warnings": document.warnings,
    }


def _unpacked(found: Mapping[str, Any]) -> ParsedDocument:
    return ParsedDocument(
        found["text"],
        found["media_type"],
        found["title"],
        tuple(Block(*one) for one in found["blocks"]),
        tuple(EmbeddedImage(*one) for one in found["images"]),
        found["metadata"],
        tuple(found["warnings"]),
    )


# --- the worker


def serve(read: Reader) -> None:
    """Read documents from the standard input until it ends. The body of a worker."""
    source = sys.stdin.buffer
    target = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not come between the answers.
    os.dup2(2, 1)
    _limit_memory(int(sys.argv[2]))
    while (found := _receive(source)) is not None:
        header, data = found
        limits = ParseLimits(**header["limits"])
        # Whoever asked kills a worker that is too slow, but may be gone by then.
        _end_after(header["seconds"])
        answer = _answer(read, data, header["media_type"], limits)
        _end_after(0)
        del found, data
        try:
            _send(target, answer)
        except BrokenPipeError:
            return


def _end_after(seconds: float) -> None:
    """Let the system end this process after so long, whatever it does then; 0: not any more."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8))


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:
        # Windows: a worker still keeps a crash to itself.
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(read: Reader, data: bytes, media_type: str, limits: ParseLimits) -> dict[str, Any]:
    try:
        # The file's size was looked at before it came here.
        return _packed(read(data, media_type, replace(limits, max_bytes=max(1, len(data)))))
    except DocumentError as error:
        return {"error": str(error), "reason": error.reason}
    except MissingDependencyError as error:
        return {"error": str(error), "reason": "missing"}
