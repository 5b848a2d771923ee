"""Vector and text indices of the cold tier: what they are, and how Lance builds one that no version names yet.

A build takes seconds to minutes, so it holds no lock that a reader or writer waits for. It reads one version of a table and
writes a *segment*. Then, under the table's cold lock, the segment joins the newest version. Rows written meanwhile are simply
not in it: Lance compares them one by one, and upkeep adds them in segments of their own.

What a table's indices are to be is recorded in the Lance dataset, so that it is versioned, backed up and dropped with it.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lance

from agentdb.errors import FormatError, InvalidInputError
from agentdb.storage.schema import TableSchema
from agentdb.types import Metric

__all__ = ["TEXT_INDEX", "IndexDefinition", "IndexInfo", "Segment", "index_name", "most_extended"]

_RECORD = "agentdb.index."
_MOST_EXTENDED = 100_000
_MOST_EXTENDED_GRAPH = 5_000
_FLAT_PARTITIONS = 256
_PARTITION_ROWS = 16
_TOO_FEW_CLUSTERS = re.compile(r"could only form (\d+) non-empty clusters")
_METRICS = ("cosine", "l2", "dot")


@dataclass(frozen=True, slots=True)
class IndexDefinition:
    """Which index a column gets, in Lance's words.

    Attributes:
        kind: ``"IVF_RQ"``, ``"IVF_HNSW_SQ"``, ... for vectors, ``"INVERTED"`` for text.
        metric: of vectors; None for text.
        parameters: what Lance is told when it builds the index; of ``num_partitions`` it gets no more than the vectors fill.
    """

    kind: str
    metric: Metric | None
    parameters: Mapping[str, int | float | str | bool]

    def to_json(self) -> str:
        """Return the record that `from_json` reads."""
        return json.dumps({"kind": self.kind, "metric": self.metric, "parameters": dict(self.parameters)})

    @classmethod
    def from_json(cls, text: str) -> IndexDefinition:
        """Return the definition of a record.

        Raises:
            FormatError: it is none.
        """
        try:
            data = json.loads(text)
            return cls(str(data["kind"]), cast(Metric | None, data["metric"]), dict(data["parameters"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError("the record of an index cannot be read") from error

    def check(self, schema: TableSchema, column: str) -> None:
        """Raise unless a column can have this index.

        Raises:
            InvalidInputError: it cannot.
        """
        kind = schema.column(column).kind
        if kind == "vector":
            if not self.kind.startswith("IVF_") or self.metric not in _METRICS:
                raise InvalidInputError(
                    f"the index of vector column {column} must be of a kind IVF_... with a metric of {', '.join(_METRICS)}"
                )
        elif kind != "string":
            raise InvalidInputError(f"column {column} of kind {kind} cannot have a vector or text index")
        elif self.kind != "INVERTED" or self.metric is not None:
            raise InvalidInputError(f"the index of text column {column} must be of kind INVERTED, without a metric")
        elif column in schema.sql_columns:
            raise InvalidInputError(f"column {column} is indexed for look-ups and cannot have a text index too")


TEXT_INDEX = IndexDefinition(
    "INVERTED",
    None,
    {
        "with_position": False,
        "base_tokenizer": "simple",
        "language": "English",
        "lower_case": True,
        "stem": True,
        "remove_stop_words": True,
        "ascii_folding": True,
    },
)
"""English stemming and stop words, no positions."""


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """A vector or text index as one version of a table has it.

    Attributes:
        kind, metric, parameters: its definition.
        rows_indexed: rows that the index finds.
        rows_unindexed: cold rows that are compared one by one, because no segment covers them.
        segments: the parts that a search looks into; 0: an erasure removed the index, and it was not built again since.
    """

    kind: str
    metric: Metric | None
    parameters: Mapping[str, int | float | str | bool]
    rows_indexed: int
    rows_unindexed: int
    segments: int


def most_extended(kind: str) -> int:
    """Return how many rows can join an index under the cold lock; of more, it is due to be built anew."""
    return _MOST_EXTENDED_GRAPH if "HNSW" in kind else _MOST_EXTENDED


def index_name(column: str) -> str:
    """Return what Lance calls the index of a column."""
    return f"{column}_idx"


def record_of(column: str) -> str:
    """Return the key under which a dataset records the definition of a column's index."""
    return _RECORD + column


def definitions(handle: lance.LanceDataset) -> dict[str, IndexDefinition]:
    """Return the recorded definitions by column, also of indices that an erasure removed."""
    return {
        key.removeprefix(_RECORD): IndexDefinition.from_json(text)
        for key, text in handle.config().items()
        if key.startswith(_RECORD)
    }


def covered(handle: lance.LanceDataset, column: str) -> list[set[int]]:
    """Return the fragments that each segment of a column's index covers, oldest segment first."""
    name = index_name(column)
    return [
        set(one.fragment_ids) for index in handle.describe_indices() if index.name == name for one in index.segments
    ]


def describe(handle: lance.LanceDataset, column: str) -> IndexInfo | None:
    """Return how the index of a column stands; None: there is none, and none was wanted."""
    definition = definitions(handle).get(column)
    if definition is None:
        return None
    segments = covered(handle, column)
    inside = set().union(*segments)
    live = {one.fragment_id: one.physical_rows - one.num_deletions for one in handle.get_fragments()}
    indexed = sum(rows for fragment, rows in live.items() if fragment in inside)
    return IndexInfo(
        definition.kind,
        definition.metric,
        definition.parameters,
        indexed,
        sum(live.values()) - indexed,
        len(segments),
    )


class Segment:
    """An index in the making: its files are in the dataset's directory, and no version names them."""

    def __init__(self, handle: lance.LanceDataset, root: Path) -> None:
        self._handle = handle
        self._root = root
        self._uuid = str(uuid.uuid4())
        self._built: Any = None
        self.fragments = frozenset(int(one.fragment_id) for one in handle.get_fragments())
        """What it covers. As long as all of them are there, it can be published."""

    def build(self, column: str, definition: IndexDefinition) -> None:
        """Write the files. Lance's errors come as they are."""
        parameters: dict[str, Any] = dict(definition.parameters)
        if definition.metric is not None:
            parameters["metric"] = definition.metric
        partitions = parameters.get("num_partitions", 0)
        if partitions > _FLAT_PARTITIONS:
            # With fewer vectors for each, Lance's hierarchical k-means may never end (seen in 14.0.2).
            rows = self._handle.count_rows(filter=f"`{column}` IS NOT NULL")
            parameters["num_partitions"] = min(partitions, max(_FLAT_PARTITIONS, rows // _PARTITION_ROWS))
        try:
            self._built = self._write(column, definition.kind, parameters)
        except RuntimeError as error:
            found = _TOO_FEW_CLUSTERS.search(str(error))
            if found is None:
                raise
            # Many vectors are equal: as many partitions as there are different ones will do.
            parameters["num_partitions"] = max(1, min(int(found[1]), _FLAT_PARTITIONS))
            self.discard()
            self._built = self._write(column, definition.kind, parameters)

    def _write(self, column: str, kind: str, parameters: Mapping[str, Any]) -> Any:
        return self._handle.create_index_uncommitted(
            column,
            kind,
            name=index_name(column),
            replace=True,
            fragment_ids=sorted(self.fragments),
            index_uuid=self._uuid,
            **parameters,
        )

    def publish(self, handle: lance.LanceDataset, column: str, definition: IndexDefinition) -> None:
        """Let a newer version of the dataset have the segment as the whole index of a column."""
        handle.commit_existing_index_segments(index_name(column), column, [self._built])
        handle.update_config({record_of(column): definition.to_json()})

    @property
    def files(self) -> list[str]:
        """The paths of its files below the dataset's directory."""
        return [str(path.relative_to(self._root)) for path in self._folder.rglob("*") if path.is_file()]

    @property
    def _folder(self) -> Path:
        return self._root / "_indices" / self._uuid

    def discard(self) -> None:
        """Remove the files, as far as they are there."""
        shutil.rmtree(self._folder, ignore_errors=True)
