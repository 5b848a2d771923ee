"""From what a caller wants ingested to single documents: files found in folders, texts, bytes; and how a file is read.

A folder is walked in the order of names. Left out are hidden files and folders (a name that begins with a dot), what tools leave
behind (``__pycache__``, ``node_modules``, ``*.pyc``, ``*~``, ...), databases such as the one that documents go into and, unless they
are asked for, symbolic links. A file that is named itself is always taken.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from agentdb.errors import AccessDeniedError, InvalidInputError, NotFoundError
from agentdb.rag.records import Document, IngestFailure, is_storable
from agentdb.storage.hot import DATABASE_FILE

__all__ = ["Candidate", "Content", "Folder", "FolderRules", "Stamp", "UnreadableError", "candidates", "is_gone", "read"]

_RUBBISH_FOLDERS = frozenset({"__pycache__", "node_modules"})
_RUBBISH_FILES = ("*~", "*.pyc", "*.pyo", "*.swp", "*.tmp", "Thumbs.db", "desktop.ini")
_READ_ATTEMPTS = 3
_RACY_NS = 2_000_000_000
"""A file that changed less than this before it was read may change once more without a new time stamp: coarse clocks tick seldom."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """Return the stamp of a file."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)

    def is_that_of(self, row: Mapping[str, Any]) -> bool:
        """Whether a file is as it was when it was ingested, and cannot have changed unnoticed."""
        return (
            (self.size, self.mtime_ns, self.inode) == (row["size_bytes"], row["mtime_ns"], row["inode"])
            and row["read_at_ns"] is not None
            and self.mtime_ns + _RACY_NS < row["read_at_ns"]
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document that is to be stored.

    Attributes:
        id: made from what it is called, so that its next version has the same.
        source: what it is called; of a file its path.
        name: of a file its path below its root; what the source is called otherwise, None if it has no name.
        path: of a file.
        root: the folder that it was found in.
        stamp: of a file, when it was found.
        content: of what is no file.
    """

    id: str
    source: str
    name: str | None
    path: Path | None = None
    root: str | None = None
    stamp: Stamp | None = None
    content: Document | None = None

    def seen_from(self, root: str | None) -> Candidate:
        """Return a file as it is called from a folder that it was ingested from before, if that one lies further up.

        So a file of a folder stays what it is when it is ingested alone, or with a part of the folder.
        """
        if self.path is None or self.root is None or root is None or root == self.root:
            return self
        if Path(root) not in Path(self.root).parents:
            return self
        return replace(self, root=root, name=self.path.relative_to(root).as_posix())

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        if self.stamp is not None:
            return self.stamp.size
        return 0 if self.content is None else len(self.content.content)


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a document.

    Attributes:
        stamp: of the file that they were read from.
        read_at_ns: when reading began.
    """

    data: bytes
    hash: str
    stamp: Stamp | None
    read_at_ns: int


class UnreadableError(Exception):
    """A source cannot be read; ``failure`` says which and why."""

    def __init__(self, failure: IngestFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _unreadable(source: str, reason: str, message: str) -> UnreadableError:
    return UnreadableError(IngestFailure(source, reason, message))


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRules:
    """Which files of a folder are taken.

    Attributes:
        include: patterns such as ``"*.md"`` or ``"docs/*.txt"``, one of which a file's name, or its path below the root, must
            match; None: all.
        exclude: patterns of files and folders that are left out.
        follow_links: follow symbolic links; a folder is walked once, however many links lead to it.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    follow_links: bool = False

    @classmethod
    def of(cls, include: object, exclude: object, follow_links: object) -> FolderRules:
        """Return checked rules.

        Raises:
            InvalidInputError: one cannot be accepted.
        """
        if not isinstance(follow_links, bool):
            raise InvalidInputError(f"follow_links must be a bool, not {type(follow_links).__name__}")
        chosen = None if include is None else _patterns("include", include)
        return cls(include=chosen, exclude=_patterns("exclude", exclude), follow_links=follow_links)

    def takes_file(self, name: str, below: str) -> bool:
        """Whether a file is taken, by its name and its path below the root."""
        if name.startswith(".") or any(fnmatch(name, one) for one in _RUBBISH_FILES) or self._excludes(name, below):
            return False
        return self.include is None or any(fnmatch(name, one) or fnmatch(below, one) for one in self.include)

    def takes_folder(self, name: str, below: str) -> bool:
        """Whether a folder is walked."""
        return not name.startswith(".") and name not in _RUBBISH_FOLDERS and not self._excludes(name, below)

    def _excludes(self, name: str, below: str) -> bool:
        return any(fnmatch(name, one) or fnmatch(below, one) for one in self.exclude)


def _patterns(what: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Iterable):
        raise InvalidInputError(f"{what} must be a pattern or a list of patterns, not {type(given).__name__}")
    found = tuple(given)
    for one in found:
        if not isinstance(one, str):
            raise InvalidInputError(f"{what} must hold patterns (str), not {type(one).__name__}")
    return found


# --- what a caller gives ----------------------------------------------------------------------------------------------


def candidates(source: object, rules: FolderRules, folders: list[Folder]) -> Iterator[Candidate | IngestFailure]:
    """Yield the documents of whatever a caller gives, and what is wrong with some of them.

    Args:
        source: a path, a text, bytes, a `Document`, or an iterable of these and of pairs of a name and a text or bytes.
        rules: for folders.
        folders: those that were walked are appended.

    Raises:
        NotFoundError: the only source is a path that does not exist.
        AccessDeniedError: the only source is a folder that cannot be listed.
        InvalidInputError: it is none of these.
    """
    if isinstance(source, str | bytes | bytearray | memoryview | os.PathLike | Document):
        yield from _of_one(source, rules, folders)
        return
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InvalidInputError(
            f"source must be a path, a text, bytes, a Document or an iterable of these, not {type(source).__name__}"
        )
    for position, one in enumerate(source):
        try:
            yield from _of_one(one, rules, folders, f"source[{position}]")
        except (NotFoundError, AccessDeniedError) as error:
            yield IngestFailure(_shown(one), "unreadable", str(error))


def _of_one(
    given: Any, rules: FolderRules, folders: list[Folder], what: str = "source"
) -> Iterator[Candidate | IngestFailure]:
    if isinstance(given, str):
        path = path_of(given)
        if path is None:
            yield _of_data(Document(given))
            return
        given = path
    if isinstance(given, os.PathLike):
        yield from _of_path(Path(os.fsdecode(given)), rules, folders)
    elif isinstance(given, Document):
        yield _of_data(given)
    elif isinstance(given, bytes | bytearray | memoryview):
        yield _of_data(Document(bytes(given)))
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
        content = bytes(given[1]) if isinstance(given[1], bytearray | memoryview) else given[1]
        try:
            yield _of_data(Document(content, source=given[0]))
        except InvalidInputError as error:
            raise InvalidInputError(f"{what}: {error}") from None
    else:
        raise InvalidInputError(
            f"{what} must be a path, a text, bytes, a Document or a pair of a name and a text or bytes, "
            f"not {type(given).__name__}"
        )


def path_of(given: str) -> Path | None:
    """Return the path that a string is; None: it is a text.

    Raises:
        NotFoundError: it looks like a path, and nothing is there.
    """
    if not given or "\0" in given or "\n" in given or len(given) > 4_096:
        return None
    try:
        is_there = os.path.lexists(given)
    except (OSError, ValueError):
        return None
    if is_there:
        return Path(given)
    if not any(one.isspace() for one in given) and (os.sep in given or Path(given).suffix):
        raise NotFoundError(
            f"there is no file or folder {_shown(given)}; give a text that looks like a path as a Document"
        )
    return None


def _of_data(given: Document) -> Candidate:
    if given.source is not None:
        return Candidate(_id("name", given.source.encode()), given.source, given.source, content=given)
    content = given.content
    # A text without a name is what it says: another one does not take its place.
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    source = f"{'text' if isinstance(content, str) else 'bytes'}:{sha256(raw).hexdigest()[:16]}"
    return Candidate(_id("name", source.encode()), source, None, content=given)


def _id(kind: str, name: bytes) -> str:
    return blake2b(kind.encode() + b"\0" + name, digest_size=12).hexdigest()


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was walked."""

    root: str

    def holds(self, path: str) -> bool:
        """Whether a path lies in it."""
        return path.startswith(self.root if self.root.endswith(os.sep) else self.root + os.sep)


def _of_path(path: Path, rules: FolderRules, folders: list[Folder]) -> Iterator[Candidate | IngestFailure]:
    try:
        # The folder by its real name, so that the same folder is the same root however it was reached.
        real = Path(os.path.realpath(path, strict=True))
        found = real.stat()
    except ValueError:
        raise NotFoundError(f"no file or folder can be called {str(path)!r}") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFoundError(f"there is no file or folder {_shown(path)}") from None
        raise AccessDeniedError(f"{_shown(path)} cannot be read: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        yield _of_file(real, real.parent, found)
        return
    try:
        with os.scandir(real):
            pass
    except OSError as error:
        raise AccessDeniedError(f"the folder {_shown(path)} cannot be listed: {error.strerror}") from None
    if is_storable(str(real)):
        folders.append(Folder(str(real)))
    yield from _walk(real, rules)


def _walk(root: Path, rules: FolderRules) -> Iterator[Candidate | IngestFailure]:
    """Yield the files of a folder in the order of their names, those of a folder before those of the folders in it."""
    top = root.stat()
    walked = {(top.st_dev, top.st_ino)}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda one: one.name)
        except OSError as error:
            yield IngestFailure(_shown(folder), "unreadable", f"the folder cannot be listed: {error.strerror}")
            continue
        if any(entry.name == DATABASE_FILE for entry in entries):
            continue
        deeper = []
        for entry in entries:
            if entry.is_symlink() and not rules.follow_links:
                continue
            below = os.path.relpath(entry.path, root)
            try:
                found = entry.stat()
                if stat.S_ISDIR(found.st_mode):
                    if rules.takes_folder(entry.name, below) and (found.st_dev, found.st_ino) not in walked:
                        walked.add((found.st_dev, found.st_ino))
                        deeper.append(Path(entry.path))
                elif stat.S_ISREG(found.st_mode) and rules.takes_file(entry.name, below):
                    yield _of_file(Path(entry.path), root, found)
            except OSError as error:
                # Gone since the folder was listed, or a link that leads nowhere or to itself.
                if rules.takes_file(entry.name, below):
                    yield IngestFailure(_shown(entry.path), "unreadable", f"it cannot be read: {error.strerror}")
        waiting.extend(reversed(deeper))


def _of_file(path: Path, root: Path, found: os.stat_result) -> Candidate | IngestFailure:
    if not is_storable(str(path)):
        return IngestFailure(_shown(path), "name", "the name of the file is not UTF-8")
    if not stat.S_ISREG(found.st_mode):
        return IngestFailure(str(path), "unreadable", "it is no regular file")
    return Candidate(
        id=_id("file", os.fsencode(path)),
        source=str(path),
        name=path.relative_to(root).as_posix(),
        path=path,
        root=str(root),
        stamp=Stamp.of(found),
    )


def _shown(path: Path | str) -> str:
    """Return a path as a report can hold it, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_gone(path: str) -> bool:
    """Whether there is certainly no file of that path any more."""
    try:
        return not stat.S_ISREG(Path(path).stat().st_mode)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    except ValueError:
        return True


def read(candidate: Candidate, max_bytes: int) -> Content:
    """Return the content of a document; of a file as it was at one moment.

    Raises:
        UnreadableError: it is gone, too large, cannot be read, or changes all the time.
    """
    if candidate.content is not None:
        content = candidate.content.content
        try:
            data = content.encode() if isinstance(content, str) else content
        except UnicodeEncodeError:
            raise _unreadable(
                candidate.source, "broken", "the text holds a lone surrogate, which UTF-8 cannot store"
            ) from None
        _require_size(candidate, len(data), max_bytes)
        return Content(data, sha256(data).hexdigest(), None, 0)
    assert candidate.path is not None
    for attempt in range(_READ_ATTEMPTS):
        if attempt:
            time.sleep(0.02 * attempt)
        now = time.time_ns()
        try:
            # Without waiting: what became a pipe since it was found has nobody at its other end.
            with os.fdopen(os.open(candidate.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise _unreadable(candidate.source, "unreadable", "it is no regular file")
                _require_size(candidate, before.st_size, max_bytes)
                # One byte more than there should be: a file that grows is not read to an end that never comes.
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
            named = candidate.path.stat()
        except OSError as error:
            raise _unreadable(candidate.source, "unreadable", f"it cannot be read: {error.strerror}") from None
        stamp = Stamp.of(before)
        if len(data) == before.st_size and stamp == Stamp.of(after) == Stamp.of(named):
            return Content(data, sha256(data).hexdigest(), stamp, now)
    raise _unreadable(candidate.source, "changing", "it changed each time while it was read")


def _require_size(candidate: Candidate, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        message = f"it has {size:,} bytes, more than the {max_bytes:,} of ParseLimits.max_bytes"
        raise _unreadable(candidate.source, "too_large", message)
