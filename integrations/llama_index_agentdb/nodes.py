"""Nodes as rows of a collection: id, text, metadata and vector, and back without loss.

A row's metadata is the node's own, so that every other reader of the collection filters by it, and beside it, under names that
LlamaIndex uses in all stores, what makes the node whole: ``_node_content``, ``_node_type`` and the document's id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import BaseNode, Document, ImageDocument, ImageNode, IndexNode, Node, TextNode

from agentdb import InvalidInputError
from llama_index_agentdb.filters import CONTENT_KEY, EXACT_KEY, exact_form

__all__ = ["DOCUMENT_KEYS", "NodeRows", "rows_of", "to_node"]

TYPE_KEY = "_node_type"
DOCUMENT_KEYS = ("document_id", "doc_id", "ref_doc_id")
"""All three hold the id of the node's document, or the text ``"None"``: other stores filter by one or the other."""

_CONTENT_LESS = {"id_", "embedding", "text"}
"""What is left out of a node's dump: the id goes beside it, its default being one made anew for each node, to compare with."""
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode

_CLASSES: dict[str, type[BaseNode]] = {
    one.class_name(): one for one in (TextNode, Node, Document, ImageNode, ImageDocument, IndexNode)
}


class NodeRows(NamedTuple):
    """Columns of as many rows as there are distinct nodes."""

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    texts: list[str | None]
    metadata: list[dict[str, Any]]


def rows_of(nodes: Sequence[BaseNode]) -> NodeRows:
    """Return what is stored of nodes; of several with one id, the last.

    Raises:
        InvalidInputError: one is no node, has no embedding or one of another dimension, or cannot be stored; the message names
            its position.
    """
    distinct: dict[str, tuple[int, BaseNode]] = {}
    for position, node in enumerate(nodes):
        if not isinstance(node, BaseNode):
            raise InvalidInputError(f"nodes[{position}] must be a node, not {type(node).__name__}")
        distinct[node.node_id] = position, node
    texts, metadata = [], []
    for position, node in distinct.values():
        text, stored = _row_of(node, position)
        texts.append(text)
        metadata.append(stored)
    return NodeRows(list(distinct), _matrix(list(distinct.values())), texts, metadata)


def _matrix(nodes: Sequence[tuple[int, BaseNode]]) -> npt.NDArray[np.float32]:
    dimension = None
    for position, node in nodes:
        if node.embedding is None:
            raise InvalidInputError(f"nodes[{position}] must have an embedding; it has none")
        dimension = len(node.embedding) if dimension is None else dimension
        if not dimension or len(node.embedding) != dimension:
            raise InvalidInputError(
                f"nodes[{position}] must have an embedding of {dimension or 'at least one'} numbers, "
                f"not of {len(node.embedding)}"
            )
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the collection
        return np.array([node.embedding for _, node in nodes], np.float32)


def _row_of(node: BaseNode, position: int) -> tuple[str | None, dict[str, Any]]:
    """Return a node's text, and its metadata together with all else that is to be kept of it."""
    try:
        content = {"id_": node.id_, **node.model_dump(mode="json", exclude=_CONTENT_LESS, exclude_defaults=True)}
        made = _encode(_without_text(content))
    except ValueError as error:  # pydantic's, and JSON's
        kind = type(error).__name__
        raise InvalidInputError(f"nodes[{position}] holds what JSON cannot ({kind}), and cannot be stored") from None
    stored: dict[str, Any] = dict(content.get("metadata", {}))
    for key, value in node.metadata.items():
        if not _is_finite(value):  # what came out of the dump is null
            raise InvalidInputError(f"nodes[{position}]: the metadata under {key!r} holds a number that is not finite")
    if EXACT_KEY in stored:
        raise InvalidInputError(f"nodes[{position}]: the metadata key {EXACT_KEY!r} is reserved")
    document = node.ref_doc_id or "None"
    stored |= dict.fromkeys(DOCUMENT_KEYS, document)
    stored[TYPE_KEY] = node.class_name()
    stored.pop(CONTENT_KEY, None)
    exact = exact_form(stored)
    if exact:
        stored[EXACT_KEY] = exact
    stored[CONTENT_KEY] = made
    return _text_of(node) or None, stored


def _is_finite(value: object) -> bool:
    if type(value) is str:
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple | set) else True


def _text_of(node: BaseNode) -> str:
    if isinstance(node, TextNode):
        return node.text
    resource = node.text_resource if isinstance(node, Node) else None
    return "" if resource is None else resource.text or ""


def _without_text(content: dict[str, Any]) -> dict[str, Any]:
    resource = content.get("text_resource")
    if not resource or not resource.get("text"):
        return content
    return {**content, "text_resource": {key: value for key, value in resource.items() if key != "text"}}


def to_node(
    row_id: str, text: str | None, metadata: Mapping[str, Any], vector: npt.NDArray[Any] | None = None
) -> BaseNode:
    """Return the node that a row was made of; of a row that was written otherwise, a ``TextNode`` with its text and metadata.

    Args:
        row_id: the row's id.
        text: the row's text.
        metadata: as stored.
        vector: becomes the node's embedding.
    """
    node = _kept(row_id, text, metadata.get(CONTENT_KEY))
    if node is None:
        node = TextNode(id_=row_id, text=text or "", metadata=dict(metadata))
    if vector is not None:
        node.embedding = vector.tolist()
    return node


def _kept(row_id: str, text: str | None, made: object) -> BaseNode | None:
    """Return the node that a row keeps as JSON; None if that is none, because others may have written anything there."""
    if not isinstance(made, str):
        return None
    try:
        content = json.loads(made)
        if not isinstance(content, dict):
            return None
        content["id_"] = row_id
        resource = content.get("text_resource")
        kind = _CLASSES.get(str(content.get("class_name")), TextNode if resource is None else Node)
        if issubclass(kind, TextNode):
            content["text"] = text or ""
        elif text is not None and isinstance(resource, dict):
            resource["text"] = text
        return kind.from_dict(content)
    except ValueError:  # JSON's, and pydantic's
        return None
