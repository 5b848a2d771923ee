"""Changes of a whole collection: promoted columns, another embedder, and what the maintenance does by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agentdb
from agentdb import (
    Collection,
    Config,
    Database,
    InvalidInputError,
    NotFoundError,
    Progress,
    UnavailableError,
    VectorSpec,
)
from agentdb import field as col
from agentdb.vectors import evolution
from agentdb.vectors.analysis import ANALYSIS

QUIET = Config(maintenance=False, bulk_rows=64, bulk_bytes=1)


class Letters:
    """An embedder that counts letters. ``before`` is called with the texts first."""

    max_tokens = 1_000

    def __init__(self, dimension: int = 4, before: Callable[[Sequence[str]], None] | None = None) -> None:
        self.name = f"letters-{dimension}"
        self.dimension = dimension
        self.before = before
        self.asked = 0

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        if self.before is not None:
            self.before(texts)
        self.asked += len(texts)
        return np.stack([self.one(text) for text in texts])

    def one(self, text: str) -> np.ndarray:
        counts = [text.count(chr(ord("a") + i)) for i in range(self.dimension)]
        return np.array(counts, np.float32) + np.float32(0.5)

    def embed_tokens(self, texts: Sequence[str], kind: str = "document") -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (np.arange(len(text.split()) + 1), np.stack([self.one(word) for word in [*text.split(), ""]]))
            for text in texts
        ]


@pytest.fixture
def db(db_path: Path) -> Iterator[Database]:
    with agentdb.open(db_path, config=QUIET, embedder=Letters()) as opened:
        yield opened
        opened.optimize()
        assert opened.verify().ok


def text_of(number: int) -> str:
    return "abc" * (number % 5) + "d" * (number % 7)


def filled(db: Database, count: int = 700, **arguments: Any) -> Collection:
    notes = db.collection("notes", **arguments)
    ids = [f"{i:05}" for i in range(count)]
    notes.upsert(
        ids, texts=[text_of(i) for i in range(count)], metadata=[{"n": i, "who": f"w{i % 3}"} for i in range(count)]
    )
    return notes


def check_vectors_of(notes: Collection, embedder: Letters, texts: dict[str, str]) -> None:
    found = {one.id: one for one in notes.scan(include=["text", "vectors"])}
    assert {key: one.text for key, one in found.items()} == texts
    for one in found.values():
        np.testing.assert_array_equal(one.vector, embedder.one(one.text))


def step_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_CHUNK", 16)
    monkeypatch.setattr(evolution, "_EMBED", 16)
    monkeypatch.setattr(evolution, "_PAGE", 100)
    monkeypatch.setattr(evolution, "_LAST_FEW", 2)


def interrupted_after(calls: int) -> Callable[[Progress], None]:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) > calls:
            raise KeyboardInterrupt

    return stop


# --- promoted columns ---------------------------------------------------------------------------------------------------


def test_promoting_changes_no_answer(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    step_through(monkeypatch)
    notes = filled(db)
    notes.upsert(["odd"], metadata=[{"n": "text", "who": {"x": 1}}])
    db.flush()
    notes.upsert(["hot"], metadata=[{"n": 5_000, "who": "w1"}])
    conditions = [col("n") >= 690, col("n") == 7, col("n") == "text", col("who") == "w1", col("who").in_(["w0", "w2"])]
    conditions += [col("n") != 3, ~col("n").exists(), (col("who") == "w2") & (col("n") < 10), col("who", "x") == 1]
    before = [sorted(one.id for one in notes.scan(one)) for one in conditions]
    seen: list[Progress] = []
    notes.promote("n", int, on_progress=seen.append)
    notes.promote(["metadata", "who"], "string")
    assert notes.promoted == {("n",): "number", ("who",): "string"}
    assert seen[-1].done == seen[-1].total == 702
    notes.promote("n", float)
    for _ in range(2):
        assert [sorted(one.id for one in notes.scan(one)) for one in conditions] == before
        assert notes._table.count(col("p_n") >= 690) == 11
        assert notes._table.count(col("p_who") == "w1") == 234
        db.flush()
    notes.update(["00007"], metadata=[{"n": 6_000}])
    assert notes.count(col("n") > 4_000) == 2
    with pytest.raises(InvalidInputError, match="promoted as number, not as string"):
        notes.promote("n", str)
    for bad in (("", dict), ((), str), (3, str)):
        with pytest.raises(InvalidInputError):
            notes.promote(*bad)
    for block in (db.transaction, db.snapshot):
        with block(), pytest.raises(UnavailableError, match="promote"):
            notes.promote("x", str)


def test_keys_that_look_alike_get_columns_of_their_own(db: Database) -> None:
    notes = db.collection("notes", dimension=2, schema={"a b": str, "a_b": str, ("a", "b"): float, "A_B": bool})
    notes.upsert(["1"], metadata=[{"a b": "x", "a_b": "y", "a": {"b": 1}, "A_B": True}])
    for condition in (col("a b") == "x", col("a_b") == "y", col("a", "b") == 1, col("A_B") == True):  # noqa: E712
        assert notes.count(condition) == 1
    assert len({one.column.lower() for one in notes._store.read().promoted}) == 4


def test_a_promotion_that_was_interrupted_is_ended_by_the_maintenance(
    db: Database, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_through(monkeypatch)
    notes = db.collection("notes")
    for start in range(0, 300, 50):  # few enough at once to wait in the hot tier
        some = range(start, start + 50)
        notes.upsert([f"{i:05}" for i in some], metadata=[{"n": i} for i in some])
    with pytest.raises(KeyboardInterrupt):
        notes.promote("n", int, on_progress=interrupted_after(3))
    assert notes.promoted == {}
    assert notes.count(col("n") >= 290) == 10
    notes.upsert(["new"], metadata=[{"n": 1_000}])
    assert notes._table.get("new")["p_n"] == 1_000
    with agentdb.open(db_path) as other:
        other.optimize()
        assert other.collection("notes").promoted == {("n",): "number"}
    assert notes._table.count(col("p_n") >= 290) == 11


def test_rows_prepared_before_a_promotion_are_prepared_again(db: Database) -> None:
    for count in (3, 100):
        name = f"notes{count}"
        texts = [f"{i}" for i in range(count)]

        def promote_meanwhile(_: Sequence[str], name: str = name) -> None:
            thread = threading.Thread(target=lambda: db.collection(name).promote("n", int))
            thread.start()
            thread.join()

        embedder = Letters(5, promote_meanwhile)
        notes = db.collection(name, embedder=embedder)
        notes.upsert(texts, texts=texts, metadata=[{"n": i} for i in range(count)])
        assert notes.promoted == {("n",): "number"}
        assert notes.count(col("n") >= 1) == count - 1
        assert embedder.asked == count


def test_keys_that_are_often_filtered_by_are_promoted(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_OFTEN", 5)
    monkeypatch.setattr(evolution, "_WORTH_ROWS", 100)
    notes = filled(db, 200)
    notes.upsert(["mixed"], metadata=[{"mixed": 1, "looked up": 1}])
    notes.upsert(["mixed2"], metadata=[{"mixed": "1"}])
    for _ in range(4):
        notes.count(col("n") > 3)
    db.optimize()
    assert notes.promoted == {}
    for _ in range(5):
        notes.count(col("n") > 3)
        notes.count((col("who").startswith("w")) & ~(col("mixed") > 1))
        notes.count((col("who").exists()) | (col("absent") < "x") | (col("looked up") == 1))
        notes.count(col("n") != 3)
    expected = notes.count(col("n") > 3)
    db.optimize()
    assert notes.promoted == {("n",): "number", ("who",): "string"}
    assert notes.count(col("n") > 3) == expected
    small = db.collection("small", dimension=2)
    small.upsert(["a"], metadata=[{"n": 1}])
    for _ in range(9):
        small.count(col("n") > 0)
    db.optimize()
    assert small.promoted == {}


# --- another embedder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [4, 6])
def test_reembedding_replaces_every_vector(db: Database, monkeypatch: pytest.MonkeyPatch, dimension: int) -> None:
    step_through(monkeypatch)
    notes = filled(db, 300)
    notes.upsert(["none"], metadata=[{"n": -1}])
    db.flush()
    new = Letters(dimension)
    new.name = "new"
    seen: list[Progress] = []
    notes.reembed(new, on_progress=seen.append)
    assert seen[-1] == Progress("reembed notes", 300, 300)
    assert notes.vectors == {"vector": VectorSpec(dimension, embedded=True)}
    assert notes.embedder is new
    notes.delete(["none"])
    check_vectors_of(notes, new, {f"{i:05}": text_of(i) for i in range(300)})
    assert notes.get("00003").metadata == {"n": 3, "who": "w0"}
    assert new.asked == 300
    notes.reembed(new)
    assert new.asked == 300
    notes.upsert(["later"], texts=["abcdef"])
    np.testing.assert_array_equal(notes.get("later").vector, new.one("abcdef"))
    assert notes._table.count(~col("vector").is_null()) == 0
    back = db.embedder
    notes.reembed(back)
    check_vectors_of(notes, back, {one.id: one.text for one in notes.scan()})
    assert set(notes._table.schema.arrow.names) - {"id", "text", "metadata", "terms"} == {"vector", "vector_2"}


def test_reembedding_goes_on_after_an_interruption(
    db: Database, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_through(monkeypatch)
    notes = filled(db, 200)
    new = Letters(6)
    with pytest.raises(KeyboardInterrupt):
        notes.reembed(new, on_progress=interrupted_after(5))
    done = new.asked
    assert 0 < done < 200
    texts = {f"{i:05}": text_of(i) for i in range(200)}
    # Until the switch everybody reads and writes vectors of the old embedder.
    check_vectors_of(notes, db.embedder, texts)
    notes.upsert(["00000", "extra"], texts=["aaaa", "bbbb"])
    notes.update(["00001"], texts=["cccc"])
    notes.delete(["00002"])
    texts |= {"00000": "aaaa", "extra": "bbbb", "00001": "cccc"}
    del texts["00002"]
    check_vectors_of(notes, db.embedder, texts)
    with agentdb.open(db_path) as other:
        again = other.collection("notes", embedder=new)
        again.reembed(new)
        check_vectors_of(again, new, texts)
    assert new.asked < done + 200
    check_vectors_of(notes, new, texts)
    with agentdb.open(db_path) as other, pytest.raises(InvalidInputError, match="letters-6"):
        other.collection("notes").upsert(["x"], texts=["x"])


def test_an_exchange_can_be_given_up_for_another(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    step_through(monkeypatch)
    notes = filled(db, 100)
    texts = {f"{i:05}": text_of(i) for i in range(100)}
    for other in (Letters(5), Letters(6)):
        with pytest.raises(KeyboardInterrupt):
            notes.reembed(other, on_progress=interrupted_after(2))
    asked = db.embedder.asked
    notes.reembed(db.embedder)
    assert db.embedder.asked == asked
    assert notes._store.read().reembedding is None
    check_vectors_of(notes, db.embedder, texts)
    notes.reembed(Letters(6))
    check_vectors_of(notes, Letters(6), texts)


def test_rows_written_while_all_are_embedded_anew_are_not_lost(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    step_through(monkeypatch)
    notes = filled(db, 60)
    texts = {f"{i:05}": text_of(i) for i in range(60)}
    written = 0

    def write(_: Sequence[str]) -> None:
        nonlocal written
        if threading.current_thread() is not main or written >= 200:
            return
        written += 5
        rows = {f"{(written * 7 + i) % 90:05}": f"{'ab' * (i + 1)} {written}" for i in range(5)}
        thread = threading.Thread(target=lambda: notes.upsert(list(rows), texts=list(rows.values())))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        texts.update(rows)

    main = threading.current_thread()
    monkeypatch.setattr(evolution, "_LAST_FEW", 0)
    notes.reembed(new := Letters(6, write))
    assert written == 200
    check_vectors_of(notes, new, texts)


def test_rows_embedded_before_the_switch_are_embedded_again(db: Database) -> None:
    notes = filled(db, 10)
    new = Letters(6)

    def exchange(_: Sequence[str]) -> None:
        old.before = None
        thread = threading.Thread(target=lambda: db.collection("notes").reembed(new))
        thread.start()
        thread.join()

    old = db.embedder
    for write in (
        lambda: notes.upsert(["late"], texts=["abcdef"]),
        lambda: notes.update(["00001"], texts=["fedcba"]),
    ):
        notes.reembed(old)
        notes._given.append(new)
        old.before = exchange
        write()
        assert notes.vectors["vector"].dimension == 6
    np.testing.assert_array_equal(notes.get("late").vector, new.one("abcdef"))
    np.testing.assert_array_equal(notes.get("00001").vector, new.one("fedcba"))


def test_token_vectors_are_exchanged_too(db: Database) -> None:
    notes = filled(
        db,
        40,
        embedder=db.embedder,
        vectors={
            "vector": VectorSpec(4, dtype="float16"),
            "tokens": VectorSpec(4, multi=True, embedded=True),
            "own": VectorSpec(2),
        },
    )
    notes.update(["00001"], {"own": [[1, 2]]})
    notes.reembed(new := Letters(6))
    assert notes.vectors == {
        "vector": VectorSpec(6, dtype="float16", embedded=True),
        "tokens": VectorSpec(6, multi=True, embedded=True),
        "own": VectorSpec(2, embedded=False),
    }
    for one in notes.get_many([f"{i:05}" for i in range(40)]):
        np.testing.assert_array_equal(one.vectors["vector"], new.one(one.text))
        np.testing.assert_array_equal(one.vectors["tokens"], new.embed_tokens([one.text])[0][1])
    np.testing.assert_array_equal(notes.get("00001").vectors["own"], [1, 2])


def test_given_vectors_can_be_exchanged_for_embedded_ones(db: Database) -> None:
    notes = db.collection("notes", dimension=3)
    notes.upsert(["a", "b"], [[1, 2, 3], [4, 5, 6]], ["aa", "bb"])
    notes.upsert(["c"], [[1, 2, 3]])
    with pytest.raises(InvalidInputError, match="1 rows have a vector 'vector' and no text"):
        notes.reembed(db.embedder)
    notes.delete(["c"])
    notes.reembed(db.embedder)
    check_vectors_of(notes, db.embedder, {"a": "aa", "b": "bb"})


def test_what_cannot_be_reembedded_is_refused(db: Database) -> None:
    notes = filled(db, 3)
    with pytest.raises(InvalidInputError, match="embedder must have"):
        notes.reembed("letters")
    for block in (db.transaction, db.snapshot):
        with block(), pytest.raises(UnavailableError, match="reembed"):
            notes.reembed(Letters(6))
    late = db.collection("late", vectors={"tokens": VectorSpec(2, multi=True)})
    with pytest.raises(InvalidInputError, match="no vector that an embedder could make"):
        late.reembed(Letters(6))
    db.drop_collection("notes")
    with pytest.raises(NotFoundError):
        notes.reembed(Letters(6))


# --- another analysis of texts ------------------------------------------------------------------------------------------


def test_texts_that_another_release_analysed_are_analysed_again(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    step_through(monkeypatch)
    notes = filled(db, 50)
    notes.update(["00007"], texts=["running"])
    for some in (["00007"], [f"{i:05}" for i in range(8, 50)]):
        rows = notes._table.get_many(some)
        notes._table.put_many([{**row, "terms": b""} for row in rows])
        db.flush()
    assert notes.search("run", mode="text") == []
    notes._store.change(lambda definition: definition.next(analysis="another"))
    db.optimize()
    assert notes._store.read().analysis == ANALYSIS
    assert [hit.id for hit in notes.search("run", mode="text")] == ["00007"]
