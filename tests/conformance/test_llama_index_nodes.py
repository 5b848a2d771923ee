"""Nodes of every kind through a store: what comes back is what LlamaIndex's own way of keeping nodes in metadata gives back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from llama_index_agentdb import AgentDBVectorStore

VECTOR = [0.5, -0.25, 0.0, 1.0]
DOCUMENTS = (Document, ImageDocument)
"""Upstream makes text nodes of these; here they come back as they were."""


class Ranked(TextNode):
    """A class that nobody else knows."""

    rank: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "Ranked"


texts = st.text(st.characters(codec="utf-8"), max_size=8)
some = st.none() | texts
keys = texts.filter(lambda key: key not in ("_exact", "_node_content")) | st.sampled_from(
    ["doc_id", "_node_type", "id_"]
)
plain = (
    st.none() | st.booleans() | texts | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(plain, lambda of: st.lists(of, max_size=3) | st.dictionaries(texts, of, max_size=3), max_leaves=5)
metadata = st.dictionaries(keys, values, max_size=4)
related = st.builds(
    RelatedNodeInfo,
    node_id=texts,
    node_type=st.none() | st.sampled_from(ObjectType) | texts,
    metadata=metadata,
    hash=some,
)
relationships = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys((NodeRelationship.SOURCE, NodeRelationship.NEXT, NodeRelationship.PREVIOUS), related),
        NodeRelationship.CHILD: st.lists(related, max_size=2),
    },
)
resources = st.none() | st.builds(
    MediaResource,
    text=some,
    mimetype=st.none() | st.sampled_from(["text/x-rst", "image/png"]),
    path=st.none() | st.sampled_from([Path("/a/b.png"), Path("c.mp3")]),
    url=st.none() | st.sampled_from(["https://example.com/i.png"]),
)
templates = st.sampled_from(["{key}={value}", "{key}: {value}", ""])
of_all: dict[str, Any] = {
    "id_": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    "metadata": metadata,
    "relationships": relationships,
    "excluded_embed_metadata_keys": st.lists(texts, max_size=2),
    "excluded_llm_metadata_keys": st.lists(texts, max_size=2),
    "metadata_template": templates,
    "metadata_separator": texts,
    "text_template": st.sampled_from(["{metadata_str}\n\n{content}", "{content}", "{content} {metadata_str}"]),
    "embedding": st.just(VECTOR),
}
of_text: dict[str, Any] = {
    **of_all,
    "text": texts,
    "mimetype": st.sampled_from(["text/plain", "text/markdown", ""]),
    "start_char_idx": st.none() | st.integers(0, 9),
    "end_char_idx": st.none() | st.integers(0, 9),
}
of_image = dict.fromkeys(("image", "image_path", "image_url", "image_mimetype"), some)
of_resources = dict.fromkeys(("text_resource", "image_resource", "audio_resource", "video_resource"), resources)


def some_of(kind: type[BaseNode], fields: dict[str, Any], **needed: Any) -> st.SearchStrategy[BaseNode]:
    """Return nodes with an embedding, what is needed, and any of some fields set."""
    required = {"embedding": fields["embedding"], **needed}
    optional = {name: one for name, one in fields.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda set_: kind(**set_))


nodes = st.one_of(
    some_of(TextNode, of_text),
    some_of(ImageNode, {**of_text, **of_image, "text_embedding": st.just([1.0])}),
    some_of(
        IndexNode,
        of_text,
        index_id=texts,
        obj=st.none() | texts | some_of(TextNode, of_text) | st.dictionaries(texts, texts, max_size=2),
    ),
    some_of(Ranked, {**of_text, "rank": st.integers(0, 9)}),
    some_of(Node, {**of_all, **of_resources}),
    some_of(Document, {**of_all, **of_resources}),
    some_of(ImageDocument, {**of_all, **of_resources}),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentDBVectorStore]:
    with AgentDBVectorStore(tmp_path_factory.mktemp("nodes") / "db") as opened:
        yield opened


def expected(node: BaseNode) -> BaseNode:
    return node if isinstance(node, DOCUMENTS) else metadata_dict_to_node(node_to_metadata_dict(node))


def shown(node: BaseNode) -> dict[str, Any]:
    """Return a node's fields; without the id of what an index node leads to, where upstream makes a node of a text each time."""
    fields = {**node.to_dict(), "embedding": None}
    if fields.get("obj"):
        fields["obj"] = {**fields["obj"]["__data__"], "id_": None}
    return fields


def assert_same(found: BaseNode, wanted: BaseNode) -> None:
    assert type(found) is type(wanted)
    assert shown(found) == shown(wanted)
    assert found.hash == wanted.hash
    for mode in MetadataMode:  # the order of keys, and what is left out, as models read it
        assert found.get_content(mode) == wanted.get_content(mode)


@given(given_nodes=st.lists(nodes, min_size=1, max_size=4, unique_by=lambda one: one.node_id))
def test_a_node_comes_back_as_upstream_would_give_it_back(
    store: AgentDBVectorStore, given_nodes: list[BaseNode]
) -> None:
    store.clear()
    ids = store.add(given_nodes)
    wanted = {one.node_id: expected(one) for one in given_nodes}
    whole = store.get_nodes(ids)
    assert [one.node_id for one in whole] == ids
    for one in whole:
        assert one.embedding == VECTOR
        assert_same(one, wanted[one.node_id])
    asked = store.query(VectorStoreQuery(query_embedding=VECTOR, similarity_top_k=len(ids)))
    assert set(asked.ids or []) == set(ids)
    for one in asked.nodes or []:
        assert one.embedding is None
        assert_same(one, wanted[one.node_id])
