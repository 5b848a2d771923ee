"""Backup of a live database, and its restoration."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw

from agentdb.errors import FormatError, InvalidInputError, StorageError
from agentdb.storage.cold import COLD_DIRECTORY, ColdStore
from agentdb.storage.core import LOCK_DIRECTORY, PIN_DIRECTORY, Core
from agentdb.storage.files import copy_durably, digest, fsync_directory, fsync_file
from agentdb.storage.hot import DATABASE_FILE, HotStore, storage_errors
from agentdb.types import OnProgress, Progress

__all__ = ["back_up", "restore_backup"]


def back_up(core: Core, target: Path, on_progress: OnProgress | None = None) -> None:
    """Copy SQLite through its backup interface, then exactly the Lance files that the *copy* names."""
    pin = core.pins.register()  # before the copy, so that no version it names is removed
    try:
        with _fresh_directory(target) as building:
            _copy_hot(core, building)
            _copy_cold(building, core.path, building, on_progress)
    finally:
        core.pins.release(pin)


def restore_backup(backup: Path, path: Path, on_progress: OnProgress | None = None) -> None:
    """Make a database at a new path out of a backup, every file checked against its digest.

    Raises:
        FormatError: the backup is no database of a format we read.
        InvalidInputError: the path exists and is not an empty directory.
        IntegrityError, StorageError: a file is missing, corrupt or cannot be written; nothing is left at the path.
    """
    if not (backup / DATABASE_FILE).is_file():
        raise FormatError(f"{backup} holds no database")
    HotStore.probe(backup)
    with _fresh_directory(path) as building:
        # Whatever log the copy may have goes with it.
        for name in (DATABASE_FILE, DATABASE_FILE + "-wal"):
            if (backup / name).exists():
                copy_durably(backup / name, building / name)
        _copy_cold(building, backup, building, on_progress)


def _copy_hot(core: Core, target: Path) -> None:
    with storage_errors():
        source = core.hot.take_reader()
        copy = apsw.Connection(str(target / DATABASE_FILE))
        try:
            # One step holds one snapshot: writers go on, and the copy is never begun anew.
            with copy.backup("main", source, "main") as work:
                work.step(-1)
        finally:
            copy.close()
            core.hot.give_reader(source)
    fsync_file(target / DATABASE_FILE)


def _copy_cold(catalogue: Path, source: Path, target: Path, on_progress: OnProgress | None) -> None:
    files = list(_files_named(catalogue, source))
    directories = {target}
    for done, (path, size, expected) in enumerate(files):
        if on_progress is not None:
            on_progress(Progress("copy files", done, len(files)))
        try:
            copy_durably(source / path, target / path)
        except FileNotFoundError as error:
            raise StorageError(f"file {path} is missing in the source") from error
        except OSError as error:
            raise StorageError(f"cannot copy {path}: {error.strerror}") from error
        if (target / path).stat().st_size != size or digest(target / path) != expected:
            raise StorageError(f"file {path} is corrupt in the source: its size or digest does not match")
        directories.update(one for one in (target / path).parents if one.is_relative_to(target))
    for directory in sorted(directories, key=lambda one: -len(one.parts)):
        fsync_directory(directory)
    if on_progress is not None:
        on_progress(Progress("copy files", len(files), len(files)))


def _files_named(catalogue: Path, source: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield (path, size, digest) of every Lance file of the versions that a catalogue names."""
    hot = HotStore(catalogue, durability="full", read_only=False)
    cold = ColdStore(source, cache_bytes=64 << 20)
    with storage_errors():
        connection = hot.connect()
        try:
            tables = hot.load(connection).by_name.values()
            facts = {one.id: (hot.version(connection, one.id), hot.known_files(connection, one.id)) for one in tables}
        finally:
            connection.close()
    for entry in tables:
        version, known = facts[entry.id]
        if not version:
            continue
        for path in cold.referenced_files(entry.dataset, version):
            if path not in known:
                raise StorageError(f"file {path} of table {entry.name} is not in the catalogue")
            size, expected = known[path]
            yield Path(COLD_DIRECTORY) / f"{entry.dataset}.lance" / path, size, expected


@contextlib.contextmanager
def _fresh_directory(target: Path) -> Iterator[Path]:
    """Build beside the target and rename: it appears complete or not at all."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(f"{target} exists and is not an empty directory")
    building = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        for name in (LOCK_DIRECTORY, PIN_DIRECTORY):
            (building / name).mkdir(parents=True)
        (building / LOCK_DIRECTORY / "readers.lock").touch()
        yield building
        building.replace(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
