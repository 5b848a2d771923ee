"""``NamedCollection``: found at every use, made by the first vectors alone, dropped and made anew by anybody."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import (
    AccessDeniedError,
    ClosedError,
    Collection,
    Connection,
    Database,
    Embedder,
    InvalidInputError,
    NamedCollection,
    NotFoundError,
    TableSchema,
    UnavailableError,
)
from agentdb_embedders import HashingEmbedder


@pytest.fixture
def db(db_path: Path) -> Iterator[Database]:
    with agentdb.open(db_path) as opened:
        yield opened


def add(named: NamedCollection, row_id: str, dimension: int = 4) -> None:
    vectors = np.ones((1, dimension), np.float32)
    named.write(dimension, lambda found: found.upsert([row_id], vectors))


def count(found: Collection) -> int:
    return found.count()


def test_the_arguments_are_checked_before_anything_is_opened(db_path: Path) -> None:
    for name in ("_memories", "_documents.x", "", "a b", "x" * 49, 3, None):
        with pytest.raises(InvalidInputError, match="collection"):
            NamedCollection.prepare(name)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="metric must be 'cosine', 'dot', 'euclidean' or None, not 'l2'"):
        NamedCollection.prepare("a", metric="l2")  # type: ignore[arg-type]
    connection = Connection(db_path, NamedCollection.prepare("a", metric="dot"))
    assert not db_path.exists()
    assert (connection().name, connection().metric) == ("a", "dot")
    connection.close()


def test_a_path_is_that_of_the_directory_in_which_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    connection = Connection("here", lambda db: db.path)
    monkeypatch.chdir(elsewhere)
    assert connection() == tmp_path / "here"
    connection.close()


def test_a_copy_is_the_same_connection_and_a_pickle_is_refused(db_path: Path) -> None:
    connection = Connection(db_path, NamedCollection.prepare("a"))
    assert copy.deepcopy({"c": connection, "n": connection()})["c"] is connection
    for one in (connection, [connection]):
        with pytest.raises(TypeError, match="give the other process the path"):
            pickle.dumps(one)
    connection.close()


def test_what_a_read_only_database_lacks_is_found_once_it_is_there(db_path: Path) -> None:
    agentdb.open(db_path).close()
    with agentdb.open(db_path, read_only=True) as db:
        is_there = False

        def prepare(given: Database) -> str:
            if not is_there:
                raise AccessDeniedError("read-only")
            return f"of {given.path.name}"

        connection: Connection[str] = Connection(db, prepare)
        assert connection.found() is None
        with pytest.raises(AccessDeniedError):
            connection()
        is_there = True
        assert connection.found() == connection() == f"of {db_path.name}"
        connection.close()
        with pytest.raises(ClosedError):
            connection.found()
    with agentdb.open(db_path) as db:
        is_there = False
        with pytest.raises(AccessDeniedError):  # what a writable database refuses is no emptiness
            Connection(db, prepare).found()


def test_a_snapshot_in_which_it_is_not_there_is_empty(db: Database) -> None:
    schema = TableSchema("made", [pa.field("id", pa.string(), nullable=False)], key="id")
    first, second = (Connection(db, lambda given: given.table(schema)) for _ in range(2))
    with db.snapshot():
        assert first.found() is None
        with pytest.raises(UnavailableError, match="before you write"):
            first()
        other = threading.Thread(target=lambda: second().put({"id": "a"}))
        other.start()
        other.join()
        assert first.found() is None
        assert second.found() is None, "it was made after the snapshot began"
    for one in (first, second):
        table = one.found()
        assert table is not None
        assert table.get("a") == {"id": "a"}
        with db.snapshot():
            assert one.found() is table
    with db.snapshot():
        late = Connection(db, lambda given: given.table(schema))
        other = threading.Thread(target=late)
        other.start()
        other.join()
        table = late.found()
        assert table is not None, "prepared later than the snapshot, of a table that is older"
        assert table.count() == 1


def test_reading_makes_nothing_and_writing_does(db: Database) -> None:
    named = NamedCollection(db, "a", metric="dot")
    assert named.found() is None
    assert named.read(count) is None
    assert not named.drop()
    assert db.collections() == []
    add(named, "1")
    assert named.read(count) == 1
    assert db.collection("a").vectors["vector"].metric == "dot"
    assert named.drop()
    assert named.read(count) is None
    assert db.collections() == []


def test_another_of_the_same_name_is_found(db: Database) -> None:
    named = NamedCollection(db, "a")
    add(named, "1")
    for dimension in (2, 3):
        db.drop_collection("a")
        assert named.read(count) is None
        db.collection("a", dimension=dimension).upsert(["x", "y"], np.ones((2, dimension), np.float32))
        assert named.read(count) == 2
        add(named, "z", dimension)
        assert named.read(count) == 3
    with pytest.raises(InvalidInputError, match="3"):
        add(named, "4", 4)
    db.drop_collection("a")
    add(named, "5", 5)
    assert named.read(count) == 1


def test_it_may_be_dropped_between_being_found_and_being_used(db: Database) -> None:
    named = NamedCollection(db, "a")
    add(named, "1")
    rounds = 0

    def drop_first(work: Callable[[Collection], Any]) -> Callable[[Collection], Any]:
        def dropping(found: Collection) -> Any:
            nonlocal rounds
            rounds += 1
            if rounds <= 3:
                db.drop_collection("a")
                db.collection("a", dimension=4)
            return work(found)

        return dropping

    assert named.read(drop_first(count)) == 0
    assert rounds == 4
    rounds = 0
    named.write(4, drop_first(lambda found: found.upsert(["1"], np.ones((1, 4), np.float32))))
    assert rounds == 4
    assert named.read(count) == 1

    def missing(_: Collection) -> None:
        raise NotFoundError("something else")

    with pytest.raises(NotFoundError, match="something else"):
        named.read(missing)


def test_what_a_transaction_took_back_is_not_held(db: Database) -> None:
    named = NamedCollection(db, "a")

    def fail() -> None:
        with db.transaction():
            add(named, "1")
            assert named.read(count) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert named.read(count) is None
    with db.snapshot():
        assert named.read(count) is None
        other = threading.Thread(target=lambda: add(named, "2"))
        other.start()
        other.join()
        assert named.read(count) is None, "a snapshot does not see what came after it"
    assert named.read(count) == 1


def test_who_makes_the_vectors(db_path: Path) -> None:
    own, other = HashingEmbedder(16), HashingEmbedder(32)
    with agentdb.open(db_path, embedder=own) as db:
        db.collection("made").upsert(["1"], texts=["a"])
        db.collection("given", dimension=16).upsert(["1"], np.ones((1, 16), np.float32))

        def named(name: str, embedder: Embedder | None) -> NamedCollection:
            return NamedCollection(db, name, embedder=lambda: embedder)

        assert NamedCollection(db, "made").read(count) == NamedCollection(db, "given").read(count) == 1
        assert named("made", own).read(count) == named("given", None).read(count) == 1
        with pytest.raises(InvalidInputError, match="are made by embedder"):
            named("made", None).read(count)
        with pytest.raises(InvalidInputError, match="are given, not by"):
            named("given", own).read(count)
        with pytest.raises(InvalidInputError, match="32"):
            named("made", other).read(count)
        with pytest.raises(InvalidInputError, match="metric 'cosine', not 'dot'"):
            NamedCollection(db, "given", metric="dot").read(count)
        named("new", own).write(16, lambda found: found.upsert(["1"], texts=["a"]))
        assert db.collection("new").embedder is own
    with agentdb.open(db_path, embedder=other) as db, pytest.raises(InvalidInputError, match="are made by embedder"):
        # Said without the embedder, which may be a model that is not installed here.
        named("made", None).read(count)


def test_many_threads_make_one(db: Database) -> None:
    named = NamedCollection(db, "a")
    threads = [threading.Thread(target=add, args=(named, str(i))) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert named.read(count) == 8
