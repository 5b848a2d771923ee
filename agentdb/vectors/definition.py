"""What a collection is made of: its vectors, its embedder, its promoted columns, and how its table is laid out.

The definition is stored as JSON beside the collection and read with every call, in the same snapshot as the rows. So every
process follows a change at once: a promoted column, a chosen index, vectors of another embedder.

A collection's table has the columns ``id``, ``text``, ``metadata``, ``terms`` (see `analysis`), one for each vector, and
``p_...`` for each promoted metadata key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import pyarrow as pa

from agentdb.embedding import EmbedderIdentity
from agentdb.errors import FormatError, InvalidInputError
from agentdb.filters import (
    And,
    Compare,
    Contains,
    Exists,
    Filter,
    In,
    IsNull,
    Not,
    Operand,
    Or,
    Path,
    TextMatch,
)
from agentdb.storage.schema import TableSchema
from agentdb.vectors.analysis import ANALYSIS
from agentdb.vectors.indexes import IndexSpec, index_from_json

__all__ = [
    "CollectionMetric",
    "Definition",
    "IndexPlan",
    "PromotedColumn",
    "PromotedType",
    "Reembedding",
    "StoredVector",
    "VectorSpec",
    "check_collection_name",
    "given_schema",
    "metadata_path",
    "promoted_keys",
    "promoted_type",
]

CollectionMetric = Literal["cosine", "dot", "euclidean"]
PromotedType = Literal["string", "number", "bool"]

TABLE_PREFIX = "_collection."
MAX_DIMENSION = 65_536
MAX_LENGTH = 2.0**62
"""The longest vector, but with cosine: products and squared distances of two are finite in float32."""
_METRICS = ("cosine", "dot", "euclidean")
_COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,47}\Z")
_VECTOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}\Z")
_OWN_COLUMNS = ("id", "text", "metadata", "terms")
_PROMOTED_TYPES: dict[object, PromotedType] = {
    "string": "string",
    "number": "number",
    "bool": "bool",
    str: "string",
    int: "number",
    float: "number",
    bool: "bool",
}
_ARROW_TYPES = {"string": pa.string(), "number": pa.float64(), "bool": pa.bool_()}


def check_collection_name(name: object) -> str:
    """Return a collection's name.

    Raises:
        InvalidInputError: it cannot be one.
    """
    if not isinstance(name, str) or not _COLLECTION_NAME.match(name):
        raise InvalidInputError(
            "a collection's name must be a str of 1 to 48 letters, digits, '_', '-' and '.', beginning with a letter"
        )
    return name


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """One named vector of a collection.

    Args:
        dimension: how many numbers, 1 to 65,536.
        metric: ``"cosine"``, ``"dot"`` or ``"euclidean"``.
        multi: a matrix `[T, D]` for each row, a vector per token, scored by MaxSim (late interaction).
        dtype: ``"float32"`` (default) or ``"float16"``, which halves the space and keeps three digits. Token matrices are
            always float16.
        embedded: made from a row's text by the collection's embedder; None: the first vector that is not ``multi`` is, if
            the collection has an embedder.

    Raises:
        InvalidInputError: an argument cannot be accepted.
    """

    dimension: int
    metric: CollectionMetric = "cosine"
    multi: bool = field(default=False, kw_only=True)
    dtype: Literal["float32", "float16"] | None = field(default=None, kw_only=True)
    embedded: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        dimension = self.dimension
        if not isinstance(dimension, int) or isinstance(dimension, bool) or not 1 <= dimension <= MAX_DIMENSION:
            shown = dimension if isinstance(dimension, int | float) else type(dimension).__name__
            raise InvalidInputError(f"dimension must be an int from 1 to {MAX_DIMENSION:,}, not {shown}")
        if self.metric not in _METRICS:
            raise InvalidInputError(f"metric must be one of {', '.join(_METRICS)}, not {self.metric!r}")
        if not isinstance(self.multi, bool):
            raise InvalidInputError(f"multi must be a bool, not {type(self.multi).__name__}")
        if self.embedded is not None and not isinstance(self.embedded, bool):
            raise InvalidInputError(f"embedded must be a bool or None, not {type(self.embedded).__name__}")
        if self.dtype not in (None, "float32", "float16"):
            raise InvalidInputError(f"dtype must be 'float32' or 'float16', not {self.dtype!r}")
        if self.multi and self.dtype == "float32":
            raise InvalidInputError("dtype of a multi vector is float16")
        object.__setattr__(self, "dtype", self.dtype or ("float16" if self.multi else "float32"))

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column that holds it; token matrices are their bytes, row by row."""
        if self.multi:
            return pa.binary()
        return pa.list_(pa.float32() if self.dtype == "float32" else pa.float16(), self.dimension)


@dataclass(frozen=True, slots=True)
class StoredVector:
    """A vector of a collection, and the column that holds it now."""

    spec: VectorSpec
    column: str


@dataclass(frozen=True, slots=True)
class PromotedColumn:
    """A metadata key whose values of one type have a column of their own.

    Attributes:
        keys: the path below the metadata.
        type: which values the column holds; a value of another type is null there and stays in the metadata.
        column: its name.
        is_ready: every row has it; until then filters use the metadata.
    """

    keys: Path
    type: PromotedType
    column: str
    is_ready: bool

    def value_of(self, metadata: Mapping[str, Any] | None) -> str | float | bool | None:
        """Return what the column holds of a row's metadata."""
        value: Any = metadata
        for key in self.keys:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        if isinstance(value, bool):
            return value if self.type == "bool" else None
        if isinstance(value, str):
            return value if self.type == "string" else None
        if isinstance(value, int | float):
            return float(value) if self.type == "number" else None
        return None

    @property
    def field(self) -> pa.Field:
        """The column's Arrow field."""
        return pa.field(self.column, _ARROW_TYPES[self.type])


@dataclass(frozen=True, slots=True)
class Reembedding:
    """An exchange of the embedder that has begun: new vectors grow in columns of their own until all rows have them."""

    embedder: EmbedderIdentity
    vectors: Mapping[str, StoredVector]


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """Which approximate index a vector gets, and what its upkeep remembers.

    Attributes:
        choice: ``"auto"``: the upkeep decides whether and which; ``"none"``: never one; or an index chosen by the user.
        state: plain JSON values of the upkeep.
    """

    choice: IndexSpec | Literal["auto", "none"] = "auto"
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """Everything a collection was created with and became. Immutable; ``revision`` rises with every change.

    Attributes:
        vectors: by name, in the order of creation.
        embedder: which one makes vectors from texts; None: vectors are given.
        promoted: in the order of promotion.
        reembedding: the exchange of embedders that is under way.
        retired: columns that once held vectors and are, or are about to be, null in every row.
        indexes: by vector name, where there is something to know.
        analysis: which text analysis made ``terms``.
        on_filter: told of every test on a metadata key that a column of this type would speed up.
    """

    name: str
    vectors: Mapping[str, StoredVector]
    embedder: EmbedderIdentity | None = None
    promoted: tuple[PromotedColumn, ...] = ()
    reembedding: Reembedding | None = None
    retired: tuple[str, ...] = ()
    indexes: Mapping[str, IndexPlan] = field(default_factory=dict)
    analysis: str = ANALYSIS
    revision: int = 1
    on_filter: Callable[[Path, PromotedType], None] | None = field(default=None, compare=False, repr=False)

    # --- creation -----------------------------------------------------------------------------------------------------

    @classmethod
    def new(
        cls,
        name: str,
        vectors: Mapping[str, VectorSpec],
        embedder: EmbedderIdentity | None,
        schema: Mapping[str | Sequence[str], object] | None,
    ) -> Definition:
        """Return the definition of a new collection.

        Raises:
            InvalidInputError: a name, specification or type cannot be accepted.
        """
        stored = {one: StoredVector(spec, one) for one, spec in _resolved(vectors, embedder).items()}
        made = cls(name=check_collection_name(name), vectors=stored, embedder=embedder)
        for key, given in given_schema(schema).items():
            made = made.with_promoted(key, given, is_ready=True)
        return made

    @property
    def table_name(self) -> str:
        """The name of the table that holds the rows."""
        return TABLE_PREFIX + self.name

    def table_schema(self) -> TableSchema:
        """Return the schema of a new collection's table."""
        return TableSchema(
            self.table_name,
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string()),
                pa.field("metadata", pa.json_()),
                pa.field("terms", pa.binary()),
                *(pa.field(one.column, one.spec.arrow_type) for one in self.vectors.values()),
                *(one.field for one in self.promoted),
            ],
            key="id",
            indexed=[one.column for one in self.promoted],
        )

    # --- vectors ------------------------------------------------------------------------------------------------------

    def vector(self, name: str) -> StoredVector:
        """Return a vector by name.

        Raises:
            InvalidInputError: there is none of that name.
        """
        found = self.vectors.get(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidInputError(
                f"collection {self.name} has no vector {name!r}; its vectors are {', '.join(self.vectors)}"
            )
        return found

    @property
    def embedded(self) -> dict[str, StoredVector]:
        """The vectors that the embedder makes from texts."""
        return {name: one for name, one in self.vectors.items() if one.spec.embedded}

    @property
    def default_vector(self) -> str:
        """The vector that is meant where none is named: ``"vector"``, or the first."""
        return "vector" if "vector" in self.vectors else next(iter(self.vectors))

    def index_plan(self, vector_name: str) -> IndexPlan:
        """Return what is decided and known about a vector's approximate index."""
        return self.indexes.get(vector_name, IndexPlan())

    @property
    def layout(self) -> tuple[object, ...]:
        """All that decides what a row looks like in the table; what else changes is no matter to writers."""
        promoted = tuple((one.keys, one.type, one.column) for one in self.promoted)
        return self.vectors, self.embedder, self.reembedding, promoted, self.analysis

    # --- changes ------------------------------------------------------------------------------------------------------

    def next(self, **changes: Any) -> Definition:
        """Return the definition that follows this one."""
        return replace(self, **changes, revision=self.revision + 1)

    def with_promoted(self, keys: Path, kind: PromotedType, *, is_ready: bool) -> Definition:
        """Return this definition with one more promoted column.

        Raises:
            InvalidInputError: the key has one already.
        """
        if any(one.keys == keys for one in self.promoted):
            raise InvalidInputError(f"collection {self.name}: {'.'.join(keys)} is promoted already")
        column = self.free_column("p_" + re.sub(r"[^A-Za-z0-9_]", "_", "_".join(keys))[:48])
        return self.next(promoted=(*self.promoted, PromotedColumn(keys, kind, column, is_ready)))

    def free_column(self, wanted: str, taken: Iterable[str] = ()) -> str:
        """Return a name that no column has or had, as much like the one wanted as possible."""
        used = {one.lower() for one in (*_OWN_COLUMNS, *self.retired, *taken, *(one.column for one in self.promoted))}
        used.update(one.column.lower() for one in self.vectors.values())
        if self.reembedding is not None:
            used.update(one.column.lower() for one in self.reembedding.vectors.values())
        number, name = 2, wanted
        while name.lower() in used:
            name, number = f"{wanted}_{number}", number + 1
        return name

    # --- filters ------------------------------------------------------------------------------------------------------

    def table_filter(self, condition: Filter | None) -> Filter | None:
        """Return a caller's filter as one on the table's columns.

        A path that begins with ``id``, ``text`` or ``metadata`` leads into that column, any other into the metadata. A
        promoted column takes the place of its key where both mean the same in every row: in comparisons with values of the
        column's type.

        Raises:
            InvalidInputError: it is no filter.
        """
        if condition is None:
            return None
        if not isinstance(condition, Filter):
            raise InvalidInputError(f"filter must be built from field(...), not given as {type(condition).__name__}")
        columns = {one.keys: one for one in self.promoted}
        return _mapped(condition, lambda leaf: self._leaf(leaf, columns))

    def _leaf(self, leaf: Any, columns: Mapping[Path, PromotedColumn]) -> Filter:
        path = metadata_path(leaf.path)
        if path[0] == "metadata" and len(path) > 1:
            promoted = columns.get(path[1:])
            kind = _served_by(leaf)
            if promoted is not None and promoted.is_ready and promoted.type == kind:
                path = (promoted.column,)
            elif promoted is None and kind is not None and self.on_filter is not None and not _is_look_up(leaf):
                self.on_filter(path[1:], kind)
        return leaf if path == leaf.path else _at(leaf, path)

    # --- storage ------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(
            {
                "vectors": _vectors_to_plain(self.vectors),
                "embedder": _identity_to_plain(self.embedder),
                "promoted": [[list(one.keys), one.type, one.column, one.is_ready] for one in self.promoted],
                "reembedding": None
                if self.reembedding is None
                else {
                    "embedder": _identity_to_plain(self.reembedding.embedder),
                    "vectors": _vectors_to_plain(self.reembedding.vectors),
                },
                "retired": list(self.retired),
                "indexes": {
                    name: {
                        "choice": one.choice if isinstance(one.choice, str) else one.choice.to_json(),
                        "state": dict(one.state),
                    }
                    for name, one in self.indexes.items()
                },
                "analysis": self.analysis,
                "revision": self.revision,
            }
        )

    @classmethod
    def from_json(cls, name: str, text: str) -> Definition:
        """Return the definition that `to_json` wrote.

        Raises:
            FormatError: it cannot be read.
        """
        try:
            data = json.loads(text)
            exchange = data["reembedding"]
            return cls(
                name=name,
                vectors=_vectors_from_plain(data["vectors"]),
                embedder=_identity_from_plain(data["embedder"]),
                promoted=tuple(
                    PromotedColumn(tuple(keys), kind, column, is_ready)
                    for keys, kind, column, is_ready in data["promoted"]
                ),
                reembedding=None
                if exchange is None
                else Reembedding(
                    cast(EmbedderIdentity, _identity_from_plain(exchange["embedder"])),
                    _vectors_from_plain(exchange["vectors"]),
                ),
                retired=tuple(data["retired"]),
                indexes={
                    key: IndexPlan(_choice_from_plain(one["choice"]), one["state"])
                    for key, one in data["indexes"].items()
                },
                analysis=data["analysis"],
                revision=data["revision"],
            )
        except (ValueError, KeyError, TypeError, InvalidInputError) as error:
            raise FormatError(f"the definition of collection {name} cannot be read") from error


def _resolved(vectors: Mapping[str, VectorSpec], embedder: EmbedderIdentity | None) -> dict[str, VectorSpec]:
    """Return checked specifications in which it is decided which vectors are embedded."""
    if not isinstance(vectors, Mapping) or not vectors:
        raise InvalidInputError("vectors must be a mapping from names to VectorSpec, with at least one")
    first = next((name for name, spec in vectors.items() if isinstance(spec, VectorSpec) and not spec.multi), None)
    found: dict[str, VectorSpec] = {}
    for name, spec in vectors.items():
        if not isinstance(name, str) or not _VECTOR_NAME.match(name):
            raise InvalidInputError(
                "a vector's name must be a str of 1 to 40 letters, digits and '_', beginning with a letter"
            )
        if name.lower() in _OWN_COLUMNS or name.lower().startswith("p_"):
            raise InvalidInputError(f"a vector cannot be called {name!r}: that name belongs to the collection's table")
        if not isinstance(spec, VectorSpec):
            raise InvalidInputError(f"vectors[{name!r}] must be a VectorSpec, not {type(spec).__name__}")
        if spec.embedded and embedder is None:
            raise InvalidInputError(f"vectors[{name!r}] is embedded, but the collection has no embedder")
        embedded = spec.embedded if spec.embedded is not None else embedder is not None and name == first
        if embedded and not spec.multi and embedder is not None and spec.dimension != embedder.dimension:
            raise InvalidInputError(
                f"vectors[{name!r}] has {spec.dimension} dimensions, but embedder {embedder.name!r} makes "
                f"{embedder.dimension}"
            )
        found[name] = replace(spec, embedded=embedded)
    if len({name.lower() for name in found}) != len(found):
        raise InvalidInputError("the names of vectors must differ by more than case")
    return found


def given_schema(schema: object) -> dict[Path, PromotedType]:
    """Return which metadata keys a caller wants to have columns of their own.

    Raises:
        InvalidInputError: it is no mapping from keys to types.
    """
    if schema is None:
        return {}
    if not isinstance(schema, Mapping):
        raise InvalidInputError(
            f"schema must be a mapping from metadata keys to types (str, float, bool), not {type(schema).__name__}"
        )
    return {promoted_keys(key): promoted_type(kind) for key, kind in schema.items()}


def promoted_keys(key: object) -> Path:
    """Return the path below the metadata that a caller means.

    Raises:
        InvalidInputError: it is no key, nor a sequence of keys.
    """
    keys = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, Sequence) else ()
    if not keys or not all(isinstance(one, str) for one in keys):
        raise InvalidInputError("a promoted key must be a metadata key (str) or the keys that lead to it")
    return metadata_path(cast(Path, keys))[1:] or keys


def promoted_type(given: object) -> PromotedType:
    """Return the type that a caller means by ``str``, ``int``, ``float``, ``bool`` or its name.

    Raises:
        InvalidInputError: it is none of them.
    """
    found = _PROMOTED_TYPES.get(given) if isinstance(given, str | type) else None
    if found is None:
        raise InvalidInputError("the type of a promoted key must be str, float (for every number) or bool")
    return found


def metadata_path(path: Path) -> Path:
    """Return where a path of a caller's filter leads in the table."""
    return path if path[0] in ("id", "text", "metadata") else ("metadata", *path)


def _mapped(node: Filter, change: Callable[[Filter], Filter]) -> Filter:
    match node:
        case And():
            return And(*(_mapped(one, change) for one in node.filters))
        case Or():
            return Or(*(_mapped(one, change) for one in node.filters))
        case Not():
            return Not(_mapped(node.condition, change))
        case _:
            return change(node)


def _served_by(leaf: Filter) -> PromotedType | None:
    """Return the type of promoted column on which a test holds for the same rows as on the metadata; None: of no type.

    The column is null where the value has another type. No such row passes a test for equality, order or text of the
    column's type; but it does pass ``!=``, and it may exist or be null.
    """
    match leaf:
        case Compare():
            return None if leaf.op == "ne" else _kind_of(leaf.operand)
        case In():
            kinds = {_kind_of(one) for one in leaf.operands}
            return kinds.pop() if len(kinds) == 1 and not leaf.negated else None
        case TextMatch():
            return "string"
        case _:
            return None


def _is_look_up(leaf: Filter) -> bool:
    """Whether the terms of the metadata answer a test by an index already."""
    return isinstance(leaf, In) or (isinstance(leaf, Compare) and leaf.op == "eq")


def _kind_of(operand: Operand) -> PromotedType | None:
    if isinstance(operand, str):
        return "string"
    if isinstance(operand, float):
        return "number"
    return "bool" if isinstance(operand, tuple) and operand[0] == "b" else None


def _at(leaf: Filter, path: Path) -> Filter:
    """Return the same test at another place."""
    match leaf:
        case Compare():
            return Compare(path, leaf.op, leaf.value)
        case In():
            return In(path, leaf.values, leaf.negated)
        case Contains():
            return Contains(path, leaf.values)
        case TextMatch():
            return TextMatch(path, leaf.text, leaf.mode, leaf.case_sensitive)
        case IsNull():
            return IsNull(path)
        case Exists():
            return Exists(path)
        case _:
            raise InvalidInputError(f"a collection cannot be filtered by {type(leaf).__name__}")


def _vectors_to_plain(vectors: Mapping[str, StoredVector]) -> list[list[Any]]:
    # A list: the order says which vector is the first.
    return [
        [name, one.spec.dimension, one.spec.metric, one.spec.multi, one.spec.dtype, one.spec.embedded, one.column]
        for name, one in vectors.items()
    ]


def _vectors_from_plain(data: Iterable[Sequence[Any]]) -> dict[str, StoredVector]:
    return {
        name: StoredVector(VectorSpec(dimension, metric, multi=multi, dtype=dtype, embedded=embedded), column)
        for name, dimension, metric, multi, dtype, embedded, column in data
    }


def _choice_from_plain(data: Any) -> IndexSpec | Literal["auto", "none"]:
    return cast(Literal["auto", "none"], data) if isinstance(data, str) else index_from_json(data)


def _identity_to_plain(identity: EmbedderIdentity | None) -> list[Any] | None:
    return None if identity is None else [identity.name, identity.dimension]


def _identity_from_plain(data: Sequence[Any] | None) -> EmbedderIdentity | None:
    return None if data is None else EmbedderIdentity(data[0], data[1])
