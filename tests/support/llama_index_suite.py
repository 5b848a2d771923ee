"""What any LlamaIndex vector store should do, to be inherited: a class per store, with a fixture ``store`` that is an empty one.

What a filter means is asked of LlamaIndex itself: ``build_metadata_filter_fn`` judges every single condition, and
conditions are combined as it combines them, at every level of nesting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

Metadata = Mapping[str, Any]
Operator = FilterOperator
DIMENSION = 4
ALL = 1_000

# --- the reference ----------------------------------------------------------------------------------------------------


def leaf_holds(metadata: Metadata, condition: MetadataFilter, *, strict: bool) -> bool:
    """Return what LlamaIndex says of one condition; a value that it cannot compare does not match, or raises (``strict``)."""
    holds = build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[condition]))
    try:
        return bool(holds(""))
    except TypeError:
        if strict:
            raise
        return False


def holds(metadata: Metadata, filters: MetadataFilters, *, strict: bool = False) -> bool:
    """Return whether metadata match filters, nested ones included."""
    if not filters.filters:
        return True
    found = [
        holds(metadata, one, strict=strict)
        if isinstance(one, MetadataFilters)
        else leaf_holds(metadata, one, strict=strict)
        for one in filters.filters
    ]
    match filters.condition:
        case FilterCondition.OR:
            return any(found)
        case FilterCondition.NOT:
            return not any(found)
        case _:
            return all(found)


def conditions_of(filters: MetadataFilters) -> Iterator[MetadataFilter]:
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            yield from conditions_of(one)
        else:
            yield one


def makes_sense(condition: MetadataFilter) -> bool:
    """Whether there is any value that the operator can compare with the condition's."""
    value = condition.value
    match condition.operator:
        case Operator.IN | Operator.NIN | Operator.ANY | Operator.ALL:
            return isinstance(value, list | str)
        case Operator.TEXT_MATCH | Operator.TEXT_MATCH_INSENSITIVE:
            return isinstance(value, str)
        case Operator.GT | Operator.GTE | Operator.LT | Operator.LTE:
            return isinstance(value, int | float | str)
        case _:
            return True


# --- data -------------------------------------------------------------------------------------------------------------

MISSING = object()
STORED: list[Any] = [
    *(MISSING, None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e-300, 2**53, 2**53 + 1, -(2**53), -(2**53) - 1, 2**63),
    *(-(10**18), -(10**18) - 1, 10**18, 10**18 + 1, 1e18, 1e300, int(1e300), 1.7976931348623157e308),
    *("", "a", "A", "ab", "b", "1", "1.0", "True", "None", "null", "ß", "SS", "i̇", "İ", "a'b", 'a"b', "a\\b", "%", "_"),
    *("x' OR 1=1 --", "é", "e\u0301", "\uffff", "\U00010000", "a\x00b", "a" * 250),
    *([], [1], [True], [0.0], [1.0, "a"], ["a"], ["a", "b"], ["b", "a"], ["ab"], ["1"], [None], [["a"]], [["a"], "b"]),
    *(
        [[]],
        [{}],
        [2**53 + 1],
        [2**53],
        ["a" * 250],
        ["a", "a"],
        {},
        {"a": 1},
        {"a": None},
        {"ab": {"a": 1}},
        [{"a": 1}],
    ),
]
ASKED: list[Any] = [
    *(
        None,
        0,
        1,
        -1,
        2,
        1.0,
        0.5,
        1e-300,
        float("nan"),
        float("inf"),
        float("-inf"),
        2**53,
        2**53 + 1,
        -(2**53),
        -(2**53) - 1,
    ),
    *(-(10**18), -(10**18) - 1, 2**63, 10**18, 10**18 + 1, 1e18, 1e300, 10**400, -(10**400)),
    *(
        "",
        "a",
        "A",
        "ab",
        "1",
        "True",
        "null",
        "ß",
        "ss",
        "i̇",
        "a'b",
        "%",
        "_",
        "x' OR 1=1 --",
        "é",
        "\uffff",
        "a" * 250,
    ),
    *([], ["a"], ["a", "b"], ["b", "a"], ["ab", "1"], [1], [0, 2], [1.0, 0.5], ["a" * 250], [2**53 + 1], [10**18]),
    *([float("nan")], [float("inf")]),
]
OPERATORS = list(FilterOperator)

_texts = st.text(st.sampled_from("abAB1%_'\"\\ é"), max_size=3)
_numbers = (
    st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, -1.5, 2**53, 2**53 + 1, 10**18, 10**18 + 1, -(10**18)])
    | st.floats(allow_nan=False, allow_infinity=False)
)
_scalars = st.none() | st.booleans() | _numbers | _texts
_stored = _scalars | st.lists(_scalars | st.lists(_texts, max_size=2), max_size=3) | st.sampled_from(STORED[1:])
_asked = (
    st.none()
    | _numbers
    | _texts
    | st.lists(_texts, max_size=3)
    | st.lists(st.integers(-3, 3), max_size=3)
    | st.sampled_from(ASKED)
)
_KEYS = ("k", "other", "a.b", "it's", "metadata", "text", "id", "doc_id", "")


def metadata_strategy(values: st.SearchStrategy[Any] = _stored) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(_KEYS), values, max_size=4)


def condition_strategy(keys: Sequence[str] = _KEYS) -> st.SearchStrategy[MetadataFilter]:
    return st.builds(
        MetadataFilter, key=st.sampled_from([*keys, "nowhere"]), operator=st.sampled_from(OPERATORS), value=_asked
    )


def filters_strategy(
    *, nested: bool, conditions: st.SearchStrategy[MetadataFilter] | None = None
) -> st.SearchStrategy[MetadataFilters]:
    leaves = condition_strategy() if conditions is None else conditions
    combined = st.sampled_from([*FilterCondition, None])

    def group(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[MetadataFilters]:
        return st.builds(MetadataFilters, filters=st.lists(parts, max_size=3), condition=combined)

    return st.recursive(group(leaves), lambda inner: group(inner | leaves), max_leaves=8) if nested else group(leaves)


def _typed_condition(key: str, operators: Sequence[Operator], values: st.SearchStrategy[Any]) -> Any:
    return st.builds(MetadataFilter, key=st.just(key), operator=st.sampled_from(operators), value=values)


_COMPARISONS = [Operator.EQ, Operator.NE, Operator.LT, Operator.LTE, Operator.GT, Operator.GTE]
TYPED_METADATA = st.fixed_dictionaries(
    {},
    optional={
        "year": st.none() | st.integers(1990, 1995),
        "share": st.floats(-2, 2),
        "name": st.none() | _texts,
        "tags": st.none() | st.lists(_texts, max_size=3),
    },
)
TYPED_CONDITION = st.one_of(
    _typed_condition("year", _COMPARISONS, st.integers(1989, 1996) | st.floats(1990, 1995)),
    _typed_condition("year", [Operator.IN, Operator.NIN], st.lists(st.integers(1990, 1995), max_size=3)),
    _typed_condition("share", _COMPARISONS, st.floats(-2, 2) | st.integers(-2, 2)),
    _typed_condition("name", [*_COMPARISONS, Operator.TEXT_MATCH, Operator.TEXT_MATCH_INSENSITIVE], _texts),
    _typed_condition("name", [Operator.IN, Operator.NIN], st.lists(_texts, max_size=3)),
    _typed_condition("tags", [Operator.CONTAINS], _texts),
    _typed_condition("tags", [Operator.ANY, Operator.ALL, Operator.EQ, Operator.NE], st.lists(_texts, max_size=2)),
    _typed_condition("tags", [Operator.IN, Operator.NIN], st.lists(_texts, max_size=2)),
    *(_typed_condition(key, [Operator.IS_EMPTY], st.none()) for key in ("year", "name", "tags", "nowhere")),
)
"""Conditions on `TYPED_METADATA` that the reference can always evaluate."""


def node(
    node_id: str,
    embedding: Sequence[float] = (1.0, 0.0, 0.0, 0.0),
    *,
    text: str | None = None,
    document: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> TextNode:
    relations = {} if document is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(
        id_=node_id,
        text=f"text of {node_id}" if text is None else text,
        embedding=list(embedding),
        metadata=dict(metadata or {}),
        relationships=relations,
    )


def random_nodes(count: int, seed: int = 0, documents: int = 5) -> list[TextNode]:
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(30)]
    return [
        node(
            f"n{i:03}",
            rng.standard_normal(DIMENSION),
            text=" ".join(rng.choice(words, int(rng.integers(3, 12)))),
            document=f"d{i % documents}",
            metadata={"year": 2000 + i % 7, "even": "yes" if i % 2 == 0 else "no", "tags": [f"t{i % 3}", f"u{i % 4}"]},
        )
        for i in range(count)
    ]


def only(key: str, value: Any, operator: Operator = Operator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


def seen_by_filters(one: BaseNode) -> dict[str, Any]:
    """Return the metadata that a filter sees: the node's, and what every store adds."""
    document = one.ref_doc_id or "None"
    return {**one.metadata, "document_id": document, "doc_id": document, "ref_doc_id": document}


def cosines(query: Sequence[float], nodes: Sequence[BaseNode]) -> dict[str, float]:
    left = np.asarray(query, np.float64)
    found = {}
    for one in nodes:
        right = np.asarray(one.embedding, np.float64)
        found[one.node_id] = float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
    return found


def assert_best(ids: Sequence[str], similarities: Sequence[float], truth: Mapping[str, float], k: int) -> None:
    """Check a ranking against the scores of all that match; equal ones may change places."""
    assert len(ids) == len(set(ids)) == len(similarities) == min(k, len(truth))
    expected = sorted(truth.values(), reverse=True)[:k]
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_allclose(similarities, [truth[one] for one in ids], atol=1e-5)


# The tests are inherited, and every example empties the store.
_property = settings(
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ]
)


# --- the suite --------------------------------------------------------------------------------------------------------


class OperatorSuite:
    """What each operator means. Inherit, define the fixture ``store``, and say what the store does not do."""

    raises_on_other_types: ClassVar[bool] = False
    """Whether a node's value that cannot be compared fails the query, instead of not matching."""
    nests: ClassVar[bool] = True

    # --- what tests are made of -------------------------------------------------------------------------------------

    def matching(
        self, store: BasePydanticVectorStore, filters: MetadataFilters | None = None, **query: Any
    ) -> set[str]:
        asked = VectorStoreQuery(
            query_embedding=[1.0, 0.5, 0.25, 0.125], similarity_top_k=ALL, filters=filters, **query
        )
        return set(store.query(asked).ids or [])

    def check_filter(
        self, store: BasePydanticVectorStore, filters: MetadataFilters, stored: Mapping[str, Metadata]
    ) -> None:
        """Hold a store's answer, or its refusal, equal to the reference."""
        if self.raises_on_other_types:
            try:
                expected = {key for key, metadata in stored.items() if holds(metadata, filters, strict=True)}
            except TypeError:
                with pytest.raises(TypeError):
                    self.matching(store, filters)
                return
        else:
            if not all(map(makes_sense, conditions_of(filters))):
                with pytest.raises(ValueError, match="filter on"):
                    self.matching(store, filters)
                return
            expected = {key for key, metadata in stored.items() if holds(metadata, filters)}
        found = self.matching(store, filters)
        assert found == expected, (filters, {key: stored[key] for key in found ^ expected})
        self.check_further(store, filters, expected)

    def settle(self, store: Any) -> None:
        """Do with a store what may change where its nodes are, but not what it answers."""

    def check_further(self, store: Any, filters: MetadataFilters, expected: set[str]) -> None:
        """Check what else filters, if anything does."""

    def check_random(
        self, store: BasePydanticVectorStore, rows: Sequence[Metadata], several: Sequence[MetadataFilters]
    ) -> None:
        store.clear()
        nodes = [node(f"n{i}", metadata=metadata, document="d" if i % 2 else None) for i, metadata in enumerate(rows)]
        store.add(nodes)
        self.settle(store)
        stored = {one.node_id: seen_by_filters(one) for one in nodes}
        for filters in several:
            self.check_filter(store, filters, stored)

    # --- filters ----------------------------------------------------------------------------------------------------

    @pytest.fixture
    def one_of_each(self, store: BasePydanticVectorStore) -> dict[str, Metadata]:
        """A node for every kind of value."""
        nodes = [node(f"n{i:02}", metadata={} if one is MISSING else {"k": one}) for i, one in enumerate(STORED)]
        store.add(nodes)
        self.settle(store)
        return {one.node_id: seen_by_filters(one) for one in nodes}

    @pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: one.name)
    def test_every_operator_with_every_type_of_value(
        self, store: BasePydanticVectorStore, one_of_each: dict[str, Metadata], operator: Operator
    ) -> None:
        for value in ASKED:
            self.check_filter(store, only("k", value, operator), one_of_each)

    def test_filters_see_the_document_of_a_node(self, store: BasePydanticVectorStore) -> None:
        store.add([node("a", document="d1"), node("b", document="d2"), node("c", metadata={"doc_id": "mine"})])
        for key in ("doc_id", "document_id", "ref_doc_id"):
            assert self.matching(store, only(key, "d1")) == {"a"}
            assert self.matching(store, only(key, "None")) == {"c"}
        assert self.matching(store, only("_node_type", "TextNode")) == {"a", "b", "c"}
        assert self.matching(store, only("_node_content", None, Operator.IS_EMPTY)) == {"a", "b", "c"}


class FilterSuite(OperatorSuite):
    """What all filters mean, nested ones too."""

    @_property
    @given(
        st.lists(TYPED_METADATA, min_size=1, max_size=6),
        st.lists(filters_strategy(nested=False, conditions=TYPED_CONDITION), min_size=1, max_size=4),
    )
    def test_conditions_on_metadata_of_one_type_a_key(
        self, store: BasePydanticVectorStore, rows: list[Metadata], several: list[MetadataFilters]
    ) -> None:
        self.check_random(store, rows, several)

    @_property
    @given(
        st.lists(metadata_strategy(), min_size=1, max_size=6),
        st.lists(filters_strategy(nested=False), min_size=1, max_size=4),
    )
    def test_conditions_on_metadata_of_any_type(
        self, store: BasePydanticVectorStore, rows: list[Metadata], several: list[MetadataFilters]
    ) -> None:
        self.check_random(store, rows, several)

    @_property
    @given(
        st.lists(metadata_strategy(), min_size=1, max_size=6),
        st.lists(filters_strategy(nested=True), min_size=1, max_size=4),
    )
    def test_nested_filters(
        self, store: BasePydanticVectorStore, rows: list[Metadata], several: list[MetadataFilters]
    ) -> None:
        if self.nests:
            self.check_random(store, rows, several)
            return
        store.clear()
        store.add([node("a")])
        with pytest.raises(ValueError, match="Nested"):
            self.matching(store, MetadataFilters(filters=[only("k", 1)]))


class VectorStoreSuite(FilterSuite):
    """All that a store does."""

    stores_nodes: ClassVar[bool] = True
    """Whether nodes come back, and ``get_nodes`` is there."""
    honours_doc_ids: ClassVar[bool] = True
    empty_ids_mean_any: ClassVar[bool] = True
    """Indices over stores that keep texts pass ``node_ids=[]``."""
    deletes_all_by_no_argument: ClassVar[bool] = False

    # --- queries ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("k", [1, 7, 100])
    def test_the_nearest_are_those_of_a_plain_comparison(self, store: BasePydanticVectorStore, k: int) -> None:
        nodes = random_nodes(60)
        store.add(nodes)
        for seed in range(5):
            query = np.random.default_rng(100 + seed).standard_normal(DIMENSION).tolist()
            for filters in (None, only("year", 2003, Operator.LTE), only("even", "no")):
                truth = {
                    key: one
                    for key, one in cosines(query, nodes).items()
                    if filters is None or holds(seen_by_filters(nodes[int(key[1:])]), filters)
                }
                found = store.query(VectorStoreQuery(query_embedding=query, similarity_top_k=k, filters=filters))
                assert_best(found.ids or [], found.similarities or [], truth, k)
                if self.stores_nodes:
                    assert [one.node_id for one in found.nodes or []] == found.ids

    def test_diversity_is_chosen_for(self, store: BasePydanticVectorStore) -> None:
        store.add([node("near", [1, 0.1, 0, 0]), node("twin", [1, 0.11, 0, 0]), node("other", [0.6, -0.8, 0, 0])])
        for threshold, expected in ((0.9, ["near", "twin"]), (0.3, ["near", "other"])):
            found = store.query(
                VectorStoreQuery(query_embedding=[1, 0, 0, 0], similarity_top_k=2, mode=VectorStoreQueryMode.MMR),
                mmr_threshold=threshold,
            )
            assert found.ids == expected

    def test_node_ids_restrict(self, store: BasePydanticVectorStore) -> None:
        store.add(random_nodes(20))
        assert self.matching(store, node_ids=["n003", "n007", "nowhere"]) == {"n003", "n007"}
        assert self.matching(store, only("even", "yes"), node_ids=["n003", "n004"]) == {"n004"}
        assert self.matching(store, node_ids=["nowhere"]) == set()
        assert len(self.matching(store, node_ids=[])) == (20 if self.empty_ids_mean_any else 0)

    def test_doc_ids_restrict(self, store: BasePydanticVectorStore) -> None:
        if not self.honours_doc_ids:
            pytest.skip("the store does not look at doc_ids")
        store.add(random_nodes(20))
        assert self.matching(store, doc_ids=["d1", "d2"]) == {f"n{i:03}" for i in range(20) if i % 5 in (1, 2)}
        assert self.matching(store, only("even", "yes"), doc_ids=["d1"], node_ids=["n001", "n006"]) == {"n006"}
        assert self.matching(store, doc_ids=["nowhere"]) == set()
        assert len(self.matching(store, doc_ids=[])) == 20

    def test_an_empty_store_answers(self, store: BasePydanticVectorStore) -> None:
        assert self.matching(store) == set()
        assert self.matching(store, only("k", 1)) == set()
        store.delete("nowhere")
        store.delete_nodes(["nowhere"])
        store.clear()
        assert list(store.add([])) == []

    # --- life cycle -------------------------------------------------------------------------------------------------

    def test_adding_returns_the_ids_in_order(self, store: BasePydanticVectorStore) -> None:
        assert list(store.add([node("b"), node("a")])) == ["b", "a"]
        assert self.matching(store) == {"a", "b"}

    def test_adding_again_replaces(self, store: BasePydanticVectorStore) -> None:
        store.add([node("a", [1, 0, 0, 0], document="d1", metadata={"k": 1}), node("b", [0, 1, 0, 0])])
        store.add([node("a", [0, 0, 1, 0], document="d2", metadata={"j": 2}, text="anew")])
        assert self.matching(store) == {"a", "b"}
        assert self.matching(store, only("k", 1)) == set()
        assert self.matching(store, only("j", 2)) == {"a"}
        found = store.query(VectorStoreQuery(query_embedding=[0, 0, 1, 0], similarity_top_k=1))
        assert found.ids == ["a"]
        assert (found.similarities or [0])[0] == pytest.approx(1.0)
        store.delete("d1")
        assert self.matching(store) == {"a", "b"}
        store.delete("d2")
        assert self.matching(store) == {"b"}

    def test_of_one_id_twice_the_last_counts(self, store: BasePydanticVectorStore) -> None:
        assert list(store.add([node("a", metadata={"k": 1}), node("b"), node("a", metadata={"k": 2})])) == [
            "a",
            "b",
            "a",
        ]
        assert self.matching(store) == {"a", "b"}
        assert self.matching(store, only("k", 2)) == {"a"}

    def test_later_nodes_may_have_other_metadata(self, store: BasePydanticVectorStore) -> None:
        store.add([node("a", metadata={"k": 1})])
        store.add(
            [node("b", metadata={"new": "x", "k": "text now"}), node("c", metadata={"new": ["x"], "deep": {"k": 1}})]
        )
        store.add([node("d")])
        assert self.matching(store) == {"a", "b", "c", "d"}
        assert self.matching(store, only("new", "x")) == {"b"}
        assert self.matching(store, only("k", 1)) == {"a"}

    @pytest.mark.parametrize("odd", ["d'1", 'd"1', "d%", "d_", "x' OR 1=1 --", 'x" OR "1"="1', "d\\", "ß", "d1 "])
    def test_ids_mean_themselves(self, store: BasePydanticVectorStore, odd: str) -> None:
        """In ids of documents and nodes no character is a quote, an operator or a wildcard."""
        store.add([node(f"of {odd}", document=odd), node("b", document="d1"), node("c", document="dx")])
        store.delete(odd + "?")
        assert self.matching(store) == {f"of {odd}", "b", "c"}
        assert self.matching(store, node_ids=[f"of {odd}"]) == {f"of {odd}"}
        store.delete(odd)
        assert self.matching(store) == {"b", "c"}
        store.add([node(odd, document=odd)])
        store.delete_nodes([odd])
        assert self.matching(store) == {"b", "c"}

    def test_deleting_nodes(self, store: BasePydanticVectorStore) -> None:
        nodes = random_nodes(20)
        store.add(nodes)
        store.delete_nodes(["n000", "nowhere", "n001"])
        assert self.matching(store) == {f"n{i:03}" for i in range(2, 20)}
        store.delete_nodes(filters=only("year", 2002))
        assert self.matching(store) == {f"n{i:03}" for i in range(2, 20) if i % 7 != 2}
        store.delete_nodes(["n003", "n004"], only("even", "yes"))
        assert self.matching(store) == {f"n{i:03}" for i in range(2, 20) if i % 7 != 2 and i != 4}
        store.delete_nodes([])
        assert "n003" in self.matching(store)
        if self.deletes_all_by_no_argument:
            store.delete_nodes()
            assert self.matching(store) == set()
        else:
            with pytest.raises(ValueError, match="node_ids or filters"):
                store.delete_nodes()
            assert "n003" in self.matching(store)

    def test_clearing_and_beginning_anew(self, store: BasePydanticVectorStore) -> None:
        store.add(random_nodes(20))
        store.clear()
        assert self.matching(store) == set()
        store.add(random_nodes(5, seed=1))
        assert len(self.matching(store)) == 5

    def test_async_does_the_same(self, store: BasePydanticVectorStore) -> None:
        nodes = random_nodes(20)

        async def life() -> None:
            assert list(await store.async_add(nodes)) == [one.node_id for one in nodes]
            asked = VectorStoreQuery(
                query_embedding=[1, 0, 0, 0], similarity_top_k=5, filters=only("year", 2003, Operator.GT)
            )
            here, there = await store.aquery(asked), store.query(asked)
            assert here.ids == there.ids
            assert here.similarities == there.similarities
            assert here.nodes == there.nodes
            await store.adelete("d0")
            await store.adelete_nodes(["n001"])
            assert self.matching(store) == {f"n{i:03}" for i in range(2, 20) if i % 5}
            await store.aclear()
            assert self.matching(store) == set()

        asyncio.run(life())

    def test_nodes_come_back(self, store: BasePydanticVectorStore) -> None:
        if not self.stores_nodes:
            pytest.skip("the store keeps no nodes")
        nodes = random_nodes(20)
        store.add(nodes)
        assert sorted(one.node_id for one in store.get_nodes()) == [one.node_id for one in nodes]
        found = store.get_nodes(["n004", "nowhere", "n002"])
        assert [one.node_id for one in found] == ["n004", "n002"]
        assert [one.to_dict() | {"embedding": None} for one in found] == [
            nodes[i].to_dict() | {"embedding": None} for i in (4, 2)
        ]
        assert {one.node_id for one in store.get_nodes(filters=only("year", 2003))} == {"n003", "n010", "n017"}
        assert [one.node_id for one in store.get_nodes(["n003", "n004"], only("year", 2003))] == ["n003"]
        assert store.get_nodes([]) == []
        result = store.query(VectorStoreQuery(query_embedding=nodes[7].embedding, similarity_top_k=1))
        assert [one.to_dict() for one in result.nodes or []] == [nodes[7].to_dict() | {"embedding": None}]
