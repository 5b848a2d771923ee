"""AgentDBStore against a dictionary: random batches, searches, clocks, flushes and transactions undone."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from support.store_suite import DIMS, embed
from support.store_world import Clock

import agentdb
from agentdb import Config
from langgraph_agentdb import AgentDBStore, store_columns, store_items
from langgraph_agentdb.store_filters import StoreFilter
from langgraph_agentdb.store_items import text_of

LABELS = ["a", "aa", "A", "*", "%", "b c", "ü", "\x01", "\x1f"]
WHERE = ["resident", "columns", "tables"]
WORDS = ["red", "apple", "blue", "whale", "soup"]

namespaces = st.lists(st.sampled_from(LABELS[:4]) | st.sampled_from(LABELS), min_size=1, max_size=3).map(tuple)
prefixes = st.lists(st.sampled_from(LABELS[:3]), max_size=2).map(tuple)
item_keys = st.sampled_from(["k", "l", "", "k\x01", "k.l"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([0.5, 1.0, 2.5, 2.0**60])
    | st.sampled_from(["", "x", "y", "1"])
)
values = st.fixed_dictionaries(
    {"text": st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)},
    optional={
        "n": scalars,
        "m": scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["n", "o"]), scalars, max_size=2),
        "more": st.lists(st.sampled_from(WORDS), max_size=2),
    },
)  # fmt: skip
bounds = st.integers(-2, 3) | st.sampled_from([0.5, "x", "1"])
tests_of_value = st.deferred(
    lambda: (
        scalars
        | st.fixed_dictionaries({"$eq": scalars | st.lists(scalars, max_size=2)})
        | st.fixed_dictionaries({"$ne": scalars | st.dictionaries(st.just("n"), scalars)})
        | st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), bounds, min_size=1, max_size=2)
        | st.fixed_dictionaries({"$in": st.lists(scalars, max_size=3)})
        | st.fixed_dictionaries({"$nin": st.lists(scalars, max_size=3)})
        | st.fixed_dictionaries({"$not": tests_of_value})
        | st.lists(scalars, max_size=2)
        | st.dictionaries(st.sampled_from(["n", "o"]), tests_of_value, max_size=2)
    )
)
filters = st.deferred(
    lambda: (
        st.dictionaries(st.sampled_from(["n", "m", "absent"]), tests_of_value, max_size=2)
        | st.fixed_dictionaries({"$or": st.lists(filters, max_size=2)})
        | st.fixed_dictionaries({"$and": st.lists(filters, max_size=2)})
        | st.fixed_dictionaries({"$not": filters})
    )
)
puts = st.builds(
    PutOp,
    namespaces,
    item_keys,
    values | st.none(),
    index=st.sampled_from([None, None, None, False, ["more[*]"]]),
    ttl=st.sampled_from([None, None, 1.0, 5.0]),
)


def unit(text: str) -> Any:
    vector = np.array(embed([text])[0])
    return vector / np.linalg.norm(vector)


class StoreMachine(RuleBasedStateMachine):
    """Small scopes are read through a handle that holds them in memory; the same searches are put to columns and tables."""

    @initialize(omits=st.booleans())
    def begin(self, *, omits: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="agentdb-store-"))
        self.clock = Clock()
        self.omits = omits
        self.db = agentdb.open(self.folder / "db", config=Config(maintenance=False, clock=self.clock))
        self.open_stores()
        self.model: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}

    def open_stores(self) -> None:
        index = {"dims": DIMS, "embed": embed, "fields": ["text", "more[*]"]}
        ttl: Any = {"omit_expired": self.omits}
        self.store = AgentDBStore(self.db, index=index, ttl=ttl)
        self.other = AgentDBStore(self.db, index=index, ttl=ttl)
        self.third = AgentDBStore(self.db, index=index, ttl=ttl)
        assert self.store.batch([]) == []  # makes the tables

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            shutil.rmtree(self.folder)

    # --- the model ----------------------------------------------------------------------------------------------------

    def seen(self, prefix: tuple[str, ...] = ()) -> dict[Any, dict[str, Any]]:
        return {
            at: one
            for at, one in self.model.items()
            if at[0][: len(prefix)] == prefix and not (self.omits and one["until"] and one["until"] <= self.clock.now)
        }

    def apply(self, batch: list[PutOp]) -> None:
        now = self.clock.now
        for op in {(op.namespace, op.key): op for op in batch}.values():
            at = op.namespace, op.key
            if op.value is None:
                self.model.pop(at, None)
                continue
            texts = (
                [op.value["text"], *op.value.get("more", [])]
                if op.index is None
                else op.value.get("more", [])
                if op.index
                else []
            )
            self.model[at] = {
                "value": op.value,
                "at": now,
                "ttl": op.ttl,
                "until": None if op.ttl is None else now + timedelta(minutes=op.ttl),
                "vectors": [unit(text) for text in texts],
            }

    def touch(self, keys: Any) -> None:
        for at in keys:
            one = self.model[at]
            if one["ttl"] is not None:
                until = self.clock.now + timedelta(minutes=one["ttl"])
                if until - one["until"] >= timedelta(seconds=1):
                    one["until"] = until

    # --- rules --------------------------------------------------------------------------------------------------------

    @rule(batch=st.lists(puts, min_size=1, max_size=5), other=st.booleans())
    def put(self, batch: list[PutOp], *, other: bool) -> None:
        (self.other if other else self.store).batch(batch)
        self.apply(batch)

    @rule(batch=st.lists(puts, min_size=1, max_size=3))
    def undo(self, batch: list[PutOp]) -> None:
        try:
            with self.db.transaction():
                self.store.batch(batch)
                self.store.search(())
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    @rule(namespace=namespaces, key=item_keys, refresh=st.booleans())
    def get(self, namespace: tuple[str, ...], key: str, *, refresh: bool) -> None:
        found = self.store.batch([GetOp(namespace, key, refresh)])[0]
        wanted = self.seen().get((namespace, key))
        assert (found and found.value) == (wanted and wanted["value"])
        if wanted and refresh:
            self.touch([(namespace, key)])

    @rule(
        prefix=prefixes,
        condition=filters,
        limit=st.integers(0, 6),
        offset=st.integers(0, 3),
        where=st.sampled_from(WHERE),
    )
    def search(self, *, prefix: tuple[str, ...], condition: Any, limit: int, offset: int, where: str) -> None:
        self.find(SearchOp(prefix, condition, limit, offset, None, refresh_ttl=False), where=where)

    @rule(prefix=prefixes, condition=filters | st.none(), limit=st.integers(1, 6), offset=st.integers(0, 3), where=st.sampled_from(WHERE),
          words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))  # fmt: skip
    def search_by_meaning(
        self, *, prefix: tuple[str, ...], condition: Any, limit: int, offset: int, where: str, words: list[str]
    ) -> None:
        query = " ".join(words)
        self.find(SearchOp(prefix, condition, limit, offset, query, refresh_ttl=False), where=where)

    def find(self, op: SearchOp, *, where: str) -> None:
        # A handle remembers that a scope is large, until a namespace comes or goes: one for each way.
        handle = {"resident": self.store, "columns": self.third, "tables": self.other}[where]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_columns, "_IN_TABLES", -1 if where == "columns" else 1 << 60)
            if where != "resident":
                patch.setattr(store_items, "_RESIDENT_ITEMS", -1)
            found = handle.batch([op])[0]
        holds = StoreFilter(op.filter, "value").holds
        matching = {at: one for at, one in self.seen(op.namespace_prefix).items() if holds(one["value"])}
        here = [((one.namespace, one.key), one.value, one.score) for one in found]
        assert len({at for at, _, _ in here}) == len(here)
        for at, value, _ in here:
            assert value == matching[at]["value"]
        if op.query is None:
            newest = sorted(matching, key=lambda at: (-matching[at]["at"].timestamp(), text_of(at[0]), at[1]))
            assert [at for at, _, _ in here] == newest[op.offset : op.offset + op.limit]
            return
        asked = unit(op.query)
        best = {at: max(one["vectors"] @ asked) for at, one in matching.items() if one["vectors"]}
        ranked = sorted(best.values(), reverse=True)[op.offset : op.offset + op.limit]
        assert np.allclose([score for _, _, score in here], ranked, atol=1e-5)
        assert np.allclose([best[at] for at, _, _ in here], ranked, atol=1e-5)

    @rule(prefix=st.lists(st.sampled_from(["a", "*", "aa"]), max_size=2), suffix=st.lists(st.sampled_from(["a", "*"]), max_size=2),
          depth=st.none() | st.integers(1, 3))  # fmt: skip
    def list_namespaces(self, prefix: list[str], suffix: list[str], depth: int | None) -> None:
        conditions = (MatchCondition("prefix", tuple(prefix)), MatchCondition("suffix", tuple(suffix)))
        found = self.store.batch([ListNamespacesOp(conditions, depth, 100, 0)])[0]

        def alike(part: Any, path: list[str]) -> bool:
            return len(part) == len(path) and all(b in ("*", a) for a, b in zip(part, path, strict=True))

        wanted = {at[0] for at in self.seen()}
        wanted = {
            one
            for one in wanted
            if alike(one[: len(prefix)], prefix) and alike(one[max(0, len(one) - len(suffix)) :], suffix)
        }
        assert found == sorted({one[:depth] for one in wanted} if depth else wanted)

    @rule(minutes=st.sampled_from([0.4, 2.0, 4.0]))
    def wait(self, minutes: float) -> None:
        self.clock.now += timedelta(minutes=minutes)

    @rule()
    def sweep(self) -> None:
        over = [at for at, one in self.model.items() if one["until"] and one["until"] <= self.clock.now]
        assert self.store.sweep_ttl() == len(over)
        for at in over:
            del self.model[at]

    @rule()
    def flush(self) -> None:
        self.db.flush()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = agentdb.open(self.folder / "db", config=Config(maintenance=False, clock=self.clock))
        self.open_stores()

    @invariant()
    def nothing_is_left_over(self) -> None:
        if not hasattr(self, "db"):
            return
        with self.db.snapshot():
            heads = list(self.db.table("_langgraph_item_heads").scan())
            items = list(self.db.table("_langgraph_items").scan())
            vectors = self.db.collection("_langgraph_store").count()
            counts = {
                row["namespace"]: row["items"]
                for row in self.db.table("_langgraph_namespaces").scan()
                if row["namespace"]
            }
        assert len(heads) == len(items) == len(self.model) == sum(counts.values())
        assert {(one["namespace"], one["key"]) for one in heads} == {(one["namespace"], one["key"]) for one in items}
        assert (
            vectors == sum(len(one["vectors"]) for one in self.model.values()) == sum(one["vectors"] for one in heads)
        )


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=25)
