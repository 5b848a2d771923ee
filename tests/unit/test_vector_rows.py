"""Rows on their way into a collection: one by one, many together, or straight to the cold tier, they are the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import agentdb
from agentdb import Config, VectorSpec, field
from agentdb.storage.schema import TableSchema
from agentdb.vectors.collection import Collection

COUNT = 40
"""More than are handled one by one."""
METADATA: list[Any] = [
    None,
    {},
    {"n": 1, "s": "x", "b": True, "deep": {"list": [1, "1", None]}},
    {"n": 1.5, "s": 7, "b": "no"},
    {"n": None, "s": "\x00\x01é", "z": 2**60},
]
SPECS = {
    "v": VectorSpec(3),
    "half": VectorSpec(2, "dot", dtype="float16"),
    "tokens": VectorSpec(2, "dot", multi=True),
}


def _given(part: slice) -> dict[str, Any]:
    """Return some of the rows: every column has rows without a value."""
    chooser = np.random.default_rng(2)
    rows = range(COUNT)
    vectors = {
        "v": [None if i % 7 == 0 else chooser.standard_normal(3) for i in rows],
        "half": [None if i % 5 == 0 else chooser.standard_normal(2) for i in rows],
        "tokens": [None if i % 3 == 0 else chooser.standard_normal((1 + i % 4, 2)) for i in rows],
    }
    return {
        "ids": ["\x00\x01\x02" * (i % 2) + f"é{i:02d}" for i in rows][part],
        "vectors": {name: column[part] for name, column in vectors.items()},
        "texts": [None if i % 4 == 0 else f"text number {i}" for i in rows][part],
        "metadata": [METADATA[i % len(METADATA)] for i in rows][part],
    }


def _stored(collection: Collection) -> list[tuple[str, list[Any]]]:
    table = collection._table
    with table._core.reading() as view:
        return table._entry(view).hot.match(view.connection)


@pytest.mark.parametrize("is_bulk", [False, True])
def test_however_rows_are_stored_they_are_the_same(tmp_path: Path, is_bulk: bool) -> None:  # noqa: FBT001
    bulk = {"bulk_rows": 1, "bulk_bytes": 1} if is_bulk else {}
    schema = {"n": float, "s": str, "b": bool}
    with agentdb.open(tmp_path / "db", config=Config(maintenance=False, **bulk)) as db:  # type: ignore[arg-type]
        single = db.collection("single", vectors=SPECS, schema=schema)
        several = db.collection("several", vectors=SPECS, schema=schema)
        step = 10 if is_bulk else 1
        for i in range(0, COUNT, step):
            single.upsert(**_given(slice(i, i + step)))
        several.upsert(**_given(slice(None)))
        assert len(_stored(single)) == (0 if is_bulk else COUNT)
        assert _stored(single) == _stored(several)
        for _ in range(2):
            for condition in (field("n") == 1, field("deep", "list").contains(1), field("s") == "x", field("z") > 3):
                assert single.count(condition) == several.count(condition) == COUNT // 5
            one, other = (
                sorted(
                    (row.id, row.text, repr(row.metadata), *(bytes(one) for one in row.vectors.values()))
                    for row in made.scan(include=("text", "metadata", "vectors"))
                )
                for made in (single, several)
            )
            assert one == other
            assert len(one) == COUNT
            db.flush()


@pytest.mark.parametrize("text", ["", "plain", "a b", "é", "\x00", "\x01", "\x02", "a\x7f", "\U0001f600", "x" * 4095])
def test_keys_of_one_text_come_back(text: str) -> None:
    schema = TableSchema("t", [pa.field("id", pa.string())], key="id")
    assert schema.decode_key(schema.encode_key(text)) == text
    assert schema.encode_keys(pa.table({"id": [text]})).to_pylist() == [schema.encode_key(text)]
