"""What a collection keeps, gives back and refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import (
    Batch,
    Collection,
    Config,
    Database,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    VectorSpec,
)
from agentdb import field as col

QUIET = Config(maintenance=False)
BULK = Config(maintenance=False, bulk_rows=8, bulk_bytes=1)


class Letters:
    """An embedder that counts letters, and how often it was asked."""

    max_tokens = 1_000

    def __init__(self, name: str = "letters", dimension: int = 4) -> None:
        self.name = name
        self.dimension = dimension
        self.asked: list[list[str]] = []

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        self.asked.append(list(texts))
        return np.stack([self.one(text) for text in texts])

    def one(self, text: str) -> np.ndarray:
        counts = [text.count(chr(ord("a") + i)) for i in range(self.dimension)]
        return np.array(counts, np.float32) + np.float32(0.5)

    def embed_tokens(self, texts: Sequence[str], kind: str = "document") -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (np.arange(len(text.split()) + 1), np.stack([self.one(word) for word in [*text.split(), ""]]))
            for text in texts
        ]


@pytest.fixture(params=[QUIET, BULK], ids=["small", "bulk"])
def db(db_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    with agentdb.open(db_path, config=request.param, embedder=Letters()) as opened:
        yield opened
        assert opened.verify().ok


@pytest.fixture
def notes(db: Database) -> Collection:
    return db.collection("notes", dimension=3)


def rows(count: int, dimension: int = 3) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, dimension), dtype=np.float32)


# --- which there are ----------------------------------------------------------------------------------------------------


def test_collections_are_made_listed_and_dropped(db: Database) -> None:
    assert db.collections() == []
    assert not db.drop_collection("notes")
    first = db.collection("notes", dimension=3)
    db.collection("_own", dimension=3)
    db.collection("Other", dimension=2)
    assert repr(first) == "Collection('notes')"
    assert first.name == "notes"
    assert db.collections() == ["Other", "notes"]
    assert db.tables() == []
    first.upsert(["a"], rows(1))
    assert db.drop_collection("notes")
    assert db.collections() == ["Other"]
    for call in (first.count, lambda: first.upsert(["a"], rows(1)), lambda: first.get("a")):
        with pytest.raises(NotFoundError):
            call()
    again = db.collection("notes", dimension=5)
    assert again.count() == 0
    assert again.vectors["vector"].dimension == 5
    with pytest.raises(NotFoundError):
        first.count()


def test_a_handle_of_a_dropped_collection_has_no_part_in_its_successor(db: Database) -> None:
    first = db.collection("notes", dimension=3)
    first.upsert(["a"], rows(1), ["red fish"], [{"n": 1}])
    assert first.search([1, 0, 0])
    db.drop_collection("notes")
    again = db.collection("notes", dimension=3)
    again.upsert(["b"], rows(1), ["blue bird"], [{"n": 2}])
    for call in (
        lambda: first.vectors,
        lambda: first.promoted,
        lambda: first.embedder,
        lambda: first.search([1, 0, 0]),
        lambda: first.search("bird", mode="text"),
        lambda: first.upsert(["b"], rows(1)),
        lambda: first.update(["b"], texts=["grey"]),
        lambda: first.delete(["b"]),
        lambda: first.delete(filter=col("n") == 2),
        lambda: first.erase(["b"]),
        lambda: first.promote("n", float),
        lambda: first.reembed(Letters()),
        lambda: first.set_index("none"),
        lambda: first.index_status(),
        lambda: list(first.scan()),
    ):
        with pytest.raises(NotFoundError, match="'notes' was dropped"):
            call()
    definition = again._store.read()
    assert definition.revision == 1
    assert not definition.promoted
    assert again.get("b").text == "blue bird"


def test_making_one_is_part_of_a_transaction(db: Database) -> None:
    def fail() -> None:
        with db.transaction():
            made = db.collection("notes", dimension=3)
            made.upsert(["a"], rows(1))
            assert made.count() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert db.collections() == []
    with db.transaction():
        db.collection("notes", dimension=3).upsert(["a"], rows(1))
    assert db.collection("notes").count() == 1


def test_a_name_alone_reopens_everything(db_path: Path) -> None:
    with agentdb.open(db_path, config=QUIET) as db:
        made = db.collection(
            "many",
            embedder=Letters(),
            vectors={
                "title": VectorSpec(4, "dot", dtype="float16"),
                "body": VectorSpec(4, "euclidean", embedded=False),
                "tokens": VectorSpec(4, multi=True, embedded=True),
            },
            schema={"agent_id": str, ("user", "age"): int, "ok": "bool"},
        )
        made.upsert(["a"], texts=["abc"], metadata=[{"agent_id": "x", "user": {"age": 4}}])
        stored = made.vectors
        assert stored["title"] == VectorSpec(4, "dot", dtype="float16", embedded=True)
        assert stored["tokens"].dtype == "float16"
    for read_only in (False, True):
        with agentdb.open(db_path, config=QUIET, read_only=read_only, embedder=Letters()) as db:
            found = db.collection("many")
            assert list(found.vectors) == ["title", "body", "tokens"]
            assert found.vectors == stored
            assert found.promoted == {("agent_id",): "string", ("user", "age"): "number", ("ok",): "bool"}
            assert found.embedder is not None
            assert found.embedder.name == "letters"
            record = found.get("a")
            assert record is not None
            assert set(record.vectors) == {"title", "tokens"}
            assert record.vectors["title"].dtype == np.float16
            np.testing.assert_array_equal(record.vectors["tokens"], [[1.5, 1.5, 1.5, 0.5], [0.5] * 4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 4}, "has 3 dimensions, not 4"),
        ({"metric": "dot"}, "metric 'cosine', not 'dot'"),
        ({"embedder": Letters()}, "are given, not by 'letters'"),
        ({"vectors": {"vector": VectorSpec(3, dtype="float16")}}, "other vectors: vector differ"),
        ({"vectors": {"vector": VectorSpec(3), "b": VectorSpec(3)}}, "other vectors: b differ"),
        ({"vectors": {"vector": VectorSpec(3)}, "dimension": 3}, "either vectors, or dimension"),
        ({"schema": {"year": str}}, "year is promoted as number, asked for is string"),
        ({"schema": {"month": int}}, "month is promoted not"),
    ],
)
def test_other_arguments_are_refused(db: Database, arguments: dict[str, Any], message: str) -> None:
    db.collection("notes", dimension=3, schema={"year": int})
    db.collection("notes", dimension=3, metric="cosine", schema={"year": float})
    db.collection("notes", vectors={"vector": VectorSpec(3)})
    with pytest.raises(InvalidInputError, match=message):
        db.collection("notes", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "9"},
        {"name": "x" * 49},
        {"name": 3},
        {"dimension": 0},
        {"dimension": 65_537},
        {"dimension": 2.0},
        {"dimension": True},
        {"metric": "l2"},
        {"metric": "Cosine"},
        {"embedder": "letters"},
        {"dimension": 3, "embedder": Letters()},
        {"vectors": {}},
        {"vectors": [VectorSpec(3)]},
        {"vectors": {"v": 3}},
        {"vectors": {"text": VectorSpec(3)}},
        {"vectors": {"p_x": VectorSpec(3)}},
        {"vectors": {"a b": VectorSpec(3)}},
        {"vectors": {"a": VectorSpec(3), "A": VectorSpec(3)}},
        {"vectors": {"a": VectorSpec(3, embedded=True)}},
        {"dimension": 3, "schema": ["year"]},
        {"dimension": 3, "schema": {"year": "int32"}},
        {"dimension": 3, "schema": {"year": dict}},
        {"dimension": 3, "schema": {(): str}},
        {"dimension": 3, "schema": {3: str}},
    ],
)
def test_what_cannot_be_a_collection_is_refused(db: Database, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        db.collection(**{"name": "notes", **arguments})
    assert db.collections() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"dimension": "3"},
        {"dimension": 3, "metric": "manhattan"},
        {"dimension": 3, "dtype": "int8"},
        {"dimension": 3, "multi": 1},
        {"dimension": 3, "multi": True, "dtype": "float32"},
        {"dimension": 3, "embedded": "yes"},
    ],
)
def test_what_cannot_be_a_vector_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        VectorSpec(**arguments)


# --- embedders ----------------------------------------------------------------------------------------------------------


def test_texts_are_embedded_by_the_embedder_of_the_database(db: Database) -> None:
    notes = db.collection("notes")
    assert notes.vectors == {"vector": VectorSpec(4, embedded=True)}
    notes.upsert(["a", "b", "c"], texts=["aab", None, "d"])
    found = notes.get_many(["a", "b", "c"])
    np.testing.assert_array_equal(found[0].vector, [2.5, 1.5, 0.5, 0.5])
    assert found[1].vector is None
    np.testing.assert_array_equal(found[2].vector, [0.5, 0.5, 0.5, 1.5])
    assert db.embedder.asked == [["aab", "d"]]
    notes.upsert(["a"], [[1, 2, 3, 4]], ["given with it"])
    assert len(db.embedder.asked) == 1
    np.testing.assert_array_equal(notes.get("a").vector, [1, 2, 3, 4])


def test_another_embedder_is_refused_and_named(db_path: Path) -> None:
    with agentdb.open(db_path, config=QUIET) as db:
        db.collection("notes", embedder=Letters()).upsert(["a"], texts=["abc"])
    with agentdb.open(db_path, config=QUIET, embedder=Letters("numbers")) as db:
        notes = db.collection("notes")
        assert notes.get("a").text == "abc"
        notes.upsert(["b"], [[1, 2, 3, 4]])
        with pytest.raises(InvalidInputError, match=r"made by embedder 'letters' \(4 dimensions\), not by 'numbers'"):
            notes.upsert(["c"], texts=["abc"])
        with pytest.raises(InvalidInputError, match="'letters', not by 'numbers'"):
            db.collection("notes", embedder=Letters("numbers"))
        with pytest.raises(InvalidInputError, match="letters"):
            _ = notes.embedder
        db.collection("notes", embedder=Letters()).upsert(["c"], texts=["abc"])
        assert notes.count() == 3


def test_given_vectors_need_no_embedder(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependencyError("install 'agentdb-lance[local]'")

    monkeypatch.setattr("agentdb.database.load_embedder", missing)
    with agentdb.open(db_path, config=QUIET) as db:
        notes = db.collection("notes", dimension=3)
        assert notes.embedder is None
        notes.upsert(["a"], rows(1), ["a text"])
        notes.upsert(["b"], texts=["only words"])
        assert notes.get("b").vector is None
        with pytest.raises(MissingDependencyError, match="local"):
            db.collection("embedded")
        assert db.collections() == ["notes"]


def test_embedding_happens_before_the_write_lock_is_taken(db: Database) -> None:
    notes = db.collection("notes")
    other = db.collection("other", dimension=3)

    class Writing(Letters):
        def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
            other.upsert([texts[0]], rows(1))
            return super().embed(texts, kind)

    notes._given.append(Writing())
    for count in (1, 20):
        notes.upsert([f"{count}-{i}" for i in range(count)], texts=[f"text {count} {i}" for i in range(count)])
        notes.update([f"{count}-0"], texts=[f"changed {count}"])
    assert other.count() == 4


def test_an_embedder_that_fails_stores_nothing(db: Database) -> None:
    class Failing(Letters):
        def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
            raise ConnectionError

    notes = db.collection("notes", embedder=Failing())
    with pytest.raises(ConnectionError):
        notes.add(texts=["a"])
    assert notes.count() == 0


# --- writing and reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 50])
def test_what_is_stored_comes_back(notes: Collection, db: Database, count: int) -> None:
    ids = [f"row {i}" for i in range(count)]
    vectors = rows(count)
    texts = [None if i % 3 == 2 else f"text {i} \0 \N{SNOWMAN}" for i in range(count)]
    metadata = [
        None if i % 4 == 3 else {"n": i, "tags": ["x", i], "deep": {"a.b": None, "f": 0.1}} for i in range(count)
    ]
    assert notes.upsert(ids, vectors, texts, metadata) == count
    for _ in range(2):
        assert notes.count() == count
        for i, found in enumerate(notes.get_many(ids)):
            assert (found.id, found.text, found.metadata) == (ids[i], texts[i], metadata[i] or {})
            assert found.vector.dtype == np.float32
            np.testing.assert_array_equal(found.vector, vectors[i])
        assert notes.get("nothing") is None
        assert notes.get_many([ids[0], "nothing", ids[0]])[1] is None
        assert {one.id for one in notes.scan()} == set(ids)
        assert {one.id: one.text for one in notes.scan(include=["text"])} == dict(zip(ids, texts, strict=True))
        assert all(not one.metadata and not one.vectors for one in notes.scan(include=["text"]))
        assert len(list(notes.scan(limit=2))) == min(2, count)
        db.flush()


def test_upsert_replaces_the_whole_row(notes: Collection) -> None:
    notes.upsert(["a"], [[1, 2, 3]], ["text"], [{"x": 1}])
    notes.upsert(["a"], texts=["other"])
    found = notes.get("a")
    assert (found.text, found.metadata, found.vectors) == ("other", {}, {})
    assert notes.upsert([], np.empty((0, 3))) == 0
    assert notes.upsert([], [], [], []) == 0


def test_add_makes_ids(db_path: Path) -> None:
    numbers = iter(range(100))
    config = Config(maintenance=False, id_source=lambda: f"id{next(numbers)}")
    with agentdb.open(db_path, config=config) as db:
        notes = db.collection("notes", dimension=3)
        start = next(numbers) + 1
        assert notes.add(rows(2), ["a", "b"]) == [f"id{start}", f"id{start + 1}"]
        assert notes.add(metadata=[{"x": 1}]) == [f"id{start + 2}"]
        assert notes.add(pa.array([[1.0, 2.0, 3.0]] * 2, pa.list_(pa.float32(), 3))) == [
            f"id{start + 3}",
            f"id{start + 4}",
        ]
        assert notes.get(f"id{start + 1}").text == "b"
        assert notes.add(texts=[]) == []
        with pytest.raises(InvalidInputError, match="give vectors, texts or metadata"):
            notes.add()
        with pytest.raises(InvalidInputError, match="texts must be a sequence"):
            notes.add(texts="a")
        assert notes.count() == 5


def test_update_changes_only_what_is_given(db: Database) -> None:
    notes = db.collection("notes", schema={"x": int})
    notes.upsert(["a", "b"], texts=["a", "b"], metadata=[{"x": 1}, {"x": 2}])
    for _ in range(2):
        notes.update(["a"], metadata=[{"y": 3}])
        found = notes.get("a")
        assert (found.text, found.metadata) == ("a", {"y": 3})
        np.testing.assert_array_equal(found.vector, [1.5, 0.5, 0.5, 0.5])
        assert [one.id for one in notes.scan(col("x") >= 1)] == ["b"]
        notes.update(["a"], metadata=[{"x": 5, "z": None}], merge=True)
        assert notes.get("a").metadata == {"x": 5, "y": 3, "z": None}
        assert [one.id for one in notes.scan(col("x") >= 3)] == ["a"]
        notes.update(["a", "b"], texts=["dd", None])
        assert [one.text for one in notes.get_many(["a", "b"])] == ["dd", "b"]
        np.testing.assert_array_equal(notes.get("a").vector, [0.5, 0.5, 0.5, 2.5])
        np.testing.assert_array_equal(notes.get("b").vector, [0.5, 1.5, 0.5, 0.5])
        notes.update(["a", "b"], [None, [9, 9, 9, 9]])
        np.testing.assert_array_equal(notes.get("b").vector, [9, 9, 9, 9])
        assert notes.get("b").text == "b"
        notes.update(["b"], [[1, 1, 1, 1]], ["vector and text"])
        np.testing.assert_array_equal(notes.get("b").vector, [1, 1, 1, 1])
        notes.upsert(["a", "b"], texts=["a", "b"], metadata=[{"x": 1}, {"x": 2}])
        db.flush()
    notes.update([], texts=[])


def test_update_of_an_absent_row_changes_nothing(notes: Collection) -> None:
    notes.upsert(["a"], rows(1), metadata=[{"x": 1}])
    with pytest.raises(NotFoundError, match="1 of the 2 ids"):
        notes.update(["a", "b"], metadata=[{"x": 2}, {"x": 2}])
    assert notes.get("a").metadata == {"x": 1}
    with pytest.raises(InvalidInputError, match="give vectors, texts or metadata"):
        notes.update(["a"])
    with pytest.raises(InvalidInputError, match="merge"):
        notes.update(["a"], metadata=[{}], merge="yes")


def test_delete_by_ids_and_by_filter(notes: Collection) -> None:
    notes.upsert([str(i) for i in range(20)], rows(20), metadata=[{"n": i, "even": i % 2 == 0} for i in range(20)])
    assert notes.delete(["0", "0", "nothing"]) == 1
    assert notes.delete(filter=col("n") >= 15) == 5
    assert notes.delete(filter=col("even") == True) == 7  # noqa: E712 - a filter
    assert notes.count() == 7
    assert notes.delete([]) == 0
    for arguments in ({}, {"ids": ["1"], "filter": col("n") == 1}):
        with pytest.raises(InvalidInputError, match="either ids or a filter"):
            notes.delete(**arguments)
        with pytest.raises(InvalidInputError, match="either ids or a filter"):
            notes.erase(**arguments)


def test_erase_leaves_no_trace(db_path: Path) -> None:
    with agentdb.open(db_path, config=QUIET) as db:
        notes = db.collection("notes", dimension=3, schema={"who": str})
        notes.upsert(["keep", "lose"], rows(2), ["kept", "Gomorrha"], [{"who": "me"}, {"who": "Sodom"}])
        db.flush()
        notes.upsert(["lose2"], rows(1), ["Gomorrha"], [{"who": "Sodom"}])
        assert notes.erase(filter=col("who") == "Sodom").rows == 2
        assert notes.erase(["nothing"]).rows == 0
        assert notes.count() == 1
    for path in db_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"Sodom" not in data, path
            assert b"Gomorrha" not in data, path


def test_transactions_and_snapshots_hold_several_calls_together(notes: Collection, db: Database) -> None:
    notes.upsert(["a"], rows(1))

    def fail() -> None:
        with db.transaction():
            notes.upsert([str(i) for i in range(20)], rows(20))
            notes.update(["a"], metadata=[{"x": 1}])
            assert notes.count(col("x") == 1) == 1
            assert notes.count() == 21
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert notes.count() == 1
    iterator = notes.scan()
    with db.snapshot():
        before = notes.count()
    notes.delete(["a"])
    assert before == 1
    assert [one.id for one in iterator] == ["a"]


# --- Arrow and numpy ------------------------------------------------------------------------------------------------------


def test_batches_are_arrow_and_numpy(notes: Collection, db: Database) -> None:
    vectors = rows(50)
    notes.upsert([f"{i:02}" for i in range(50)], vectors, [f"t{i}" for i in range(50)], [{"n": i} for i in range(50)])
    db.flush()
    notes.upsert(["none"], texts=["without a vector"])
    batches = list(notes.iterate(col("n") < 40, batch_rows=16))
    assert [len(one) for one in batches] == [16, 16, 8]
    assert repr(batches[2]) == "Batch(8 rows: id, text, metadata, vector)"
    found = {one: row for batch in batches for one, row in zip(batch.ids, batch.vectors(), strict=True)}
    assert len(found) == 40
    for one, row in found.items():
        np.testing.assert_array_equal(row, vectors[int(one)])
    assert batches[0].texts == [f"t{int(one)}" for one in batches[0].ids]
    assert batches[0].metadata == [{"n": int(one)} for one in batches[0].ids]
    assert [one.id for one in batches[0]] == batches[0].ids
    everything = next(iter(notes.iterate()))
    assert np.isnan(everything.vectors()[everything.ids.index("none")]).all()
    only = next(iter(notes.iterate(include=["text"])))
    assert only.arrow.schema.names == ["id", "text"]
    assert next(iter(only)).vectors == {}
    with pytest.raises(InvalidInputError, match="no vectors 'vector'"):
        only.vectors()
    assert sum(len(one) for one in notes.iterate(limit=7)) == 7
    for bad in ({"batch_rows": 0}, {"batch_rows": "2"}, {"limit": -1}, {"include": ["id"]}, {"include": "text"}):
        with pytest.raises(InvalidInputError):
            notes.iterate(**bad)


def test_a_batch_or_table_is_stored_as_it_is(notes: Collection, db: Database) -> None:
    made = db.collection("copy", vectors={"vector": VectorSpec(3), "tokens": VectorSpec(2, multi=True)})
    source = db.collection("source", vectors={"vector": VectorSpec(3), "tokens": VectorSpec(2, multi=True)})
    tokens = [None if i % 5 == 0 else np.full((1 + i % 3, 2), i, np.float16) for i in range(30)]
    given = [None if i % 7 == 0 else one for i, one in enumerate(rows(30))]
    ids = [f"{i:02}" for i in range(30)]
    source.upsert(ids, {"vector": given, "tokens": tokens}, metadata=[{"n": i} for i in range(30)])
    db.flush()
    for batch in source.iterate(batch_rows=11):
        assert isinstance(batch, Batch)
        made.upsert(batch)
    assert made.count() == 30
    for i, found in enumerate(made.get_many(ids)):
        assert found.metadata == {"n": i}
        assert set(found.vectors) == {*(["tokens"] if i % 5 else []), *(["vector"] if i % 7 else [])}
        if i % 5:
            np.testing.assert_array_equal(found.vectors["tokens"], tokens[i])
        if i % 7:
            np.testing.assert_array_equal(found.vectors["vector"], given[i])
    assert notes.upsert(pa.table({"id": ["x"], "vector": pa.array([[1.0, 2, 3]], pa.list_(pa.float64(), 3))})) == 1
    with pytest.raises(InvalidInputError, match="no column 'id'"):
        notes.upsert(pa.table({"vector": [[1.0]]}))
    with pytest.raises(InvalidInputError, match="no vector 'colour'"):
        notes.upsert(pa.table({"id": ["x"], "colour": [[1.0]]}))
    with pytest.raises(InvalidInputError, match="either a whole table"):
        notes.upsert(pa.table({"id": ["x"]}), rows(1))


VECTORS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        tuple(map(tuple, VECTORS)),
        [np.array(one) for one in VECTORS],
        np.array(VECTORS),
        np.array(VECTORS, np.float16),
        np.array(VECTORS, np.int8),
        np.array(VECTORS, np.float32, order="F"),
        np.repeat(np.array(VECTORS, np.float32), 2, axis=0)[::2],
        pa.array(VECTORS, pa.list_(pa.float32(), 3)),
        pa.array([None, *VECTORS], pa.list_(pa.float16(), 3)).slice(1),
        pa.array(VECTORS, pa.list_(pa.float64())),
        pa.array(VECTORS, pa.large_list(pa.int32())),
        pa.chunked_array([pa.array([one], pa.list_(pa.float32(), 3)) for one in VECTORS]),
    ],
)
def test_vectors_may_have_many_forms(notes: Collection, vectors: Any) -> None:
    notes.upsert(["a", "b"], vectors)
    np.testing.assert_array_equal(np.stack([one.vector for one in notes.get_many(["a", "b"])]), VECTORS)


@pytest.mark.parametrize(
    "metadata",
    [
        [{"a": 1, "b": [1, "x"]}, None],
        pa.array(['{"b": [1, "x"], "a": 1}', None]),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"b": [1, "x"], "a": 1}', None])),
        pa.array(['{"a": 1, "b": [1, "x"]}', None]).dictionary_encode(),
    ],
    ids=["mappings", "text", "json", "dictionary"],
)
def test_metadata_may_have_many_forms(notes: Collection, metadata: Any) -> None:
    notes.upsert(["a", "b"], rows(2), metadata=metadata)
    assert [one.metadata for one in notes.get_many(["a", "b"])] == [{"a": 1, "b": [1, "x"]}, {}]


def test_metadata_may_be_arrow_structs_and_maps(notes: Collection) -> None:
    notes.upsert(["a"], metadata=pa.array([{"a": 1, "b": None}]))
    assert notes.get("a").metadata == {"a": 1, "b": None}
    notes.upsert(["a"], metadata=pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())))
    assert notes.get("a").metadata == {"k": 1}


def test_ids_and_texts_may_be_arrow(notes: Collection) -> None:
    notes.upsert(pa.array(["a", "b"], pa.large_string()), texts=pa.array(["x", None]).dictionary_encode())
    assert [one.text for one in notes.get_many(pa.array(["b", "a"]))] == [None, "x"]
    notes.upsert(np.array(["c"]), rows(1))
    assert notes.delete(pa.chunked_array([["c"], ["a"]])) == 2


# --- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectors": [[1, 2], [3, 4]]}, "expected 3 dimensions, got 2"),
        ({"vectors": [[1, 2, 3], [3, 4]]}, "the same dimension"),
        ({"vectors": [[], []]}, "expected 3 dimensions, got 0"),
        ({"vectors": [[1, 2, np.nan], [1, 2, 3]]}, "row 0 holds a value that is not a finite"),
        ({"vectors": [[1, 2, 3], [1, 2, np.inf]]}, "row 1 holds a value that is not a finite"),
        ({"vectors": [[1, 2, 3], [1, 2, 1e300]]}, "row 1 holds a value that is not a finite"),
        ({"vectors": [[0, 0, 0], [1, 2, 3]]}, "row 0 is the zero vector"),
        ({"vectors": [1, 2, 3]}, "must be a matrix"),
        ({"vectors": [["a", "b", "c"]] * 2}, "must be real numbers"),
        ({"vectors": "abc"}, "real numbers"),
        ({"vectors": np.ones((2, 3), complex)}, "must be real numbers"),
        ({"vectors": np.ones((3, 3))}, "as many as the rows: 2, not 3"),
        ({"vectors": pa.array(["a", "b"])}, "Arrow fixed-size list"),
        ({"vectors": pa.array([[1.0, None, 2.0]] * 2, pa.list_(pa.float32(), 3))}, "null component"),
        ({"vectors": pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))}, "expected 3 dimensions"),
        ({"vectors": pa.array([[1.0, 2.0], [1.0]])}, "same dimension"),
        ({"vectors": {"other": [[1, 2, 3]]}}, "no vector 'other'"),
        ({"vectors": {3: [[1, 2, 3]]}}, "no vector 3"),
        ({"texts": ["a"]}, "texts must be as many as the rows: 2, not 1"),
        ({"texts": "ab"}, "texts must be a sequence"),
        ({"texts": [1, 2]}, r"texts\[0\] must be a string, not int"),
        ({"texts": ["a", "\ud800"]}, "lone surrogate"),
        ({"texts": pa.array([1, 2])}, "texts must be strings"),
        ({"metadata": {"a": 1}}, "metadata must be a sequence"),
        ({"metadata": [{"a": 1}]}, "metadata must be as many"),
        ({"metadata": [{"a": 1}, [1]]}, r"metadata\[1\] must be a mapping"),
        ({"metadata": [{"a": 1}, {"b": {"c": float("nan")}}]}, r"metadata\[1\].b.c"),
        ({"metadata": [{"a": 1}, {1: 2}]}, r"metadata\[1\]"),
        ({"metadata": [{"a": 1}, {"b": b"x"}]}, r"metadata\[1\].b"),
        ({"metadata": pa.array(["{", "{}"])}, r"metadata\[0\] is not valid JSON"),
        ({"metadata": pa.array([1, 2])}, r"metadata\[0\] must be a mapping"),
        ({}, "give vectors, texts or metadata"),
        ({"ids": ["a", "a"], "texts": ["x", "y"]}, r"ids\[1\] is the same as ids\[0\]"),
        ({"ids": "ab", "texts": ["x", "y"]}, "sequence of strings, not one string"),
        ({"ids": ["a", 1], "texts": ["x", "y"]}, r"ids\[1\] must be a string, not int"),
        ({"ids": ["a", None], "texts": ["x", "y"]}, r"ids\[1\] must be a string, not NoneType"),
        ({"ids": ["a", ""], "texts": ["x", "y"]}, "ids must have 1 to 1,024 characters"),
        ({"ids": ["a", "x" * 1025], "texts": ["x", "y"]}, "ids must have 1 to 1,024 characters"),
        ({"ids": ["a", "\udfff"], "texts": ["x", "y"]}, "lone surrogate"),
        ({"ids": pa.array(["a", None]), "texts": ["x", "y"]}, "ids must not be null"),
        ({"ids": None, "texts": ["x", "y"]}, "ids must be a sequence"),
        ({"ids": 3, "texts": ["x", "y"]}, "ids must be a sequence"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(notes: Collection, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        notes.upsert(**{"ids": ["a", "b"], **arguments})
    assert notes.count() == 0


@pytest.mark.parametrize(
    "vectors",
    [
        [None, [1, 1, 1], [0, 0, 0]],
        [None, [1, 1, 1], [0, float("nan"), 0]],
        pa.array([None, [1, 1, 1], [0, 0, 0]], pa.list_(pa.float32(), 3)),
    ],
)
def test_the_row_that_is_wrong_is_counted_among_all(notes: Collection, vectors: Any) -> None:
    with pytest.raises(InvalidInputError, match="vectors: row 2 "):
        notes.upsert(["a", "b", "c"], vectors)


def test_zero_vectors_are_refused_with_cosine_only(db: Database) -> None:
    for metric in ("dot", "euclidean"):
        made = db.collection(metric, dimension=3, metric=metric)
        made.upsert(["a"], [[0, 0, 0]])
        np.testing.assert_array_equal(made.get("a").vector, [0, 0, 0])


def test_vectors_too_long_to_be_compared_are_refused_but_with_cosine(db: Database) -> None:
    # Between two of them a float32 distance would be infinite.
    for metric in ("dot", "euclidean"):
        made = db.collection(metric, dimension=3, metric=metric)
        with pytest.raises(InvalidInputError, match="vectors: row 1 is longer than"):
            made.upsert(["a", "b"], [[1, 2, 3], [3e18, 3e18, 3e18]])
        made.upsert(["a", "b"], [[4e18, 0, 0], [-4e18, 0, 0]])
        with pytest.raises(InvalidInputError, match="query is longer than"):
            made.search([1e19, 0, 0])
        assert [hit.id for hit in made.search([4e18, 0, 0])] == ["a", "b"]
        assert all(np.isfinite([hit.score, hit.distance]).all() for hit in made.search([4e18, 0, 0]))
    cosine = db.collection("cosine", dimension=3)
    cosine.upsert(["a", "b"], [[3e38, 0, 0], [0, 1e-40, 0]])
    assert [hit.distance for hit in cosine.search([3e38, 0, 0])] == pytest.approx([0, 1])


def test_float16_refuses_what_it_cannot_hold(db: Database) -> None:
    half = db.collection("half", vectors={"vector": VectorSpec(2, dtype="float16")})
    half.upsert(["a"], [[0.1, 65_504]])
    np.testing.assert_array_equal(half.get("a").vector, np.array([0.1, 65_504], np.float16))
    with pytest.raises(InvalidInputError, match="float16 cannot store"):
        half.upsert(["a"], [[0.1, 1e6]])
    with pytest.raises(InvalidInputError, match="zero vector"):
        half.upsert(["a"], [[1e-9, 1e-9]])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([np.empty((0, 2))], r"tokens'\]\[0\] is a matrix without rows"),
        ([np.ones(2)], "must be a matrix"),
        ([np.ones((1, 3))], "expected 2 dimensions, got 3"),
        ([np.array([[np.nan, 1]])], "not a finite"),
        ([np.array([[1e6, 1]])], "float16 cannot store"),
        (np.ones((2, 1, 2)), "as many as the rows: 1, not 2"),
        (pa.array([[1.0]]), "fixed-size list"),
        (pa.array([1.0]), "list of fixed-size lists"),
    ],
)
def test_bad_token_matrices_are_refused(db: Database, tokens: Any, message: str) -> None:
    made = db.collection("late", vectors={"vector": VectorSpec(2), "tokens": VectorSpec(2, multi=True)})
    with pytest.raises(InvalidInputError, match=message):
        made.upsert(["a"], {"tokens": tokens})
    assert made.count() == 0


def test_reading_refuses_what_means_nothing(notes: Collection) -> None:
    for call in (
        lambda: notes.get(3),
        lambda: notes.get_many("abc"),
        lambda: notes.get("a", include=["vector"]),
        lambda: notes.count("n > 3"),
        lambda: notes.scan({"n": 3}),
        lambda: notes.count(col("id", "x") == 1),
    ):
        with pytest.raises(InvalidInputError):
            call()


# --- filters --------------------------------------------------------------------------------------------------------------


def test_a_path_leads_into_the_row_or_into_its_metadata(notes: Collection) -> None:
    notes.upsert(
        ["a", "b"],
        rows(2),
        ["first", None],
        [{"n": 1, "id": "inner", "user": {"age": 3}}, {"n": "1", "text": "inner"}],
    )
    for condition, found in [
        (col("n") == 1, "a"),
        (col("metadata", "n") == 1, "a"),
        (col("metadata")["n"] == "1", "b"),
        (col("id") == "a", "a"),
        (col("metadata", "id") == "inner", "a"),
        (col("text").matches("irs"), "a"),
        (col("text").is_null(), "b"),
        (col("metadata", "text").exists(), "b"),
        (col("user", "age") > 2, "a"),
        (~col("user").exists(), "b"),
        ((col("n") == "1") & (col("id") != "a"), "b"),
        (col("vector").exists() | (col("id") >= "b"), "b"),
    ]:
        assert [one.id for one in notes.scan(condition)] == [found], condition
        assert notes.count(condition) == 1


def test_filters_mean_the_same_with_promoted_columns(db: Database) -> None:
    values = [1, 1.0, True, "1", "", "a", None, [1], {"x": 1}, 2**60, -0.0, 1e300, False, "ab", 0, 3]
    plain = db.collection("plain", dimension=3)
    promoted = {
        kind: db.collection(f"as_{kind}", dimension=3, schema={"v": kind}) for kind in ("string", "number", "bool")
    }
    ids = [f"{i:02}" for i in range(len(values) + 1)]
    metadata = [*({"v": one} for one in values), {}]
    for made in (plain, *promoted.values()):
        made.upsert(ids, rows(len(ids)), metadata=metadata)
    v = col("v")
    conditions = [
        *(
            test
            for one in (1, 0, 2**60, 1e300, "1", "a", "", True, False)
            for test in (v == one, v != one, ~(v == one))
        ),
        *(test for one in (0, 1.5, "a", "") for test in (v < one, v <= one, v > one, v >= one)),
        *(
            test
            for some in ([1, 3], ["1", "a"], [1, "a"], [True], [], [1, True])
            for test in (v.in_(some), v.not_in(some))
        ),
        *(
            v.is_null(),
            v.exists(),
            v.contains(1),
            v.startswith("a"),
            v.matches("b"),
            v.startswith("A", case_sensitive=False),
        ),
        *((v > 0) | (v == "a"), (v > 0) & ~(v == 1), v["x"] == 1),
    ]
    for _ in range(2):
        for condition in conditions:
            expected = sorted(one.id for one in plain.scan(condition))
            for kind, made in promoted.items():
                assert sorted(one.id for one in made.scan(condition)) == expected, (kind, condition)
                assert made.count(condition) == len(expected), (kind, condition)
        db.flush()


# --- other ways in --------------------------------------------------------------------------------------------------------


def test_another_process_sees_a_write_at_once(notes: Collection, db: Database) -> None:
    notes.upsert(["a"], rows(1), ["text"], [{"n": 1}])
    program = (
        "import sys, agentdb\n"
        "with agentdb.open(sys.argv[1]) as db:\n"
        "    notes = db.collection('notes')\n"
        "    assert notes.get('a').text == 'text'\n"
        "    notes.update(['a'], metadata=[{'n': 2}])\n"
        "    notes.upsert(['b'], [[1, 2, 3]])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(db.path)], check=True)
    assert notes.get("a").metadata == {"n": 2}
    np.testing.assert_array_equal(notes.get("b").vector, [1, 2, 3])


def test_lance_readers_see_the_vectors(notes: Collection, db: Database) -> None:
    lancedb = pytest.importorskip("lancedb")
    notes.upsert(["a"], [[1, 2, 3]], ["text"])
    db.flush()
    table = lancedb.connect(db.path / "lance").open_table("_collection.notes")
    assert table.to_arrow().column("vector").to_pylist() == [[1, 2, 3]]


def test_tasks_use_collections_too(db_path: Path) -> None:
    async def main() -> None:
        async with agentdb.open_async(db_path, config=QUIET, embedder=Letters()) as db:
            notes = await db.collection("notes")
            assert notes.name == "notes"
            assert repr(notes) == "AsyncCollection('notes')"
            assert await db.collections() == ["notes"]
            assert (await notes.vectors)["vector"].dimension == 4
            assert await notes.promoted == {}
            assert (await notes.embedder).name == "letters"
            await notes.upsert(["a", "b"], texts=["a", "b"])
            (made,) = await notes.add(texts=["c"])
            await notes.update([made], metadata=[{"n": 1}])
            assert (await notes.get(made)).metadata == {"n": 1}
            assert [one.id for one in await notes.get_many(["a", "b"])] == ["a", "b"]
            assert sorted([one.text async for one in notes.scan()]) == ["a", "b", "c"]
            assert [len(one) async for one in notes.iterate(batch_rows=2)] == [2, 1]
            assert await notes.delete(["a"]) == 1
            assert (await notes.erase(["b"])).rows == 1
            assert await notes.count() == 1
            assert await db.drop_collection("notes")

    asyncio.run(main())
