from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import asdict

import pytest
from support.document_files import PNG, archive, docx, epub, pdf, pptx, xlsx

import agentdb.rag.parsing.html as html_module
from agentdb import InvalidInputError, MissingDependencyError
from agentdb.rag.parsing import (
    Block,
    DocumentError,
    EmbeddedImage,
    ParsedDocument,
    ParseLimits,
    detect_media_type,
    isolated,
    parse,
)
from agentdb.rag.parsing.model import heading_text
from agentdb.rag.parsing.parse import read_here


def kinds(document):
    return [(block.kind, document.text[block.start : block.end]) for block in document.blocks]


def headings(document):
    return [
        (block.level, heading_text(document.text[block.start : block.end]), block.page)
        for block in document.blocks
        if block.kind == "heading"
    ]


def reason(data, **options):
    with pytest.raises(DocumentError) as caught:
        parse(data, **options)
    return caught.value.reason


class TestParsedDocument:
    @pytest.mark.parametrize(
        ("text", "blocks", "told"),
        [
            ("abc", (), "after the last block"),
            ("abc def", (Block("paragraph", 4, 7),), "before blocks\\[0\\]"),
            ("abc", (Block("paragraph", 0, 3), Block("paragraph", 2, 3)), "blocks\\[1\\]"),
            ("abc", (Block("paragraph", 0, 4),), "end by 3"),
            ("abc", (Block("paragraph", 0, 0), Block("paragraph", 0, 3)), "not be empty"),
        ],
    )
    def test_blocks_hold_the_whole_text_in_order(self, text, blocks, told):
        with pytest.raises(InvalidInputError, match=told):
            ParsedDocument(text, "text/plain", None, blocks)

    def test_a_position_lies_under_the_headings_before_it_and_on_the_page_of_its_block(self):
        text = "# A\n\na\n\n## B #\n\nb\n\n# C\n\n### D\n\nd"
        document = parse(text.encode(), name="x.md")
        paths = {char: document.heading_path(text.index(f"\n{char}\n") + 1) for char in "ab"}
        assert paths == {"a": ("A",), "b": ("A", "B")}
        assert document.heading_path(0) == ("A",)
        assert document.heading_path(len(text) - 1) == ("C", "D")
        assert parse(b"plain").heading_path(2) == ()
        pages = parse(pdf([[("one", 11, 72, 700)], [], [("three", 11, 72, 700)]]))
        assert [pages.page_of(pages.text.index(word)) for word in ("one", "three")] == [1, 3]
        assert pages.page_of(3) == 1
        assert document.page_of(0) is None

    def test_limits_are_checked(self):
        for options in ({"max_bytes": 0}, {"max_bytes": 1.5}, {"timeout_s": True}, {"max_pages": -1}):
            with pytest.raises(InvalidInputError, match=f"ParseLimits.{next(iter(options))}"):
                ParseLimits(**options)
        assert ParseLimits(max_images=0, timeout_s=1).max_images == 0


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "data", "expected"),
        [
            ("a.md", b"# x", "text/markdown"),
            ("A.PY", b"x = 1", "text/x-python"),
            ("Makefile", b"all:", "text/x-makefile"),
            ("notes", b"hello", "text/plain"),
            (None, b"", "text/plain"),
            ("a.txt", b"<!DOCTYPE html><p>x", "text/html"),
            ("a.csv", b"a,b", "text/csv"),
            ("a.jsonl", b"{}", "application/x-ndjson"),
            ("run", b"#!/usr/bin/env python3\nprint()", "text/x-python"),
            ("a.txt", b"%PDF-1.7", "application/pdf"),
            ("a.png", PNG, "image/png"),
            ("a.jpg", b"\xff\xd8\xff\xe0", "image/jpeg"),
            ("x.bin", bytes(range(256)), None),
            ("x.txt", b"\x7fELF" + bytes(100), None),
            ("x.txt", "schön".encode("utf-16"), "text/plain"),
            ("x.txt", "plain words".encode("utf-16-le"), "text/plain"),
            ("a.docx", b"PK\x03\x04 cut off", "application/zip"),
        ],
    )
    def test_content_goes_before_the_name(self, name, data, expected):
        assert detect_media_type(name, data) == expected

    def test_what_a_file_is_not_is_said(self):
        document = parse(pdf([[("x", 11, 72, 700)]]), name="notes.txt")
        assert document.media_type == "application/pdf"
        assert document.warnings == ("the name says text/plain, but the content is application/pdf",)
        assert parse(b"<html><p>a table", name="old.xls").media_type == "text/html"
        assert reason(bytes(range(256)), name="a.bin") == "unknown_type"
        assert reason(bytes(range(256)), name="a.pdf") == "broken"
        assert reason(archive({"a": b"b"}), name="a.zip") == "unknown_type"
        assert reason(b"SQLite format 3\0" + bytes(5_000) + b"a table and its rows " * 300) == "unknown_type"
        assert reason(b"x", media_type="application/rtf") == "unknown_type"
        assert reason(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), name="a.doc") == "unknown_type"
        locked = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le")
        assert reason(locked, name="a.docx") == "encrypted"

    def test_data_must_be_bytes(self):
        with pytest.raises(InvalidInputError, match="data must be bytes, not str"):
            parse("text")
        assert parse(memoryview(b"abc")).text == "abc"

    def test_a_parser_of_the_caller_goes_first(self):
        class Shouting:
            media_types = ("text/plain", "application/rtf")

            def parse(self, data, name, limits):
                text = data.decode().upper()
                return ParsedDocument(text, "text/plain", name, (Block("paragraph", 0, len(text)),))

        assert parse(b"abc", name="x.txt", parsers=[Shouting()]).text == "ABC"
        assert parse(b"abc", media_type="application/rtf", parsers=[Shouting()]).text == "ABC"
        assert parse(b"# abc", name="x.md", parsers=[Shouting()]).text == "# abc"

    def test_a_picture_is_handed_on(self):
        document = parse(PNG, name="dot.png")
        assert document.text == ""
        assert document.images == (EmbeddedImage(PNG, "image/png", None, None, 0),)


class TestText:
    @pytest.mark.parametrize(
        ("encoding", "mark"),
        [
            ("utf-8", b"\xef\xbb\xbf"),
            ("utf-16-le", b"\xff\xfe"),
            ("utf-16-be", b"\xfe\xff"),
            ("utf-32-le", b"\xff\xfe\0\0"),
            ("utf-32-be", b"\0\0\xfe\xff"),
            ("utf-8", b""),
            ("utf-16-le", b""),
            ("utf-16-be", b""),
            ("utf-32-le", b""),
        ],
    )
    def test_the_text_is_the_decoded_file(self, encoding, mark):
        text = "Grüße, a longer line of words that tells.\r\n\r\nzweiter Absatz 😀\n"
        document = parse(mark + text.encode(encoding), name="a.txt")
        assert document.text == text
        assert document.metadata["encoding"] == encoding
        assert document.warnings == ()
        assert [found for _, found in kinds(document)] == [text.partition("\r\n")[0], "zweiter Absatz 😀"]

    def test_declared_and_guessed_encodings(self):
        code = "# -*- coding: iso-8859-15 -*-\nprice = '5 €'\n"
        assert parse(code.encode("iso-8859-15"), name="a.py").text == code
        page = "<html><meta charset=koi8-r><p>Привет, мир"
        assert parse(page.encode("koi8-r"), name="a.html").text == "Привет, мир"
        french = "L'été dernier, nous avons été très gênés par la chaleur extrême à Évreux. " * 5
        assert parse(french.encode("cp1252"), name="a.txt").text == french
        # Codecs that are no encodings of files are not asked.
        sly = b"# coding: punycode\n" + b"x = '\xff'\n"
        assert "punycode" not in parse(sly, name="a.py").metadata["encoding"]

    def test_damage_is_replaced_and_told(self):
        document = parse("häuser und gärten und straßen".encode() + b"\xff ende", name="a.txt")
        assert document.text == "häuser und gärten und straßen\ufffd ende"
        assert document.warnings == ("bytes that are not utf-8 were replaced",)
        document = parse(b"a\0b" + b" words" * 100, name="a.txt")
        assert document.text.startswith("a\ufffdb words")
        assert document.warnings == ("NUL characters were replaced",)
        surrogate = parse(
            b"lone \xed\xa0\x80 surrogate, s\xc3\xbc\xc3\xa4\xc3\xb6\xc3\xbc\xc3\xa4\xc3\xb6" * 10, name="a.txt"
        )
        surrogate.text.encode()
        assert surrogate.warnings

    def test_nothing_is_in_an_empty_file(self):
        for name in ("a.txt", "a.md", "a.py", "a.csv", "a.json", "a.jsonl", "a.html"):
            for data in (b"", b" \n\t\n", b"\xef\xbb\xbf"):
                document = parse(data, name=name)
                assert document.blocks == ()
                assert "no text was found" in document.warnings, name

    def test_code_tables_and_json_are_one_block(self):
        code = parse(b"\n\n    indented\nx\n", name="a.rs")
        assert kinds(code) == [("code", "indented\nx")]
        assert (code.blocks[0].language, code.metadata["language"]) == ("rust", "rust")
        table = parse('name;größe\n"a;b";1\n'.encode(), name="a.csv")
        assert kinds(table) == [("table", 'name;größe\n"a;b";1')]
        assert table.metadata["columns"] == ["name", "größe"]
        data = json.dumps({"title": "T", "n": 12345678901234567890}, indent=1)
        assert (parse(data.encode(), name="a.json").text, parse(data.encode(), name="a.json").title) == (data, "T")
        assert "not well-formed" in parse(b"{", name="a.json").warnings[0]
        assert "not well-formed" in parse(b"[" * 100_000, name="a.json").warnings[0]
        assert kinds(parse(b'{"a":1}\n{"a":2}\n', name="a.jsonl")) == [("table", '{"a":1}\n{"a":2}')]

    def test_too_much_is_refused(self):
        assert reason(b"x" * 11, limits=ParseLimits(max_bytes=10)) == "too_large"
        assert reason(b"x" * 11, limits=ParseLimits(max_text_chars=10)) == "too_large"
        assert reason(b"<p>" + b"x" * 11, media_type="text/html", limits=ParseLimits(max_text_chars=10)) == "too_large"

    def test_time_grows_with_the_length_only(self):
        for data, name in (
            (b"." * 2_000_000, "a.txt"),
            (b"\n \n" * 300_000, "a.txt"),
            (b"\f" * 500_000 + b"x", "a.txt"),
            (b"|" * 500_000 + b"\n" + b"|-" * 250_000, "a.md"),
            (b"`" * 1_000_000, "a.md"),
            (b"- " * 200_000, "a.md"),
            (b"> " * 200_000 + b"\n" * 100_000, "a.md"),
            (b"<p>" * 30_000, "a.html"),
            (b"<!--" * 200_000, "a.html"),
            (b"<a " * 200_000, "a.html"),
        ):
            start = time.process_time()
            try:
                parse(data, name=name)
            except DocumentError:
                assert name == "a.html"
            # Far above what it takes, far below what the square of the length would.
            assert time.process_time() - start < 20


class TestMarkdown:
    def test_blocks(self):
        text = """---
title: "The title"
---

Intro one
two

# First #
Setext
===
text

Under *line*
---
- item
  more

  - nested
    ```py
    # no heading
    ```
- last

1) one
2) two

| a | b |
|---|:-:|
| 1 | 2 |
para

````Python title="x"
```
inner
```
````

    indented code

~~~
never closed
# still code
"""
        document = parse(text.encode(), name="a.md")
        assert document.title == "The title"
        found = kinds(document)
        expected = "code paragraph heading heading paragraph heading list table paragraph code code code"
        assert " ".join(kind for kind, _ in found) == expected
        assert headings(document) == [(1, "First", None), (1, "Setext", None), (2, "Under *line*", None)]
        assert [block.language for block in document.blocks if block.kind == "code"] == ["yaml", "python", None, None]
        assert found[6][1].endswith("2) two")
        assert found[7][1] == "| a | b |\n|---|:-:|\n| 1 | 2 |"
        assert found[9][1].endswith("inner\n```\n````")
        assert found[10][1] == "    indented code"
        assert found[11][1].endswith("# still code")

    def test_the_text_is_the_file(self):
        text = "\r\n# Ä\r\n\r\n```\r\nx\r\n```\r\n"
        document = parse(text.encode(), name="a.md")
        assert document.text == text
        assert kinds(document) == [("heading", "# Ä"), ("code", "```\r\nx\r\n```")]
        assert document.title == "Ä"

    def test_headings_and_code_are_where_commonmark_has_them(self):
        markdown_it = pytest.importorskip("markdown_it")
        parser = markdown_it.MarkdownIt("commonmark").enable("table")
        pieces = [
            "# one", "## two ##", "####### seven", "#no", "text", "a | b\n--|--\n1 | 2", "```\n# x\n```", "~~~ py\n```\n~~~",
            "Title\n=====", "Sub\n---", "***", "> quote\n> # in", "    code", "- a\n- b", "", "1. x\n   y", "`` ` ``",
        ]  # fmt: skip
        draw = random.Random(7)
        for _ in range(300):
            text = "\n\n".join(draw.choice(pieces) for _ in range(draw.randint(1, 8))) + "\n"
            document = parse(text.encode(), name="a.md")
            lines = text.split("\n")
            expected = []
            for token in parser.parse(text):
                if token.level == 0 and token.type in ("heading_open", "fence", "table_open"):
                    written = "\n".join(lines[token.map[0] : token.map[1]]).strip()
                    kind = {"heading_open": "heading", "fence": "code", "table_open": "table"}[token.type]
                    expected.append((kind, written))
            ours = [
                (kind, found)
                for kind, found in kinds(document)
                if kind in ("heading", "table") or (kind == "code" and not found.startswith("    "))
            ]
            assert ours == expected, text


class TestNotebooks:
    def test_cells_are_read_as_what_they_are(self):
        cells = [
            {"cell_type": "markdown", "source": ["# Title\n", "\n", "Words.\n", "\n", "- a\n", "- b"]},
            {"cell_type": "code", "source": ["x = 1\n", "\n", "y = 2"], "outputs": [{"text": ["not this"]}]},
            {"cell_type": "raw", "source": "nor this"},
            {"cell_type": "markdown", "source": "## Next\ntext"},
        ]
        notebook = {"cells": cells, "metadata": {"kernelspec": {"language": "Julia"}}, "nbformat": 4}
        document = parse(json.dumps(notebook).encode(), name="a.ipynb")
        assert document.title == "Title"
        assert [kind for kind, _ in kinds(document)] == ["heading", "paragraph", "list", "code", "heading", "paragraph"]
        assert kinds(document)[3] == ("code", "x = 1\n\ny = 2")
        assert document.blocks[3].language == "julia"
        assert document.heading_path(len(document.text) - 1) == ("Title", "Next")

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"cells": [1]}', b'{"cells": 3}', b"[" * 100_000])
    def test_what_is_none_is_refused(self, data):
        assert reason(data, name="a.ipynb") == "broken"


PAGE = """<!doctype html><html lang=en><head><title>My &amp; page</title><meta name=author content=Ann>
<script>var x = "<h1>no</h1>"</script></head><body><nav><a href=/>Home</a></nav>
<h1>Top</h1><p>Hello
 <b>big</b> world<br>next line.<p>Second<ul><li>one<li>two<ol start=3><li>deep<pre><code class="language-python">x = 1
  y</code></pre></ol><li><p>three</p><p>more</ul>
<table><caption>Cap</caption><tr><th>A<th>B|C<tr><td>1<td>2</table><pre class="lang-js">let a
  b</pre><div hidden><ul><li>no</ul></div><h2>Sub</h2>tail <img alt="a cat" src=x.png>
<table><tr><td><h3>In a layout</h3><p>text</td></tr></table></body></html>"""


class TestHtml:
    def test_a_page_as_it_is_read(self):
        document = parse(PAGE.encode(), name="a.html")
        assert document.title == "My & page"
        assert document.metadata == {"encoding": "utf-8", "author": "Ann", "language": "en"}
        assert kinds(document) == [
            ("heading", "Top"),
            ("paragraph", "Hello big world\nnext line."),
            ("paragraph", "Second"),
            ("list", "- one\n- two\n  3. deep\n    ```python\n    x = 1\n      y\n    ```\n- three\n  more"),
            ("paragraph", "Cap"),
            ("table", "| A | B\\|C |\n| --- | --- |\n| 1 | 2 |"),
            ("code", "let a\n  b"),
            ("heading", "Sub"),
            ("paragraph", "tail a cat"),
            ("heading", "In a layout"),
            ("paragraph", "text"),
        ]
        assert document.blocks[6].language == "js"
        assert document.heading_path(len(document.text) - 1) == ("Top", "Sub", "In a layout")

    def test_a_picture_in_the_markup_is_kept_where_it_stands(self):
        markup = f'<p>a<p><img alt="a dot" src="data:image/png;base64,{base64.b64encode(PNG).decode()}"><p>b'
        document = parse(markup.encode(), media_type="text/html")
        assert document.images == (EmbeddedImage(PNG, "image/png", "a dot", None, 3),)
        assert kinds(document)[1] == ("image", "a dot")
        none = parse(markup.encode(), media_type="text/html", limits=ParseLimits(max_images=0))
        assert none.images == ()
        assert none.warnings == ("1 images beyond the first 0 were left out",)

    @pytest.mark.parametrize(
        "markup",
        [
            "<div>" * 50_000,
            "<select>" + "<option>" * 50_000,
            "".join(f"<b id={n}>" for n in range(400)) + "<p>x" * 50_000,
            "<font " + "".join(f"b{n} " for n in range(50_000)) + ">",
        ],
    )
    def test_trees_far_larger_than_their_markup_are_not_built(self, markup):
        assert reason(markup.encode(), media_type="text/html") == "unsafe"

    def test_a_missing_library_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "selectolax.lexbor", None)
        with pytest.raises(MissingDependencyError, match=r"agentdb-lance\[documents\]"):
            parse(b"<p>x", media_type="text/html")

    def test_a_tree_is_walked_without_a_stack(self):
        markup = "<div>" * (html_module._MOST_DEPTH - 10) + "x"
        assert parse(markup.encode(), media_type="text/html").text == "x"


BODY = [
    ("Alpha Title", 24, 72, 720),
    ("This is the first line of a para-", 11, 72, 690),
    ("graph (which) goes on here.", 11, 72, 677),
    ("Second paragraph begins.", 11, 72, 640),
    ("1. Section one", 16, 72, 600),
    ("text below", 11, 72, 580),
]


class TestPdf:
    def test_paragraphs_and_headings_follow_from_place_and_size(self):
        second = [("Beta", 24, 72, 720), ("more text", 11, 72, 690)]
        info = {"Title": "My PDF", "Author": "Bob", "CreationDate": "D:20240102030405Z"}
        document = parse(pdf([BODY, second], info=info), name="a.pdf")
        assert document.title == "My PDF"
        assert document.metadata == {"author": "Bob", "created": "2024-01-02", "pages": 2}
        assert headings(document) == [(1, "Alpha Title", 1), (2, "1. Section one", 1), (1, "Beta", 2)]
        paragraphs = [found for kind, found in kinds(document) if kind == "paragraph"]
        assert paragraphs == [
            "This is the first line of a paragraph (which) goes on here.",
            "Second paragraph begins.",
            "text below",
            "more text",
        ]
        assert document.heading_path(document.text.index("text below")) == ("Alpha Title", "1. Section one")

    def test_the_outline_goes_before_sizes(self):
        line = [("Large but no heading", 30, 72, 740)]
        pages = [
            [*line, ("Chapter", 11, 72, 700), ("body text", 11, 72, 650)],
            [("1.1 Part two", 11, 72, 700), ("body", 11, 72, 650)],
        ]
        document = parse(pdf(pages, outline=[("Chapter", 0, 0), ("Part two", 1, 1)]))
        assert headings(document) == [(1, "Chapter", 1), (2, "1.1 Part two", 2)]

    def test_what_stands_on_most_pages_is_left_out(self):
        pages = [
            [
                ("The Journal", 9, 72, 770),
                (f"words of page number {'abcdef'[n]}", 11, 72, 600),
                (f"{n + 1}", 9, 300, 30),
            ]
            for n in range(6)
        ]
        document = parse(pdf(pages))
        assert [found for _, found in kinds(document)] == [f"words of page number {char}" for char in "abcdef"]

    def test_scans_are_told_and_their_pictures_kept(self):
        document = parse(pdf([[("text", 11, 72, 700)], []], images=[None, (40, 40, b"\xff\0\0" * 1_600)]))
        assert document.warnings == ("1 of 2 pages hold no text, they may be scans: 2",)
        (image,) = document.images
        assert (image.media_type, image.page, image.at) == ("image/png", 2, 4)
        assert image.data.startswith(b"\x89PNG")

    def test_broken_files_are_refused(self):
        good = pdf([BODY] * 3)
        assert reason(b"%PDF-1.7\nnothing") == "broken"
        assert reason(good, limits=ParseLimits(max_pages=2)) == "too_large"
        assert reason(good, limits=ParseLimits(max_text_chars=50)) == "too_large"
        assert reason(good, limits=ParseLimits(timeout_s=1e-9)) == "too_slow"

    def test_damaged_files_give_text_or_an_error(self):
        good = pdf([BODY] * 2, outline=[("Alpha Title", 0, 0)], images=[(40, 40, b"abc" * 1_600)])
        draw = random.Random(3)
        read = 0
        for _ in range(60):
            data = bytearray(good)
            for _ in range(draw.randint(1, 20)):
                data[draw.randrange(9, len(data))] = draw.randrange(256)
            if draw.random() < 0.3:
                del data[draw.randrange(len(data)) :]
            with contextlib.suppress(DocumentError):
                read += bool(parse(bytes(data), media_type="application/pdf").text)
        assert read > 10

    def test_threads_take_turns_where_there_is_no_other_process(self, monkeypatch):
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        assert not isolated.can_isolate()
        good, found = pdf([BODY] * 5), []

        def work():
            found.extend(parse(good).text for _ in range(5))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 30
        assert len(set(found)) == 1


class TestIsolation:
    def bomb(self, shown):
        """Fifty kilobytes that make millions of characters."""
        return pdf_of_stream(
            b"BT /F1 12 Tf 72 700 Td " + b"(aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) Tj " * shown + b"ET"
        )

    def test_a_reader_that_takes_too_much_memory_harms_itself_only(self):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        limits = ParseLimits(max_memory_bytes=256 << 20)
        bomb = self.bomb(150_000)
        assert len(bomb) < 50_000
        assert reason(bomb, limits=limits) in ("unsafe", "too_large", "broken")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "KiB"
        assert parse(pdf([BODY]), limits=limits).title is None, "the next one is read"

    def test_a_reader_that_takes_too_long_is_killed(self, monkeypatch):
        monkeypatch.setattr(isolated, "_GRACE_S", 0)
        slow = pdf_of_stream(b" " * (100 << 20))  # one step that does not look at the time
        assert reason(slow, limits=ParseLimits(timeout_s=0.02)) == "too_slow"

    def test_a_reader_is_used_again_and_replaced_when_it_is_gone(self):
        isolated._POOL.end()
        first = parse(pdf([BODY]))
        (worker,) = isolated._POOL._idle
        assert parse(pdf([BODY])) == first
        assert isolated._POOL._idle == [worker]
        assert worker.served == 2
        worker._process.kill()
        worker._process.wait()
        assert parse(pdf([BODY])) == first
        assert isolated._POOL._idle != [worker]

    def test_a_reader_ends_by_itself_when_nobody_is_left_to_kill_it(self):
        worker = isolated._Worker(1 << 30)
        asked = {"media_type": "application/pdf", "limits": asdict(ParseLimits()), "seconds": 0.02}
        isolated._send(worker._process.stdin, asked, pdf_of_stream(b" " * (100 << 20)))
        assert worker._process.wait(60) == -signal.SIGALRM
        worker.end()

    def test_a_process_without_its_folder_and_a_forked_one_read_with_readers_of_their_own(self, tmp_path):
        (tmp_path / "a.pdf").write_bytes(pdf([BODY]))
        (tmp_path / "gone").mkdir()
        code = """if True:
            import os, sys
            from pathlib import Path
            from agentdb.rag.parsing import isolated, parse
            data = Path("../a.pdf").read_bytes()
            Path(os.getcwd()).rmdir()
            text = parse(data).text
            (worker,) = isolated._POOL._idle
            child = os.fork()
            if child == 0:
                assert parse(data).text == text
                (own,) = isolated._POOL._idle
                assert own._process.pid != worker._process.pid
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert parse(data).text == text
            assert isolated._POOL._idle == [worker]
        """
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path / "gone", capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stderr.decode()

    def test_another_process_reads_the_same(self, monkeypatch):
        monkeypatch.setattr(isolated, "_LARGE_MARKUP", 10)
        monkeypatch.setattr(isolated, "_LARGE_ARCHIVE", 10)
        files = [PAGE.encode(), epub(["<h1>x</h1>"], extra={"a.png": PNG}), xlsx({"S": [["a", 1]]}), pdf([BODY])]
        for data in files:
            media_type = detect_media_type(None, data)
            assert isolated.needs_isolation(media_type, data)
            assert parse(data) == read_here(data, media_type, ParseLimits())
        assert reason(b"<div>" * 5_000, media_type="text/html") == "unsafe"
        assert not isolated.needs_isolation("text/plain", b"x" * 100)


def pdf_of_stream(drawn):
    data = pdf([[]])
    packed = zlib.compress(drawn, 9)
    start = data.index(b"<< ", data.index(b"4 0 obj"))
    end = data.index(b"endobj", start)
    stream = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream\n" % (len(packed), packed)
    # Its table of places is wrong now, and made anew by the reader.
    return data[:start] + stream + data[end:]


class TestOffice:
    def test_word(self, tmp_path):
        picture = tmp_path / "dot.png"
        picture.write_bytes(PNG)

        def build(document):
            document.core_properties.title = "Report"
            document.core_properties.author = "Ann"
            document.add_heading("Top", 0)
            document.add_heading("One", 1)
            document.add_paragraph("Hello\tworld")
            document.add_paragraph("a", style="List Bullet")
            document.add_paragraph("b", style="List Bullet 2")
            table = document.add_table(2, 2)
            for place, text in enumerate(("A", "B", "1|", "2\n3")):
                table.cell(place // 2, place % 2).text = text
            document.add_picture(str(picture))._inline.docPr.attrib.pop("descr", None)
            document.add_heading("Two", 2)
            document.add_paragraph("bye")

        document = parse(docx(build), name="a.docx")
        assert (document.title, document.metadata["author"]) == ("Report", "Ann")
        assert kinds(document) == [
            ("heading", "Top"),
            ("heading", "One"),
            ("paragraph", "Hello\tworld"),
            ("list", "- a\n  - b"),
            ("table", "| A | B |\n| --- | --- |\n| 1\\| | 2 3 |"),
            ("heading", "Two"),
            ("paragraph", "bye"),
        ]
        assert [(image.data, image.media_type) for image in document.images] == [(PNG, "image/png")]
        assert document.heading_path(len(document.text) - 1) == ("One", "Two")

    def test_presentation(self, tmp_path):
        from pptx.chart.data import CategoryChartData
        from pptx.enum.chart import XL_CHART_TYPE

        picture = tmp_path / "dot.png"
        picture.write_bytes(PNG)

        def build(presentation):
            slide = presentation.slides.add_slide(presentation.slide_layouts[1])
            slide.shapes.title.text = "Slide A"
            slide.placeholders[1].text = "x\ny"
            slide.notes_slide.notes_text_frame.text = "say this"
            slide = presentation.slides.add_slide(presentation.slide_layouts[5])
            slide.shapes.title.text = "Slide B"
            table = slide.shapes.add_table(2, 2, 0, 0, 9, 9).table
            for place, text in enumerate("hijk"):
                table.cell(place // 2, place % 2).text = text
            group = slide.shapes.add_group_shape()
            group.shapes.add_textbox(0, 0, 9, 9).text_frame.text = "in a group"
            group.shapes.add_picture(str(picture), 0, 0)
            data = CategoryChartData()
            data.categories = ["q1", "q2"]
            data.add_series("sales", (1.5, 2))
            slide.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, 0, 0, 9, 9, data)

        document = parse(pptx(build), name="a.pptx")
        assert document.title == "Slide A"
        assert headings(document) == [(1, "Slide A", 1), (1, "Slide B", 2)]
        assert "- x\n- y\n\nNotes: say this" in document.text
        assert "| h | i |\n| --- | --- |\n| j | k |" in document.text
        assert "in a group" in document.text
        assert "|  | sales |\n| --- | --- |\n| q1 | 1.5 |\n| q2 | 2 |" in document.text
        assert [(image.data, image.page) for image in document.images] == [(PNG, 2)]
        assert document.page_of(document.text.index("in a group")) == 2

    def test_workbook(self):
        from datetime import date, datetime

        rows = [["name", "n", "at"], ["x", 1.0, datetime(2024, 1, 2)], [None, True, date(2024, 1, 3)], [], ["alone"]]  # noqa: DTZ001
        document = parse(xlsx({"Sales": rows, "Empty": []}), name="a.xlsx")
        assert headings(document) == [(1, "Sales", 1), (1, "Empty", 2)]
        assert kinds(document)[1:3] == [
            ("table", "| name | n | at |\n| --- | --- | --- |\n| x | 1 | 2024-01-02 |\n|  | TRUE | 2024-01-03 |"),
            ("paragraph", "alone"),
        ]
        assert document.metadata["sheets"] == ["Sales", "Empty"]
        wide = xlsx({"S": [["word " * 10] * 50] * 50})
        assert reason(wide, limits=ParseLimits(max_text_chars=1_000)) == "too_large"

    @pytest.mark.parametrize("kind", [docx, pptx])
    def test_archives_that_are_not_what_they_say(self, kind):
        good = kind(lambda _: None)
        members = _members(good)
        assert reason(good[: len(good) // 2], name="a.docx") in ("broken", "unknown_type")
        part = next(name for name in members if name.endswith(("document.xml", "presentation.xml")))
        bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
        assert reason(archive(members | {part: bomb + members[part].decode()})) == "unsafe"
        assert reason(archive(members | {part: (bomb + "<x/>").encode("utf-16")})) == "unsafe"
        assert reason(archive(members | {part: b"<open>"})) == "broken"
        assert reason(archive({name: data for name, data in members.items() if name != part})) in (
            "broken",
            "unknown_type",
        )


def _members(data):
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return {name: source.read(name) for name in source.namelist()}


class TestBombs:
    LIMITS = ParseLimits(max_expanded_bytes=4 << 20, max_part_bytes=1 << 20)

    def bomb(self, size):
        members = _members(docx(lambda document: document.add_paragraph("x")))
        return archive(members | {"word/media/zeros.xml": bytes(size)})

    def test_what_is_declared_is_believed_when_it_is_too_much(self):
        assert reason(self.bomb(5 << 20), limits=self.LIMITS) == "too_large"
        assert reason(self.bomb(2 << 20), limits=self.LIMITS) == "too_large"
        assert parse(self.bomb(1 << 19), limits=self.LIMITS).text == "x"

    def test_what_is_declared_is_not_believed_when_it_is_little(self):
        data = bytearray(self.bomb(64 << 20))
        size = struct.pack("<I", 64 << 20)
        assert data.count(size) >= 2  # before the member, and in the directory
        lying = bytes(data).replace(size, struct.pack("<I", 100))
        tracemalloc.start()
        try:
            assert reason(lying, limits=self.LIMITS) in ("broken", "too_large")
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    def test_encrypted_and_unusual_members_are_refused(self):
        data = bytearray(self.bomb(10))
        at = data.find(b"PK\x01\x02")
        data[at + 8] |= 1
        assert reason(bytes(data), media_type=detect_media_type(None, self.bomb(10))) == "encrypted"
        many = pptx(lambda made: [made.slides.add_slide(made.slide_layouts[5]) for _ in range(3)])
        assert reason(many, limits=ParseLimits(max_pages=2)) == "too_large"
        assert reason(many, limits=ParseLimits(timeout_s=1e-9)) == "too_slow"
        members = _members(self.bomb(10))
        assert reason(archive(members, compression=zipfile.ZIP_LZMA)) == "unsafe"


class TestEpub:
    def test_chapters_in_reading_order(self):
        chapters = ['<h1>One</h1><p>first <img src="../dot.png" alt="a dot"/></p>', "<h1>Two</h1><p>second</p>"]
        document = parse(epub(chapters, extra={"OEBPS/dot.png": PNG}), name="a.epub")
        assert (document.title, document.metadata["author"]) == ("A book", "Ann")
        assert headings(document) == [(1, "One", 1), (1, "Two", 2)]
        assert [found for _, found in kinds(document)] == ["One", "first", "a dot", "Two", "second"]
        assert [(image.data, image.caption, image.page) for image in document.images] == [(PNG, "a dot", 1)]

    def test_a_chapter_that_cannot_be_read_is_told(self):
        document = parse(epub(["<p>one</p>", "<div>" * 5_000, "<p>three</p>"]))
        assert document.text == "one\n\nthree"
        assert document.warnings[0].startswith("chapter 2 could not be read")

    def test_books_that_cannot_be_read(self):
        bomb = '<!DOCTYPE x [<!ENTITY a "aa">]><container><rootfile full-path="&a;"/></container>'
        assert reason(epub(["x"], extra={"META-INF/container.xml": bomb})) == "unsafe"
        assert reason(epub(["x"], extra={"OEBPS/book.opf": "<package"})) == "broken"
        locked = (
            '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:CipherData>'
            '<e:CipherReference URI="OEBPS/text/c0.xhtml"/></e:CipherData></e:EncryptedData></encryption>'
        )
        assert reason(epub(["x"], extra={"META-INF/encryption.xml": locked})) == "encrypted"
        assert reason(epub(["x"] * 5), limits=ParseLimits(max_pages=4)) == "too_large"


def test_any_bytes_give_a_document_or_a_clear_error():
    draw = random.Random(11)
    seeds = [
        PAGE.encode(),
        epub(["<p>x</p>"]),
        docx(lambda document: document.add_paragraph("x")),
        pptx(lambda presentation: presentation.slides.add_slide(presentation.slide_layouts[1])),
        xlsx({"S": [["a", 1]]}),
        PNG,
        '{"a": [1, 2, "ü"]}'.encode("utf-16"),
    ]
    for number in range(140):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(draw.choice((1, 3, 30))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if number % 5 == 0:
            del data[draw.randrange(len(data)) :]
        name = draw.choice((None, "a.txt", "a.docx", "a.xlsx", "a.pptx", "a.epub", "a.html", "a.json", "a.csv"))
        with contextlib.suppress(DocumentError):
            document = parse(bytes(data), name=name)
            document.text.encode()
            assert "\0" not in document.text


def test_an_archive_whose_first_member_is_damaged_is_still_an_archive() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip" * 4)
    data = bytearray(packed.getvalue())
    start = 30 + len("mimetype")  # behind the local header
    data[start : start + 4] = b"\xff\xff\xff\xff"
    assert detect_media_type("book.epub", bytes(data)) == "application/zip"
    with pytest.raises(DocumentError):
        parse(bytes(data), name="book.epub")
