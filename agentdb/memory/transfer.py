"""How memories move between databases: one JSON object a line, with everything but what can be made anew."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, get_args

from agentdb.errors import IntegrityError, InvalidInputError, NotFoundError, StorageError
from agentdb.filters import Filter, In, decode_json
from agentdb.memory.core import MemoryCore
from agentdb.memory.records import (
    Origin,
    Scope,
    check_importance,
    check_interval,
    check_optional_name,
    check_tier,
    check_type,
    content_text,
)
from agentdb.memory.rows import HIDDEN, READ, digest_of, equals, plain, scope_of, searched
from agentdb.memory.sessions import head_key, heads_of
from agentdb.memory.tables import EVENTS, MEMORIES, OCCURRENCES, USES, MemoryTables
from agentdb.states.versions import check_identifier, check_metadata
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table
from agentdb.types import Row
from agentdb.vectors.analysis import encode_terms

__all__ = ["export_jsonl", "import_jsonl"]

_ROWS_AT_ONCE = 512
_MOST = 1 << 53
"""Of what is counted: a number that every JSON reader keeps, and that can be counted up from."""


def export_jsonl(core: MemoryCore, path: str | os.PathLike[str], agent_id: str | int | None) -> int:
    """Write memories to a new file; see `AgentMemories.export_jsonl`."""
    condition = None if agent_id is None else equals("agent_id", check_identifier("agent_id", agent_id))
    target = Path(path)
    try:
        with target.open("x", encoding="utf-8") as file:
            try:
                return 0 if core.is_empty else _export(core, file, condition)
            except BaseException:
                target.unlink()
                raise
    except FileExistsError:
        raise InvalidInputError("the file to export to exists already") from None
    except OSError as error:
        raise StorageError(f"memories cannot be exported: {error.strerror}") from error


def _export(core: MemoryCore, file: TextIO, condition: Filter | None) -> int:
    count = 0
    with core.view():
        rows = core.tables.memories.scan(condition, columns=[*READ, "ordinal"])
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            ids = [row["id"] for row in some]
            uses = {row["id"]: row for row in core.tables.uses.get_many(ids) if row is not None}
            more = _grouped(core.tables.occurrences, ids)
            events = _grouped(core.tables.events, ids)
            for row in some:
                use = uses.get(row["id"])
                line = {
                    **{name: plain(value) for name, value in row.items()},
                    "occurrences": more.get(row["id"], []),
                    "events": events.get(row["id"], []),
                    "uses": 1 if use is None else use["uses"],
                    "last_used_at": plain(row["recorded_at"] if use is None else use["last_used_at"]),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += len(some)
    return count


def _grouped(table: Table, ids: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in table.scan(In(("memory_id",), tuple(ids)), order_by=["memory_id", "number"]):
        found.setdefault(row.pop("memory_id"), []).append({name: plain(value) for name, value in row.items()})
    return found


def import_jsonl(core: MemoryCore, path: str | os.PathLike[str]) -> int:
    """Store what `export_jsonl` wrote, all or none; see `AgentMemories.import_jsonl`."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            parsed = [_imported(number, line) for number, line in enumerate(file, 1) if line.strip()]
        lines: dict[str, int] = {}
        for one in parsed:
            if lines.setdefault(one.row["id"], one.number) != one.number:
                raise InvalidInputError(
                    f"line {one.number}: the memory of that id stands on line {lines[one.row['id']]} too"
                )
    except FileNotFoundError:
        raise NotFoundError("there is no file to import") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"the file cannot be read: {type(error).__name__}") from None
    for one, terms in zip(parsed, encode_terms([searched(one.row) for one in parsed]).to_pylist(), strict=True):
        one.row["terms"] = terms
    if parsed:
        core.engine.transact(lambda: _store(core, parsed))
    return len(parsed)


@dataclass(frozen=True, slots=True)
class _Imported:
    """An exported memory as rows, and on which line it stood."""

    number: int
    row: Row
    use: Row
    occurrences: Sequence[Row]
    events: Sequence[Row]


def _store(core: MemoryCore, parsed: Sequence[_Imported]) -> None:
    """Put imported memories into the tables, sessions included; inside a transaction."""
    tables = core.tables
    _replace(tables, parsed)
    heads = heads_of(tables.heads, [scope_of(one.row) for one in parsed])
    for one in sorted(parsed, key=lambda one: int(one.row["ordinal"])):
        row, head = one.row, heads[head_key(scope_of(one.row))]
        if row["ordinal"] > head.last:
            head.append(row["id"])
            head.last = row["ordinal"]
        head.release([row["id"]])
        if row["tier"] == "working":
            head.hold(row["id"], row["text"])
    tables.memories.put_many(one.row for one in parsed)
    tables.heads.put_many(head.row() for head in heads.values())
    tables.uses.put_many(one.use for one in parsed)
    tables.repeats.put_many(
        {"agent_id": one.row["agent_id"], "digest": digest_of(one.row), "memory_id": one.row["id"]}
        for one in parsed
        if one.row["status"] == "active" and one.row["retracted_at"] is None
    )
    tables.occurrences.put_many(its for one in parsed for its in one.occurrences)
    tables.events.put_many(its for one in parsed for its in one.events)


def _replace(tables: MemoryTables, parsed: Sequence[_Imported]) -> None:
    """Take away what belongs to memories that are here already, and stay within their walls."""
    found = tables.memories.get_many([one.row["id"] for one in parsed])
    for one, row in zip(parsed, found, strict=True):
        if row is not None and scope_of(row) != scope_of(one.row):
            raise InvalidInputError(
                f"line {one.number}: the memory of that id that is here has another agent, user, namespace or session"
            )
    ids = tuple(row["id"] for row in found if row is not None)
    if ids:
        for table in (tables.repeats, tables.occurrences, tables.events):
            table.delete_many(filter=In(("memory_id",), ids))


def _imported(number: int, line: str) -> _Imported:
    """Return the rows of one exported memory.

    Raises:
        InvalidInputError: it is none; the message names the line.
    """
    try:
        given = json.loads(line)
        memory_id = check_identifier("id", given["id"])
        row: Row = {name: _typed(MEMORIES, name, given.get(name)) for name in (*READ, "ordinal")}
        row.update(dict.fromkeys(HIDDEN))
        _check(row)
        Scope.of(row["agent_id"], row["user_id"], row["namespace"], row["session_id"])
        check_tier(row["tier"])
        if row["memory_type"] is not None:
            check_type(row["memory_type"])
        if row["status"] not in ("active", "archived"):
            raise InvalidInputError("status must be active or archived")
        if row["origin"] not in (None, *get_args(Origin)):
            raise InvalidInputError("origin must be summary, fact or null")
        MEMORIES.to_physical(row)
        occurrences, events = (
            [
                {name: _typed(schema, name, {**one, "memory_id": memory_id}.get(name)) for name in names}
                for one in given[key]
            ]
            for key, schema, names in (
                ("occurrences", OCCURRENCES, [c.name for c in OCCURRENCES.columns]),
                ("events", EVENTS, [c.name for c in EVENTS.columns]),
            )
        )
        use: Row = {
            "id": memory_id,
            "uses": given["uses"],
            "last_used_at": _typed(USES, "last_used_at", given["last_used_at"]),
            "repeats": max((one["number"] for one in occurrences), default=0),
        }
        for rows, name in ((occurrences, "metadata"), (events, "before")):
            if len({one["number"] for one in rows}) < len(rows):
                raise InvalidInputError("of its occurrences, or of its events, two have one number")
            for one in rows:
                _check_count("number", one["number"])
                if one[name] is not None:
                    check_metadata(decode_json(one[name]))
        _check_count("uses", use["uses"])
        for schema, rows in ((USES, [use]), (OCCURRENCES, occurrences), (EVENTS, events)):
            for one in rows:
                schema.to_physical(one)
    except InvalidInputError as error:
        raise InvalidInputError(f"line {number}: {error}") from None
    except (AttributeError, IntegrityError, KeyError, RecursionError, TypeError, ValueError):
        raise InvalidInputError(f"line {number} is no exported memory") from None
    return _Imported(number, row, use, occurrences, events)


def _check(row: Row) -> None:
    """Refuse what `remember` would refuse."""
    if not isinstance(row["text"], str):
        raise InvalidInputError("text must be a str")
    row["text"], data = content_text(row["text"] if row["data"] is None else decode_json(row["data"]))
    if (data is None) != (row["data"] is None):
        raise InvalidInputError("data must be a JSON object or list")
    row["data"], row["metadata"] = data, check_metadata(row["metadata"])
    check_importance(row["importance"])
    check_optional_name("role", row["role"])
    check_optional_name("speaker", row["speaker"])
    check_interval(row["valid_from"], row["valid_to"])
    _check_count("ordinal", row["ordinal"])


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise InvalidInputError(f"{name} must be an int from 1 to {_MOST:,}")


def _typed(schema: TableSchema, name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if value is not None and schema.column(name).kind == "timestamp" else value
