"""Locks between threads and processes, pins of readers, and file systems that are refused."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentdb.errors import StorageError, UnavailableError
from agentdb.storage.locks import FileLock, Pins, refuse_network_file_system

ME = object()
HOLD = """
import fcntl, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
if len(sys.argv) > 2:
    os.write(descriptor, struct.pack("<Q", int(sys.argv[2])))
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_a_process(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of a file until the block ends or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLD, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


def test_one_thread_at_a_time(path: Path) -> None:
    lock = FileLock(path)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        me = object()
        for _ in range(50):
            assert lock.acquire(10, me)
            assert lock.owned_by(me)
            inside += 1
            most = max(most, inside)
            time.sleep(0)
            inside -= 1
            lock.withdraw(me)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most == 1
    lock.close()


def test_two_locks_of_one_file_exclude_each_other(path: Path) -> None:
    one, other = FileLock(path), FileLock(path)
    assert one.acquire(0, ME)
    assert not other.acquire(0, ME)
    started = time.monotonic()
    assert not other.acquire(0.1, ME)
    assert 0.05 < time.monotonic() - started < 10
    one.withdraw(ME)
    assert other.acquire(5, ME), "the waiter that timed out must not keep the lock"
    assert not one.acquire(0, ME)
    other.withdraw(ME)
    assert one.acquire(0, ME)
    one.close()
    other.close()


def test_a_late_grant_is_given_back(path: Path) -> None:
    holder, waiter, third = FileLock(path), FileLock(path), FileLock(path)
    assert holder.acquire(0, ME)
    assert not waiter.acquire(0.05, ME)
    holder.withdraw(ME)
    assert third.acquire(5, ME)
    third.withdraw(ME)
    assert waiter.acquire(5, ME)
    waiter.withdraw(ME)
    for one in (holder, waiter, third):
        one.close()


def test_a_lock_excludes_processes_and_dies_with_them(path: Path) -> None:
    lock = FileLock(path)
    with held_by_a_process(path) as process:
        assert not lock.acquire(0, ME)
        assert not lock.acquire(0.05, ME)
        timer = threading.Timer(0.1, process.kill)
        timer.start()
        assert lock.acquire(10, ME)
        lock.withdraw(ME)
        timer.join()
    lock.close()


def test_a_release_by_another_thread(path: Path) -> None:
    lock = FileLock(path)
    assert lock.acquire(0, ME)
    thread = threading.Thread(target=lock.withdraw, args=(ME,))
    thread.start()
    thread.join()
    assert lock.acquire(0, ME)
    lock.withdraw(ME)
    lock.close()


def test_held_names_what_is_locked(path: Path) -> None:
    one, other = FileLock(path), FileLock(path)
    with one.held(0, "the table"):
        with (
            pytest.raises(StorageError, match="the table is locked by another writer") as raised,
            other.held(0, "the table"),
        ):
            pass
        assert raised.value.retryable
    with other.held(0, "the table"):
        pass
    one.close()
    other.close()


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open lock file a\.lock"):
        FileLock(tmp_path / "missing" / "a.lock").acquire(0, ME)


def test_nobody_starves(path: Path) -> None:
    """Four locks of one file, as four processes would have them, for half a second: everyone gets turns."""
    turns = [0] * 4
    stop = time.monotonic() + 0.5

    def work(i: int) -> None:
        lock = FileLock(path)
        while time.monotonic() < stop:
            assert lock.acquire(10, ME)
            turns[i] += 1
            time.sleep(0.001)
            lock.withdraw(ME)
        lock.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert min(turns) > 0
    assert min(turns) * 20 > max(turns), turns


def test_a_thread_that_takes_the_lock_again_and_again_lets_others_in(path: Path) -> None:
    lock, stop = FileLock(path), threading.Event()

    def hog() -> None:
        me = object()
        while not stop.is_set():
            assert lock.acquire(10, me)
            lock.withdraw(me)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        for _ in range(20):
            started = time.monotonic()
            assert lock.acquire(10, ME)
            assert time.monotonic() - started < 5
            lock.withdraw(ME)
    finally:
        stop.set()
        thread.join()
    lock.close()


def test_turns_are_taken_in_order(path: Path) -> None:
    lock, order = FileLock(path), []
    assert lock.acquire(0, ME)

    def work(i: int) -> None:
        assert lock.acquire(10, i)
        order.append(i)
        lock.withdraw(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for i, one in enumerate(threads):
        one.start()
        while len(lock._turns) <= i:
            time.sleep(0.001)
    assert not lock.acquire(0, "impatient")
    assert not lock.acquire(0.01, "impatient")
    lock.withdraw(ME)
    for one in threads:
        one.join()
    assert order == list(range(5))
    lock.close()


def test_withdrawing_what_one_does_not_have_changes_nothing(path: Path) -> None:
    lock, other = FileLock(path), FileLock(path)
    assert lock.acquire(0, ME)
    lock.withdraw("somebody else")
    assert lock.owned_by(ME)
    assert not other.acquire(0, ME)
    lock.withdraw(ME)
    lock.withdraw(ME)
    assert other.acquire(1, ME)
    other.close()
    lock.close()


# --- pins -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Pins]:
    directory = tmp_path / "pins"
    directory.mkdir()
    found = Pins(directory, "me")
    yield found
    found.close()
    assert not list(directory.iterdir())


def test_the_floor_is_the_oldest_active_pin(pins: Pins) -> None:
    assert pins.floor() == 0
    pins.learn(5)
    assert pins.floor() == 5
    first = pins.register()
    pins.learn(9)
    second = pins.register()
    pins.learn(3)
    assert pins.active()
    assert pins.floor() == 5
    pins.release(first)
    assert pins.floor() == 9
    pins.learn(12)
    assert pins.floor() == 9
    pins.release(second)
    pins.release(second)
    assert not pins.active()
    assert pins.floor() == 12


def test_the_pin_of_another_handle_counts(tmp_path: Path, pins: Pins) -> None:
    other = Pins(tmp_path / "pins", "other")
    pins.learn(7)
    assert pins.floor() == 0, "it has not said yet how far it is"
    other.learn(4)
    assert pins.floor() == 0, "nor published it"
    other.publish()
    assert pins.floor() == 4
    other.close()
    assert pins.floor() == 7


def test_a_living_process_holds_the_floor_and_a_dead_one_does_not(tmp_path: Path, pins: Pins) -> None:
    foreign = tmp_path / "pins" / "foreign.pin"
    pins.learn(7)
    with held_by_a_process(foreign, "3"):
        assert pins.floor() == 3
        assert foreign.exists()
    assert pins.floor() == 7
    assert not foreign.exists(), "a dead process's pin is removed"


def test_a_pin_that_is_being_made_is_left_alone(tmp_path: Path, pins: Pins) -> None:
    young, old = tmp_path / "pins" / "young.new", tmp_path / "pins" / "old.new"
    for one in (young, old):
        one.write_bytes(bytes(8))
    os.utime(old, (0, 0))
    pins.learn(7)
    assert pins.floor() == 7
    assert young.exists()
    assert not old.exists()
    young.unlink()


def test_a_pin_cut_short_holds_everything(tmp_path: Path, pins: Pins) -> None:
    broken = tmp_path / "pins" / "broken.pin"
    pins.learn(7)
    descriptor = os.open(broken, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert pins.floor() == 0
    os.close(descriptor)
    assert pins.floor() == 7


# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("/dev/sda / ext4 rw 0 0\n", None),
        ("/dev/sda / ext4 rw 0 0\nserver:/x {parent} nfs4 rw 0 0\n", "nfs4"),
        ("server:/x / nfs rw 0 0\n/dev/sdb {parent} ext4 rw 0 0\n", None),
        ("/dev/sda / ext4 rw 0 0\nserver:/x {parent}x cifs rw 0 0\n", None),
        ("host: {parent} fuse.sshfs rw 0 0\n", "fuse.sshfs"),
        ("garbage\n\n", None),
    ],
)
def test_network_file_systems_are_refused(tmp_path: Path, mounts: str, kind: str | None) -> None:
    target = tmp_path / "db"
    text = mounts.format(parent=tmp_path.resolve())
    if kind is None:
        refuse_network_file_system(target, lambda: text)
    else:
        with pytest.raises(UnavailableError, match=f"network file system \\({kind}\\)"):
            refuse_network_file_system(target, lambda: text)


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    target = tmp_path / "my share"
    target.mkdir()
    text = f"server:/x {str(target.resolve()).replace(' ', chr(92) + '040')} nfs rw 0 0\n"
    with pytest.raises(UnavailableError, match="nfs"):
        refuse_network_file_system(target / "db", lambda: text)


def test_a_system_without_a_list_of_mounts(tmp_path: Path) -> None:
    def missing() -> str:
        raise FileNotFoundError

    refuse_network_file_system(tmp_path, missing)


def test_a_wait_that_ends_in_the_moment_the_lock_comes(path: Path) -> None:
    """One that gives up must not give away what the next of its process was just granted."""
    mine, other = FileLock(path), FileLock(path)
    inside, most, taken, until = 0, 0, 0, time.monotonic() + 1.5
    count = threading.Lock()

    def work(lock: FileLock, timeout_s: float) -> None:
        nonlocal inside, most, taken
        while time.monotonic() < until:
            owner = object()
            if lock.acquire(timeout_s, owner):
                with count:
                    inside += 1
                    taken += 1
                    most = max(most, inside)
                time.sleep(0.0004)
                with count:
                    inside -= 1
                lock.withdraw(owner)

    threads = [
        threading.Thread(target=work, args=one) for one in ((mine, 0.0005), (mine, 0.0007), (mine, 0.01), (other, 1))
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert taken > 50
    assert most == 1
    mine.close()
    other.close()
