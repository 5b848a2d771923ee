"""Files that are made to do harm, or are merely broken: the report says so, memory stays bounded, the rest is stored."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

import agentdb
from agentdb import IngestReport, ParseLimits
from agentdb_embedders import HashingEmbedder

LIMITS = ParseLimits(max_bytes=4 << 20, max_text_chars=1 << 20, max_expanded_bytes=8 << 20, max_part_bytes=4 << 20)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[agentdb.Database]:
    with agentdb.open(tmp_path / "db", embedder=HashingEmbedder()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "good.txt").write_text("The lighthouse keeper counts the ships.")
    return made


def reasons(report: IngestReport) -> dict[str, str]:
    return {Path(one.source).name: one.reason for one in report.failed}


def require_good(db: agentdb.Database, report: IngestReport, folder: Path) -> None:
    """The good file is stored and found, whatever lies beside it, and the database is sound."""
    assert str(folder / "good.txt") in {one.source for one in db.documents.list()}
    assert [Path(one.source).name for one in db.documents.search("lighthouse keeper", 1)] == ["good.txt"]
    for one in report.failed:
        assert one.message
        assert len(one.message) < 500
    assert db.verify().ok


# --- what claims to be a document -------------------------------------------------------------------------------------


def pdf(pages: int = 1, *, text: str = "hello") -> bytes:
    """Return a PDF with a text on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for _ in range(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects) + 2} 0 R /Resources {font} >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {pages} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(objects) + 1} /Root 1 0 R >>"
    return out + f"{end}\nstartxref\n{len(out)}\n%%EOF\n".encode()


def archive(members: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return stream.getvalue()


def docx(document: bytes) -> bytes:
    types = b"""<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/word/document.xml"
 ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>"""
    links = b"""<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
 Target="word/document.xml"/></Relationships>"""
    return archive({"[Content_Types].xml": types, "_rels/.rels": links, "word/document.xml": document})


def _laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY l0 "ha">{entities}]>'
        f'<w:document xmlns:w="{word}"><w:body><w:p><w:r><w:t>&l11;</w:t></w:r></w:p></w:body></w:document>'
    ).encode()


def _padded(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _claimed_size() -> bytes:
    """Return an archive whose directory says that a member is small, which it is not."""
    data = bytearray(docx(b"<a>" + b" " * (12 << 20) + b"</a>"))
    size = (12 << 20) + 7
    place = data.find(size.to_bytes(4, "little"))
    while place >= 0:
        data[place : place + 4] = (100).to_bytes(4, "little")
        place = data.find(size.to_bytes(4, "little"), place + 4)
    return bytes(data)


HOSTILE: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "truncated.pdf": (lambda: _padded(pdf(3)), {"broken"}),
    "no.pdf": (lambda: b"%PDF-1.7\n" + random.Random(1).randbytes(5_000), {"broken"}),
    "empty.pdf": (lambda: b"%PDF-1.4\n%%EOF", {"broken"}),
    "bomb.docx": (lambda: docx(b"<a>" + b" " * (64 << 20) + b"</a>"), {"too_large", "unsafe"}),
    "liar.docx": (_claimed_size, {"broken", "too_large", "unsafe"}),
    "laughs.docx": (lambda: docx(_laughs()), {"broken", "unsafe"}),
    "not_xml.docx": (lambda: docx(b"<w:document"), {"broken"}),
    "missing.docx": (lambda: archive({"word/other.xml": b"<a/>"}), {"broken", "unknown_type"}),
    "bomb.xlsx": (
        lambda: archive({"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": bytes(64 << 20)}),
        {"broken", "too_large", "unsafe"},
    ),
    "truncated.epub": (
        lambda: _padded(archive({"mimetype": b"application/epub+zip", "a": b"x" * 999})),
        {"broken", "unknown_type"},
    ),
    "up.epub": (
        lambda: archive({"mimetype": b"application/epub+zip", "META-INF/container.xml": b"<container/>"}),
        {"broken"},
    ),
    "large.txt": (lambda: b"word " * (1 << 20), {"too_large"}),
    "long.txt": (lambda: b"word " * (300 << 10), {"too_large"}),
    "nul.txt": (lambda: b"before\0behind and some more words", {"broken", "unknown_type"}),
    "tags.html": (lambda: b"<div>" * 20_000 + b"innermost" + b"</div>" * 20_000, {"unsafe"}),
    "binary.bin": (lambda: random.Random(2).randbytes(100_000), {"unknown_type"}),
    "binary.txt": (lambda: b"\x7fELF" + random.Random(3).randbytes(100_000), {"broken", "unknown_type"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_reported_and_stops_nothing(db: agentdb.Database, folder: Path, name: str) -> None:
    make, expected = HOSTILE[name]
    (folder / name).write_bytes(make())
    report = db.documents.ingest(folder, limits=LIMITS)
    assert set(reasons(report)) == {name}, report
    assert reasons(report)[name] in expected
    require_good(db, report, folder)
    # What failed is tried again, what was stored is not.
    again = db.documents.ingest(folder, limits=LIMITS)
    assert (again.unchanged, again.added) == (1, 0)
    assert reasons(again) == reasons(report)


READABLE: dict[str, tuple[bytes, str]] = {
    "latin.txt": ("Die Größe des Flußufers überraschte Müller.".encode("latin-1"), "Größe"),
    "utf16.txt": ("A text with a byte order mark".encode("utf-16"), "byte order mark"),
    "bom.md": ("\ufeff# Heading\n\nBehind the mark.".encode(), "Behind the mark"),
    "mixed.txt": (b"Mostly UTF-8 \xe2\x80\x94 but here \xff one byte is not.", "one byte is not"),
    "deep.json": (b"[" * 200 + b'"needle"' + b"]" * 200, "needle"),
    "nested.md": (b"> " * 3_000 + b"quoted", "quoted"),
    "line.txt": (b"x" * 300_000 + b" needle", "needle"),
    "row.csv": (b"a,b\n" + b'"' + b"cell " * 20_000 + b'",needle\n', "needle"),
    "minified.js": (b"var a=" + b"(1+" * 5_000 + b"needle" + b")" * 5_000 + b";", "needle"),
    "broken.py": (b"def f(:\n" + b"    (((((\n" * 500 + b"needle = 1\n", "needle"),
    "fence.md": (b"```\nnever closed, needle\n" * 2_000, "needle"),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_is_odd_is_read(db: agentdb.Database, folder: Path, name: str) -> None:
    data, inside = READABLE[name]
    (folder / name).write_bytes(data)
    report = db.documents.ingest(folder, limits=LIMITS)
    assert reasons(report) == {}
    (document,) = [one for one in db.documents.list() if one.source.endswith(name)]
    text = db.documents.text(document.id)
    assert inside in text
    for one in db.documents.search(inside, 50):
        assert db.documents.text(one.document_id)[one.start : one.end] == one.text
    require_good(db, report, folder)


def test_files_without_content_are_documents_without_passages(db: agentdb.Database, folder: Path) -> None:
    empty = {"empty.txt": b"", "blank.md": b" \n\t\n", "empty.json": b"", "empty.pdf": pdf(text="")}
    empty["loop.pdf"] = pdf().replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]")  # its only page is the list of its pages
    for name, data in empty.items():
        (folder / name).write_bytes(data)
    report = db.documents.ingest(folder)
    stored = {Path(one.source).name: one.chunks for one in db.documents.list()}
    assert {*reasons(report), *stored} == {*empty, "good.txt"}
    warned = {Path(one.source).name for one in report.warnings}
    assert warned | set(reasons(report)) >= set(empty)
    assert {name: chunks for name, chunks in stored.items() if chunks} == {"good.txt": 1}
    require_good(db, report, folder)


# --- what is no plain file --------------------------------------------------------------------------------------------


def test_links_in_circles_pipes_and_what_may_not_be_read(db: agentdb.Database, folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    (below / "deep.txt").write_text("Something deep below.")
    (below / "up").symlink_to(folder, target_is_directory=True)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "nowhere.txt").symlink_to(folder / "gone.txt")
    os.mkfifo(folder / "pipe.txt")
    report = db.documents.ingest(folder)
    assert (report.added, reasons(report)) == (2, {})
    report = db.documents.ingest(folder, follow_links=True)
    assert (report.added, report.unchanged) == (0, 2), "a folder is walked once"
    assert set(reasons(report)) == {"itself", "nowhere.txt"}
    assert set(reasons(report).values()) == {"unreadable"}
    require_good(db, report, folder)


def test_a_name_that_is_no_text_is_reported(db: agentdb.Database, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.txt")).write_text("a name of two bytes that are no UTF-8")
    report = db.documents.ingest(folder)
    assert [one.reason for one in report.failed] == ["name"]
    require_good(db, report, folder)


# --- what changes meanwhile -------------------------------------------------------------------------------------------


def test_files_that_change_while_they_are_ingested(db: agentdb.Database, folder: Path) -> None:
    """Whatever is stored of a file was its content at one moment; the next ingest has the last."""
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"v0 {number} " * 50)
    ends = threading.Event()

    def change() -> None:
        version = 0
        rng = random.Random(4)
        while not ends.is_set():
            version += 1
            path = folder / f"{rng.randrange(20)}.txt"
            text = f"v{version} {path.stem} " * rng.randrange(1, 400)
            if rng.random() < 0.2:
                path.unlink(missing_ok=True)
            elif rng.random() < 0.5:
                path.with_suffix(".new").write_text(text)
                path.with_suffix(".new").replace(path)
            else:
                path.write_text(text)
            time.sleep(0.001)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(6):
            report = db.documents.ingest(folder, include="*.txt")
            assert set(reasons(report).values()) <= {"changing", "unreadable"}
            for one in db.documents.list():
                text = db.documents.text(one.id)
                words = set(text.split())
                assert len(words) <= 2 or Path(one.source).name == "good.txt", "one version, not parts of two"
    finally:
        ends.set()
        changer.join()
    report = db.documents.ingest(folder, include="*.txt")
    assert reasons(report) == {}
    there = {str(path): path.read_text() for path in folder.glob("*.txt")}
    assert {one.source: db.documents.text(one.id) for one in db.documents.list()} == there
    require_good(db, report, folder)


# --- in a process of its own ------------------------------------------------------------------------------------------

_WORKER = """
import json, os, resource, sys, threading, time
import agentdb
from agentdb import ParseLimits
from agentdb_embedders import HashingEmbedder

class Slow(HashingEmbedder):
    name = "hashing-2-v1"
    def embed(self, texts, kind="document"):
        time.sleep(float(sys.argv[3]))
        return super().embed(texts, kind)

print("begun", flush=True)
with agentdb.open(sys.argv[1], embedder=Slow()) as db:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.argv[4] != "0":
        # What is there already counts, threads' stacks and mapped files too: room for so much more.
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = held + (int(sys.argv[4]) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    report = db.documents.ingest(sys.argv[2], workers=2)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "added": report.added, "unchanged": report.unchanged, "updated": report.updated, "chunks": report.chunks,
    "failed": {os.path.basename(one.source): one.reason for one in report.failed},
    "grown_mib": (after - before) >> 10,
}))
"""


def ingesting(db: Path, folder: Path, *, wait_s: float = 0.0, room_mib: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _WORKER, str(db), str(folder), str(wait_s), str(room_mib)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-2_000:]
    return json.loads(out.splitlines()[-1])


def test_memory_stays_bounded_by_what_is_allowed(tmp_path: Path, folder: Path) -> None:
    """Bombs beyond the default limits, in a process that may not take as much as they would."""
    zeros = bytes(1 << 20)
    for name, member in (("a.docx", "word/document.xml"), ("b.xlsx", "xl/workbook.xml")):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
            made.writestr("[Content_Types].xml", "<Types/>")
            with made.open(member, "w") as stream:
                for _ in range(640):
                    stream.write(zeros)
    (folder / "sparse.txt").touch()
    os.truncate(folder / "sparse.txt", 8 << 30)
    (folder / "wide.txt").write_text("word " * (1 << 20))
    found = finished(ingesting(tmp_path / "db", folder, room_mib=1_024))
    assert set(found["failed"]) == {"a.docx", "b.xlsx", "sparse.txt"}
    assert set(found["failed"].values()) <= {"too_large", "unsafe", "broken"}
    assert found["failed"]["sparse.txt"] == "too_large"
    assert found["added"] == 2
    assert found["grown_mib"] < 512


def test_an_ingest_that_is_killed_goes_on_where_it_was(tmp_path: Path, folder: Path) -> None:
    for number in range(60):
        (folder / f"{number:02}.md").write_text("\n\n".join(f"# Part {part}\n\n{number} " * 40 for part in range(30)))
    kept: list[set[str]] = []
    for _ in range(3):
        process = ingesting(tmp_path / "db", folder, wait_s=0.05)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        deadline = time.monotonic() + 60
        before = len(kept[-1]) if kept else 0
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
            if len(_stored(tmp_path / "db")) > before:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept.append(_stored(tmp_path / "db"))
    assert kept[0]
    assert kept[0] <= kept[1] <= kept[2], "what was stored stays"
    found = finished(ingesting(tmp_path / "db", folder))
    assert found["failed"] == {}
    assert found["unchanged"] == len(kept[-1])
    assert found["added"] == 61 - len(kept[-1])
    assert found["updated"] == 0
    with agentdb.open(tmp_path / "db", embedder=HashingEmbedder()) as db:
        assert db.verify().ok
        chunks = db.collection("_documents.documents")
        listed = db.documents.list()
        assert len(listed) == 61
        assert chunks.count() == sum(one.chunks for one in listed), "no chunk of a half ingest is left"
        for one in listed:
            assert db.documents.text(one.id) == Path(one.source).read_text()


def _stored(path: Path) -> set[str]:
    """Return what another process has stored so far."""
    try:
        with agentdb.open(path, create=False, embedder=HashingEmbedder()) as db:
            return {one.source for one in db.documents.list()}
    except (agentdb.NotFoundError, agentdb.FormatError):  # it was not completely created
        return set()
