"""The pieces that chunks are made of, and how good a place to cut lies before each of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Protocol

__all__ = ["Cut", "Piece", "code_lines", "list_lines", "sentences", "shorter", "table_rows"]

Piece = tuple[int, int, int]
"""Start and end in the text, and how good it is to cut before it (a `Cut`)."""


class Cut(IntEnum):
    """How good a place is to begin a new chunk; higher is better."""

    GLUED = 0
    """Only where nothing else is left: after a heading, inside of what should stay whole."""
    INSIDE_WORD = 1
    WORD = 2
    CLAUSE = 3
    LINE = 4
    STATEMENT = 5
    SENTENCE = 6
    ROW = 7
    ITEM = 8
    BLOCK = 10
    NESTED = 11
    """A method, or a function within one."""
    DEFINITION = 12
    """A class or a function at the top."""
    MEANING = 13
    """Where the embeddings say that the subject changes."""
    HEADING_6 = 14
    HEADING_1 = 19


class Outline(Protocol):
    """What a grammar tells of code: how good a cut before a line is, for the lines where something begins."""

    @property
    def cuts(self) -> Mapping[int, int]:
        """Lines, counted from 0, and cuts."""


_LINES = re.compile(r"[^\n]*+\n|[^\n]++")
# Each run of marks is tried from its first one only, so that a line of a million dots takes a million steps.
_SENTENCE_END = re.compile(
    r"""(?<![.!?\u2026])[.!?\u2026]++["'\u201d\u2019\u00bb)\]*_`]*+(?=\s)|(?<![\u3002\uff01\uff1f\uff61])[\u3002\uff01\uff1f\uff61]++["\u201d\u2019\u300d\u300f\uff09\u3011]*+"""
)
_SPACE = re.compile(r"\s*")
_BLANK = re.compile(r"\s")
_LONG_WORD = 64
_LAST_WORD = re.compile(r"[^\s(\[\"'\u201c\u2018]*\Z")
_ABBREVIATIONS = frozenset(
    "al approx assn bd bzw ca cf co col corp dept dipl dr ed eds esp est etc ex gen gov hon inc incl jr lt ltd messrs mr "  # noqa: SIM905
    "mrs ms mt nr prof pt rd rep resp rev sen sgt sr st str univ usw viz vs z.b d.h u.a i.e e.g a.m p.m u.s u.k ph.d".split()
)
_BEFORE_NUMBERS = frozenset(
    "art ch chap eq eqs fig figs max min no nos p pp para ref refs sec sect tab vol vols jan feb mar apr jun jul aug sep "  # noqa: SIM905
    "sept oct nov dec".split()
)
_CLAUSE_END = ".!?,;:\u2014\u2013)]}\uff0c\uff1b\uff1a\u3001"
_FENCE = re.compile(r"[ \t]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)*(`{3,}(?=[^`]*$)|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-+*\u2022]|\d{1,9}[.)])[ \t]")
_INDENT = re.compile(r"[ \t]*")
_CLOSER = re.compile(r"[)\]}]|`{3}|~{3}|end\b|else\b|elif\b|except\b|finally\b|catch\b|fi\b|done\b|esac\b")


def lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the lines that are not blank, without the white space at their ends."""
    for found in _LINES.finditer(text, start, end):
        first, last = found.span()
        bare = len(text[first:last].rstrip())
        if bare:
            yield first, first + bare


def sentences(text: str, start: int, end: int, first: int) -> Iterator[Piece]:
    """Yield the sentences of a paragraph; the first one has the given cut before it."""
    at = start
    for found in _SENTENCE_END.finditer(text, start, end):
        stop = found.end()
        after = _SPACE.match(text, stop, end)
        assert after is not None
        following = after.end()
        if following >= end:
            break
        if text[following].islower() or (found[0] == "." and _is_abbreviated(text, at, found.start(), following)):
            continue
        yield at, stop, first
        first, at = Cut.SENTENCE, following
    if at < end:
        yield at, end, first


def _is_abbreviated(text: str, start: int, dot: int, following: int) -> bool:
    """Return whether a full stop ends a word rather than a sentence."""
    found = _LAST_WORD.search(text[max(start, dot - 24) : dot])
    word = found[0] if found else ""
    if word.lower() in _BEFORE_NUMBERS:
        return text[following].isdigit()
    return (len(word) == 1 and word.isupper()) or word.lower() in _ABBREVIATIONS


def table_rows(text: str, start: int, end: int, first: int) -> Iterator[Piece]:
    """Yield the rows of a table; its head stays with its first row."""
    for number, (begin, stop) in enumerate(lines(text, start, end)):
        yield begin, stop, first if number == 0 else Cut.GLUED if number < 3 else Cut.ROW


def list_lines(text: str, start: int, end: int, first: int) -> Iterator[Piece]:
    """Yield the lines of a list; a fenced block in an item is one piece."""
    fence: str | None = None
    began = cut = 0
    outer: int | None = None
    for begin, stop in lines(text, start, end):
        line = text[begin:stop]
        mark = _FENCE.match(line)
        if fence is not None:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = None
                yield began, stop, cut
            continue
        if begin == start:
            cut = first
        else:
            item = _ITEM.match(line)
            width = len(line) - len(line.lstrip())
            outer = width if outer is None else outer
            cut = Cut.LINE if item is None else Cut.ITEM if width <= outer else Cut.ROW
        if outer is None:
            outer = len(line) - len(line.lstrip())
        if mark:
            fence, began = mark[1], begin
            continue
        yield begin, stop, cut
    if fence is not None:
        # A fence that is never closed holds the rest.
        yield began, start + len(text[start:end].rstrip()), cut


def code_lines(text: str, start: int, end: int, first: int, divided: Outline | None = None) -> Iterator[Piece]:
    """Yield the lines of code; how good a cut is follows from the outline, or from blank lines and indentation."""
    was_blank = False
    for number, found in enumerate(_LINES.finditer(text, start, end)):
        begin, stop = found.span()
        stop = begin + len(text[begin:stop].rstrip())
        if begin == stop:
            was_blank = True
        elif begin == start:
            yield begin, stop, first
        else:
            indent = _INDENT.match(text, begin, stop)
            assert indent is not None
            if _CLOSER.match(text, indent.end(), stop):
                cut: int = Cut.GLUED
            elif divided is not None:
                cut = divided.cuts.get(number, Cut.LINE if was_blank else Cut.CLAUSE)
            else:
                cut = _by_indent(len(indent[0].expandtabs(4)), is_after_blank=was_blank)
            yield begin, stop, cut
            was_blank = False


def _by_indent(width: int, *, is_after_blank: bool) -> int:
    if is_after_blank:
        return Cut.DEFINITION if width == 0 else Cut.NESTED if width <= 4 else Cut.STATEMENT
    return Cut.STATEMENT if width == 0 else Cut.LINE


def shorter(text: str, piece: Piece, target: int) -> Iterator[Piece]:
    """Yield a piece as its lines, or, if it is one line, as stretches of at most ``target`` characters.

    Stretches end after a word where there is one, else between two characters as a reader sees them where that is
    possible, else between two code points.
    """
    start, end, first = piece
    broken = list(lines(text, start, end))
    if len(broken) > 1:
        for begin, stop in broken:
            yield begin, stop, first if begin == broken[0][0] else Cut.LINE
        return
    at, cut = start, first
    while text[at].isspace():
        at += 1
    begin = at
    while end - at > target:
        if at > begin and end - at <= _LONG_WORD and not _BLANK.search(text, at, end):
            # The last word, whole for the same reason as the others.
            break
        stop, following = _stop(text, at, at + target, end)
        yield at, stop, cut
        cut = following
        while stop < end and text[stop].isspace():
            stop += 1
        at = stop
    if at < end:
        yield at, end, cut


def _stop(text: str, start: int, limit: int, end: int) -> tuple[int, int]:
    """Return where a stretch ends, at most at the limit and after its start, and how good the cut there is."""
    # White space, best after a mark that ends a sentence or a clause in the last half.
    blanks = [found.start() for found in _BLANK.finditer(text, start + 1, limit + 1)]
    half = start + (limit - start) // 2
    after_mark = next((blank for blank in reversed(blanks) if blank > half and text[blank - 1] in _CLAUSE_END), None)
    for blank in (after_mark, blanks[-1] if blanks else None):
        stop = start if blank is None else start + len(text[start:blank].rstrip())
        if stop > start:
            return stop, Cut.CLAUSE if text[stop - 1] in _CLAUSE_END else Cut.WORD
    # A word that is a little longer: whole, for it may fit.
    ahead = _BLANK.search(text, limit + 1, min(end, limit + _LONG_WORD))
    if ahead:
        return ahead.start(), Cut.WORD
    for place in range(limit, max(start, limit - (limit - start) // 2), -1):
        if text[place - 1] in _CLAUSE_END and is_grapheme_end(text, place):
            return place, Cut.CLAUSE
    for place in range(limit, max(start, limit - 64), -1):
        if is_grapheme_end(text, place):
            return place, Cut.INSIDE_WORD
    # One character as a reader sees it fills the stretch: take all of it if it ends soon.
    for place in range(limit + 1, min(end, limit + 32)):
        if is_grapheme_end(text, place):
            return place, Cut.INSIDE_WORD
    return limit, Cut.INSIDE_WORD


def is_grapheme_end(text: str, place: int) -> bool:
    """Return whether a reader sees two characters on the two sides of a place, as far as can be told nearby.

    Source: Unicode Standard Annex 29, https://unicode.org/reports/tr29/, simplified.
    """
    if place <= 0 or place >= len(text):
        return True
    before, after = text[place - 1], text[place]
    if after < "\u0300" and before < "\u0300":
        return not (before == "\r" and after == "\n")
    if before == "\u200d" or after in "\u200d\u200c":
        return False
    code = ord(after)
    if unicodedata.category(after) in ("Mn", "Me", "Mc") or 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:
        return False
    if _is_flag(code) and _is_flag(ord(before)):
        pairs = 0
        while place - 1 - pairs >= 0 and pairs < 64 and _is_flag(ord(text[place - 1 - pairs])):
            pairs += 1
        return pairs % 2 == 0
    if 0x1100 <= code <= 0x11FF or 0xAC00 <= code <= 0xD7FF:
        return not _hangul_joins(ord(before), code)
    return True


def _is_flag(code: int) -> bool:
    return 0x1F1E6 <= code <= 0x1F1FF


def _hangul_joins(before: int, after: int) -> bool:
    is_syllable = 0xAC00 <= before <= 0xD7A3
    if 0x1100 <= before <= 0x115F:
        return 0x1100 <= after <= 0x11A7 or 0xAC00 <= after <= 0xD7A3
    if 0x1160 <= before <= 0x11A7 or (is_syllable and (before - 0xAC00) % 28 == 0):
        return 0x1160 <= after <= 0x11FF
    return (0x11A8 <= before <= 0x11FF or is_syllable) and 0x11A8 <= after <= 0x11FF
