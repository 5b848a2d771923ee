"""``agentdb demo``: search by meaning, the state of an agent, and a process that is killed while it writes. All real."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from agentdb.database import Database, open
from agentdb.embedding import Embedder, EmbedderIdentity, embed_texts
from agentdb.errors import ConflictError, StorageError
from agentdb.filters import field
from agentdb.storage.schema import TableSchema
from agentdb.storage.table import Table

__all__ = ["run", "write_until_killed"]

QUESTIONS = (
    "What is the difference between a list and a tuple?",
    "How can I give a function a default value for a parameter?",
    "How do I open and close a resource safely?",
)
_SHORTEST = 120
"""Shorter paragraphs are headings and code. What is left, about 950, takes two processor cores half a minute to embed."""
_BATCH = 32
_ACKNOWLEDGED = 2_000

LEDGER = TableSchema(
    "ledger",
    [pa.field("run", pa.string()), pa.field("number", pa.int64()), pa.field("note", pa.string())],
    key=["run", "number"],
)


def run(path: Path | None, console: Console) -> None:
    """Run the demonstration in a directory, or in a temporary one that is removed afterwards.

    Raises:
        MissingDependencyError: there is no embedder; the message names the extra ``local``.
        InvalidInputError: the directory's vectors were made by another embedder.
        StorageError: an acknowledged write was lost, which must never happen.
    """
    with _directory(path) as directory:
        console.print(f"The database is the directory [bold]{directory}[/].", soft_wrap=True, highlight=False)
        with open(directory) as db:
            _ask(db, console)
            _keep_state(db, console)
        _survive(directory, console)
    _say_what_next(path, console)


@contextlib.contextmanager
def _directory(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="agentdb-demo-") as temporary:
        yield Path(temporary) / "db"


def _title(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


# --- 1 ------------------------------------------------------------------------------------------------------------------


def _ask(db: Database, console: Console) -> None:
    _title(console, "1. Search by meaning")
    embedder = db.embedder
    reference = _reference(db, embedder, console)
    for question in QUESTIONS:
        began = time.perf_counter()
        vector = embed_texts(embedder, [question], "query")[0]
        embedded = time.perf_counter()
        hits = reference.search("vector", vector, k=2)
        took_ms = [1000 * (embedded - began), 1000 * (time.perf_counter() - embedded)]
        console.print(f"\n[bold]{question}[/]")
        console.print(f"  [dim]embedded in {took_ms[0]:.0f} ms, found in {took_ms[1]:.0f} ms[/]", highlight=False)
        for hit in hits:
            text = textwrap.shorten(hit.metadata["text"], 240, placeholder=" ...")
            console.print(f"  [green]{hit.score:.2f}[/] [cyan]{hit.metadata['topic']}[/]", highlight=False)
            lines = textwrap.fill(text, min(console.width, 100) - 8)
            console.print(textwrap.indent(lines, "       "), markup=False, highlight=False)


def _reference(db: Database, embedder: Embedder, console: Console) -> Table:
    """Return the table of Python's language reference, made at the first run."""
    if "reference" in db.tables():
        db.embedder_for("reference", "vector")  # refuses any but the one that made the vectors
        reference = db.table("reference")
        console.print(f"Python's language reference is indexed already: {reference.count()} paragraphs.")
        return reference
    paragraphs = _paragraphs()
    console.print("Loading the embedding model (from an installed wheel, nothing is downloaded) ...")
    identity = EmbedderIdentity.of(embedder)
    vectors: list[npt.NDArray[np.float32]] = []
    columns = (TextColumn("Embedding Python's language reference"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=len(paragraphs))
        for start in range(0, len(paragraphs), _BATCH):
            texts = [text for _, _, text in paragraphs[start : start + _BATCH]]
            vectors.extend(embed_texts(embedder, texts))
            bar.advance(task, len(texts))
    schema = TableSchema(
        "reference",
        [
            pa.field("topic", pa.string()),
            pa.field("number", pa.int64()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), identity.dimension)),
        ],
        key=["topic", "number"],
        embedders={"vector": identity.name},
    )
    with db.transaction():  # the table and its rows together, or neither
        reference = db.table(schema)
        reference.put_many(
            {"topic": topic, "number": number, "text": text, "vector": vector}
            for (topic, number, text), vector in zip(paragraphs, vectors, strict=True)
        )
    topics = len({topic for topic, _, _ in paragraphs})
    console.print(
        f"Indexed {len(paragraphs)} paragraphs on {topics} topics as vectors of {identity.dimension} numbers."
    )
    return reference


def _paragraphs() -> list[tuple[str, int, str]]:
    """Return (topic, number, text): every paragraph of prose once."""
    from pydoc_data.topics import topics

    found = []
    seen: set[str] = set()  # topics overlap
    for topic, whole in sorted(topics.items()):
        for number, paragraph in enumerate(re.split(r"\n\s*\n", whole)):
            text = " ".join(paragraph.split())
            if len(text) >= _SHORTEST and text not in seen:
                seen.add(text)
                found.append((topic, number, text))
    return found


# --- 2 ------------------------------------------------------------------------------------------------------------------


def _keep_state(db: Database, console: Console) -> None:
    _title(console, "2. An agent's state, with history")
    name = ("librarian", "reading-python", "task")
    plan = {"goal": "explain context managers", "read": ["with"], "open_questions": ["who calls __exit__?"]}
    first = db.states.save(*name, plan)
    plan = {**plan, "read": ["with", "exceptions"]}
    db.states.save(*name, plan, expected_version=first.version)
    plan = {**plan, "open_questions": [], "answer": "the with statement does, also when its block raises"}
    last = db.states.save(*name, plan, metadata={"by": "demo"})
    try:
        db.states.save(*name, {"goal": "something else"}, expected_version=first.version)
    except ConflictError as error:
        console.print(f"A writer who did not know the newest version was refused: {error}.", highlight=False)

    grid = Grid("version", "made", "bytes", "of", "open questions", box=None, pad_edge=False, header_style="bold")
    for version in db.states.history(*name, limit=3):
        parent = "-" if version.parent is None else str(version.parent)
        moment = f"{version.created_at:%H:%M:%S.%f}"[:-3]
        questions = ", ".join(version.data["open_questions"]) or "none"
        grid.add_row(str(version.version), moment, str(version.size_bytes), parent, questions)
    console.print(grid)
    console.print(f"\nWhat changed from version {first.version} to {last.version}:", highlight=False)
    for change in db.states.diff(*name, first.version, last.version):
        where = ".".join(map(str, change.path))
        shown = {"add": f"+ {change.new!r}", "remove": f"- {change.old!r}"}.get(
            change.op, f"{change.old!r} -> {change.new!r}"
        )
        console.print(f"  {where}: {shown}", markup=False, highlight=False)


# --- 3 ------------------------------------------------------------------------------------------------------------------


def _survive(path: Path, console: Console) -> None:
    _title(console, "3. kill -9 in the middle of a write")
    program = "import sys; from agentdb.demo import write_until_killed; write_until_killed(*sys.argv[1:])"
    with open(path) as db:
        name = db.config.id_source()
        db.table(LEDGER)
    child = subprocess.Popen([sys.executable, "-c", program, str(path), name], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    # The count is kept here, outside the database: every line is a write that the child was told is durable.
    acknowledged = 0
    with child.stdout:
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == _ACKNOWLEDGED:
                child.kill()
    code = child.wait()
    console.print(
        f"A child process wrote rows, one durable commit each, and was killed (status {code}).", highlight=False
    )
    console.print(f"Acknowledged until then, counted outside the database: {acknowledged:,}.", highlight=False)
    with open(path) as db:
        stored = {row["number"] for row in db.table("ledger").scan(field("run") == name, columns=["number"])}
        report = db.verify()
    missing = set(range(1, acknowledged + 1)) - stored
    surplus = len(stored) - acknowledged
    if missing or surplus > 1 or not report.ok:
        raise StorageError(f"{len(missing)} acknowledged rows are missing, {surplus} too many: please report this")
    console.print(f"Opened again: {len(stored):,} rows; [green]nothing acknowledged is missing[/].", highlight=False)
    if surplus:
        console.print("The one beyond was committed when the process died, before it could say so.", highlight=False)
    console.print(f"verify: no problem in {report.rows:,} rows.", highlight=False)


def write_until_killed(path: str, run_name: str) -> None:
    """Write rows, and print the number of each when it is durable; ends only by a signal, or with its reader."""
    with open(path) as db:
        ledger = db.table(LEDGER)
        number = 0
        while True:
            number += 1
            ledger.put({"run": run_name, "number": number, "note": f"acknowledged write {number}"})
            print(number, flush=True)  # noqa: T201 - the acknowledgement


def _say_what_next(path: Path | None, console: Console) -> None:
    _title(console, "What next")
    if path is None:
        console.print("  agentdb demo --path ./demo-db        keep the database, and look into it:", highlight=False)
    place = path or Path("demo-db")
    for command, why in (
        (f"agentdb info {place}", "what is in it"),
        (f"agentdb verify {place}", "is it sound"),
        (f"agentdb export {place} reference out.parquet", "take a table elsewhere"),
        ("cookbook/", "short programs: filters, transactions, agents, async, backup"),
    ):
        console.print(f"  {command:<45}  {why}", highlight=False, soft_wrap=True)
