"""What words of a text count for search: one analysis for texts and queries, and its compact form in a row.

A text is normalised (NFKC, case folded, accents removed), cut into words and numbers, freed of English stop words and
stemmed (Snowball English). Scripts written without spaces become overlapping pairs of characters. Other languages are
cut into words the same way; their words meet in the form in which they were written.

Stored with a row are not the words but 32-bit hashes of the distinct ones and how often each occurs: six bytes each, enough
for BM25 (`bm25.py`) and useless for reading a text back word for word. Two words of a collection of 100,000 share a hash
about once; such a pair is scored as one word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer
import xxhash

from agentdb.errors import IntegrityError, InvalidInputError

__all__ = ["ANALYSIS", "TERM", "analyze", "decode_terms", "encode_terms", "query_terms"]

ANALYSIS = f"english-1/snowball-{Stemmer.version()}"
"""Names the analysis: terms are comparable only between texts and queries analysed under the same name."""

TERM = np.dtype([("hash", "<u4"), ("count", "<u2")])
"""One distinct term of a text. Counts stop at 65,535."""

_STOP_WORDS = """
    a about an and are as at be been but by can could did do does for from had has have he her him his how i if in into is it its
    me my no not of on or our she should so such than that the their them then there these they this to was we were what when
    where which who whom why will with would you your
    aren't didn't doesn't don't hadn't hasn't haven't isn't wasn't weren't won't
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""What nearly every text and every question has; so is a word that hangs on one of them by an apostrophe."""

_LONGEST_WORD = 64
"""A longer word counts as its beginning: nobody types the rest, and the vocabulary stays small."""
_KNOWN_WORDS = 1 << 17
_CHUNK = 4096

# Accents, and characters that only say how a word may be broken or joined.
_REMOVED = re.compile("[\u0300-\u036f\u00ad\u200c\u200d\u2060\ufeff]")
# Thai, Lao, Burmese, Khmer, kana, bopomofo, Hangul, Han.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]+)"
)


class _Characters(dict[int, str]):
    """What a character of a normalised text is to its words: part of one, or a space between two."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        # Marks belong to the words of Indic, Arabic and Hebrew script.
        is_part = unicodedata.category(character)[0] in "LMN" or character == "'"
        self[code] = character if is_part else " "
        return self[code]


class _Stems(dict[str, str]):
    """What a word counts as, by the word as it was found: its stem, or nothing."""

    def __missing__(self, found: str) -> str:
        word = found[:_LONGEST_WORD].strip("'")
        if not word or word in STOP_WORDS or word.partition("'")[0] in STOP_WORDS:
            stem = ""
        else:
            # A stemmer is not to be used by two threads at once, and costs next to nothing; what it would cache is here.
            stem = Stemmer.Stemmer("english", 0).stemWord(word)
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        if len(found) <= _LONGEST_WORD:
            self[found] = stem
        return stem


class _Hashes(dict[str, int]):
    """The hash of what a word counts as, 0 for nothing, by the word as it was found."""

    def __missing__(self, found: str) -> int:
        stem = _STEMS[found]
        code = (xxhash.xxh32_intdigest(stem.encode()) or 1) if stem else 0
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        if len(found) <= _LONGEST_WORD:
            self[found] = code
        return code


_CHARACTERS = _Characters()
_STEMS = _Stems()
_HASHES = _Hashes()


def _words(text: str) -> list[str]:
    """Return the words of a text in order, before stop words and stemming."""
    if text.isascii():
        return text.lower().translate(_CHARACTERS).split()
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    text = unicodedata.normalize("NFKC", _REMOVED.sub("", text).casefold()).translate(_CHARACTERS)
    words = text.split()
    if not _UNSPACED.search(text):
        return words
    pieces = [piece for word in words for piece in _UNSPACED.split(word) if piece]
    return list(chain.from_iterable(_pairs(piece) if _UNSPACED.match(piece) else (piece,) for piece in pieces))


def _pairs(run: str) -> Iterable[str]:
    return map("".join, pairwise(run)) if len(run) > 1 else (run,)


def analyze(texts: Iterable[str]) -> list[list[str]]:
    """Return the terms of every text in the order of its words, repeats kept.

    Source: the stemmer is M. Porter's English one (Porter2), snowballstem.org.
    """
    return [[stem for stem in map(_STEMS.__getitem__, _words(text)) if stem] for text in texts]


def query_terms(text: str) -> npt.NDArray[np.uint32]:
    """Return the hashes of a text's terms in the order of its words, repeats kept."""
    return np.array([code for code in map(_HASHES.__getitem__, _words(text)) if code], np.uint32)


def encode_terms(texts: Sequence[str | None]) -> pa.Array:
    """Return what is stored of every text: the bytes of its `TERM` records, one per distinct term, by rising hash.

    Args:
        texts: None where a row has no text.

    Returns:
        `[N]` binary, null where there is no text, empty where a text has no terms.

    Raises:
        InvalidInputError: the terms take more than 2 GiB.
    """
    records: list[npt.NDArray[Any]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(texts), _CHUNK):
        found = [_words(text) if text else [] for text in texts[start : start + _CHUNK]]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        codes = np.fromiter(map(_HASHES.__getitem__, chain.from_iterable(found)), np.uint32, int(lengths.sum()))
        rows = np.repeat(np.arange(len(found), dtype=np.uint64), lengths)
        keys = np.sort(((rows << np.uint64(32)) | codes)[codes > 0])
        firsts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.int64)
        part = np.empty(len(firsts), TERM)
        part["hash"] = keys[firsts].astype(np.uint32)  # the row is cut off
        part["count"] = np.minimum(np.diff(firsts, append=len(keys)), 0xFFFF)
        records.append(part)
        sizes.append(np.bincount((keys[firsts] >> np.uint64(32)).astype(np.int64), minlength=len(found)))
    offsets = np.zeros(len(texts) + 1, np.int64)
    if sizes:
        np.cumsum(np.concatenate(sizes) * TERM.itemsize, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InvalidInputError(f"the terms of {len(texts)} texts take more than 2 GiB: encode fewer at a time")
    present = pa.array([text is not None for text in texts], pa.bool_())
    data = pa.py_buffer(np.concatenate(records) if records else b"")
    return pa.Array.from_buffers(
        pa.binary(), len(texts), [present.buffers()[1], pa.py_buffer(offsets.astype(np.int32)), data]
    )


def decode_terms(terms: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return all `TERM` records of rows, one row's after another's, and how many each row has.

    Raises:
        IntegrityError: the bytes are no terms.
    """
    if isinstance(terms, pa.ChunkedArray):
        terms = terms.combine_chunks()
    if terms.null_count:
        terms = pc.fill_null(terms, b"")
    if not len(terms):
        return np.empty(0, TERM), np.empty(0, np.int64)
    width = np.int64 if pa.types.is_large_binary(terms.type) else np.int32
    _, ends, data = terms.buffers()
    offsets = np.frombuffer(ends, width)[terms.offset : terms.offset + len(terms) + 1].astype(np.int64)
    counts, rest = np.divmod(np.diff(offsets), TERM.itemsize)
    if rest.any():
        raise IntegrityError("stored terms of a text are damaged: their length is no multiple of a term's")
    total = int(counts.sum())
    return np.frombuffer(data, TERM, total, int(offsets[0])) if total else np.empty(0, TERM), counts
