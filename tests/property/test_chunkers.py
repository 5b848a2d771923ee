"""The laws that every chunker keeps, on texts made to break them."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentdb.rag import chunking, pieces
from agentdb.rag.chunking import ParentChildChunker, SemanticChunker, StructureChunker
from agentdb.rag.parsing import parse
from agentdb_embedders import HashingEmbedder


def marks(texts):
    """Each character that is no white space is a token: additive, whatever the pieces."""
    return [sum(not char.isspace() for char in text) for text in texts]


def words(texts):
    """Words and marks, and two special tokens, as a BERT counts."""
    return [2 + len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def uneven(texts):
    """More tokens for a whole than for its parts, and one for an empty text: estimates are always too low."""
    return [1 + len(text.split()) + len(text) // 5 for text in texts]


def bytes_(texts):
    """A token for every four bytes begun; long characters cost more than one."""
    return [-(-len(text.encode()) // 4) for text in texts]


COUNTERS = (marks, words, uneven, bytes_)

STRANGE = st.sampled_from(
    [
        *"ab .,;:!?\n\t\r\f#>-*`~|_=1)]}",
        "e\u0301",
        "\u0301",
        "\u200d",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
        "\U0001f1e9\U0001f1ea",
        "\u1112\u1161\u11ab",
        "한",
        "क्षि",
        "日本。",
        "שלום",
        "\u00a0",
        "\u2028",
        "\x85",
        "ſß",
        "e.g. ",
        "word ",
        "Sentence. ",
        "x" * 40,
        "\u0301" * 70,
    ]
)
WORD = st.text("abcdefg", min_size=1, max_size=8)
PROSE = st.lists(WORD, min_size=1, max_size=14).map(lambda found: " ".join(found) + ". ")
PARAGRAPH = st.lists(PROSE, min_size=1, max_size=5).map("".join) | st.lists(STRANGE, max_size=30).map("".join)
HEADING = st.tuples(st.integers(1, 6), WORD).map(lambda found: f"{'#' * found[0]} {found[1]}")
CODE = st.lists(
    st.sampled_from(
        ["def f():", "    x = 1", "", "class A:", "    def m(self):", "        y", "}", "```", "# no", "z" * 50]
    ),
    max_size=12,
).map("\n".join)
FENCED = CODE.map(lambda code: f"````python\n{code}\n````")
TABLE = st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6).map(
    lambda rows: "| a | b |\n|---|---|\n" + "\n".join(f"| {one} | {other} |" for one, other in rows)
)
LIST = st.lists(st.tuples(st.integers(0, 2), PROSE), min_size=1, max_size=6).map(
    lambda items: "\n".join(f"{'  ' * depth}- {text}" for depth, text in items)
)
MARKDOWN = st.lists(PARAGRAPH | HEADING | FENCED | TABLE | LIST, max_size=8).map("\n\n".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.lists(STRANGE, max_size=80).map("".join)
KINDS = ["markdown", "plain", "x-python", "x-ruby", "csv"]
TEXT = st.tuples(MARKDOWN | ANY, st.sampled_from(KINDS))
SIZES = st.tuples(st.integers(6, 80), st.integers(0, 40)).map(lambda sizes: (sizes[0], min(sizes[1], sizes[0] // 2)))


def check(document, chunks, count, limit):
    text = document.text
    covered = bytearray(len(text))
    last = -1
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= len(text)
        assert chunk.start > last, "in order"
        last = chunk.start
        written = text[chunk.start : chunk.end]
        assert written.strip(), "not blank"
        assert not written[-1].isspace()
        assert count([written])[0] <= limit or len(written) == 1
        covered[chunk.start : chunk.end] = b"\1" * len(written)
    assert [char for char, seen in zip(text, covered, strict=True) if not seen and not char.isspace()] == []


@pytest.mark.parametrize("count", COUNTERS)
@given(TEXT, SIZES)
def test_chunks_hold_all_of_the_text_and_keep_the_limit(count, source, sizes):
    text, kind = source
    limit, overlap = sizes
    document = parse(text.encode(), media_type=f"text/{kind}")
    chunks = StructureChunker(count_tokens=count, chunk_tokens=limit, overlap_tokens=overlap).chunk(document)
    check(document, chunks, count, limit)
    if not overlap:
        assert all(one.end <= other.start for one, other in itertools.pairwise(chunks))


@pytest.mark.parametrize("count", COUNTERS)
@given(MARKDOWN, SIZES)
def test_what_fits_is_not_cut(count, text, sizes):
    limit, overlap = sizes
    document = parse(text.encode(), media_type="text/markdown")
    chunks = StructureChunker(count_tokens=count, chunk_tokens=limit, overlap_tokens=overlap).chunk(document)
    for block in document.blocks:
        written = text[block.start : block.end]
        if block.kind in ("code", "table") and count([written])[0] <= limit:
            for chunk in chunks:
                is_apart = chunk.end <= block.start or block.end <= chunk.start
                assert is_apart or (chunk.start <= block.start and block.end <= chunk.end), written


@given(TEXT, SIZES)
def test_what_is_repeated_is_bounded(source, sizes):
    text, kind = source
    limit, overlap = sizes
    document = parse(text.encode(), media_type=f"text/{kind}")
    chunks = StructureChunker(count_tokens=marks, chunk_tokens=limit, overlap_tokens=overlap).chunk(document)
    for one, other in itertools.pairwise(chunks):
        if other.start < one.end:
            assert marks([document.text[other.start : one.end]])[0] <= overlap
            assert other.end > one.end
            assert not any(
                block.kind == "heading" and other.start <= block.start < one.end for block in document.blocks
            ), "nothing is repeated across a heading"


@pytest.mark.parametrize("count", [marks, words, uneven])
@given(TEXT, st.integers(12, 60))
def test_small_chunks_lie_in_their_parents(count, source, limit):
    text, kind = source
    document = parse(text.encode(), media_type=f"text/{kind}")
    chunks = ParentChildChunker(count_tokens=count, parent_tokens=3 * limit, child_tokens=limit).chunk(document)
    check(document, chunks, count, limit)
    parents = sorted({chunk.parent for chunk in chunks})
    for chunk in chunks:
        assert chunk.parent[0] <= chunk.start < chunk.end <= chunk.parent[1]
    for one, other in itertools.pairwise(parents):
        assert one[1] <= other[0]
    for start, end in parents:
        assert count([document.text[start:end]])[0] <= 3 * limit


@given(TEXT, st.integers(6, 60), st.sampled_from([0, 50, 90, 100]), st.integers(1, 3))
def test_breakpoints_leave_nothing_out(source, limit, percentile, window):
    text, kind = source
    document = parse(text.encode(), media_type=f"text/{kind}")
    embedder = HashingEmbedder(16)
    chunker = SemanticChunker(
        embedder=embedder, count_tokens=words, chunk_tokens=limit, percentile=percentile, window=window
    )
    check(document, chunker.chunk(document), words, limit)


@given(TEXT, SIZES)
def test_regions_are_not_seen(source, sizes):
    """A long document is cut region by region; the laws hold across their borders."""
    text, kind = source
    limit, overlap = sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "_REGION", 40)
        document = parse((text * 3).encode(), media_type=f"text/{kind}")
        chunks = StructureChunker(count_tokens=words, chunk_tokens=limit, overlap_tokens=overlap).chunk(document)
    check(document, chunks, words, limit)


@given(st.lists(STRANGE, max_size=60).map("".join), st.integers(10, 30))
def test_no_character_that_a_reader_sees_is_cut(text, limit):
    regex = pytest.importorskip("regex")
    text = re.sub("\u0301{8,}", "\u0301", text)  # what does not fit must be cut
    document = parse(text.encode(), media_type="text/plain")
    chunks = StructureChunker(count_tokens=marks, chunk_tokens=limit, overlap_tokens=0).chunk(document)
    clusters = [found.span() for found in regex.finditer(r"\X", document.text)]
    for chunk in chunks:
        for start, end in clusters:
            if end - start <= 8 and not document.text[start:end].isspace():
                assert not start < chunk.start < end, document.text[start:end]
                # White space at the end of a chunk is left out, what is joined to it with it.
                assert not start < chunk.end < end or document.text[start : chunk.end].isspace()


@given(st.lists(STRANGE, max_size=30).map("".join))
def test_borders_between_characters_are_those_of_unicode(text):
    regex = pytest.importorskip("regex")
    ends = {found.end() for found in regex.finditer(r"\X", text)} | {0}
    for place in range(1, len(text)):
        if "\u200d" in text[max(0, place - 8) : place + 1] or unicodedata.category(text[place - 1]) in ("Cc", "Zl"):
            continue  # a joiner is taken to join whatever follows; a mark has nothing to stand on after a control
        if text[place - 1] == "\u0301" or "क्षि"[1] in text[place - 2 : place]:
            continue
        assert pieces.is_grapheme_end(text, place) == (place in ends), (text[place - 1], text[place])


@given(ANY | MARKDOWN)
def test_any_markdown_is_parsed_to_blocks_that_hold_it(text):
    document = parse(text.encode(), media_type="text/markdown")  # what is in no block is refused by the document
    assert "\0" in text or document.text == text.removeprefix("\ufeff")
