"""What every store of LangGraph must do; a subclass says which store. Nothing here knows AgentDB.

Run on LangGraph's own ``InMemoryStore`` too, so that it is seen to ask for no more than LangGraph does. Where its stores differ
from one another (docs/decisions/019), the suite asks for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)

DIMS = 64


def embed(texts: list[str]) -> list[list[float]]:
    """Counts words by hash: texts that share words are near each other."""
    vectors = []
    for text in texts:
        vector = [0.0] * DIMS
        for word in "".join(one if one.isalnum() else " " for one in text.lower()).split():
            vector[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=2).digest()) % DIMS] += 1.0
        vectors.append(vector)
    return vectors


class Driver:
    """Calls a store by its sync or its async methods."""

    def __init__(self, store: BaseStore, *, is_async: bool) -> None:
        self.store = store
        self._loop = asyncio.new_event_loop() if is_async else None

    def __getattr__(self, name: str) -> Any:
        if self._loop is None:
            return getattr(self.store, name)
        method = getattr(self.store, f"a{name}")
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()


def keys(found: list[SearchItem]) -> set[tuple[tuple[str, ...], str]]:
    return {(one.namespace, one.key) for one in found}


def names(found: list[SearchItem]) -> list[str]:
    return [one.key for one in found]


class StoreTests:
    """Subclass it, and override ``make_store``."""

    @pytest.fixture
    def make_store(self) -> Iterator[Any]:
        """A function that returns an empty store; it takes ``index`` as the store's constructor does."""
        raise NotImplementedError

    @pytest.fixture(params=["sync", "async"])
    def driver(self, request: pytest.FixtureRequest, make_store: Any) -> Iterator[Any]:
        """A function that returns a `Driver` of an empty store."""
        made: list[Driver] = []

        def make(**options: Any) -> Driver:
            made.append(Driver(make_store(**options), is_async=request.param == "async"))
            return made[-1]

        yield make
        for one in made:
            one.close()

    @pytest.fixture
    def store(self, driver: Any) -> Any:
        return driver()

    @pytest.fixture
    def indexed(self, driver: Any) -> Any:
        return driver(index={"dims": DIMS, "embed": embed, "fields": ["text"]})

    # --- items --------------------------------------------------------------------------------------------------------

    def test_put_get_and_delete(self, store):
        before = datetime.now(UTC)
        assert store.get(("users", "ann"), "likes") is None
        assert store.put(("users", "ann"), "likes", {"food": "soup", "n": 1}) is None
        found = store.get(("users", "ann"), "likes")
        assert isinstance(found, Item)
        assert (found.namespace, found.key, found.value) == (("users", "ann"), "likes", {"food": "soup", "n": 1})
        assert before <= found.created_at <= found.updated_at <= datetime.now(UTC)
        assert store.get(("users",), "likes") is None
        assert store.get(("users", "ann", "x"), "likes") is None
        assert store.get(("users", "ann"), "like") is None
        store.delete(("users", "ann"), "likes")
        assert store.get(("users", "ann"), "likes") is None
        store.delete(("users", "ann"), "likes")

    def test_a_put_takes_the_place_of_the_item(self, store):
        store.put(("a",), "k", {"one": 1, "both": [1]})
        first = store.get(("a",), "k")
        store.put(("a",), "k", {"two": 2, "both": [2]})
        second = store.get(("a",), "k")
        assert second.value == {"two": 2, "both": [2]}
        assert second.updated_at > first.updated_at
        assert len(store.search(("a",))) == 1

    def test_values_of_every_shape(self, store):
        value = {
            "text": "ünïcode 🦜 \" ' \\ \n \u2028",
            "": "empty key",
            "int": 2**53 + 1,
            "negative": -7,
            "float": 0.1,
            "flags": [True, False, None],
            "deep": {"er": {"still": [{"x": [[]]}, {}]}},
            "$dollar": 1,
            "a.b": 2,
        }
        store.put(("shape",), "k", value)
        assert store.get(("shape",), "k").value == value
        assert store.search(("shape",))[0].value == value
        store.put(("shape",), "empty", {})
        assert store.get(("shape",), "empty").value == {}

    @pytest.mark.parametrize(
        "odd", ["%", "_", "*", "a b", "ü🦜", "'; DROP TABLE store; --", "a/b", "\\", '"', "[a]", "?"]
    )
    def test_odd_characters_in_namespaces_and_keys(self, store, odd):
        store.put(("odd", odd), odd, {"it": odd})
        store.put(("odd", "other"), "other", {"it": "other"})
        assert store.get(("odd", odd), odd).value == {"it": odd}
        assert keys(store.search(("odd", odd))) == {(("odd", odd), odd)}
        assert keys(store.search(("odd",), filter={"it": odd})) == {(("odd", odd), odd)}
        assert set(store.list_namespaces()) == {("odd", odd), ("odd", "other")}
        store.delete(("odd", odd), odd)
        assert keys(store.search(("odd",))) == {(("odd", "other"), "other")}

    # --- batches ------------------------------------------------------------------------------------------------------

    def test_results_come_in_order_and_reads_see_the_state_before(self, store):
        store.put(("a",), "k", {"v": 1})
        results = store.batch(
            [
                PutOp(("a",), "k", {"v": 2}),
                GetOp(("a",), "k"),
                PutOp(("a",), "new", {"v": 3}),
                SearchOp(("a",)),
                GetOp(("a",), "new"),
                ListNamespacesOp(),
                PutOp(("b",), "k", {"v": 4}),
            ]
        )
        assert [type(one) for one in results] == [type(None), Item, type(None), list, type(None), list, type(None)]
        assert results[1].value == {"v": 1}
        assert names(results[3]) == ["k"]
        assert results[5] == [("a",)]
        assert [store.get(*at).value["v"] for at in ((("a",), "k"), (("a",), "new"), (("b",), "k"))] == [2, 3, 4]
        assert store.batch([]) == []

    def test_the_last_put_of_a_key_counts(self, store):
        store.batch([PutOp(("a",), "k", {"v": 1}), PutOp(("a",), "k", None), PutOp(("a",), "k", {"v": 2})])
        assert store.get(("a",), "k").value == {"v": 2}
        store.batch([PutOp(("a",), "k", {"v": 3}), PutOp(("a",), "k", None)])
        assert store.get(("a",), "k") is None

    # --- namespaces ---------------------------------------------------------------------------------------------------

    def test_a_prefix_is_made_of_whole_labels(self, store):
        for namespace in [
            ("foo",),
            ("foobar",),
            ("foo", "bar"),
            ("fo",),
            ("FOO",),
            ("foo bar",),
            ("a", "foo"),
            ("foo%",),
        ]:
            store.put(namespace, "k", {"at": list(namespace)})
        assert keys(store.search(("foo",))) == {(("foo",), "k"), (("foo", "bar"), "k")}
        assert keys(store.search(("foo", "bar"))) == {(("foo", "bar"), "k")}
        assert store.search(("foo", "ba")) == []
        assert store.search(("f_o",)) == []
        assert store.search(("%",)) == []
        assert len(store.search(())) == 8

    @pytest.mark.parametrize(
        "namespace", [("a.b",), ("",), ("a", ""), (1,), ("a", None), ("a\x00b",)], ids=lambda one: repr(one)
    )
    def test_labels_are_checked_by_the_methods(self, store, namespace):
        with pytest.raises(InvalidNamespaceError):
            store.put(namespace, "k", {})
        with pytest.raises(InvalidNamespaceError):
            store.get(namespace, "k")
        with pytest.raises(InvalidNamespaceError):
            store.search(namespace)
        with pytest.raises(InvalidNamespaceError):
            store.delete(namespace, "k")
        with pytest.raises(InvalidNamespaceError):
            store.list_namespaces(prefix=namespace)

    def test_an_item_needs_a_namespace_and_langgraph_is_taken(self, store):
        for namespace in ((), ("langgraph",), ("langgraph", "x")):
            with pytest.raises(InvalidNamespaceError):
                store.put(namespace, "k", {})

    def test_list_namespaces(self, store):
        for namespace in [
            ("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "b", "f"), ("a", "c", "f"),
            ("b", "a", "f"), ("users", "123"), ("users", "456", "settings"), ("admin", "users", "789"),
        ]:  # fmt: skip
            store.put(namespace, "k", {})
        assert store.list_namespaces(prefix=("a", "b")) == [
            ("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "b", "f"),
        ]  # fmt: skip
        assert store.list_namespaces(suffix=("f",)) == [("a", "b", "f"), ("a", "c", "f"), ("b", "a", "f")]
        assert store.list_namespaces(prefix=("a",), suffix=("f",)) == [("a", "b", "f"), ("a", "c", "f")]
        assert store.list_namespaces(prefix=("a", "b"), max_depth=3) == [
            ("a", "b", "c"),
            ("a", "b", "d"),
            ("a", "b", "f"),
        ]
        assert store.list_namespaces(max_depth=1) == [("a",), ("admin",), ("b",), ("users",)]
        assert store.list_namespaces(prefix=("nothing",)) == []
        assert store.list_namespaces(limit=2) == [("a", "b", "c"), ("a", "b", "d", "e")]
        assert store.list_namespaces(limit=2, offset=2) == [("a", "b", "d", "i"), ("a", "b", "f")]
        assert store.list_namespaces(offset=100) == []

    def test_a_star_is_exactly_one_label(self, store):
        for namespace in [
            ("a", "x", "f"),
            ("a", "f"),
            ("a", "x", "y", "f"),
            ("b", "x", "f"),
            ("a", "x", "f", "g"),
            ("a", "*"),
        ]:
            store.put(namespace, "k", {})
        assert store.list_namespaces(prefix=("a", "*", "f")) == [("a", "x", "f"), ("a", "x", "f", "g")]
        assert store.list_namespaces(prefix=("*", "x")) == [
            ("a", "x", "f"), ("a", "x", "f", "g"), ("a", "x", "y", "f"), ("b", "x", "f"),
        ]  # fmt: skip
        assert store.list_namespaces(suffix=("a", "*")) == [("a", "*"), ("a", "f")]
        assert store.list_namespaces(suffix=("*", "*", "f")) == [("a", "x", "f"), ("a", "x", "y", "f"), ("b", "x", "f")]
        both = (MatchCondition("prefix", ("*",)), MatchCondition("suffix", ("y", "*")))
        assert store.batch([ListNamespacesOp(match_conditions=both)]) == [[("a", "x", "y", "f")]]

    # --- filters ------------------------------------------------------------------------------------------------------

    @pytest.fixture
    def filtered(self, store: Any) -> Any:
        rows = {
            "two": {"n": 2, "f": 2.5, "kind": "x", "ok": True, "meta": {"lang": "en", "size": {"w": 1, "h": 2}}, "tags": ["a", "b"]},
            "ten": {"n": 10, "f": 10.0, "kind": "y", "ok": False, "meta": {"lang": "de", "size": {"w": 1}}, "tags": []},
            "minus": {"n": -3, "f": -0.5, "kind": "x", "ok": True, "meta": {"lang": "en"}, "tags": ["b", "a"]},
            "null": {"n": 0, "f": 0.0, "kind": None, "ok": True, "meta": {}, "tags": ["a"], "a.b": 1},
        }  # fmt: skip
        for key, value in rows.items():
            store.put(("rows",), key, value)
        store.put(("elsewhere",), "two", rows["two"])
        return lambda condition: set(names(store.search(("rows",), filter=condition, limit=50)))

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            ({"kind": "x"}, {"two", "minus"}),
            ({"kind": "x", "n": 2}, {"two"}),
            ({"n": 10.0}, {"ten"}),
            ({"kind": None}, {"null"}),
            ({"absent": None}, {"two", "ten", "minus", "null"}),
            ({"absent": 1}, set()),
            ({"kind": {"$eq": "y"}}, {"ten"}),
            ({"kind": {"$ne": "x"}}, {"ten", "null"}),
            ({"n": {"$gt": 2}}, {"ten"}),
            ({"n": {"$gte": 2}}, {"two", "ten"}),
            ({"n": {"$lt": 2}}, {"minus", "null"}),
            ({"n": {"$lte": -3}}, {"minus"}),
            ({"n": {"$gt": -5, "$lt": 3}}, {"two", "minus", "null"}),
            ({"f": {"$gte": 2.5}}, {"two", "ten"}),
            ({"meta": {"lang": "en"}}, {"two", "minus"}),
            ({"meta": {"size": {"w": 1}}}, {"two", "ten"}),
            ({"meta": {"size": {"w": 1, "h": 2}}}, {"two"}),
            ({"meta": {"lang": {"$ne": "en"}}}, {"ten", "null"}),
            ({"meta": {"absent": None}}, {"two", "ten", "minus", "null"}),
            ({"meta": {"size": {"absent": None}}}, {"two", "ten"}),
            ({"tags": ["a", "b"]}, {"two"}),
            ({"tags": []}, {"ten"}),
            ({"a.b": 1}, {"null"}),
            ({"ok": False}, {"ten"}),
            ({}, {"two", "ten", "minus", "null"}),
        ],
        ids=str,
    )
    def test_filters(self, filtered, condition, expected):
        assert filtered(condition) == expected

    def test_numbers_compare_as_numbers_not_as_texts(self, store):
        for n in (9, 10, 100, 2, 1.5, -20):
            store.put(("n",), str(n), {"n": n})
        assert set(names(store.search(("n",), filter={"n": {"$gt": 9}}))) == {"10", "100"}
        assert set(names(store.search(("n",), filter={"n": {"$lt": 2}}))) == {"1.5", "-20"}

    def test_an_unknown_operator_is_an_error(self, filtered):
        with pytest.raises(ValueError):
            filtered({"n": {"$regex": ".*"}})

    @pytest.mark.parametrize(
        "hostile",
        [
            "' OR 1=1 --",
            "x') OR ('1'='1",
            '" OR ""="',
            "%",
            "_",
            "*",
            "\\",
            "x'; DELETE FROM store; --",
            "kind.x",
            "x\x00y",
        ],
    )
    def test_hostile_values_and_keys_match_nothing_else(self, filtered, store, hostile):
        assert filtered({"kind": hostile}) == set()
        assert filtered({"kind": {"$eq": hostile}}) == set()
        assert filtered({hostile: "x"}) == set()
        assert filtered({"meta": {hostile: "en"}}) == set()
        assert len(filtered({})) == 4
        store.put(("rows",), "hostile", {"kind": hostile, hostile: 1})
        assert filtered({"kind": hostile}) == filtered({hostile: 1}) == {"hostile"}

    # --- pages --------------------------------------------------------------------------------------------------------

    def test_pages_fit_together(self, store):
        for n in range(25):
            store.put(("page", str(n % 3)), f"k{n:02}", {"n": n})
        pages = [names(store.search(("page",), limit=10, offset=start)) for start in (0, 10, 20)]
        assert [len(one) for one in pages] == [10, 10, 5]
        assert sorted([*pages[0], *pages[1], *pages[2]]) == [f"k{n:02}" for n in range(25)]
        assert len(store.search(("page",))) == 10
        assert store.search(("page",), limit=0) == []
        assert store.search(("page",), offset=25) == []
        assert len(store.search(("page",), filter={"n": {"$gte": 5}}, limit=5, offset=18)) == 2

    # --- meaning ------------------------------------------------------------------------------------------------------

    def test_items_are_ranked_by_meaning(self, indexed):
        indexed.put(("docs",), "dogs", {"text": "dogs chase cats in the garden"})
        indexed.put(("docs",), "soup", {"text": "a recipe for tomato soup"})
        indexed.put(("docs", "deep"), "cats", {"text": "cats sleep in the garden"})
        indexed.put(("other",), "soup", {"text": "tomato soup"})
        found = indexed.search(("docs",), query="tomato soup recipe")
        assert found[0].key == "soup"
        assert found[0].namespace == ("docs",)
        assert {one.key for one in found} == {"dogs", "soup", "cats"}
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert all(-1.0001 <= one <= 1.0001 for one in scores)
        exact = indexed.search((), query="tomato soup", limit=1)[0]
        assert (exact.namespace, exact.key) == (("other",), "soup")
        assert exact.score == pytest.approx(1.0, abs=1e-4)

    def test_a_search_without_a_query_has_no_scores(self, indexed):
        indexed.put(("docs",), "k", {"text": "x"})
        assert [one.score for one in indexed.search(("docs",))] == [None]

    def test_meaning_and_filter_together(self, indexed):
        for n in range(20):
            indexed.put(("docs",), f"k{n}", {"text": f"tomato soup number {n}", "n": n})
        found = indexed.search(("docs",), query="tomato soup number 3", filter={"n": {"$gte": 10}}, limit=20)
        assert {one.key for one in found} == {f"k{n}" for n in range(10, 20)}
        assert indexed.search(("docs",), query="tomato soup number 3", limit=1)[0].key == "k3"

    def test_a_new_value_has_new_vectors(self, indexed):
        indexed.put(("docs",), "k", {"text": "tomato soup"})
        indexed.put(("docs",), "other", {"text": "garden with a fence"})
        indexed.put(("docs",), "k", {"text": "green bicycle"})
        assert indexed.search(("docs",), query="green bicycle")[0].key == "k"
        best = indexed.search(("docs",), query="tomato soup")
        assert all(one.score < 0.5 for one in best)
        indexed.delete(("docs",), "k")
        assert names(indexed.search(("docs",), query="green bicycle")) == ["other"]

    def test_each_field_and_each_element_is_a_vector(self, driver):
        store = driver(index={"dims": DIMS, "embed": embed, "fields": ["title", "parts[*].text", "last[-1]"]})
        store.put(
            ("d",), "a", {"title": "red apple", "parts": [{"text": "blue whale"}, {"text": "green bicycle"}, {"no": 1}]}
        )
        store.put(("d",), "b", {"title": "blue fence", "last": ["first thing", "orange balloon"]})
        for query, key in (("red apple", "a"), ("green bicycle", "a"), ("blue whale", "a"), ("orange balloon", "b")):
            found = store.search(("d",), query=query)
            assert names(found)[0] == key
            assert found[0].score == pytest.approx(1.0, abs=1e-4)
            assert len(found) == 2  # an item is found once, by the best of its vectors
        assert store.search(("d",), query="first thing")[0].score < 0.9

    def test_what_is_indexed_can_be_said_with_the_put(self, indexed):
        indexed.put(("d",), "fields", {"text": "red apple", "other": "green bicycle"}, index=["other"])
        indexed.put(("d",), "nothing", {"text": "green bicycle"}, index=False)
        indexed.put(("d",), "default", {"text": "blue whale"})
        found = [one for one in indexed.search(("d",), query="green bicycle") if one.score is not None]
        assert names(found) == ["fields", "default"]
        assert found[0].score == pytest.approx(1.0, abs=1e-4)
        assert indexed.get(("d",), "nothing").value == {"text": "green bicycle"}
        assert len(indexed.search(("d",))) == 3

    def test_the_whole_value_is_indexed_by_default(self, driver):
        store = driver(index={"dims": DIMS, "embed": embed})
        store.put(("d",), "a", {"one": "red apple", "two": {"three": "green bicycle"}})
        store.put(("d",), "b", {"one": "nothing of that"})
        assert store.search(("d",), query="green bicycle")[0].key == "a"

    def test_pages_by_meaning_fit_together(self, indexed):
        for n in range(12):
            indexed.put(("d",), f"k{n:02}", {"text": " ".join(["soup"] * n + ["salad"] * (12 - n))})
        everything = names(indexed.search(("d",), query="soup", limit=12))
        assert everything[0] == "k11"
        pages = [names(indexed.search(("d",), query="soup", limit=5, offset=start)) for start in (0, 5, 10)]
        assert [*pages[0], *pages[1], *pages[2]] == everything

    def test_an_index_without_a_query_and_a_query_without_an_index(self, driver):
        store = driver()
        store.put(("d",), "a", {"text": "x"}, index=["text"])
        found = store.search(("d",), query="x")
        assert names(found) == ["a"]
        assert found[0].score is None

    def test_async_functions_embed_too(self, make_store):
        async def aembed(texts: list[str]) -> list[list[float]]:
            await asyncio.sleep(0)
            return embed(texts)

        async def main() -> None:
            store = make_store(index={"dims": DIMS, "embed": aembed, "fields": ["text"]})
            await store.aput(("d",), "a", {"text": "red apple"})
            await store.aput(("d",), "b", {"text": "blue whale"})
            found = await asyncio.gather(*(store.asearch(("d",), query=one) for one in ("red apple", "blue whale")))
            assert [one[0].key for one in found] == ["a", "b"]

        asyncio.run(main())

    def test_many_tasks_at_once(self, make_store):
        async def main() -> None:
            store = make_store(index={"dims": DIMS, "embed": embed, "fields": ["text"]})

            async def one(n: int) -> None:
                await store.aput(("user", str(n)), "k", {"text": f"thing {n}", "n": n})
                found = await store.asearch(("user", str(n)), query=f"thing {n}")
                assert [hit.value["n"] for hit in found] == [n]
                await store.adelete(("user", str(n)), "k") if n % 2 else None

            await asyncio.gather(*map(one, range(40)))
            assert len(await store.asearch((), limit=100)) == 20

        asyncio.run(main())
