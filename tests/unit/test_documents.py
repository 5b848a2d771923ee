"""Documents go in, are found, are cited to the letter, and go out again; what is unchanged stays as it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agentdb
from agentdb import (
    AccessDeniedError,
    Config,
    Document,
    InvalidInputError,
    NotFoundError,
    ParseLimits,
    Progress,
    UnavailableError,
    field,
)
from agentdb.rag import ingestion, sources
from agentdb.rag.tables import text_rows
from agentdb_embedders import HashingEmbedder

GUIDE = """# Guide

Welcome to the guide of the harbour.

## Installation

Use the package manager. On Linux you need make and a compiler.

```python
import harbour

harbour.open("door")
```

## Lighthouse

The lighthouse stands on the northern pier. Its lamp turns once in twelve seconds.
"""
TIDES = "Die Flut kommt um 6 Uhr.\r\nÜber Nacht fällt das Wasser — 世界 \N{WAVING HAND SIGN}.\r\n" * 40


class Counting(HashingEmbedder):
    """Counts the texts that it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = 0
        self.fails_after: int | None = None

    def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        if kind == "document":
            if self.fails_after is not None and self.texts >= self.fails_after:
                raise RuntimeError("the server is down")
            self.texts += len(texts)
        return super().embed(texts, kind)  # type: ignore[arg-type]


@pytest.fixture
def embedder() -> Counting:
    return Counting()


@pytest.fixture
def db(db_path: Path, embedder: Counting) -> Iterator[agentdb.Database]:
    with agentdb.open(db_path, config=Config(maintenance=False), embedder=embedder) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "guide.md").write_text(GUIDE)
    (root / "deep" / "tides.txt").write_bytes(TIDES.encode())
    (root / "deep" / "er" / "crew.json").write_text('{"captain": "Ann", "cook": "Bob"}')
    return root


def age(*paths: Path) -> None:
    """Make files look as if they had been written a while ago, so that their time stamps can be trusted."""
    for path in paths:
        for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
            if one.is_file():
                os.utime(one, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns - 10_000_000_000))


def counts(report: agentdb.IngestReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.removed, len(report.failed)


def check(db: agentdb.Database, collection: str = "documents") -> None:
    """Every document has exactly its chunks, each of which is a stretch of its text."""
    stored = {one.id: one for one in db.documents.list(collection=collection)}
    chunks: dict[str, int] = dict.fromkeys(stored, 0)
    for row in db.collection(f"_documents.{collection}").scan():
        _, start, end, lead, *_ = map(int, row.metadata["place"].split())
        document = stored[row.metadata["document_id"]]
        assert row.metadata["revision"] == document.revision
        assert db.documents.text(document.id, start, end, collection=collection) == row.text[lead:]
        chunks[document.id] += 1
    assert chunks == {key: one.chunks for key, one in stored.items()}
    assert db.table("_document_texts").count(field("collection") == collection) == sum(
        -(-one.chars // 65_536) for one in stored.values()
    )


# --- what can be given --------------------------------------------------------------------------------------------------


def test_a_folder(db: agentdb.Database, folder: Path) -> None:
    report = db.documents.ingest(folder, metadata={"team": "sea"})
    assert counts(report) == (3, 0, 0, 0, 0)
    assert report.chunks == db.collection("_documents.documents").count()
    assert report.bytes == sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    stored = db.documents.list()
    assert [one.source for one in stored] == sorted(str(one) for one in folder.rglob("*.*"))
    assert {one.root for one in stored} == {str(folder)}
    assert {one.id for one in stored} == set(report.document_ids)
    guide = next(one for one in stored if one.source.endswith("guide.md"))
    assert (guide.title, guide.media_type, guide.chars) == ("Guide", "text/markdown", len(GUIDE))
    assert guide.metadata["team"] == "sea"
    assert db.documents.get(guide.id) == guide
    assert db.documents.text(guide.id) == GUIDE
    check(db)


def test_a_citation_is_a_stretch_of_the_file(db: agentdb.Database, folder: Path) -> None:
    db.documents.ingest(folder)
    for query in ("Flut und Wasser", "lighthouse lamp", "captain"):
        for one in db.documents.search(query, 5, expand_neighbors=1):
            whole = Path(one.source).read_bytes().decode()  # with its line ends and all
            assert whole[one.start : one.end] == one.text
            assert whole[slice(*one.matched)] in one.text
        for cited in db.documents.context(query, token_budget=90).citations:
            assert Path(cited.source).read_bytes().decode()[cited.start : cited.end] == cited.text


def test_everything_else(db: agentdb.Database, folder: Path) -> None:
    given = [
        folder / "guide.md",
        str(folder / "deep" / "tides.txt"),
        b"bytes of a text",
        "just a text, to be remembered",
        ("notes/ann.md", "# Ann\n\nAnn sails."),
        ("report.csv", b"name,age\nann,3\n"),
        Document("Bob cooks.", source="bob", title="Bob", metadata={"year": 2026}),
    ]
    report = db.documents.ingest(one for one in given)
    assert counts(report) == (7, 0, 0, 0, 0)
    stored = {one.source: one for one in db.documents.list()}
    assert stored["bob"].title == "Bob"
    assert stored["bob"].metadata["year"] == 2026
    assert stored["notes/ann.md"].media_type == "text/markdown"
    assert stored["report.csv"].media_type == "text/csv"
    assert stored[str(folder / "guide.md")].root == str(folder)
    assert sum(one.startswith(("text:", "bytes:")) for one in stored) == 2
    assert counts(db.documents.ingest(given)) == (0, 0, 7, 0, 0)
    check(db)


def test_a_text_is_one_if_no_file_has_its_name(db: agentdb.Database, tmp_path: Path) -> None:
    report = db.documents.ingest("Hello")
    assert db.documents.text(report.document_ids[0]) == "Hello"
    for wrong in ("missing.txt", "/no/such/folder", tmp_path / "nothing"):
        with pytest.raises(NotFoundError, match="no file or folder"):
            db.documents.ingest(wrong)
    assert counts(db.documents.ingest(["missing.txt", "a real text"])) == (1, 0, 0, 0, 1)
    for wrong in (os.fsdecode(b"/no/\xff.txt"), Path(os.fsdecode(b"/no/\xff")), Path("/no\0where")):
        (failure,) = db.documents.ingest([wrong]).failed
        assert (failure.reason, str(failure).isprintable()) == ("unreadable", True)
        assert failure.source.encode()
        assert failure.message.encode()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": "b"}, "source must be .*not dict"),
        (7, "source must be .*not int"),
        ([7], r"source\[0\] must be .*not int"),
        ([("name", 7)], "str or bytes, not int"),
    ],
)
def test_a_wrong_source_is_named(db: agentdb.Database, wrong: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        db.documents.ingest(wrong)
    assert db.documents.list() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collection": "a/b"}, "1 to 37 letters"),
        ({"metadata": {"source": "x"}}, "must not have the keys source"),
        ({"metadata": {"x": float("nan")}}, "metadata.x"),
        ({"metadata": 7}, "must be a mapping"),
        ({"workers": 0}, "workers must be"),
        ({"chunker": 7}, "chunker"),
        ({"parsers": [7]}, r"parsers\[0\]"),
        ({"limits": 7}, "limits must be ParseLimits"),
        ({"include": [7]}, "include must hold patterns"),
        ({"follow_links": 1}, "follow_links must be a bool"),
        ({"on_progress": 7}, "on_progress must be a function"),
    ],
)
def test_wrong_options_are_named(db: agentdb.Database, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        db.documents.ingest("some text", **options)


def test_empty_documents_are_stored_without_chunks(db: agentdb.Database, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    report = db.documents.ingest([tmp_path / "empty.txt", b"", ("blank.md", " \n\n ")])
    assert counts(report) == (3, 0, 0, 0, 0)
    assert report.chunks == 0
    assert all(db.documents.text(one).strip() == "" for one in report.document_ids)


def test_the_same_source_twice_in_one_ingest(db: agentdb.Database) -> None:
    report = db.documents.ingest([("a", "the first"), ("b", "another"), ("a", "the second"), ("a", "the second")])
    assert counts(report) == (2, 1, 1, 0, 0)
    assert len(report.document_ids) == 2
    assert [db.documents.text(one.id) for one in db.documents.list()] == ["the second", "another"]
    check(db)


# --- again ----------------------------------------------------------------------------------------------------------------


def test_what_is_unchanged_is_not_even_read(
    db: agentdb.Database, folder: Path, embedder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(folder)
    db.documents.ingest(folder)
    embedded = embedder.texts
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "read", None)
        assert counts(db.documents.ingest(folder)) == (0, 0, 3, 0, 0)
    for one in folder.rglob("*.*"):
        one.touch()  # other times, the same content
    assert counts(db.documents.ingest(folder)) == (0, 0, 3, 0, 0)
    assert embedder.texts == embedded


def test_a_touched_file_is_read_once(db: agentdb.Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db.documents.ingest(folder)  # just written: their times cannot be trusted yet
    age(folder)
    assert counts(db.documents.ingest(folder)) == (0, 0, 3, 0, 0)
    monkeypatch.setattr(ingestion, "read", None)
    assert counts(db.documents.ingest(folder)) == (0, 0, 3, 0, 0)


def test_a_change_within_the_tick_of_a_clock_is_seen(db: agentdb.Database, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two")
    stamp = file.stat()
    db.documents.ingest(file)
    file.write_text("two one")  # the same size, inode and, below, time
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert counts(db.documents.ingest(file)) == (0, 1, 0, 0, 0)
    assert db.documents.text(db.documents.list()[0].id) == "two one"


def test_a_changed_document_takes_the_place_of_the_old(db: agentdb.Database, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Whales sing in the deep. " * 400)
    first = db.documents.ingest(file)
    file.write_text("Only a sparrow.")
    second = db.documents.ingest(file)
    assert counts(second) == (0, 1, 0, 0, 0)
    assert first.document_ids == second.document_ids
    assert first.chunks > second.chunks == 1
    assert [one.text for one in db.documents.search("whales sing deep")] == ["Only a sparrow."]
    assert db.documents.search("whales sing deep", mode="text") == []
    check(db)


def test_another_metadata_or_chunker_is_a_change(db: agentdb.Database, embedder: Counting) -> None:
    given = [("a", GUIDE * 3)]
    db.documents.ingest(given)
    assert counts(db.documents.ingest(given, metadata={"x": 1})) == (0, 1, 0, 0, 0)
    small = agentdb.StructureChunker(count_tokens=embedder.count_tokens, chunk_tokens=20, overlap_tokens=0)
    assert counts(db.documents.ingest(given, metadata={"x": 1}, chunker=small)) == (0, 1, 0, 0, 0)
    same = agentdb.StructureChunker(count_tokens=embedder.count_tokens, chunk_tokens=20, overlap_tokens=0)
    assert counts(db.documents.ingest(given, metadata={"x": 1}, chunker=same)) == (0, 0, 1, 0, 0)
    check(db)


def test_settings_inside_of_a_chunker_are_settings(db: agentdb.Database, embedder: Counting) -> None:
    def halves(text: str, parts: int = 2, *, mark: str = ".") -> list[str]:
        return [one for one in text.split(mark, parts - 1) if one.strip()]

    given = [("a", "One sentence. Another one. A third one.")]

    def ingest(chunker: Any) -> tuple[int, ...]:
        return counts(db.documents.ingest(given, chunker=chunker))[:3]

    assert ingest(partial(halves, parts=2)) == (1, 0, 0)
    assert ingest(partial(halves, parts=3)) == (0, 1, 0)
    assert ingest(partial(halves, parts=3)) == (0, 0, 1)
    assert ingest(agentdb.SemanticChunker(embedder=embedder)) == (0, 1, 0)
    assert ingest(agentdb.SemanticChunker(embedder=HashingEmbedder())) == (0, 0, 1)
    assert ingest(agentdb.SemanticChunker(embedder=HashingEmbedder(64))) == (0, 1, 0)
    check(db)


def test_a_file_alone_is_the_file_of_its_folder(db: agentdb.Database, folder: Path) -> None:
    tides, crew = folder / "deep" / "tides.txt", folder / "deep" / "er" / "crew.json"
    db.documents.ingest(crew)
    assert counts(db.documents.ingest(folder)) == (2, 1, 0, 0, 0)  # it is crew.json of deep/er by now
    stored = db.documents.list()
    assert {one.root for one in stored} == {str(folder)}
    assert [one.title for one in stored] == ["deep/er/crew.json", "deep/tides.txt", "Guide"]
    for source in ([tides, crew], folder / "deep", folder / "deep" / "er", folder):
        report = db.documents.ingest(source)
        assert report.unchanged == len(report.document_ids) > 0
    tides.write_text("Ebb and flow.")
    assert counts(db.documents.ingest(tides)) == (0, 1, 0, 0, 0)
    assert next(one for one in db.documents.list() if one.source == str(tides)).title == "deep/tides.txt"
    # A folder further up is another matter.
    assert counts(db.documents.ingest(folder.parent, include="*.txt")) == (0, 1, 0, 0, 0)
    assert counts(db.documents.ingest(folder)) == (0, 0, 3, 0, 0)
    check(db)


class Given:
    """Returns what it was given."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks

    def chunk(self, document: agentdb.ParsedDocument) -> list[Any]:
        return list(self.chunks)


@pytest.mark.parametrize(
    "wrong",
    [
        agentdb.Chunk(0, 9, None, ()),
        agentdb.Chunk(1, 1, None, ()),
        agentdb.Chunk(0, 1, None, ("\ud800",)),
        agentdb.Chunk(0, 1, None, (5,)),  # type: ignore[arg-type]
        agentdb.Chunk(0, 1, "one", ()),  # type: ignore[arg-type]
        agentdb.Chunk(0, 2, None, (), (1, 3)),
        agentdb.Chunk(0.0, 1.0, None, ()),  # type: ignore[arg-type]
        "text",
    ],
)
def test_a_chunk_that_cannot_be_stored_is_the_failure_of_its_document(db: agentdb.Database, wrong: Any) -> None:
    (failure,) = db.documents.ingest([("a", "xyz")], chunker=Given(wrong)).failed
    assert failure.reason == "broken"
    assert db.documents.list() == []
    right = agentdb.Chunk(np.int64(0), np.int32(2), np.int16(3), ("H",), (0, np.int64(3)))  # type: ignore[arg-type]
    assert db.documents.ingest([("a", "xyz")], chunker=Given(right)).added == 1
    (found,) = db.documents.search("xyz")
    assert (found.text, found.page, found.heading_path, found.matched) == ("xyz", 3, ("H",), (0, 2))


def test_a_name_of_a_megabyte_is_not_stored_with_every_chunk(db: agentdb.Database) -> None:
    words = " ".join(f"word{number}" for number in range(3_000))
    long = "n" * 1_000_000
    report = db.documents.ingest(
        [("a.md", f"# {long}\n\n{words}"), ("b.html", f"<title>{long}</title><h2>{long}</h2><p>{words}</p>")]
    )
    assert not report.failed
    for document in db.documents.list():
        assert document.title == long[:2_000]
    for one in db.documents.search("word2999", 10, deduplicate=False):
        assert max(map(len, one.heading_path)) <= 2_000
        assert db.documents.text(one.document_id)[one.start : one.end] == one.text
    # The text itself is kept whole.
    assert all(long in db.documents.text(one.id) for one in db.documents.list())


def test_splitters_of_others(db: agentdb.Database) -> None:
    langchain = pytest.importorskip("langchain_text_splitters")
    text = "\n\n".join(f"Paragraph {i} speaks of harbour {i}, and of nothing else." for i in range(40))
    splitter = langchain.RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=20)
    assert counts(db.documents.ingest([("a", text)], chunker=splitter)) == (1, 0, 0, 0, 0)
    check(db)
    many = db.documents.list()[0].chunks
    assert many > 8
    again = langchain.RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=20)
    assert counts(db.documents.ingest([("a", text)], chunker=again)) == (0, 0, 1, 0, 0)
    larger = langchain.RecursiveCharacterTextSplitter(chunk_size=900, chunk_overlap=20)
    assert counts(db.documents.ingest([("a", text)], chunker=larger)) == (0, 1, 0, 0, 0)
    assert db.documents.list()[0].chunks < many
    check(db)
    assert counts(db.documents.ingest([("a", text)], chunker=str.splitlines)) == (0, 1, 0, 0, 0)
    assert db.documents.list()[0].chunks == 40
    check(db)
    report = db.documents.ingest([("b", text)], chunker=lambda whole: [whole.upper()])
    assert [one.reason for one in report.failed] == ["broken"]


def test_files_that_are_gone_are_removed_from_their_folder_only(
    db: agentdb.Database, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "docs2"
    other.mkdir()
    (other / "x.txt").write_text("other folder")
    db.documents.ingest([folder, other, (str(folder / "given.txt"), "given, and no file")])
    (folder / "guide.md").unlink()
    shutil.rmtree(folder / "deep")
    (other / "x.txt").unlink()
    assert counts(db.documents.ingest(folder)) == (0, 0, 0, 3, 0)
    assert {one.source for one in db.documents.list()} == {str(other / "x.txt"), str(folder / "given.txt")}
    check(db)


def test_what_cannot_be_looked_at_is_not_gone(
    db: agentdb.Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.documents.ingest(folder)
    real, real_stat = os.scandir, Path.stat

    def scandir(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    def stat(self: Path, **options: Any) -> os.stat_result:
        if "deep" in str(self):
            raise PermissionError(13, "Permission denied", str(self))
        return real_stat(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        patch.setattr(Path, "stat", stat)
        report = db.documents.ingest(folder)
    assert counts(report) == (0, 0, 1, 0, 1)
    assert report.failed[0].reason == "unreadable"
    shutil.move(folder, folder.with_name("away"))
    with pytest.raises(NotFoundError):
        db.documents.ingest(folder)
    assert len(db.documents.list()) == 3


def test_a_file_that_became_unreadable_keeps_its_older_version(db: agentdb.Database, folder: Path) -> None:
    db.documents.ingest(folder)
    (folder / "guide.md").write_bytes(bytes(range(256)) * 40)
    report = db.documents.ingest(folder)
    assert counts(report) == (0, 0, 2, 0, 1)
    assert (report.failed[0].source, report.failed[0].reason) == (str(folder / "guide.md"), "broken")
    assert db.documents.search("lighthouse pier", 1)[0].source.endswith("guide.md")


# --- folders --------------------------------------------------------------------------------------------------------------


def names(db: agentdb.Database, folder: Path) -> set[str]:
    return {os.path.relpath(one.source, folder) for one in db.documents.list()}


def test_hidden_files_and_rubbish_are_left_out(db: agentdb.Database, folder: Path) -> None:
    for name in (".env.md", ".git/config.md", "node_modules/a.js", "__pycache__/a.py", "old.md~", "deep/.hidden/x.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    db.documents.ingest(folder)
    assert names(db, folder) == {"guide.md", "deep/tides.txt", "deep/er/crew.json"}
    db.documents.ingest(folder / ".env.md")
    assert ".env.md" in names(db, folder)


def test_the_database_is_no_document(db: agentdb.Database, db_path: Path, folder: Path, tmp_path: Path) -> None:
    db.documents.ingest("Something is in it.")
    assert db_path.parent == tmp_path
    assert counts(db.documents.ingest(tmp_path)) == (3, 0, 0, 0, 0)
    assert counts(db.documents.ingest(db_path)) == (0, 0, 0, 0, 0)
    report = db.documents.ingest(db_path / "agentdb.sqlite")
    assert [one.reason for one in report.failed] == ["unknown_type"]


def test_patterns(db: agentdb.Database, folder: Path) -> None:
    db.documents.ingest(folder, include=["*.md", "deep/*.txt"])
    assert names(db, folder) == {"guide.md", "deep/tides.txt"}
    db.documents.ingest(folder, exclude="er")
    assert names(db, folder) == {"guide.md", "deep/tides.txt"}
    assert counts(db.documents.ingest(folder)) == (1, 0, 2, 0, 0)


def test_links_are_followed_on_demand_and_never_in_circles(db: agentdb.Database, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.txt").write_text("outside")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "deep" / "back").symlink_to(folder / "deep", target_is_directory=True)
    (folder / "out").symlink_to(outside, target_is_directory=True)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "nowhere.txt").symlink_to(folder / "nothing")
    assert counts(db.documents.ingest(folder)) == (3, 0, 0, 0, 0)
    report = db.documents.ingest(folder, follow_links=True)
    assert counts(report) == (1, 0, 3, 0, 2)
    assert names(db, folder) == {"guide.md", "deep/tides.txt", "deep/er/crew.json", "out/o.txt"}
    assert {one.reason for one in report.failed} == {"unreadable"}


def test_odd_files_are_reported(db: agentdb.Database, folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    (folder / "large.txt").write_text("x " * 5_000)
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 20)
    (folder / os.fsdecode(b"bad\xff.txt")).write_text("a name that is not UTF-8")
    report = db.documents.ingest(folder, limits=ParseLimits(max_bytes=8_000))
    assert counts(report) == (3, 0, 0, 0, 3)
    assert {one.reason for one in report.failed} == {"too_large", "unknown_type", "name"}
    alone = db.documents.ingest([folder / "pipe.txt"])
    assert [one.reason for one in alone.failed] == ["unreadable"]


@pytest.mark.parametrize("times", [1, 9])
def test_a_file_that_changes_while_it_is_read(
    db: agentdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one ")
    real, calls = os.fstat, [0]

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        calls[0] += 1
        if calls[0] % 2 and calls[0] < 2 * times:  # after its size is known, before it is read
            file.write_text(file.read_text() + "more ")
        return found

    monkeypatch.setattr(sources.os, "fstat", fstat)
    report = db.documents.ingest(file)
    if times == 1:
        assert db.documents.text(report.document_ids[0]) == "one more "
    else:
        assert [one.reason for one in report.failed] == ["changing"]
        assert db.documents.list() == []


# --- cancelled, failed, inside something ---------------------------------------------------------------------------------


def many(count: int) -> list[tuple[str, str]]:
    return [(f"n{i:03}", f"Document number {i} speaks of thing{i}. " * 30) for i in range(count)]


class StopError(Exception):
    pass


def test_cancelling_keeps_what_was_stored_and_the_next_ingest_goes_on(
    db: agentdb.Database, embedder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "_WINDOW_CHUNKS", 8)
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.done >= 20:
            raise StopError

    with pytest.raises(StopError):
        db.documents.ingest(many(60), on_progress=stop)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert {one.total for one in seen} == {60}
    stored = len(db.documents.list())
    assert 20 <= stored < 60
    assert not [one for one in threading.enumerate() if one.name.startswith("agentdb-ingest")]
    check(db)
    before = embedder.texts
    assert counts(db.documents.ingest(many(60))) == (60 - stored, 0, stored, 0, 0)
    assert embedder.texts - before == 60 - stored
    check(db)


def test_what_waits_is_bounded(db: agentdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "All of this is one long document. " * 60
    monkeypatch.setattr(ingestion, "_IN_FLIGHT_BYTES", 5 * len(text))
    made, ahead = [0], []

    def produce() -> Iterator[Document]:
        for number in range(60):
            made[0] += 1
            yield Document(text, source=f"d{number}")

    def look(progress: Progress) -> None:
        ahead.append(made[0] - progress.done)

    assert counts(db.documents.ingest(produce(), on_progress=look, workers=2)) == (60, 0, 0, 0, 0)
    # A batch that is looked up, as much again in flight, as much in the window that is filled and in the one that is embedded.
    assert 5 <= max(ahead) <= 20


def test_what_the_embedder_raises_reaches_the_caller(
    db: agentdb.Database, embedder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "_WINDOW_CHUNKS", 8)
    embedder.fails_after = 30
    with pytest.raises(RuntimeError, match="server is down"):
        db.documents.ingest(many(60))
    embedder.fails_after = None
    check(db)
    stored = len(db.documents.list())
    assert stored
    assert counts(db.documents.ingest(many(60))) == (60 - stored, 0, stored, 0, 0)


def test_a_transaction_is_joined(db: agentdb.Database, folder: Path) -> None:
    def undone() -> None:
        with db.transaction():
            db.documents.ingest(folder)
            db.states.save("ann", "s", "task", {"read": True})
            assert len(db.documents.list()) == 3
            assert db.documents.search("lighthouse", 1)[0].title == "Guide"
            raise StopError

    with pytest.raises(StopError):
        undone()
    assert db.documents.list() == db.documents.search("lighthouse") == []
    assert db.states.load("ann", "s", "task") is None
    with db.transaction():
        db.documents.ingest(folder)
        db.states.save("ann", "s", "task", {"read": True})
    assert db.documents.search("lighthouse", 1)[0].title == "Guide"
    check(db)


def test_a_snapshot_sees_the_old_version(db: agentdb.Database) -> None:
    db.documents.ingest([("a", "whales sing " * 300)])
    (document,) = db.documents.list()
    with db.snapshot():
        assert document == db.documents.get(document.id)
        worker = threading.Thread(target=lambda: db.documents.ingest([("a", "sparrows")]))
        worker.start()
        worker.join()
        assert db.documents.search("whales", 1, expand_neighbors=1)[0].text.startswith("whales sing")
        assert db.documents.text(document.id).startswith("whales")
        with pytest.raises(UnavailableError):
            db.documents.ingest("something")
    assert db.documents.text(document.id) == "sparrows"


def test_read_only(db_path: Path, folder: Path) -> None:
    with agentdb.open(db_path, embedder=HashingEmbedder()) as db:
        db.documents.ingest(folder)
    with agentdb.open(db_path, embedder=HashingEmbedder(), read_only=True) as db:
        assert db.documents.search("lighthouse", 1)[0].title == "Guide"
        assert db.documents.context("lighthouse", token_budget=100).citations
        with pytest.raises(AccessDeniedError):
            db.documents.ingest(folder)


def test_two_ingests_of_one_folder_at_once(db: agentdb.Database, tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for name, text in many(40):
        (root / f"{name}.txt").write_text(text)
    reports: list[agentdb.IngestReport] = []
    workers = [threading.Thread(target=lambda: reports.append(db.documents.ingest(root))) for _ in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert len(reports) == 3
    assert sum(one.added for one in reports) == 40
    check(db)


def test_searching_while_documents_are_replaced(db: agentdb.Database) -> None:
    """Whatever is found belongs together, though neighbours and texts are read in other steps than chunks."""
    versions = [f"version{v} " + f"alpha beta gamma{v} delta. " * 900 for v in range(2)]
    db.documents.ingest([("a", versions[0])])
    is_over = threading.Event()

    def replace() -> None:
        for turn in range(1, 30):
            db.documents.ingest([("a", versions[turn % 2])])
        is_over.set()

    worker = threading.Thread(target=replace)
    worker.start()
    looks = 0
    while not is_over.is_set():
        for one in db.documents.search("alpha beta", 3, expand_neighbors=1, deduplicate=False):
            assert one.text in (version[one.start : one.end] for version in versions)
        context = db.documents.context("alpha beta", token_budget=400, deduplicate=False)
        for cited in context.citations:
            assert cited.text in (version[cited.start : cited.end] for version in versions)
        looks += 1
    worker.join()
    assert looks


# --- what there is, and out again -----------------------------------------------------------------------------------------


def test_list_and_text(db: agentdb.Database, folder: Path) -> None:
    assert db.documents.list() == []
    assert db.documents.get("nothing") is None
    assert db.documents.collections() == []
    db.documents.ingest(folder)
    db.documents.ingest("in another one", collection="other")
    assert db.documents.collections() == ["documents", "other"]
    assert db.collections() == []
    assert [one.title for one in db.documents.list(filter=field("media_type") == "text/markdown")] == ["Guide"]
    assert len(db.documents.list(limit=2)) == 2
    guide = db.documents.list(filter=field("title") == "Guide")[0]
    assert db.documents.text(guide.id, 2, 7) == "Guide"
    assert db.documents.text(guide.id, len(GUIDE)) == ""
    for start, end in ((0, len(GUIDE) + 1), (9, 3)):
        with pytest.raises(InvalidInputError, match="must lie in the text"):
            db.documents.text(guide.id, start, end)
    with pytest.raises(InvalidInputError, match="start must be"):
        db.documents.text(guide.id, -1)
    with pytest.raises(NotFoundError):
        db.documents.text("nothing")


def test_a_long_text_is_read_in_parts(db: agentdb.Database) -> None:
    text = "".join(f"Line {i} of a very long text about \N{SNAKE} number {i}.\n" for i in range(6_000))
    (document_id,) = db.documents.ingest([("long.txt", text)]).document_ids
    assert db.documents.text(document_id) == text
    for start, end in ((65_530, 65_545), (131_072, 131_073), (0, 65_536), (65_536, 131_072), (5, 5)):
        assert db.documents.text(document_id, start, end) == text[start:end]
    check(db)


def test_delete(db: agentdb.Database, folder: Path) -> None:
    report = db.documents.ingest(folder)
    assert db.documents.delete(report.document_ids[0]) == 1
    assert db.documents.delete([*report.document_ids[:1], "nothing"]) == 0
    check(db)
    assert db.documents.delete(filter=field("media_type") == "application/json") == 1
    assert len(db.documents.list()) == 1
    check(db)
    for wrong in ({}, {"document_ids": "a", "filter": field("id") == "a"}, {"document_ids": 7}):
        with pytest.raises(InvalidInputError):
            db.documents.delete(**wrong)
    assert counts(db.documents.ingest(folder)) == (2, 0, 1, 0, 0)
    assert db.documents.drop("documents")
    assert not db.documents.drop("documents")
    assert db.documents.list() == db.documents.search("lighthouse") == []
    assert db.table("_document_texts").count() == 0
    assert counts(db.documents.ingest(folder)) == (3, 0, 0, 0, 0)
    check(db)


def everything(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.rglob("*") if one.is_file())


@pytest.mark.parametrize("flushed", [False, True])
def test_erase_leaves_nothing(db: agentdb.Database, db_path: Path, *, flushed: bool) -> None:
    secret, kept = "xylophonequartz", "marmaladezebra"
    # Random letters, so that no compression hides them; and a name, a title, metadata, a heading.
    text = f"# {secret}head\n\nThe word is {secret}. {secret.upper()}"
    db.documents.ingest(
        [
            Document(text, source=f"{secret}.md", title=f"{secret} title", metadata={"who": secret}),
            ("kept", f"The word is {kept}."),
        ]
    )
    if flushed:
        db.flush()
    target = db.documents.search(secret, 1)[0].document_id
    receipt = db.documents.erase(target)
    assert receipt.status == "complete"
    raw = everything(db_path).lower()
    assert secret.encode() not in raw
    assert target.encode() not in raw
    assert kept.encode() in raw
    assert [one.text for one in db.documents.search(kept)] == [f"The word is {kept}."]
    check(db)


@pytest.mark.parametrize("optimized", [False, True])
def test_erase_leaves_nothing_of_older_versions(db: agentdb.Database, db_path: Path, *, optimized: bool) -> None:
    secret = "xylophonequartz"
    text = " ".join(f"{secret}{i * i * 7919 % 10_007}" for i in range(2_000))
    stored = text_rows("documents", "any", "any", text)[0]["text"]
    db.documents.ingest([("diary", text), ("kept", "something else")])
    db.flush()
    assert stored in everything(db_path)
    db.documents.ingest([("diary", "nothing to see here")])
    if optimized:
        db.optimize()
    (diary,) = db.documents.list(filter=field("source") == "diary")
    assert db.documents.erase(diary.id).status == "complete"
    assert secret.encode() not in everything(db_path)
    assert stored not in everything(db_path)
    check(db)


@pytest.mark.parametrize("then", ["emptied", "deleted", "dropped"])
def test_erase_leaves_nothing_of_what_is_no_more(db: agentdb.Database, db_path: Path, then: str) -> None:
    secret = "xylophonequartz"
    report = db.documents.ingest([("diary", f"The word is {secret}."), ("kept", "something else")])
    db.flush()
    diary = report.document_ids[0]
    if then == "emptied":
        db.documents.ingest([("diary", "")])
    elif then == "deleted":
        db.documents.delete(diary)
    else:
        db.documents.drop("documents")
    assert secret.encode() in everything(db_path)
    assert db.documents.erase(diary).status == "complete"
    assert secret.encode() not in everything(db_path)


def test_a_cancelled_task_ends_its_ingest(db_path: Path) -> None:
    class Slow(HashingEmbedder):
        calls = 0

        def embed(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
            self.calls += 1
            time.sleep(0.05)
            return super().embed(texts, kind)  # type: ignore[arg-type]

    embedder = Slow()
    given = [(f"n{i}", f"text {i}") for i in range(20_000)]

    async def main() -> None:
        async with await agentdb.open_async(db_path, embedder=embedder) as db:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await db.documents.ingest(given)
            async with db.transaction():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await db.documents.ingest(given)
                # Calls of a transaction wait for one another.
                assert len(await db.documents.list()) < len(given)
            assert (await db.documents.ingest(given[:5])).failed == ()
            # Nothing goes on behind the back of the caller.
            calls = embedder.calls
            await asyncio.sleep(0.5)
            assert embedder.calls == calls
            with pytest.raises(InvalidInputError, match="on_progress"):
                await db.documents.ingest(given[:5], on_progress=7)  # type: ignore[arg-type]

    asyncio.run(main())


def test_for_tasks(db_path: Path, folder: Path) -> None:
    async def main() -> None:
        async with agentdb.open_async(db_path, embedder=HashingEmbedder()) as db:
            report = await db.documents.ingest(folder)
            found = await db.documents.search("lighthouse", 1)
            assert found[0].document_id in report.document_ids
            context = await db.documents.context("lighthouse", token_budget=100)
            assert await db.documents.text(context.citations[0].document_id) == GUIDE
            assert (await db.documents.answer("lighthouse?", lambda _: "Yes [1]")).citations
            async with db.transaction():
                await db.documents.ingest("inside of a transaction")
            assert len(await db.documents.list()) == 4

    asyncio.run(main())
