"""What reaches the disk, and when: every fsync, digest and durable copy of the project goes through here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from agentdb.errors import StorageError

__all__ = ["copy_durably", "digest", "fsync_directory", "fsync_file", "make_durable"]

_CHUNK_BYTES = 4 << 20
_THREADS = 4


def fsync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Force a directory's names to the disk."""
    fsync_file(path)


def digest(path: Path) -> str:
    """Return the XXH3-128 digest of a file as 32 hex digits: it finds corruption, it is no proof against malice."""
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(os.fstat(file.fileno()).st_size, 1))))
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def make_durable(root: Path, files: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Force new files below ``root``, and every directory that names them up to ``root``'s parent, to the disk.

    Returns:
        path -> (size in bytes, digest) of each file.

    Raises:
        StorageError: an fsync failed. What was written must be taken as lost: the kernel may have dropped it.
    """
    names = list(files)

    try:
        sizes = [(root / name).stat().st_size for name in names]
        if sum(sizes) < _CHUNK_BYTES:
            digests = [digest(root / name) for name in names]
            for name in names:
                fsync_file(root / name)
        else:
            # The disk writes while the processor reads.
            with ThreadPoolExecutor(_THREADS) as pool:
                reading = [pool.submit(digest, root / name) for name in names]
                for done in [pool.submit(fsync_file, root / name) for name in names]:
                    done.result()
                digests = [one.result() for one in reading]
        directories = {root.parent, root}
        for name in names:
            path = (root / name).parent
            while path not in directories:
                directories.add(path)
                path = path.parent
        for directory in sorted(directories, key=lambda one: len(one.parts), reverse=True):
            fsync_directory(directory)
    except OSError as error:
        raise StorageError(f"cannot force files to the disk: {error.strerror}") from error
    return dict(zip(names, zip(sizes, digests, strict=True), strict=True))


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file so that it survives power loss; its directory's name for it is the caller's to force."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    fsync_file(target)
