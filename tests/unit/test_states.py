"""The Agent State Manager on a real database."""

import random
import threading
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb.config import Config
from agentdb.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from agentdb.states import Change, RetentionPolicy, StateType, StateVersion, StateWrite
from agentdb.storage.deltas import MAX_SPAN, KeyFrameCache
from agentdb.storage.payload import ZSTD_DELTA, compress, unpack
from agentdb.storage.values import encode_value

A, S, T = "agent", "session", StateType.CONTEXT
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> datetime:
        self.now += timedelta(**by)
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def db(db_path, clock):
    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock)) as opened:
        yield opened


@pytest.fixture
def states(db):
    return db.states


def conversation(length: int, seed: int = 1) -> dict:
    """A message list that grows at its end: every longer one begins with every shorter one."""
    source = random.Random(seed)
    words = ["agent", "table", "values", "wrote", "answer", "every", "question", "asked", "then", "all", "of", "for"]
    return {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "text": " ".join(source.choices(words, k=12)), "id": f"{i:08x}"}
            for i in range(length)
        ]
    }


def save_conversation(states, versions: range, *key) -> None:
    for length in versions:
        states.save(*(key or (A, S, T)), conversation(length))


def stored(db) -> dict[int, dict]:
    return {row["version"]: row for row in db.table("_states").scan()}


def codecs(db) -> dict[int, int | None]:
    """For each version: None if it is stored in full, else the key frame that it refers to."""
    frames = {version: unpack(row["data"]) for version, row in stored(db).items()}
    return {version: frame.base if frame.codec is ZSTD_DELTA else None for version, frame in sorted(frames.items())}


# ------------------------------------------------------------------------------------------------------ save and load


def test_save_and_load(states, clock):
    saved = states.save(A, S, T, {"goal": "x", "n": [1, 2]}, metadata={"by": "me"})
    found = states.load(A, S, T)
    assert found == saved
    assert found.data == saved.data == {"goal": "x", "n": [1, 2]}
    content = encode_value(found.data)
    assert (found.agent_id, found.session_id, found.state_type, found.version) == (A, S, "context", 1)
    assert (found.metadata, found.parent, found.parent_session, found.tags) == ({"by": "me"}, None, None, ())
    assert (found.created_at, found.updated_at, found.size_bytes) == (START, START, len(content))
    assert len(found.checksum) == 32
    with pytest.raises(FrozenInstanceError):
        found.version = 2


def test_nothing_there(states):
    assert states.load(A, S, T) is None
    assert states.load(A, S, T, version=1) is None
    assert states.load(A, S, T, as_of=START) is None
    assert states.load(A, S, T, tag="x") is None
    assert states.history(A, S, T) == []
    assert states.delete(A) == states.delete(A, S) == states.delete(A, S, T) == states.delete(A, S, T, version=1) == 0
    assert states.tags(A, S, T) == {}
    assert list(states.agents()) == states.sessions(A) == states.types(A, S) == []
    states.save(A, S, T, 1)
    assert states.load(A, S, T, version=2) is None


def test_versions_are_consecutive_and_know_their_parent(states):
    numbers = [(v.version, v.parent) for v in (states.save(A, S, T, i) for i in range(3))]
    assert numbers == [(1, None), (2, 1), (3, 2)]
    assert [states.load(A, S, T, version=n).data for n in (1, 2, 3)] == [0, 1, 2]


def test_the_callers_value_is_copied(states):
    value = {"list": [1]}
    saved = states.save(A, S, T, value, metadata=(metadata := {"tags": ["a"]}))
    value["list"].append(2)
    metadata["tags"].append("b")
    assert saved.data == {"list": [1]}
    assert saved.metadata == {"tags": ["a"]}
    assert saved.data is saved.data
    assert states.load(A, S, T).data is not saved.data


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_every_kind_of_data_survives(db, flushed):
    value = {
        "bytes": b"\0\xff",
        "when": datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2))),
        "tuple": (1, (2, {3})),
        "big": -(2**80),
        "array": np.arange(2000, dtype=np.float32).reshape(40, 50),
        "table": pa.table({"a": [1, None], "b": ["x", "y"]}),
        "id": uuid4(),
        "nan": float("nan"),
    }
    db.states.save(A, S, StateType.EMBEDDING, value)
    if flushed:
        db.flush()
    found = db.states.load(A, S, StateType.EMBEDDING).data
    assert list(found) == list(value)
    assert np.array_equal(found.pop("array"), value.pop("array"))
    assert found.pop("table").equals(value.pop("table"))
    assert found.pop("nan") != value.pop("nan")
    assert found == value


def test_states_do_not_mix(states):
    keys = [
        ("a", "b", "c"),
        ("a", "bc", "c"),
        ("ab", "c", "c"),
        ("a", "b", "cc"),
        ("a\x01b", "c", "c"),
        ("A", "b", "c"),
    ]
    for key in keys:
        states.save(*key, repr(key))
    for key in keys:
        assert states.load(*key).data == repr(key)
        assert len(states.history(*key)) == 1


@pytest.mark.parametrize("number", [0, 7, 2**63, 2**64 - 1, np.uint64(2**64 - 1), np.int32(5)])
def test_unsigned_64_bit_identifiers_are_their_decimal_strings(states, number):
    saved = states.save(number, number, "custom", 1)
    assert (saved.agent_id, saved.session_id) == (str(int(number)), str(int(number)))
    assert states.load(str(int(number)), number, "custom") == saved


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "must be a str or an unsigned 64-bit int, not NoneType"),
        (1.5, "not float"),
        (True, "not bool"),
        (b"x", "not bytes"),
        (uuid4(), "not UUID"),
        (-1, "between 0 and"),
        (2**64, "between 0 and"),
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("x" * 1025, "at most 1024 characters, not 1025"),
    ],
    ids=repr,
)
def test_wrong_identifiers_are_named(states, wrong, message):
    with pytest.raises(InvalidInputError, match=f"agent_id.*{message}"):
        states.save(wrong, S, T, 1)
    with pytest.raises(InvalidInputError, match=f"session_id.*{message}"):
        states.load(A, wrong, T) if wrong is not None else states.load(A, None, T)
    if wrong is not None:
        with pytest.raises(InvalidInputError, match="state_type"):
            states.history(A, S, wrong)
    assert list(states.agents()) == []


def test_long_and_strange_identifiers(states):
    for name in ("x" * 1024, "ä" * 1024, "\x01\x02\x7f", "%_'\"", "a/b", " "):
        states.save(name, name, name, name)
        assert states.load(name, name, name).data == name
    with pytest.raises(InvalidInputError):
        states.save("\x01" * 1024, "\x02" * 1024, "\x01" * 1024, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.save(A, S, T, 1, expected_version=-1),
        lambda s: s.save(A, S, T, 1, expected_version="1"),
        lambda s: s.save(A, S, T, 1, expected_version=True),
        lambda s: s.save(A, S, T, 1, metadata=[1]),
        lambda s: s.save(A, S, T, 1, metadata={1: 2}),
        lambda s: s.save(A, S, T, 1, metadata={"x": float("nan")}),
        lambda s: s.save(A, S, T, object()),
        lambda s: s.load(A, S, T, version=0),
        lambda s: s.load(A, S, T, version=1.0),
        lambda s: s.load(A, S, T, as_of="now"),
        lambda s: s.load(A, S, T, as_of=datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda s: s.load(A, S, T, tag=3.5),
        lambda s: s.load(A, S, T, tag="x", version=1),
        lambda s: s.history(A, S, T, limit=0),
        lambda s: s.history(A, S, T, before=-1),
        lambda s: s.delete(A, version=1),
        lambda s: s.delete(A, S, version=1),
        lambda s: s.delete(A, state_type="x"),
        lambda s: s.erase(A, None, "x"),
        lambda s: s.save_many([(A, S, T)]),
        lambda s: s.save_many(["abcd"]),
        lambda s: s.load_many([(A, S)]),
        lambda s: s.set_retention({"keep_last": 3}),
        lambda s: s.save("a", "b", 3, 1),
    ],
    ids=lambda call: f"line{call.__code__.co_firstlineno}",
)
def test_wrong_arguments_write_nothing(states, call):
    with pytest.raises(InvalidInputError):
        call(states)
    assert list(states.agents()) == []


# ---------------------------------------------------------------------------------------------------- compare and set


def test_expected_version(states):
    assert states.save(A, S, T, 0, expected_version=0).version == 1
    with pytest.raises(ConflictError) as caught:
        states.save(A, S, T, 1, expected_version=0)
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    with pytest.raises(ConflictError) as caught:
        states.save(A, S, T, 1, expected_version=2)
    assert (caught.value.expected, caught.value.actual) == (2, 1)
    assert states.save(A, S, T, 1, expected_version=1).version == 2
    # The newest that exists counts, not the last number given.
    states.delete(A, S, T, version=2)
    with pytest.raises(ConflictError):
        states.save(A, S, T, 2, expected_version=2)
    assert states.save(A, S, T, 2, expected_version=1).version == 3


def test_of_many_threads_one_wins(states):
    states.save(A, S, T, 0)
    outcomes = []

    def race(n: int) -> None:
        try:
            outcomes.append(states.save(A, S, T, n, expected_version=1).version)
        except ConflictError as error:
            outcomes.append((error.expected, error.actual))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == sorted([2, *[(1, 2)] * 7], key=str)


# -------------------------------------------------------------------------------------------------- numbers and times


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
@pytest.mark.parametrize("erase", [False, True], ids=["delete", "erase"])
@pytest.mark.parametrize("scope", [(A,), (A, S), (A, S, T)], ids=["agent", "session", "state"])
def test_numbers_are_never_used_again(db, scope, erase, flushed):
    states = db.states
    for i in range(3):
        states.save(A, S, T, i)
    states.save("other", S, T, 1)
    if flushed:
        db.flush()
    if erase:
        states.erase(*scope)
    else:
        assert states.delete(*scope) == 3
    assert states.load(A, S, T) is states.load(A, S, T, version=2) is None
    assert states.history(A, S, T) == []
    again = states.save(A, S, T, "again", expected_version=0)
    assert (again.version, again.parent) == (4, None)
    assert states.delete(*scope) == 1
    assert states.save_many([(A, S, T, 1), (A, S, T, 2)]) == [5, 6]
    assert states.load("other", S, T).data == 1


def test_times_rise_even_if_the_clock_does_not(states, clock):
    first = states.save(A, S, T, 1)
    second = states.save(A, S, T, 2)
    clock.forward(hours=-1)
    third = states.save(A, S, T, 3)
    assert first.created_at < second.created_at < third.created_at
    assert third.created_at - first.created_at == timedelta(microseconds=2)
    clock.forward(hours=2)
    assert states.save(A, S, T, 4).created_at == clock.now


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_as_of(db, clock, flushed):
    states = db.states
    moments = [states.save(A, S, T, i).created_at for i in range(5) if clock.forward(minutes=1)]
    if flushed:
        db.flush()
    for i, moment in enumerate(moments):
        assert states.load(A, S, T, as_of=moment).data == i
        assert states.load(A, S, T, as_of=moment + timedelta(seconds=59)).data == i
    assert states.load(A, S, T, as_of=moments[0] - timedelta(microseconds=1)) is None
    states.delete(A, S, T, version=1)
    states.delete(A, S, T, version=3)
    assert states.load(A, S, T, as_of=moments[0]) is None
    assert states.load(A, S, T, as_of=moments[2]).data == 1
    other_zone = moments[1].astimezone(timezone(timedelta(hours=-5)))
    assert states.load(A, S, T, as_of=other_zone).data == 1


# ------------------------------------------------------------------------------------------------------------- history


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_history_is_newest_first_in_pages(db, flushed):
    states = db.states
    save_conversation(states, range(1, 31))
    if flushed:
        db.flush()
    states.save(A, S, T, "newest")
    states.delete(A, S, T, version=29)
    everything = states.history(A, S, T)
    assert [v.version for v in everything] == [31, 30, *range(28, 0, -1)]
    assert everything[0].data == "newest"
    assert everything[-1].data == conversation(1)
    assert everything[1] == states.load(A, S, T, version=30)
    page = states.history(A, S, T, limit=3)
    assert [v.version for v in page] == [31, 30, 28]
    assert [v.version for v in states.history(A, S, T, limit=3, before=page[-1].version)] == [27, 26, 25]
    assert states.history(A, S, T, before=1) == []


def test_a_version_listed_and_then_deleted_says_so(states):
    states.save(A, S, T, 1)
    states.save(A, S, T, 2)
    listed = states.history(A, S, T)
    assert listed[1].data == 1
    states.delete(A, S, T)
    assert listed[1].data == 1
    with pytest.raises(NotFoundError):
        _ = listed[0].data


# ---------------------------------------------------------------------------------------------------------------- diff


def apply(value, changes):
    value = {"": value}
    for change in changes:
        at = value
        *parents, last = ("", *change.path)
        for step in parents:
            at = at[step]
        if change.op == "remove":
            del at[last]
        elif change.op == "add" and isinstance(at, list):
            at.insert(last, change.new)
        else:
            at[last] = change.new
    return value[""]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 2}, [Change(("a",), "replace", 1, 2)]),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, [Change(("a",), "remove", old=1), Change(("c",), "add", new=3)]),
        ([1, 2], [1, 2, 3, 4], [Change((2,), "add", new=3), Change((3,), "add", new=4)]),
        ([1, 2, 3, 4], [1, 4], [Change((2,), "remove", old=3), Change((1,), "remove", old=2)]),
        ([2, 3], [1, 2, 3], [Change((0,), "add", new=1)]),
        ({"m": [{"r": 1, "t": "x"}]}, {"m": [{"r": 1, "t": "y"}]}, [Change(("m", 0, "t"), "replace", "x", "y")]),
        ({"a": 1}, {"a": 1.0}, [Change(("a",), "replace", 1, 1.0)]),
        ({"a": 1}, {"a": True}, [Change(("a",), "replace", 1, True)]),
        ({"a": float("nan")}, {"a": float("nan"), "b": 1}, [Change(("b",), "add", new=1)]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": None}, {}, [Change(("a",), "remove", old=None)]),
        ([1], {"a": 1}, [Change((), "replace", [1], {"a": 1})]),
        ((1, 2), (1, 3), [Change((), "replace", (1, 2), (1, 3))]),
    ],
)
def test_diff(states, old, new, expected):
    states.save(A, S, T, old)
    states.save(A, S, T, new)
    changes = states.diff(A, S, T, 1, 2)
    assert changes == expected
    applied = apply(states.load(A, S, T, version=1).data, changes)
    assert applied == new or encode_value(applied) == encode_value(new)  # NaN is not equal to itself
    assert states.diff(A, S, T, 2, 2) == []


def test_diff_of_arrays(states):
    states.save(A, S, T, {"v": np.zeros(2), "w": np.ones(2)})
    states.save(A, S, T, {"v": np.zeros(2), "w": np.ones(2, np.float32)})
    (change,) = states.diff(A, S, T, 1, 2)
    assert (change.path, change.op, change.old.dtype, change.new.dtype) == (("w",), "replace", np.float64, np.float32)


def test_diff_of_deep_values(states):
    old, new = 1, 2
    for _ in range(900):
        old, new = [old], [new]
    states.save(A, S, T, old)
    states.save(A, S, T, new)
    assert states.diff(A, S, T, 1, 2)


def test_diff_needs_both_versions(states):
    states.save(A, S, T, 1)
    with pytest.raises(NotFoundError, match="no version 2"):
        states.diff(A, S, T, 1, 2)


# -------------------------------------------------------------------------------------------------- restore and branch


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_restore(db, flushed):
    states = db.states
    for length in (40, 41, 42):
        states.save(A, S, T, conversation(length), metadata={"n": length})
    if flushed:
        db.flush()
    restored = states.restore(A, S, T, 2)
    assert (restored.version, restored.parent, restored.metadata) == (4, 2, {"n": 41})
    assert restored.data == states.load(A, S, T).data == conversation(41)
    assert restored.checksum == states.load(A, S, T, version=2).checksum
    with pytest.raises(ConflictError):
        states.restore(A, S, T, 1, expected_version=3)
    assert states.restore(A, S, T, 1, expected_version=4).version == 5
    states.delete(A, S, T, version=1)
    with pytest.raises(NotFoundError):
        states.restore(A, S, T, 1)
    with pytest.raises(NotFoundError):
        states.restore(A, "nowhere", T, 1)


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_branch(db, clock, flushed):
    states = db.states
    save_conversation(states, range(40, 45))
    states.tag(A, S, T, 2, "good")
    middle = clock.forward(minutes=1)
    clock.forward(minutes=1)
    states.save(A, S, T, "late")
    states.save(A, S, StateType.TASK, "task", metadata={"k": 1})
    if flushed:
        db.flush()
    context, task = states.branch(A, S, "copy")
    assert (context.state_type, context.version, context.data) == ("context", 1, "late")
    assert (context.parent, context.parent_session, context.tags) == (6, S, ())
    assert (task.version, task.data, task.metadata, task.parent) == (1, "task", {"k": 1}, 1)
    assert states.load(A, "copy", T) == context
    assert states.save(A, "copy", T, "more").parent == 1
    assert states.load(A, "copy", T).parent_session is None
    assert states.load(A, "copy", T, version=1).parent_session == S

    (old,) = states.branch(A, S, "then", as_of=middle)
    assert (old.data, old.parent) == (conversation(44), 5)

    for target in ("copy", S):
        with pytest.raises(ConflictError):
            states.branch(A, S, target)
    with pytest.raises(NotFoundError):
        states.branch(A, "nowhere", "new")
    with pytest.raises(NotFoundError):
        states.branch(A, S, "new", as_of=START - timedelta(days=1))
    assert states.sessions(A) == ["copy", S, "then"]

    states.erase(A, S)
    assert states.load(A, "copy", T, version=1).data == "late"
    assert states.load(A, "copy", T, version=1).parent_session is None


def test_a_branch_back_to_a_deleted_session_goes_on_counting(states):
    states.save(A, S, T, 1)
    states.save(A, S, T, 2)
    states.branch(A, S, "copy")
    states.delete(A, S)
    (back,) = states.branch(A, "copy", S)
    assert (back.version, back.parent, back.parent_session) == (3, 1, "copy")
    assert states.load(A, S, T, version=3) == back


# ---------------------------------------------------------------------------------------------------------------- tags


def test_tags(states):
    for i in range(3):
        states.save(A, S, T, i)
    states.tag(A, S, T, 2, "good")
    states.tag(A, S, T, 2, "also")
    states.tag(A, S, T, 3, "last")
    assert states.tags(A, S, T) == {"also": 2, "good": 2, "last": 3}
    assert states.load(A, S, T, tag="good").version == 2
    assert states.load(A, S, T, version=2).tags == ("also", "good")
    assert [v.tags for v in states.history(A, S, T)] == [("last",), ("also", "good"), ()]
    states.tag(A, S, T, 1, "good")
    assert states.load(A, S, T, tag="good").data == 0
    assert states.save(A, S, T, 3).tags == ()
    assert states.load(A, S, T, tag="last").data == 2
    assert states.untag(A, S, T, "last") is True
    assert states.untag(A, S, T, "last") is False
    assert states.load(A, S, T, tag="last") is None
    states.delete(A, S, T, version=1)
    assert states.tags(A, S, T) == {"also": 2}
    with pytest.raises(NotFoundError):
        states.tag(A, S, T, 1, "gone")
    with pytest.raises(NotFoundError):
        states.tag(A, S, "unknown", 1, "x")
    assert states.untag(A, S, "unknown", "x") is False


def test_tags_are_limited(states):
    states.save(A, S, T, 1)
    for i in range(256):
        states.tag(A, S, T, 1, f"t{i}")
    with pytest.raises(InvalidInputError, match="at most 256"):
        states.tag(A, S, T, 1, "one more")
    states.tag(A, S, T, 1, "t0")


# ------------------------------------------------------------------------------------------------------------- listing


def test_listing(states):
    for agent in ("b", "a", "c"):
        for session in ("2", "1"):
            for state_type in ("task", "context"):
                states.save(agent, session, state_type, 1)
    assert list(states.agents()) == ["a", "b", "c"]
    assert list(states.agents(after="a")) == ["b", "c"]
    assert states.sessions("b") == ["1", "2"]
    assert states.types("b", "2") == ["context", "task"]
    states.delete("b", "1")
    states.delete("c")
    assert list(states.agents()) == ["a", "b"]
    assert states.sessions("b") == ["2"]
    states.delete("b", "2", "task", version=1)
    assert states.types("b", "2") == ["context"]


def test_many_agents_are_listed_in_pages(states):
    names = sorted(f"agent-{i}" for i in range(1500))
    states.save_many([(name, session, T, 1) for name in names for session in ("a", "b")])
    assert list(states.agents()) == names


# ---------------------------------------------------------------------------------------------------------------- bulk


def test_save_many_and_load_many(db):
    states = db.states
    states.save("a1", S, T, "old")
    numbers = states.save_many(
        [
            ("a0", S, T, 0),
            StateWrite("a1", S, T, 1, expected_version=1, metadata={"k": 1}),
            (7, S, T, 2),
            ("a0", S, T, conversation(50)),
            StateWrite("a0", S, T, 3, expected_version=2),
        ]
    )
    assert numbers == [1, 2, 1, 2, 3]
    found = states.load_many([("a1", S, T), ("none", S, T), ("7", S, T), ("a0", S, T), ("a1", S, T)])
    assert [v and v.data for v in found] == [1, None, 2, 3, 1]
    assert [v and v.version for v in found] == [2, None, 1, 3, 2]
    assert found[0] == states.load("a1", S, T)
    assert [v.parent for v in states.history("a0", S, T)] == [2, 1, None]
    times = [v.created_at for v in states.history("a0", S, T)]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 3
    assert states.save_many([]) == states.load_many([]) == []


def test_save_many_is_all_or_nothing(states):
    states.save("a", S, T, 1)
    with pytest.raises(ConflictError, match=r"writes\[1\]") as caught:
        states.save_many([("b", S, T, 1), StateWrite("a", S, T, 2, expected_version=0)])
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    with pytest.raises(InvalidInputError, match=r"writes\[1\]: data\.x"):
        states.save_many([("b", S, T, 1), ("c", S, T, {"x": object()})])
    assert list(states.agents()) == ["a"]
    assert states.save("b", S, T, 1).version == 1


def test_a_batch_given_as_columns(db):
    writes = [StateWrite(f"a{i % 600:03}", S, T, i, metadata={"i": [i]} if i % 2 else None) for i in range(1200)]
    assert db.states.save_many(writes) == [1] * 600 + [2] * 600
    found = db.states.load_many([(f"a{i:03}", S, T) for i in range(600)])
    assert [v.data for v in found] == list(range(600, 1200))
    assert found[7].metadata == {"i": [607]}
    assert found[8].metadata == {}
    assert found[7].created_at > db.states.load("a007", S, T, version=1).created_at
    assert db.states.save("a007", S, T, "next").version == 3


@pytest.mark.parametrize("size", [10, 3000], ids=["small", "large"])
def test_large_batches(db_path, size):
    config = Config(maintenance=False, bulk_rows=100, bulk_bytes=1000)
    with agentdb.open(db_path, config=config) as db:
        states = db.states
        for round_ in range(3):
            writes = [(f"a{i:04}", S, T, {"text": "x" * size, "i": i, "round": round_}) for i in range(300)]
            assert states.save_many(writes) == [round_ + 1] * 300
        versions = states.load_many([(f"a{i:04}", S, T) for i in range(300)])
        assert [v.data["i"] for v in versions] == list(range(300))
        for round_ in range(3):
            assert states.load("a0123", S, T, version=round_ + 1).data["round"] == round_
        states.delete("a0123", S, T, version=1)
        assert states.load("a0123", S, T, version=2).data["round"] == 1
        db.flush()
        assert states.load("a0123", S, T, version=3).data["round"] == 2


# --------------------------------------------------------------------------------------------------------- transactions


def test_states_change_with_a_transaction_or_not_at_all(db):
    states = db.states
    states.save(A, S, T, 1)

    def fail() -> None:
        with db.transaction():
            states.save(A, S, T, 2)
            states.save("new", S, T, 1)
            states.tag(A, S, T, 2, "x")
            assert states.load(A, S, T, tag="x").data == 2
            states.delete(A, S, T, version=1)
            states.delete("new")
            assert states.save("new", S, T, 2).version == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [v.data for v in states.history(A, S, T)] == [1]
    assert states.save("new", S, T, 1).version == 1
    with db.transaction():
        assert states.save(A, S, T, 2).version == 2
    assert states.load(A, S, T).data == 2


# --------------------------------------------------------------------------------------------------------------- deltas


def test_near_duplicates_are_deltas_in_the_cold_tier(db):
    save_conversation(db.states, range(1, 101))
    full = sum(v.size_bytes for v in db.states.history(A, S, T))
    assert set(codecs(db).values()) == {None}
    db.flush()
    found = codecs(db)
    assert sum(base is not None for base in found.values()) > 70
    # Every delta names a version that is stored in full.
    assert all(found[base] is None for base in found.values() if base is not None)
    assert sum(len(row["data"]) for row in stored(db).values()) < full / 10
    for version in range(1, 101):
        assert db.states.load(A, S, T, version=version).data == conversation(version)
    many = db.states.load_many([(A, S, T)])
    assert many[0].data == conversation(100)


def test_deltas_go_on_where_the_last_flush_ended(db):
    for length in range(60, 80):
        db.states.save(A, S, T, conversation(length))
        db.flush()
    found = codecs(db)
    assert sum(base is None for base in found.values()) <= 3
    assert (found[2], found[9]) == (1, 1)
    assert db.states.load(A, S, T, version=13).data == conversation(72)


def test_a_number_rolled_back_and_given_again_is_not_mistaken(db_path):
    config = Config(maintenance=False, bulk_rows=5, bulk_bytes=100)
    with agentdb.open(db_path, config=config) as db:

        def fail() -> None:
            with db.transaction():
                db.states.save_many([(A, S, T, conversation(length)) for length in range(40, 50)])
                assert codecs(db)[2] == 1
                assert db.states.load(A, S, T, version=2).data == conversation(41)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        db.states.save_many([(A, S, T, conversation(length, seed=2)) for length in range(40, 50)])
        db.flush()
        assert codecs(db)[2] == 1
        for version in range(1, 11):
            assert db.states.load(A, S, T, version=version).data == conversation(39 + version, seed=2)


def test_the_cache_keeps_to_its_budget():
    cache = KeyFrameCache(100)
    for n in range(10):
        cache.put(("a", "s", "t", n), bytes(20))
        cache.get(("a", "s", "t", 0))
    assert [n for n in range(10) if cache.get(("a", "s", "t", n))] == [0, 6, 7, 8, 9]
    cache.put(("a", "s", "t", 0), bytes(25))
    cache.put(("a", "s", "t", 1), bytes(26))
    assert [n for n in range(10) if cache.get(("a", "s", "t", n))] == [0, 7, 8, 9]
    cache.clear()
    assert cache.get(("a", "s", "t", 0)) is None


def test_small_states_stay_as_they_are(db):
    for i in range(10):
        db.states.save(A, S, T, {"n": i})
    db.flush()
    assert set(codecs(db).values()) == {None}
    assert {row["base"] for row in stored(db).values()} == {None}


def test_unrelated_versions_are_not_deltas(db):
    source = random.Random(5)
    for _ in range(4):
        db.states.save(A, S, T, source.randbytes(3000))
    db.flush()
    assert set(codecs(db).values()) == {None}


def test_a_key_frame_is_replaced_after_a_while(db):
    value = conversation(60)
    states = db.states
    for i in range(MAX_SPAN + 40):
        states.save(A, S, T, {**value, "i": i})
    db.flush()
    found = codecs(db)
    assert [version for version, base in found.items() if base is None] == [1, MAX_SPAN + 1]


@pytest.mark.parametrize("erase", [False, True], ids=["delete", "erase"])
def test_removing_a_key_frame_keeps_its_dependents(db, erase):
    states = db.states
    save_conversation(states, range(60, 80))
    states.save("other", S, T, conversation(60))
    db.flush()
    assert codecs(db)[5] == 1

    def check(alive: set[int]) -> None:
        assert {v.version for v in states.history(A, S, T)} == alive
        for version in range(1, 21):
            found = states.load(A, S, T, version=version)
            assert (found.data if found else None) == (conversation(59 + version) if version in alive else None)

    alive = set(range(1, 21))
    for gone in (1, 7, 2, 20):
        states.erase(A, S, T, version=gone) if erase else states.delete(A, S, T, version=gone)
        alive.discard(gone)
        check(alive)
        db.flush()
        check(alive)
    assert sum(base is not None for base in codecs(db).values()) > 10
    assert states.load(A, S, T).data == conversation(78)
    assert states.save(A, S, T, conversation(80)).version == 21
    db.flush()
    assert states.load(A, S, T).data == conversation(80)
    db.optimize()
    check(alive | {21})


@contextmanager
def during_encoding(db, action):
    """Let ``action`` happen after the rows of a flush were encoded and before they are published."""
    plain = db.states._contents.encoder
    done = []

    def encode(rows, read):
        encoded = plain(rows, read)
        if not done:
            done.append(1)
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()
        return encoded

    db.states._engine.set_cold_encoder("_states", encode)
    yield
    db.states._engine.set_cold_encoder("_states", plain)
    assert done


@pytest.mark.parametrize("gone", [1, 2, 7, 10, 11])
@pytest.mark.parametrize("before", [0, 6, 10])
def test_removing_a_version_while_a_flush_encodes(db, before, gone):
    states = db.states
    save_conversation(states, range(60, 60 + before))
    db.flush()
    save_conversation(states, range(60 + before, 71))
    alive = set(range(1, 12)) - {gone}

    def check() -> None:
        for version in alive:
            assert states.load(A, S, T, version=version).data == conversation(59 + version), version

    with during_encoding(db, lambda: states.delete(A, S, T, version=gone)):
        db.flush()
    check()
    # What was touched meanwhile may have become a key frame: that one may go too.
    for other in (8, 3, 9):
        save_conversation(states, range(71, 73))
        with during_encoding(db, lambda other=other: states.delete(A, S, T, version=other)):
            db.flush()
        alive.discard(other)
        check()
    db.flush()
    check()
    assert {v.version for v in states.history(A, S, T)} == alive | set(range(12, 18))


def test_a_key_frame_that_was_touched_stays_one(db):
    """A version written anew may have become a key frame in the flush that ran meanwhile: it must not become a delta."""
    states = db.states
    save_conversation(states, range(60, 66))
    db.flush()
    assert codecs(db) == {1: None, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}
    rows = stored(db)

    def encode(base: int, cold: dict[int, dict]) -> int | None:
        hot = {**rows[4], "data": compress(encode_value(conversation(63))), "base": base}
        table = db.table("_states").schema
        physical = table.to_physical(hot)
        arrow = table.rows_to_arrow([table.key_of(physical)], [1], [physical])
        encoder = states._contents.encoder
        (row,) = table.arrow_to_rows(encoder(arrow, lambda keys: [cold.get(key[3]) for key in keys]))
        frame = unpack(row["data"])
        assert row["base"] == (frame.base if frame.codec is ZSTD_DELTA else 4)
        return frame.base if frame.codec is ZSTD_DELTA else None

    key_frame = {**rows[4], "data": compress(encode_value(conversation(63))), "base": 4}
    assert encode(0, rows) == 1
    assert encode(0, {**rows, 4: key_frame}) is None
    assert encode(4, rows) is None


def test_a_state_deleted_and_begun_again_while_a_flush_encodes(db):
    states = db.states
    save_conversation(states, range(60, 64))
    db.flush()
    save_conversation(states, range(64, 68))

    def again() -> None:
        states.delete(A, S, T)
        save_conversation(states, range(70, 72))

    with during_encoding(db, again):
        db.flush()
    db.flush()
    assert {v.version: v.data for v in states.history(A, S, T)} == {9: conversation(70), 10: conversation(71)}


# ------------------------------------------------------------------------------------------------------------ integrity


def test_changed_content_is_an_integrity_error(db):
    db.states.save(A, S, T, {"balance": 1})
    row = db.table("_states").get((A, S, "context", 1))
    db.table("_states").put({**row, "data": compress(encode_value({"balance": 2}))})
    with pytest.raises(IntegrityError, match="checksum"):
        db.states.load(A, S, T)
    db.table("_states").put({**row, "data": row["data"][:-1]})
    with pytest.raises(IntegrityError):
        db.states.load(A, S, T)
    db.table("_states").delete((A, S, "context", 1))
    with pytest.raises(IntegrityError, match="missing"):
        db.states.load(A, S, T)


def test_a_missing_key_frame_is_an_integrity_error(db):
    save_conversation(db.states, range(60, 63))
    db.flush()
    db.table("_states").delete((A, S, "context", 1))
    with pytest.raises(IntegrityError, match="missing"):
        db.states.load(A, S, T)
    with pytest.raises(IntegrityError, match="missing"):
        db.states.load_many([(A, S, T)])


# ---------------------------------------------------------------------------------------------------------------- erase


def files_with(path, needle: bytes) -> list[str]:
    return [str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and needle in p.read_bytes()]


def test_an_erased_session_leaves_no_trace(db_path, clock):
    agent, session, secret = "agent-7f3e9a", "session-91bc77", "content-5d21ee"
    with agentdb.open(db_path, config=Config(maintenance=False, clock=clock)) as db:
        db.states.save(agent, session, T, {"text": secret})
        db.states.save(agent, session, T, {"text": secret * 50}, metadata={"m": secret})
        db.states.save("someone", "else", T, {"text": "kept"})
        db.states.branch(agent, session, "branch")
        db.flush()
        db.states.save(agent, session, T, {"text": secret})
        receipt = db.states.erase(agent)
        assert receipt.rows == 4
        assert receipt.status == "complete"
        assert db.states.load("someone", "else", T).data == {"text": "kept"}
    for word in (agent, session, secret):
        assert files_with(db_path, word.encode()) == []
    with agentdb.open(db_path) as db:
        assert db.states.save(agent, session, T, 1).version == 4


# ------------------------------------------------------------------------------------------------------------ retention


def alive(states, *key) -> list[int]:
    return [v.version for v in states.history(*(key or (A, S, T)))]


@pytest.mark.parametrize("flushed", [False, True], ids=["hot", "cold"])
def test_retention_by_number(db, flushed):
    states = db.states
    save_conversation(states, range(40, 60))
    states.tag(A, S, T, 4, "keep")
    save_conversation(states, range(3), A, S, "task")
    if flushed:
        db.flush()
    assert states.apply_retention() == 0
    states.set_retention(RetentionPolicy(keep_last=5))
    states.set_retention(RetentionPolicy(keep_last=1), state_type="task")
    assert states.apply_retention() == 14 + 2
    assert alive(states) == [20, 19, 18, 17, 16, 4]
    assert alive(states, A, S, "task") == [3]
    assert states.apply_retention() == 0
    db.flush()
    for version in alive(states):
        assert states.load(A, S, T, version=version).data == conversation(39 + version)
    states.set_retention(RetentionPolicy(keep_last=2, keep_tagged=False))
    assert states.apply_retention() == 4
    assert alive(states) == [20, 19]
    assert states.tags(A, S, T) == {}


def test_retention_by_age(db, clock):
    states = db.states
    for i in range(5):
        states.save(A, S, T, i)
        clock.forward(hours=1)
    states.set_retention(RetentionPolicy(keep_for_s=2 * 3600))
    assert states.apply_retention() == 3
    assert alive(states) == [5, 4]
    clock.forward(days=10)
    assert states.apply_retention() == 1
    assert alive(states) == [5]
    states.set_retention(RetentionPolicy(keep_for_s=1e300))
    assert states.apply_retention() == 0


def test_any_rule_keeps(db, clock):
    states = db.states
    for i in range(5):
        states.save(A, S, T, i)
        clock.forward(hours=1)
    states.set_retention(RetentionPolicy(keep_last=3, keep_for_s=3600))
    assert states.apply_retention() == 2
    states.set_retention(RetentionPolicy(keep_last=1, keep_for_s=2 * 3600))
    assert states.apply_retention() == 1
    assert alive(states) == [5, 4]


def test_retention_is_stored(db, db_path, clock):
    policy = RetentionPolicy(keep_last=3, keep_for_s=5.5, keep_tagged=False)
    assert db.states.retention() is None
    db.states.set_retention(policy)
    db.states.set_retention(RetentionPolicy(), state_type="task")
    assert db.states.retention() == db.states.retention(state_type="context") == policy
    with agentdb.open(db_path) as again:
        assert again.states.retention() == policy
        assert again.states.retention(state_type="task") == RetentionPolicy()
    db.states.set_retention(None)
    assert db.states.retention() is None


def test_many_versions_go_in_bounded_steps(db):
    db.states.save_many([(A, S, T, i) for i in range(700)])
    db.states.set_retention(RetentionPolicy(keep_last=2))
    assert db.states.apply_retention() == 698
    assert alive(db.states) == [700, 699]


def test_maintenance_applies_retention(db):
    for agent in "abc":
        db.states.save_many([(agent, S, T, i) for i in range(5)])
    db.states.set_retention(RetentionPolicy(keep_last=1))
    steps = 1
    while db.states._maintain(0.0):
        steps += 1
    assert steps == 4
    assert [alive(db.states, agent, S, T) for agent in "abc"] == [[5]] * 3
    assert db.states._maintain(0.0) is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_last": 0},
        {"keep_last": 1.5},
        {"keep_last": True},
        {"keep_for_s": -1},
        {"keep_for_s": "1"},
        {"keep_tagged": 1},
    ],
)
def test_wrong_policies(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        RetentionPolicy(**wrong)


# --------------------------------------------------------------------------------------------------------------- reopen


def test_everything_is_there_after_reopening(db_path):
    with agentdb.open(db_path) as db:
        save_conversation(db.states, range(50, 70))
        db.states.tag(A, S, T, 3, "t")
        db.flush()
        db.states.save(A, S, T, "hot")
    with agentdb.open(db_path) as db:
        assert db.states.load(A, S, T).data == "hot"
        assert db.states.load(A, S, T, tag="t").data == conversation(52)
        assert isinstance(db.states.save(A, S, T, 1), StateVersion)
        assert db.states.load(A, S, T).version == 22
