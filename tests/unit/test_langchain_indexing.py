"""The record manager and the document index under LangChain's indexing API."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex
from langchain_core.indexing import index as langchain_index
from langchain_core.runnables import ConfigurableField

import agentdb
from agentdb import ClosedError, Config, InvalidInputError
from langchain_agentdb import AgentDBDocumentIndex, AgentDBRecordManager, AgentDBVectorStore

index = partial(langchain_index, key_encoder="blake2b")
EMBEDDING = DeterministicFakeEmbedding(size=8)
HOSTILE = ["' OR 1=1 --", "%", "_", "a", "ab", "a%", "\\", "\0", "🙂"]


class Clock:
    """Time that goes where it is told to."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 5, 8, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(db_path: Path, clock: Clock):
    with agentdb.open(db_path, config=Config(clock=clock)) as opened:
        yield opened


def documents(*texts: str) -> list[Document]:
    """``source/text`` each."""
    return [Document(one.partition("/")[2], metadata={"source": one.partition("/")[0]}) for one in texts]


def texts_of(destination: Any) -> list[str]:
    store = destination if isinstance(destination, AgentDBVectorStore) else destination._store
    found = store.similarity_search("anything", k=1_000)
    return sorted(f"{one.metadata['source']}/{one.page_content}" for one in found)


@pytest.fixture(params=["vector store", "document index"])
def destination(request: pytest.FixtureRequest, db: agentdb.Database) -> Any:
    return (AgentDBVectorStore if request.param == "vector store" else AgentDBDocumentIndex)(EMBEDDING, db)


def counts(result: Any) -> tuple[int, int, int, int]:
    return tuple(result[f"num_{one}"] for one in ("added", "updated", "skipped", "deleted"))


def test_full(db: agentdb.Database, destination: Any) -> None:
    run = partial(index, record_manager=AgentDBRecordManager(db, namespace="n"), vector_store=destination)
    assert counts(run(documents("s/one", "s/two", "s/two"), cleanup="full")) == (2, 0, 1, 0)
    assert counts(run(documents("s/one", "s/two"), cleanup="full")) == (0, 0, 2, 0)
    assert counts(run(documents("s/two", "t/three"), cleanup="full")) == (1, 0, 1, 1)
    assert texts_of(destination) == ["s/two", "t/three"]
    assert counts(run(documents("s/two"), cleanup="full", force_update=True)) == (0, 1, 0, 1)
    assert counts(run([], cleanup="full")) == (0, 0, 0, 1)
    assert texts_of(destination) == []


def test_incremental(db: agentdb.Database, destination: Any) -> None:
    run = partial(
        index,
        record_manager=AgentDBRecordManager(db, namespace="n"),
        vector_store=destination,
        cleanup="incremental",
        source_id_key="source",
    )
    assert counts(run(documents("s/one", "s/two", "t/three"))) == (3, 0, 0, 0)
    assert counts(run(documents("s/two", "s/zwei"))) == (1, 0, 1, 1)
    assert texts_of(destination) == ["s/two", "s/zwei", "t/three"]
    assert counts(run([])) == (0, 0, 0, 0)
    assert counts(run(documents("t/three", "t/drei"), batch_size=1)) == (1, 0, 1, 0)
    assert texts_of(destination) == ["s/two", "s/zwei", "t/drei", "t/three"]


def test_scoped_full(db: agentdb.Database, destination: Any) -> None:
    run = partial(
        index,
        record_manager=AgentDBRecordManager(db, namespace="n"),
        vector_store=destination,
        cleanup="scoped_full",
        source_id_key="source",
        batch_size=1,
    )
    assert counts(run(documents("s/one", "s/two", "t/three"))) == (3, 0, 0, 0)
    assert counts(run(documents("s/two", "s/zwei"))) == (1, 0, 1, 1)
    assert texts_of(destination) == ["s/two", "s/zwei", "t/three"]


def test_awaited(db: agentdb.Database, destination: Any) -> None:
    async def run() -> None:
        records = AgentDBRecordManager(db, namespace="n")
        await records.acreate_schema()
        work = partial(
            aindex, key_encoder="blake2b", record_manager=records, vector_store=destination, source_id_key="source"
        )
        assert counts(await work(documents("s/one", "s/two", "t/three"), cleanup="incremental")) == (3, 0, 0, 0)
        assert counts(await work(documents("s/two"), cleanup="incremental")) == (0, 0, 1, 1)
        assert counts(await work(documents("s/two"), cleanup="full")) == (0, 0, 1, 1)
        assert texts_of(destination) == ["s/two"]

    asyncio.run(run())


class KilledError(Exception):
    """Stands for the end of the process between two calls; each call by itself is all or nothing."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("cleanup", ["full", "incremental", "scoped_full"])
def test_whatever_step_a_run_dies_at_the_next_makes_it_good(
    db: agentdb.Database, cleanup: Any, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = documents(*(f"s{i % 3}/text {i}" for i in range(6)))
    new = documents(*(f"s{i % 3}/{'text' if i % 2 else 'new'} {i}" for i in range(6)))
    steps = 0
    for dies_at in range(1, 100):
        named = f"run{dies_at}"
        records = AgentDBRecordManager(db, namespace=named)
        store = AgentDBVectorStore(EMBEDDING, db, collection=named)
        run = partial(index, cleanup=cleanup, source_id_key="source", batch_size=3)
        run(old, records, store)
        steps = 0

        def mortal(method: Any, dies_at: int = dies_at) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == dies_at and when == "before":
                    raise KilledError
                returned = method(*args, **kwargs)
                if steps == dies_at:
                    raise KilledError
                return returned

            return call

        with monkeypatch.context() as patched:
            for owner, names in ((store, ("add_documents", "delete")), (records, ("update", "delete_keys"))):
                for name in names:
                    patched.setattr(owner, name, mortal(getattr(owner, name)))
            try:
                run(new, records, store)
            except KilledError:
                assert steps == dies_at
            is_over = steps < dies_at
        # As a new process would have them.
        records = AgentDBRecordManager(db, namespace=named)
        store = AgentDBVectorStore(EMBEDDING, db, collection=named)
        run(new, records, store)
        assert texts_of(store) == sorted(f"{one.metadata['source']}/{one.page_content}" for one in new)
        assert len(records.list_keys()) == len(new)
        if is_over:
            break
    assert steps >= 5


def test_a_document_is_never_taken_for_old_because_the_clock_went_back(db: agentdb.Database, clock: Clock) -> None:
    store = AgentDBVectorStore(EMBEDDING, db)
    for _ in range(4):
        # A new manager with every run, as by another process.
        run = partial(index, record_manager=AgentDBRecordManager(db, namespace="n"), vector_store=store, cleanup="full")
        run(documents("s/one", "s/two"))
        assert texts_of(store) == ["s/one", "s/two"]
        clock.pass_s(-3_600)
        run(documents("s/two"))
        assert texts_of(store) == ["s/two"]
        clock.pass_s(-3_600)


def test_time_never_stands_still_or_goes_back(db: agentdb.Database, clock: Clock) -> None:
    records = AgentDBRecordManager(db, namespace="n")
    seen = [records.get_time()]
    for step in (0, -5, 0, 3, -60, 0.5):
        clock.pass_s(step)
        seen.append(records.get_time())
    assert seen == sorted(set(seen))
    records.update(["a"])
    clock.pass_s(-1_000)
    assert AgentDBRecordManager(db, namespace="n").get_time() > seen[-1]
    with pytest.raises(InvalidInputError, match="earlier than time_at_least"):
        records.update(["b"], time_at_least=records.get_time() + 1)
    assert records.exists(["a", "b"]) == [True, False]


def test_it_answers_as_the_one_in_memory_does(db: agentdb.Database, clock: Clock) -> None:
    source = random.Random(7)
    ours, theirs = AgentDBRecordManager(db, namespace="n"), InMemoryRecordManager("n")
    keys, groups = [f"{one}{i}" for i, one in enumerate(HOSTILE * 3)], [None, *HOSTILE]
    times = [clock.now.timestamp()]
    for step in range(150):
        clock.pass_s(1)
        chosen = source.sample(keys, source.randint(0, 5))
        match source.randrange(4):
            case 0 | 1:
                theirs.get_time = lambda: clock.now.timestamp()  # type: ignore[method-assign]
                given = source.choices(groups, k=len(chosen))
                for one in (ours, theirs):
                    one.update(chosen, group_ids=given, time_at_least=times[-1])
                times.append(clock.now.timestamp() + 0.5)
            case 2:
                for one in (ours, theirs):
                    one.delete_keys(chosen)
            case _:
                times.append(clock.now.timestamp() - 0.5)
        if step == 75:
            db.optimize()
        assert ours.exists(keys) == theirs.exists(keys)
        asked = {
            "before": source.choice([None, source.choice(times)]),
            "after": source.choice([None, source.choice(times)]),
            "group_ids": source.choice([None, source.sample(HOSTILE, 3)]),
        }
        assert ours.list_keys(**asked) == sorted(theirs.list_keys(**asked))
        assert ours.list_keys(**asked, limit=2) == sorted(theirs.list_keys(**asked))[:2]


def test_before_and_after_leave_out_the_time_itself(db: agentdb.Database) -> None:
    records = AgentDBRecordManager(db, namespace="n")
    records.update(["a"])
    at = db.table("_langchain_records").get(("n", "a"))["updated_at"]
    assert records.list_keys(before=at) == records.list_keys(after=at) == []
    assert records.list_keys(before=at + 1, after=at - 1) == ["a"]


def test_an_update_that_fails_records_nothing(db: agentdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    records = AgentDBRecordManager(db, namespace="n")
    records.update(["old"])

    def fail(_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(records._connection().times, "put", fail)
        with pytest.raises(KilledError):
            records.update(["old", "new"], group_ids=["g", "g"])
    assert records.list_keys() == ["old"]
    assert records.list_keys(group_ids=["g"]) == []


def test_an_update_without_groups_keeps_them(db: agentdb.Database) -> None:
    records = AgentDBRecordManager(db, namespace="n")
    records.update(["a", "b"], group_ids=["g", None])
    records.update(["a", "b", "c"])
    assert records.list_keys(group_ids=["g"]) == ["a"]
    assert records.list_keys(group_ids=[]) == []
    assert records.list_keys() == ["a", "b", "c"]


def test_namespaces_do_not_leak(db: agentdb.Database) -> None:
    managers = {one: AgentDBRecordManager(db, namespace=one) for one in HOSTILE}
    for one, records in managers.items():
        records.update([f"{one} 1", "shared"], group_ids=["g", one])
    for doomed in HOSTILE[::2]:
        managers[doomed].delete_keys(["shared", *(f"{one} 1" for one in HOSTILE)])
    for one, records in managers.items():
        kept = [] if one in HOSTILE[::2] else sorted([f"{one} 1", "shared"])
        assert records.list_keys() == kept
        assert records.list_keys(group_ids=["g"]) == [one for one in kept if one != "shared"]


def test_wrong_arguments_are_named(db: agentdb.Database) -> None:
    records = AgentDBRecordManager(db, namespace="n")
    for wrong, said in (
        (lambda: records.update(["a"], group_ids=["g", "h"]), "group_ids must be as many as the keys: 1, not 2"),
        (lambda: records.update("abc"), "keys must be a list of strings, not one string"),
        (lambda: records.update(["a", 3]), r"keys\[1\] must be a str, not int"),
        (lambda: records.update(None), "keys must be a list of strings, not NoneType"),
        (lambda: records.list_keys(group_ids="g"), "group_ids must be a list of strings"),
        (lambda: AgentDBRecordManager(db, namespace=3), "namespace must be a str, not int"),
        (lambda: AgentDBDocumentIndex(EMBEDDING, db).delete(), "delete takes ids"),
        (lambda: AgentDBDocumentIndex(EMBEDDING, db).delete(["a"], force=True), "delete takes ids"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            wrong()
    assert records.list_keys() == []


def test_a_document_index_is_configured_per_run_and_shares_its_store(db: agentdb.Database) -> None:
    with AgentDBVectorStore(EMBEDDING, db, collection="shared", mode="text") as store:
        store.add_texts(["Ann likes tea", "Bob likes tea"], [{"n": 1}, {"n": 2}], ids=["a", "b"])
        made = AgentDBDocumentIndex(None, store)
        assert [one.id for one in made.invoke("Ann")] == ["a"], "as the store searches"
        fields = {"k": ConfigurableField("k"), "filter": ConfigurableField("f"), "mode": ConfigurableField("m")}
        configured = made.configurable_fields(**fields, rerank=ConfigurableField("r"))
        for chosen, ids in (
            ({"k": 1}, ["a"]),
            ({"m": "vector", "f": {"n": 2}}, ["b"]),
            ({"m": "hybrid", "r": lambda _, texts: [one[0] == "B" for one in texts]}, ["b", "a"]),
        ):
            chain = configured.with_config(configurable=chosen)
            assert [one.id for one in chain.invoke("Ann likes")] == ids
            assert [one.id for one in asyncio.run(chain.ainvoke("Ann likes"))] == ids
        for again in (copy.copy(made), copy.deepcopy(made), made.model_copy(deep=True)):
            assert again.invoke("Ann") == made.invoke("Ann")
            assert again._store._connection is again._connection is store._connection
        assert set(made.model_dump()) & {"db_or_path", "embedding"} == set()
        for wrong in ({"collection": "other"}, {"metric": "dot"}, {"embedding": DeterministicFakeEmbedding(size=9)}):
            with pytest.raises(InvalidInputError, match="are those of the vector store"):
                AgentDBDocumentIndex(**{"embedding": EMBEDDING, "db_or_path": store, **wrong})
        made.close()
        asyncio.run(made.aclose())
        assert [one.id for one in store.similarity_search("Ann")] == ["a"], "the store is its owner's to close"
    with pytest.raises(ClosedError):
        made.invoke("Ann")


def test_a_document_index_retrieves(db: agentdb.Database) -> None:
    with AgentDBDocumentIndex(EMBEDDING, db, k=2, filter={"source": "s"}, mode="hybrid") as made:
        made.upsert([Document(f"text {i}", id=str(i), metadata={"source": "st"[i % 2]}) for i in range(10)])
        assert {one.metadata["source"] for one in made.invoke("text 2")} == {"s"}
        assert made.invoke("text 2")[0].id == "2"
        assert len(made.invoke("text 2", k=4)) == 4
        assert made.invoke("text 3", filter={"source": "t"}, k=1)[0].id == "3"
        assert asyncio.run(made.ainvoke("text 2")) == made.invoke("text 2")
        assert made.delete(["1", "none", "1"]) == {"num_deleted": 1, "succeeded": ["1"], "num_failed": 0, "failed": []}
