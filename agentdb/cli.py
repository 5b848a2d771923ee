"""The command line: ``agentdb demo | info | verify | optimize | ingest | ask | export | import | backup | restore``.

Exit codes: 0 when all went well, 1 after an error (one line on stderr) or when `verify` found a problem, 2 for wrong usage.
What a script reads goes to stdout, progress and errors to stderr.

In JSON Lines a row is one object. JSON columns are JSON values and vectors are arrays of numbers; timestamps and dates are
ISO 8601 strings, binary values are base64, infinities the strings "Infinity" and "-Infinity". Parquet keeps every type.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table as Grid

import agentdb
from agentdb.database import Database
from agentdb.errors import AgentDBError, FormatError, InvalidInputError
from agentdb.filters import encode_json, parse_json
from agentdb.rag import IngestReport
from agentdb.storage.files import fsync_directory
from agentdb.storage.schema import Column, ColumnKind, TableSchema
from agentdb.storage.table import Table
from agentdb.types import OnProgress, Progress, Row
from agentdb.vectors.definition import IndexPlan

__all__ = ["main"]

_PARQUET_BYTES = 32 << 20
_JSON_ROWS = 8_192
_SAMPLE_ROWS = 1_000
"""Rows of a JSON Lines file that are looked at to find the types of a new table."""
_LINE_ENDS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""Allowed in JSON strings, but some readers take them for the end of a line."""
_DEFINITION = b"agentdb.table"
"""Where a Parquet file holds the definition of the table that it was exported from."""

app = typer.Typer(
    help="AgentDB: the embedded database of an AI agent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DatabasePath = Annotated[Path, typer.Argument(metavar="PATH", help="The database's directory.")]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="The table's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


class Format(StrEnum):
    """How rows are written to a file."""

    PARQUET = "parquet"
    JSONL = "jsonl"


class ContextForm(StrEnum):
    """How a context is written."""

    MARKDOWN = "markdown"
    XML = "xml"


_SUFFIXES = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
}
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="The file's format; without it, its suffix decides.")
]


def main() -> None:
    """Run the command line."""
    app(prog_name="agentdb")


# --- frame ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn what users can do something about into one line and exit code 1."""
    try:
        yield
    except BrokenPipeError:
        # The reader of our output has seen enough; Python must not complain about it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (AgentDBError, OSError, pa.ArrowException) as error:
        typer.echo(f"agentdb: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress]:
    """Show a bar on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        yield show


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _line(text: str) -> str:
    """Return a text as one line that a terminal only prints: what a name has of line breaks and control characters is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's way
    if wanted:
        typer.echo(f"agentdb {agentdb.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- commands -----------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    path: Annotated[
        Path | None, typer.Option("--path", help="Keep the database here; without it, a temporary directory is used.")
    ] = None,
) -> None:
    """Show what AgentDB does, in about a minute."""
    from agentdb.demo import run

    with _reported():
        run(path, Console())


@app.command()
def info(path: DatabasePath, *, as_json: AsJson = False) -> None:
    """Show what a database holds. Nothing is written."""
    with _reported(), agentdb.open(path, read_only=True) as db:
        stats = db.stats()
        tables = {}
        for name, size in stats.tables.items():
            table = db.table(name)
            schema = table.schema
            tables[name] = {
                "rows": table.count(),
                "key": list(schema.key),
                "indexed": list(schema.indexed),
                "columns": {column.name: column.type_name for column in schema.columns},
                **asdict(size),
            }
        collections = {name: _described(db, name) for name in db.collections()}
        if as_json:
            _print_json({**_without_tables(asdict(stats)), "tables": tables, "collections": collections})
        else:
            _print_info(db, stats.format, stats.sqlite_bytes + stats.wal_bytes, stats.cold_bytes, tables)
            if collections:
                _print_collections(collections)


def _described(db: Database, name: str) -> dict[str, Any]:
    """Return what a collection holds, as plain values."""
    collection = db.collection(name)
    definition = collection._store.read()
    under_way = definition.reembedding
    return {
        "rows": collection.count(),
        "table": definition.table_name,
        "vectors": {key: {**asdict(one.spec), "column": one.column} for key, one in definition.vectors.items()},
        "embedder": None if definition.embedder is None else definition.embedder.name,
        "reembedding": None if under_way is None else under_way.embedder.name,
        "promoted": {".".join(one.keys): one.type for one in definition.promoted},
        "indexes": {
            key: _plan(definition.index_plan(key)) for key, one in definition.vectors.items() if not one.spec.multi
        },
    }


def _plan(plan: IndexPlan) -> dict[str, Any]:
    choice = plan.choice if isinstance(plan.choice, str) else plan.choice.to_json()
    return {"choice": choice, "state": dict(plan.state)}


def _print_collections(collections: Mapping[str, Mapping[str, Any]]) -> None:
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for name in ("collection", "rows", "vectors", "embedder", "promoted"):
        grid.add_column(name, justify="right" if name == "rows" else "left")
    for name, one in collections.items():
        vectors = [
            f"{key} {spec['dimension']} {spec['dtype']} {'tokens' if spec['multi'] else spec['metric']}"
            for key, spec in one["vectors"].items()
        ]
        embedder = one["embedder"] or "-"
        if one["reembedding"] is not None:
            embedder += f" (becoming {one['reembedding']})"
        grid.add_row(name, f"{one['rows']:,}", ", ".join(vectors), embedder, ", ".join(one["promoted"]) or "-")
    console = Console()
    console.print()
    console.print(grid)


def _without_tables(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if name != "tables"}


def _print_info(
    db: Database, version: int, hot_bytes: int, cold_bytes: int, tables: Mapping[str, Mapping[str, Any]]
) -> None:
    console = Console()
    console.print(f"{db.path}  (format {version})", highlight=False, soft_wrap=True)
    console.print(f"hot tier {_size(hot_bytes)}, cold tier {_size(cold_bytes)}", highlight=False)
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for name in ("table", "rows", "of them hot", "cold size", "key"):
        grid.add_column(name, justify="left" if name in ("table", "key") else "right")
    for name, one in tables.items():
        cold = _size(one["cold_bytes"])
        grid.add_row(name, f"{one['rows']:,}", f"{one['hot_rows']:,}", cold, ", ".join(one["key"]))
    console.print(grid)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@app.command()
def verify(path: DatabasePath, *, as_json: AsJson = False) -> None:
    """Check everything that a database stores; exit with 1 if something is wrong. Nothing is written."""
    with _reported(), agentdb.open(path, read_only=True) as db:
        with _progress() as show:
            report = db.verify(show)
        if as_json:
            _print_json(asdict(report))
        else:
            for problem in report.problems:
                typer.echo(f"{problem.table or 'database'}: {problem.what}")
            found = "no problem" if report.ok else f"{len(report.problems)} problems"
            typer.echo(f"{found} in {report.tables} tables, {report.rows:,} rows, {report.files} files")
        if not report.ok:
            raise typer.Exit(1)


@app.command()
def optimize(path: DatabasePath) -> None:
    """Flush, compact and clean up a database, now."""
    with _reported(), agentdb.open(path, create=False) as db:
        before = db.stats()
        with _progress() as show:
            db.optimize(show)
        after = db.stats()
        sizes = [_size(one.sqlite_bytes + one.wal_bytes + one.cold_bytes) for one in (before, after)]
        typer.echo(f"optimised: {sizes[0]} before, {sizes[1]} after")


@app.command()
def backup(
    path: DatabasePath,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new directory.")],
) -> None:
    """Copy a database, also one in use, to a new directory, which appears complete or not at all."""
    with _reported(), agentdb.open(path, read_only=True) as db, _progress() as show:
        db.backup(target, show)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `agentdb backup` wrote.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new directory.")],
) -> None:
    """Make a database out of a backup, with every file checked; it appears complete or not at all."""
    with _reported(), _progress() as show:
        agentdb.restore(source, path, show)


# --- documents ----------------------------------------------------------------------------------------------------------

CollectionOption = Annotated[str, typer.Option("--collection", metavar="NAME", help="The documents' collection.")]


@app.command()
def ingest(
    path: DatabasePath,
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Files and folders.")],
    *,
    collection: CollectionOption = "documents",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Only files of folders that match, such as '*.md'; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave out what matches; may be repeated.")
    ] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow symbolic links in folders.")] = False,
    as_json: AsJson = False,
) -> None:
    """Store documents, to be searched and cited; what is unchanged is left alone, what is gone from a folder is removed.

    The database is made if it does not exist. Exits with 1 if a file could not be stored; the others are.
    """
    with _reported():
        for file in files:
            if not os.path.lexists(file):
                raise InvalidInputError(f"there is no file or folder {file}")
        with agentdb.open(path) as db:
            with _progress() as show:
                report = db.documents.ingest(
                    files,
                    collection=collection,
                    include=include or None,
                    exclude=exclude or (),
                    follow_links=follow_links,
                    on_progress=show,
                )
            if as_json:
                _print_json(asdict(report))
            else:
                _print_ingest(report)
        if report.failed:
            raise typer.Exit(1)


def _print_ingest(report: IngestReport) -> None:
    for warning in report.warnings:
        typer.echo(_line(f"{warning.source}: {warning.message}"), err=True)
    for failure in report.failed:
        typer.echo(_line(f"{failure.source}: not stored ({failure.reason}): {failure.message}"), err=True)
    counts = ", ".join(f"{getattr(report, name):,} {name}" for name in ("added", "updated", "unchanged", "removed"))
    typer.echo(
        f"{counts}, {len(report.failed):,} failed: {report.chunks:,} chunks of {_size(report.bytes)} "
        f"in {report.seconds:.1f} s"
    )


@app.command()
def ask(
    path: DatabasePath,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to look for, in words.")],
    *,
    collection: CollectionOption = "documents",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How long the context may be.")] = 1_000,
    form: Annotated[ContextForm, typer.Option("--format", help="How the context is written.")] = ContextForm.MARKDOWN,
    as_json: AsJson = False,
) -> None:
    """Print the passages that answer a question, numbered, within a budget of tokens, then where they stand. Nothing is written."""
    with _reported(), agentdb.open(path, read_only=True) as db:
        context = db.documents.context(
            question,
            token_budget=tokens,
            format=form.value,
            collection=collection,
        )
        if as_json:
            _print_json(asdict(context))
            return
        if not context.citations:
            typer.echo("nothing was found", err=True)
            raise typer.Exit(1)
        typer.echo(context.text)
        typer.echo("")
        for one in context.citations:
            page = "" if one.page is None else f", page {one.page}"
            typer.echo(_line(f"[{one.number}] {one.source}{page}, characters {one.start} to {one.end}"))


# --- export -------------------------------------------------------------------------------------------------------------


@app.command("export")
def export_table(
    path: DatabasePath,
    table: TableName,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; without it, JSON Lines on standard output.")
    ] = None,
    *,
    file_format: FormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a table's rows, as of one moment, to a Parquet or JSON Lines file, which appears complete or not at all.

    Parquet keeps every type. In JSON Lines a row is one object: JSON columns are JSON values, vectors arrays of numbers,
    timestamps and dates ISO 8601 strings, binary values base64. Both come back unchanged with `agentdb import`.
    """
    chosen = _format_of(file, file_format)
    if file is None and chosen is Format.PARQUET:
        raise typer.BadParameter("Parquet needs a FILE")
    with _reported(), agentdb.open(path, read_only=True) as db:
        source = db.table(table)
        if file is None:
            for line in _json_lines(source):
                sys.stdout.write(line)
            sys.stdout.flush()
            return
        if file.exists() and not force:
            raise InvalidInputError(f"{file} exists; --force replaces it")
        with _progress() as show, _written_beside(file) as building:
            total = source.count()
            write = _write_parquet if chosen is Format.PARQUET else _write_jsonl
            count = write(source, building, lambda done: show(Progress(f"export {table}", done, total)))
        typer.echo(f"exported {count:,} rows to {file}")


def _format_of(file: Path | None, chosen: Format | None) -> Format:
    if chosen is not None:
        return chosen
    if file is None:
        return Format.JSONL
    found = _SUFFIXES.get(file.suffix.lower())
    if found is None:
        raise typer.BadParameter(f"cannot tell the format of {file.name}: use --format")
    return found


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """Write a file beside its place and put it there when it is complete and on the disk."""
    building = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield building
        with building.open("rb") as file:
            os.fsync(file.fileno())
        building.replace(target)
        fsync_directory(target.parent)
    finally:
        building.unlink(missing_ok=True)


def _write_parquet(table: Table, target: Path, on_rows: Callable[[int], None]) -> int:
    from pyarrow import parquet

    reader = table.scan_arrow()
    definition = {_DEFINITION: table.schema.to_json().encode()}
    done = 0
    with parquet.ParquetWriter(target, reader.schema.with_metadata(definition), compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            done += batch.num_rows
            on_rows(done)
    return done


def _write_jsonl(table: Table, target: Path, on_rows: Callable[[int], None]) -> int:
    done = 0
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for line in _json_lines(table):
            file.write(line)
            done += 1
            if done % _JSON_ROWS == 0:
                on_rows(done)
    return done


def _json_lines(table: Table) -> Iterator[str]:
    columns = table.schema.columns
    names = [json.dumps(column.name) for column in columns]
    for row in table.scan():
        parts = (f"{name}: {_to_json(column, row[column.name])}" for name, column in zip(names, columns, strict=True))
        yield ("{" + ", ".join(parts) + "}").translate(_LINE_ENDS) + "\n"


def _to_json(column: Column, value: Any) -> str:
    if value is None:
        return "null"
    if column.kind == "json":
        return encode_json(value)
    if column.kind == "vector":
        return json.dumps(value.tolist())
    if column.kind == "list":
        return json.dumps([_plain(column.item_kind, one) for one in value], ensure_ascii=False)
    return json.dumps(_plain(column.kind, value), ensure_ascii=False)


def _plain(kind: ColumnKind | None, value: Any) -> Any:
    """Return a scalar as JSON holds it."""
    if value is None:
        return None
    match kind:
        case "timestamp":
            return value.isoformat().replace("+00:00", "Z")
        case "date":
            return value.isoformat()
        case "binary":
            return base64.b64encode(value).decode()
        case "float" if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case _:
            return value


# --- import -------------------------------------------------------------------------------------------------------------


@app.command("import")
def import_table(
    path: DatabasePath,
    table: TableName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Parquet or JSON Lines file.")],
    *,
    file_format: FormatOption = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A key column of the table if it is new; may be repeated.")
    ] = None,
    column_types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="COLUMN=TYPE",
            help="A column's type if the table is new, as `agentdb info --json` names it, for example "
            "'vector=vector<float32,384>' or 'at=timestamp'; may be repeated.",
        ),
    ] = None,
) -> None:
    """Store the rows of a Parquet or JSON Lines file in a table, all or none; rows with equal keys are replaced.

    The database and the table are made if they do not exist. Other writers wait until it is done.
    """
    chosen = _format_of(file, file_format)
    types = _types_given(column_types or [])
    if table.startswith("_"):
        raise typer.BadParameter("tables that begin with an underscore belong to the database")
    with _reported():
        source: _Parquet | _JsonLines = _Parquet(file) if chosen is Format.PARQUET else _JsonLines(file)
        # Before a database is made for it: what is wrong with the file or the options.
        made = None if path.exists() else source.schema(table, key or [], types)
        with agentdb.open(path) as db, _progress() as show:
            schema = None if table in db.tables() else made or source.schema(table, key or [], types)
            with db.transaction():
                target = db.table(table if schema is None else schema)
                count = 0
                for rows, done, total in source.batches(target.schema):
                    count += target.put_many(rows)
                    show(Progress(f"import {table}", done, total))
        typer.echo(f"imported {count:,} rows into {table}")


def _types_given(options: Iterable[str]) -> dict[str, str]:
    types = {}
    for option in options:
        name, found, type_name = option.partition("=")
        if not found or not name or not type_name:
            raise typer.BadParameter(f"--type {option}: expected COLUMN=TYPE")
        types[name] = type_name
    return types


def _defined(table: str, types: Mapping[str, str], key: Iterable[str]) -> TableSchema:
    """Return a schema from the type names that `info --json` prints."""
    try:
        fields = [pa.field(name, Column(name, type_name).type) for name, type_name in types.items()]
    except (FormatError, KeyError):
        raise InvalidInputError("a column's type is none of those that `agentdb info --json` names") from None
    return TableSchema(table, fields, key=list(key))


def _require_key(table: str, key: list[str]) -> list[str]:
    if not key:
        raise InvalidInputError(f"there is no table {table}; name the key columns of a new one with --key")
    return key


class _Parquet:
    """A Parquet file, read in batches."""

    def __init__(self, file: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(file)

    def schema(self, table: str, key: list[str], types: Mapping[str, str]) -> TableSchema:
        """Return the definition of a new table: the exported one, or that of the file's columns."""
        found = (self._file.schema_arrow.metadata or {}).get(_DEFINITION)
        if found is not None and not key and not types:
            # Made anew: what a file says is checked like any definition.
            made = TableSchema.from_json(found.decode(errors="replace"))
            return TableSchema(
                table,
                made.arrow,
                key=made.key,
                indexed=made.indexed,
                hot_only=made.hot_only,
                embedders=made.embedders,
            )
        fields = [pa.field(one.name, _storable(one.type), one.nullable) for one in self._file.schema_arrow]
        _require_key(table, key)
        if not types:
            return TableSchema(table, fields, key=key)
        given = {column.name: column.type_name for column in TableSchema(table, fields, key=key).columns}
        return _defined(table, {**given, **types}, key)

    def batches(self, schema: TableSchema) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        """Yield rows, how many were read, and how many there are."""
        del schema
        done, total = 0, self._file.metadata.num_rows
        groups = range(self._file.metadata.num_row_groups)
        size = sum(self._file.metadata.row_group(group).total_byte_size for group in groups)
        # Few large batches are stored fastest; how many rows that is depends on how wide they are.
        rows = min(max(_PARQUET_BYTES * total // max(size, 1), 1_000), 1_000_000)
        for batch in self._file.iter_batches(batch_size=rows):
            done += batch.num_rows
            yield batch, done, total


def _storable(found: pa.DataType) -> pa.DataType:
    """Return the type of ours that a foreign column fits in."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_timestamp(found) and found.tz is not None:
        return pa.timestamp("us", tz="UTC")
    return found


class _JsonLines:
    """A file of one JSON object a line, read in batches."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._size = file.stat().st_size

    def schema(self, table: str, key: list[str], types: Mapping[str, str]) -> TableSchema:
        """Return a definition with the types given, and for other columns what their first values need."""
        _require_key(table, key)
        values: dict[str, list[Any]] = {name: [] for name in types}
        with self._path.open("rb") as file:
            for row in itertools.islice(_json_rows(file), _SAMPLE_ROWS):
                for name, value in row.items():
                    values.setdefault(name, []).append(value)
        return _defined(table, {name: types.get(name) or _inferred(seen) for name, seen in values.items()}, key)

    def batches(self, schema: TableSchema) -> Iterator[tuple[list[Row], int, int]]:
        """Yield rows, how many bytes were read, and how many there are."""
        columns = {column.name: column for column in schema.columns}
        with self._path.open("rb") as file:
            numbered = enumerate(_json_rows(file), start=1)
            while batch := list(itertools.islice(numbered, _JSON_ROWS)):
                yield [_from_json(columns, row, number) for number, row in batch], file.tell(), self._size


def _json_rows(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise InvalidInputError(f"line {number} is not UTF-8") from None
        row = parse_json(text, path=f"line {number}")
        if not isinstance(row, dict):
            raise InvalidInputError(f"line {number} is no JSON object")
        yield row


def _inferred(values: Iterable[Any]) -> str:
    """Return the narrowest type that holds all values; strings are never taken for something else."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64" if all(value is None or -(1 << 63) <= value < 1 << 63 for value in values) else "json"
    if kinds in ({float}, {int, float}):
        return "float64"
    return "json"


def _from_json(columns: Mapping[str, Column], row: Row, number: int) -> Row:
    made = {}
    for name, value in row.items():
        column = columns.get(name)
        if column is None:
            raise InvalidInputError(f"line {number}: the table has no column {name!r}")
        try:
            if column.kind == "list" and isinstance(value, list):
                made[name] = [_scalar(column.item_kind, one) for one in value]
            else:
                made[name] = _scalar(column.kind, value)
            column.to_physical(made[name])
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"line {number}: column {name}: {error}") from None
    return made


def _scalar(kind: ColumnKind | None, value: Any) -> Any:
    """Return what `_plain` was given."""
    if not isinstance(value, str):
        return value
    match kind:
        case "timestamp":
            return datetime.fromisoformat(value)
        case "date":
            return date.fromisoformat(value)
        case "binary":
            return base64.b64decode(value, validate=True)
        case "float" if value in ("Infinity", "-Infinity"):
            return float(value)
        case _:
            return value
