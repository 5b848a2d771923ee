"""Before the catalogue points at a version, every file of it and every directory that names one is on the disk.

Two traces show the same: one of the calls in this process, which runs always, and one of the system calls, where strace is
installed.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.workload import CONFIG, steps

import agentdb
from agentdb.storage.cold import ColdStore
from agentdb.storage.hot import HotStore
from agentdb.testing.faults import inject_faults


def test_by_the_calls_of_this_process(db_path, monkeypatch):
    published: list[tuple[str, int]] = []
    forced: dict[Path, int] = {}
    settled: set[tuple[Path, Path]] = set()
    checked: set[Path] = set()
    cold = ColdStore(db_path, cache_bytes=1 << 20)
    real = HotStore.publish

    def publish(self, connection, table_id, version, *rest):
        dataset = connection.execute("SELECT dataset FROM tables WHERE id = ?", (table_id,)).fetchone()[0]
        published.append((dataset, version))
        return real(self, connection, table_id, version, *rest)

    def check() -> None:
        while published:
            dataset, version = published.pop()
            root = cold.path(dataset)
            for name in cold.referenced_files(dataset, version):
                file = root / name
                appeared = file.stat().st_ctime_ns
                assert forced.get(file, 0) >= appeared, f"the content of {file}"
                child = file
                for directory in file.parents:
                    if (directory, child) not in settled:
                        assert forced.get(directory, 0) >= appeared, f"the name of {child}"
                        settled.add((directory, child))
                    child = directory
                    if directory == db_path:
                        break
                checked.add(file)

    monkeypatch.setattr(HotStore, "publish", publish)
    with inject_faults() as faults:
        passes = faults.passes

        def watched(kind, what, *, after=False):
            if kind == "fsync":
                forced[Path(what)] = time.time_ns()
            elif kind == "sqlite-sync" and what.endswith("-wal"):
                check()
            return passes(kind, what, after=after)

        monkeypatch.setattr(faults, "passes", watched)
        with agentdb.open(db_path, config=CONFIG) as db:
            for step in steps():
                step.run(db)
                assert not published, "published without forcing the log"
    assert len(checked) > 50
    # What names the database is forced when it is made.
    assert {db_path, db_path.parent} <= forced.keys()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import agentdb
from support.workload import CONFIG, steps
with agentdb.open(sys.argv[1], config=CONFIG) as db:
    for step in steps():
        step.run(db)
"""


def version_of(manifest: Path) -> int:
    return (1 << 64) - 1 - int(manifest.stem)


def test_by_the_system_calls(db_path, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "trace"
    calls = "openat,rename,renameat,renameat2,link,linkat,mkdir,fsync,fdatasync"
    traced = [sys.executable, "-c", SCRIPT, db_path, str(Path(__file__).parent.parent)]
    done = subprocess.run(
        ["strace", "-f", "-y", "-qq", "-o", log, "-e", f"trace={calls}", *traced],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr

    lance, wal = db_path / "lance", db_path / "agentdb.sqlite-wal"
    appeared: dict[Path, int] = {}
    forced: dict[Path, list[int]] = {}
    newest: dict[Path, Path] = {}  # directory of manifests -> the newest of them
    for at, line in enumerate(log.read_text().splitlines()):
        found = re.match(r"\d+\s+(?:<\.\.\. )?(\w+)", line)
        if found is None or re.search(r"=\s+-1 ", line):
            continue
        call = found[1]
        if call in ("fsync", "fdatasync"):
            file = re.search(r"\(\d+<([^>]*)>", line)
            if file is None:
                continue
            path = Path(file[1])
            forced.setdefault(path, []).append(at)
            if path == wal:
                for manifest in newest.values():
                    assert forced.get(manifest), f"line {at}: {manifest} may be published and was not forced"
        elif call != "openat" or "O_CREAT" in line:
            # What a rename or link makes is its last path.
            names = re.findall(r'"([^"]*)"', line)
            path = Path("/", names[-1]) if names else Path()
            if not path.is_relative_to(lance):
                continue
            appeared[path] = at
            if path.suffix == ".manifest" and path.stem.isdigit():
                other = newest.get(path.parent)
                # A dropped table's directory may come again, from version 1.
                if other is None or version_of(path) > version_of(other) or version_of(path) == 1:
                    newest[path.parent] = path
    assert len(forced[wal]) > 20

    with agentdb.open(db_path, config=CONFIG) as db, db.snapshot() as _:
        view, cold = db._core.current(), db._core.cold
        checked = 0
        for entry in view.catalogue.by_name.values():
            version = view.version(entry)
            if not version:
                continue
            root = cold.path(entry.dataset)
            files = [root / one for one in cold.referenced_files(entry.dataset, version)]
            manifest = next(one for one in files if one.suffix == ".manifest")
            publication = min(at for at in forced[wal] if at > forced[manifest][0])
            for file in files:
                assert any(at < publication for at in forced[file]), f"the content of {file}"
                for directory in (file.parent, *file.parent.parents):
                    if not directory.is_relative_to(db_path):
                        break
                    since = appeared[file] if directory == file.parent else -1
                    assert any(since < at < publication for at in forced[directory]), f"the name of {file}: {directory}"
                checked += 1
        assert checked > 5
