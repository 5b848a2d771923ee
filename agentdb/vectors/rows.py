"""What callers give a collection and what they get back: ids, vectors, texts and metadata, as lists, numpy or Arrow.

Vectors pass as whole columns. What must be looked at row by row is text (its terms) and metadata (its JSON).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.embedding import Embedder, EmbedderIdentity, TokenEmbedder, check_vectors, embed_texts
from agentdb.errors import InvalidInputError
from agentdb.filters import decode_json, encode_json, parse_json
from agentdb.storage.schema import TableSchema
from agentdb.types import Row
from agentdb.vectors.analysis import encode_terms
from agentdb.vectors.definition import MAX_LENGTH, Definition, VectorSpec

__all__ = [
    "Batch",
    "Include",
    "Record",
    "Rows",
    "check_ids",
    "check_include",
    "check_metadata",
    "check_texts",
    "check_vector_columns",
    "embed_columns",
]

Include = Literal["text", "metadata", "vectors"]

MAX_ID_CHARS = 1_024
_TERM_ROWS = 100_000
_FEW = 32
_EMBED_ROWS = 4_096
"""Texts that an embedder gets at once."""
_INCLUDED = ("text", "metadata", "vectors")


# --- what comes in ------------------------------------------------------------------------------------------------------


def _whole(array: Any) -> pa.Array:
    """Return Arrow data as one plain array."""
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks or [pa.nulls(0, array.type)])
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _is_arrow(values: object) -> bool:
    return isinstance(values, pa.Array | pa.ChunkedArray)


def _is_text(array: pa.Array) -> bool:
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))


def _listed(values: Any, what: str, of: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{what} must be a sequence of {of}, not {type(values).__name__}")
    return list(values)


def _strings(values: Any, what: str, *, optional: bool) -> pa.Array:
    """Return texts as an Arrow array of strings."""
    if _is_arrow(values):
        array = _whole(values)
        if not _is_text(array) and array.null_count < len(array):
            raise InvalidInputError(f"{what} must be strings, not {array.type}")
        array = array.cast(pa.string())
    else:
        given = _listed(values, what, "strings")
        for position, one in enumerate(given):
            if not isinstance(one, str) and not (optional and one is None):
                raise InvalidInputError(f"{what}[{position}] must be a string, not {type(one).__name__}")
        try:
            array = pa.array(given, pa.string())
        except UnicodeEncodeError:
            raise InvalidInputError(f"{what} hold a lone surrogate, which UTF-8 cannot store") from None
    if array.null_count and not optional:
        raise InvalidInputError(f"{what} must not be null")
    return array


def check_ids(ids: Any, *, distinct: bool = True) -> pa.Array:
    """Return ids as an Arrow array of strings.

    Raises:
        InvalidInputError: one is no string of 1 to 1,024 characters, or is given twice where they must be distinct.
    """
    if isinstance(ids, str):
        raise InvalidInputError("ids must be a sequence of strings, not one string; for one row give [id]")
    array = _strings(ids, "ids", optional=False)
    if not len(array):
        return array
    shortest, longest, count = _extent(array)
    if shortest < 1 or longest > MAX_ID_CHARS:
        raise InvalidInputError(f"ids must have 1 to {MAX_ID_CHARS:,} characters")
    if distinct and count != len(array):
        seen: dict[str, int] = {}
        for position, one in enumerate(array.to_pylist()):
            if seen.setdefault(one, position) != position:
                raise InvalidInputError(f"ids[{position}] is the same as ids[{seen[one]}]: an id may be given once")
    return array


def _extent(ids: pa.Array) -> tuple[int, int, int]:
    """Return the characters of the shortest and of the longest id, and how many different ones there are."""
    if len(ids) <= _FEW:
        given = ids.to_pylist()
        lengths = [len(one) for one in given]
        return min(lengths), max(lengths), len(set(given))
    extremes = pc.min_max(pc.utf8_length(ids))
    return extremes["min"].as_py(), extremes["max"].as_py(), pc.count_distinct(ids).as_py()


def check_texts(texts: Any, rows: int) -> pa.Array:
    """Return texts as an Arrow array of strings, null where there is none.

    Raises:
        InvalidInputError: one is no string, or there are more or fewer than rows.
    """
    array = _strings(texts, "texts", optional=True)
    _check_count(len(array), rows, "texts")
    return array


def check_metadata(metadata: Any, rows: int) -> list[dict[str, Any] | None]:
    """Return metadata as JSON objects of exact built-in types, None where there is none.

    Args:
        metadata: mappings; or Arrow: JSON, JSON text, structs or maps.
        rows: how many there must be.

    Raises:
        InvalidInputError: one is no JSON object, or there are more or fewer than rows.
    """
    if _is_arrow(metadata):
        array = _whole(metadata)
        given = array.to_pylist(**({"maps_as_pydicts": "strict"} if pa.types.is_map(array.type) else {}))
        if _is_text(array):
            given = [None if one is None else parse_json(one, path=f"metadata[{i}]") for i, one in enumerate(given)]
    else:
        given = _listed(metadata, "metadata", "mappings")
    _check_count(len(given), rows, "metadata")
    for position, one in enumerate(given):
        if one is not None and not isinstance(one, Mapping):
            raise InvalidInputError(f"metadata[{position}] must be a mapping or None, not {type(one).__name__}")
    return [None if one is None else dict(one) for one in given]


def check_vector_columns(vectors: Any, definition: Definition, rows: int | None) -> dict[str, pa.Array]:
    """Return vectors by name, as columns of the types that hold them.

    Args:
        vectors: those of the default vector, or a mapping from vector names to them. Of a vector with one per row a matrix
            `[N, D]`, an Arrow fixed-size list, or a sequence of vectors and None. Of a ``multi`` vector a matrix `[T, D]`
            for each row (None: none), or an Arrow list of fixed-size lists.
        definition: of the collection.
        rows: how many there must be; None: as many as the first has.

    Raises:
        InvalidInputError: an unknown name; a wrong number, shape, dimension or type; NaN, infinity; a zero vector with cosine,
            one longer than 4.6e18 with another metric.
    """
    named = vectors if isinstance(vectors, Mapping) else {definition.default_vector: vectors}
    found: dict[str, pa.Array] = {}
    for name, given in named.items():
        if given is None:
            continue
        spec = definition.vector(name).spec
        what = f"vectors[{name!r}]" if isinstance(vectors, Mapping) else "vectors"
        array = _column(given, spec, what)
        rows = len(array) if rows is None else rows
        _check_count(len(array), rows, what)
        found[name] = array
    return found


def embed_columns(specs: Mapping[str, VectorSpec], embedder: Embedder, texts: Sequence[str]) -> dict[str, pa.Array]:
    """Return what an embedder makes of texts: a column for every vector, by its name.

    Raises:
        InvalidInputError: the embedder makes no token vectors, or broke its contract.
    """
    found: dict[str, pa.Array] = {}
    for name, spec in specs.items():
        parts = []
        for start in range(0, len(texts), _EMBED_ROWS):
            part = texts[start : start + _EMBED_ROWS]
            what = f"vectors of embedder {embedder.name!r}"
            given: Any
            if not spec.multi:
                given = embed_texts(embedder, part)
            elif isinstance(embedder, TokenEmbedder):
                given = [vectors for _, vectors in embedder.embed_tokens(part)]
            else:
                raise InvalidInputError(f"embedder {embedder.name!r} makes no token vectors for vector {name!r}")
            parts.append(_column(given, spec, what))
        found[name] = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return found


def _column(given: Any, spec: VectorSpec, what: str) -> pa.Array:
    return _token_column(given, spec, what) if spec.multi else _vector_column(given, spec, what)


def _check_count(found: int, rows: int, what: str) -> None:
    if found != rows:
        raise InvalidInputError(f"{what} must be as many as the rows: {rows}, not {found}")


def _vector_column(given: Any, spec: VectorSpec, what: str) -> pa.Array:
    present: npt.NDArray[np.bool_] | None = None
    if _is_arrow(given):
        array = _whole(given)
        if pa.types.is_null(array.type):
            return pa.nulls(len(array), spec.arrow_type)
        matrix, present = _matrix_of(array, what)
    else:
        if isinstance(given, list | tuple) and any(one is None for one in given):
            present = np.array([one is not None for one in given], bool)
            given = [one for one in given if one is not None]
        matrix = np.empty((0, spec.dimension)) if isinstance(given, list | tuple) and not given else given
    positions = None if present is None else np.flatnonzero(present)
    matrix = check_vectors(matrix, dimension=spec.dimension, source=what, positions=positions)
    return _to_column(matrix, present, spec, what)


def _matrix_of(array: pa.Array, what: str) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """Return the vectors of an Arrow array that are not null, without a copy where none is."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        widths = pc.unique(pc.list_value_length(array).drop_null())
        if len(widths) > 1:
            raise InvalidInputError(f"{what} must all have the same dimension")
        width = widths[0].as_py() if len(widths) else 0
    elif pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
    else:
        raise InvalidInputError(f"{what} must be an Arrow fixed-size list of numbers, not {array.type}")
    present = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    flat = array.flatten()  # without null rows
    if flat.null_count:
        raise InvalidInputError(f"{what} hold a vector with a null component")
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width), present


def _to_column(matrix: Any, present: npt.NDArray[np.bool_] | None, spec: VectorSpec, what: str) -> pa.Array:
    """Return checked vectors as a column; null where ``present`` is False."""
    if spec.dtype == "float16":
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float16)
        if not np.isfinite(matrix).all():
            raise InvalidInputError(f"{what} hold a value that float16 cannot store")
    if spec.metric == "cosine" and len(matrix):
        # A square that underflows is no direction either: the norm is what the cosine divides by.
        zero = ~matrix.any(axis=1)
        if zero.any():
            row = int(np.flatnonzero(_spread(zero, present))[0])
            raise InvalidInputError(f"{what}: row {row} is the zero vector, which has no direction for cosine")
    if spec.metric != "cosine" and spec.dtype == "float32" and len(matrix):
        with np.errstate(over="ignore"):
            long = np.vecdot(matrix, matrix) > MAX_LENGTH**2
        if long.any():
            row = int(np.flatnonzero(_spread(long, present))[0])
            raise InvalidInputError(f"{what}: row {row} is longer than {MAX_LENGTH:.2g}, and cannot be compared")
    if present is not None:
        matrix = _spread(matrix, present)
    mask = None if present is None else pa.array(~present)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=spec.arrow_type, mask=mask)


def _spread(rows: npt.NDArray[Any], present: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    """Return what is said of the rows that are present where they stand among all, zero for the others."""
    if present is None:
        return rows
    spread = np.zeros((len(present), *rows.shape[1:]), rows.dtype)
    spread[present] = rows
    return spread


def _token_column(given: Any, spec: VectorSpec, what: str) -> pa.Array:
    if _is_arrow(given):
        array = _whole(given)
        if pa.types.is_null(array.type):
            return pa.nulls(len(array), pa.binary())
        if not pa.types.is_list(array.type) and not pa.types.is_large_list(array.type):
            raise InvalidInputError(f"{what} must be an Arrow list of fixed-size lists, not {array.type}")
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
        missing = array.is_null().to_numpy(zero_copy_only=False)
        matrix, absent = _matrix_of(array.flatten(), what)
        if absent is not None:
            raise InvalidInputError(f"{what} hold a null token")
    else:
        rows = _listed(given, what, "matrices [T, D]")
        missing = np.array([one is None for one in rows], bool)
        parts = [
            check_vectors(one, dimension=spec.dimension, source=f"{what}[{i}]")
            for i, one in enumerate(rows)
            if one is not None
        ]
        lengths = np.zeros(len(rows), np.int64)
        lengths[~missing] = [len(one) for one in parts]
        matrix = np.concatenate(parts) if parts else np.empty((0, spec.dimension), np.float32)
    matrix = check_vectors(matrix, dimension=spec.dimension, source=what)
    empty = (lengths == 0) & ~missing
    if empty.any():
        raise InvalidInputError(f"{what}[{int(np.flatnonzero(empty)[0])}] is a matrix without rows; use None for none")
    return _token_bytes(matrix, lengths, missing, what)


def _token_bytes(
    matrix: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_], what: str
) -> pa.Array:
    """Return token matrices, given one below the other, as the column that stores them.

    Raises:
        InvalidInputError: a value that float16 cannot store, or more than 2 GiB.
    """
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(matrix, "<f2")
    if not np.isfinite(data).all():
        raise InvalidInputError(f"{what} hold a value that float16 cannot store")
    width = data.shape[1] * 2 if data.ndim == 2 else 0
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths * width, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InvalidInputError(f"{what} take more than 2 GiB; store fewer rows at a time")
    present = pa.array(~missing)
    return pa.Array.from_buffers(
        pa.binary(),
        len(lengths),
        [present.buffers()[1], pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data.reshape(-1))],
    )


@dataclass(slots=True)
class Rows:
    """Checked rows of one call, column by column. ``vectors`` are the columns given or made, by vector name."""

    ids: pa.Array
    texts: pa.Array | None
    metadata: list[dict[str, Any] | None] | None
    vectors: dict[str, pa.Array]
    _encoded: list[str | None] | None = field(default=None, repr=False)
    _terms: pa.Array | pa.ChunkedArray | None = field(default=None, repr=False)
    _made: tuple[object, dict[str, pa.Array]] | None = field(default=None, repr=False)

    def embedded(
        self,
        definition: Definition,
        given: Mapping[str, pa.Array],
        embedder_of: Callable[[EmbedderIdentity], Embedder],
    ) -> dict[str, pa.Array]:
        """Return the vectors that the texts ask for and nobody gave; embedded once, however often the rows are prepared."""
        specs = {name: one.spec for name, one in definition.embedded.items() if name not in given}
        identity, texts = definition.embedder, self.texts
        if identity is None or texts is None or not specs or texts.null_count == len(texts):
            return {}
        if self._made is None or self._made[0] != (identity, specs):
            made = embed_columns(specs, embedder_of(identity), texts.drop_null().to_pylist())
            if texts.null_count:
                present = texts.is_valid().to_numpy(zero_copy_only=False)
                places = pa.array(np.cumsum(present) - 1, mask=~present)
                made = {name: array.take(places) for name, array in made.items()}
            self._made = (identity, specs), made
        return self._made[1]

    def text_terms(self) -> pa.Array | pa.ChunkedArray:
        """Return the ``terms`` column; analysed once, however often the rows are prepared."""
        if self._terms is None:
            texts = [] if self.texts is None else self.texts.to_pylist()
            parts = [encode_terms(texts[i : i + _TERM_ROWS]) for i in range(0, len(texts), _TERM_ROWS)]
            self._terms = parts[0] if len(parts) == 1 else pa.chunked_array(parts, pa.binary())
        return self._terms

    def encoded_metadata(self) -> list[str | None]:
        """Return the ``metadata`` column; encoded once, however often the rows are prepared."""
        if self._encoded is None:
            given = [None] * len(self.ids) if self.metadata is None else self.metadata
            self._encoded = [
                None if one is None else encode_json(one, path=f"metadata[{i}]") for i, one in enumerate(given)
            ]
        return self._encoded

    def columns(self, definition: Definition) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return the columns of the table that are given or follow from what is, in the layout of the cold tier."""
        columns: dict[str, Any] = {"id": self.ids}
        if self.texts is not None:
            columns.update(text=self.texts, terms=self.text_terms())
        if self.metadata is not None:
            columns["metadata"] = pa.array(self.encoded_metadata(), pa.string())
            for one in definition.promoted:
                columns[one.column] = pa.array(map(one.value_of, self.metadata), one.field.type)
        for name, array in self.vectors.items():
            columns[definition.vector(name).column] = array
        return columns

    @property
    def are_few(self) -> bool:
        """Whether they are handled one by one: Arrow's own cost is the greater one."""
        return len(self.ids) <= _FEW

    def to_physical(self, definition: Definition, schema: TableSchema) -> list[tuple[str, list[Any]]]:
        """Return the rows by key as `Table._put_rows` takes them."""
        columns = self.columns(definition)
        nothing = [None] * len(self.ids)
        values = [
            column.from_arrow(columns[column.name]) if column.name in columns else nothing for column in schema.columns
        ]
        keys = map(schema.encode_key, self.ids.to_pylist())
        return [(key, list(row)) for key, row in zip(keys, zip(*values, strict=True), strict=True)]

    def to_table(self, definition: Definition, schema: TableSchema) -> pa.Table:
        """Return the rows in the layout of the cold tier, as `Table._put_table` takes them."""
        columns = self.columns(definition)
        arrays = {
            column.name: columns[column.name] if column.name in columns else pa.nulls(len(self.ids), column.cold_type)
            for column in schema.columns
        }
        return pa.table({"_key": schema.encode_keys(pa.table(arrays)), **arrays})


# --- what goes out ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One row of a collection.

    Attributes:
        id: its id.
        text: None if it has none, or it was not asked for.
        metadata: exactly as stored; empty if there is none, or it was not asked for.
        vectors: by name those it has: `[D]` of the vector's dtype, or a matrix `[T, D]` of float16 for a ``multi`` one.
    """

    id: str
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def vector(self) -> npt.NDArray[Any] | None:
        """The vector called ``"vector"``, or the first it has; None if it has none."""
        if "vector" in self.vectors:
            return self.vectors["vector"]
        return next(iter(self.vectors.values()), None)


def check_include(include: Any) -> frozenset[str]:
    """Return which parts of a row are wanted.

    Raises:
        InvalidInputError: something else than ``text``, ``metadata`` and ``vectors``.
    """
    parts = _listed(include, "include", "names")
    unknown = [one for one in parts if one not in _INCLUDED]
    if unknown:
        raise InvalidInputError(f"include may hold {', '.join(_INCLUDED)}, not {unknown[0]!r}")
    return frozenset(parts)


def wanted_columns(definition: Definition, include: frozenset[str]) -> list[str]:
    """Return the table's columns that hold the parts wanted."""
    found = ["id", *(one for one in ("text", "metadata") if one in include)]
    return found + [one.column for one in definition.vectors.values()] if "vectors" in include else found


def to_record(row: Row, definition: Definition, include: frozenset[str]) -> Record:
    """Return a row of the table as a record."""
    vectors: dict[str, npt.NDArray[Any]] = {}
    if "vectors" in include:
        for name, one in definition.vectors.items():
            value = row[one.column]
            if value is not None:
                vectors[name] = _tokens(value, one.spec) if one.spec.multi else value
    return Record(
        row["id"],
        row["text"] if "text" in include else None,
        (row["metadata"] or {}) if "metadata" in include else {},
        vectors,
    )


def _tokens(data: bytes, spec: VectorSpec) -> npt.NDArray[np.float16]:
    return np.frombuffer(data, "<f2").reshape(-1, spec.dimension)


class Batch:
    """Some rows of a collection, as Arrow; what else is asked for is made of that when it is.

    Attributes:
        arrow: columns ``id``, and as asked for ``text``, ``metadata`` (JSON) and one for each vector under its name: a
            fixed-size list, or a list of them for a ``multi`` vector. `Collection.upsert` takes it.
    """

    def __init__(self, rows: pa.RecordBatch, definition: Definition) -> None:
        self._specs = {name: one.spec for name, one in definition.vectors.items()}
        names = {one.column: name for name, one in definition.vectors.items()}
        fields, arrays = [], []
        for found, array in zip(rows.schema, rows.columns, strict=True):
            name = names.get(found.name, found.name)
            spec = self._specs.get(name) if found.name in names else None
            if spec is not None and spec.multi:
                array = _token_lists(array, spec)  # noqa: PLW2901 - shown as callers know it
            fields.append(pa.field(name, array.type))
            arrays.append(array)
        self.arrow = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __repr__(self) -> str:
        return f"Batch({len(self)} rows: {', '.join(self.arrow.schema.names)})"

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows as records."""
        texts = self.texts if "text" in self.arrow.schema.names else [None] * len(self)
        metadata = self.metadata if "metadata" in self.arrow.schema.names else [{} for _ in range(len(self))]
        vectors = {name: self._rows_of(name) for name in self._specs if name in self.arrow.schema.names}
        for i, found in enumerate(self.ids):
            mine = {name: one for name, rows in vectors.items() if (one := rows[i]) is not None}
            yield Record(found, texts[i], metadata[i], mine)

    @property
    def ids(self) -> list[str]:
        """The ids."""
        return list(self.arrow.column("id").to_pylist())

    @property
    def texts(self) -> list[str | None]:
        """The texts, None where a row has none."""
        return list(self.arrow.column("text").to_pylist())

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """The metadata, empty where a row has none."""
        stored = self.arrow.column("metadata").storage.to_pylist()
        return [{} if one is None else decode_json(one) for one in stored]

    def vectors(self, name: str | None = None) -> npt.NDArray[Any]:
        """Return the vectors as `[N, D]`, without a copy; a row without one is NaN, and then it is one.

        Args:
            name: which vector; None: ``"vector"``, or the first.

        Raises:
            InvalidInputError: it was not asked for, or is ``multi``: iterate over the records, or take ``arrow``.
        """
        if name is None:
            name = "vector" if "vector" in self._specs else next(iter(self._specs))
        spec = self._specs.get(name)
        if spec is None or spec.multi or name not in self.arrow.schema.names:
            raise InvalidInputError(f"the batch holds no vectors {name!r} of one vector for each row")
        array = self.arrow.column(name)
        matrix = _matrix(array, spec)
        if array.null_count:
            matrix = matrix.copy()
            matrix[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
        return matrix

    def _rows_of(self, name: str) -> list[npt.NDArray[Any] | None]:
        array, spec = self.arrow.column(name), self._specs[name]
        present = array.is_valid().to_pylist()
        if not spec.multi:
            matrix = _matrix(array, spec)
            return [matrix[i] if one else None for i, one in enumerate(present)]
        ends = array.offsets.to_numpy()
        tokens = _matrix(array.values, spec)
        return [tokens[ends[i] : ends[i + 1]] if one else None for i, one in enumerate(present)]


def _matrix(array: pa.Array, spec: VectorSpec) -> npt.NDArray[Any]:
    start = array.offset * spec.dimension
    flat = array.values.slice(start, len(array) * spec.dimension).to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(len(array), spec.dimension)


def _token_lists(array: pa.Array, spec: VectorSpec) -> pa.Array:
    """Return token matrices as a list of fixed-size lists for each row, without a copy of the numbers."""
    bits, ends, data = array.buffers()
    del bits
    offsets = np.frombuffer(ends, np.int32, len(array) + 1, array.offset * 4) if len(array) else np.zeros(1, np.int32)
    stop = int(offsets[-1])
    values = np.frombuffer(data, "<f2", stop // 2) if stop else np.empty(0, np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), spec.dimension)
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets // (2 * spec.dimension)), vectors, mask=mask)
