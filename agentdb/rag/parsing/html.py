"""HTML as a reader sees it: headings, paragraphs, lists, tables and code, without scripts and navigation.

Source: https://html.spec.whatwg.org/multipage/parsing.html for the trees that markup makes.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from agentdb.errors import MissingDependencyError
from agentdb.rag.parsing.model import DocumentError, ParsedDocument, ParseLimits, TextBuilder
from agentdb.rag.parsing.text import decode

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

__all__ = ["LoadImage", "markdown_table", "parse_html", "render_html"]

LoadImage = Callable[[str], tuple[bytes, str] | None]
"""Returns the data and the media type of the picture at an address, or None if it is not at hand."""

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SKIPPED = frozenset(
    "head script style noscript template svg math nav iframe object canvas video audio button input select textarea dialog "  # noqa: SIM905
    "map".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer form "  # noqa: SIM905
    "header hgroup hr html legend main p section summary table tbody td tfoot th thead tr ul ol li menu pre".split()
)
_LISTS = frozenset(["ul", "ol", "menu"])
_FORMATTING = frozenset(
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"]
)
_CLOSED_BY_THEMSELVES = frozenset(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th thead "  # noqa: SIM905
    "tbody tfoot colgroup rp rt".split()
)
_MOST_DEPTH = 500
_MOST_REOPENED = 500_000
_MOST_ATTRIBUTES = 2_000
_TAG = re.compile(r"<(?:(!--)|(/?)([a-zA-Z][a-zA-Z0-9:-]*+))")
_RAW = {name: re.compile(rf"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "title", "xmp")}
_WHITE = re.compile(r"\s+")
_NOT_SHOWN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:^|\s)(?:lang(?:uage)?-|highlight-(?:source-)?)([\w+#-]+)")
_DATA_ADDRESS = re.compile(r"data:(image/[\w.+-]+);base64,", re.IGNORECASE)
_KEPT_META = {
    "author": "author",
    "description": "description",
    "keywords": "keywords",
    "date": "created",
    "dcterms.created": "created",
    "article:published_time": "created",
    "article:author": "author",
    "og:description": "description",
}


def parse_html(data: bytes, limits: ParseLimits) -> ParsedDocument:
    """Return a page's title, text and structure, and the pictures that lie in the markup itself."""
    markup, encoding, warnings = decode(data, limits)
    builder = TextBuilder(limits)
    builder.warnings += warnings
    tree = render_html(markup, builder, load_image=_from_address)
    head = tree.css_first("title")
    metadata: dict[str, Any] = {"encoding": encoding, **_metadata(tree)}
    title = head.text() if head is not None else None
    if not (title or "").strip():
        title = next(_headings(builder, 1), None)
    return builder.build("text/html", title, metadata)


def _headings(builder: TextBuilder, level: int) -> Iterator[str]:
    return (builder.text_of(block) for block in builder.blocks if block.kind == "heading" and block.level == level)


def _metadata(tree: LexborHTMLParser) -> dict[str, str]:
    found: dict[str, str] = {}
    for meta in tree.css("meta"):
        attributes = meta.attributes
        name = _KEPT_META.get((attributes.get("name") or attributes.get("property") or "").lower())
        content = (attributes.get("content") or "").strip()
        if name and content:
            found.setdefault(name, content[:2_000])
    root = tree.css_first("html")
    language = (root.attributes.get("lang") or "").strip() if root is not None else ""
    if language:
        found["language"] = language[:35]
    return found


def _from_address(address: str) -> tuple[bytes, str] | None:
    found = _DATA_ADDRESS.match(address)
    if not found:
        return None
    try:
        return base64.b64decode(address[found.end() :], validate=False), found[1].lower()
    except (binascii.Error, ValueError):
        return None


def render_html(
    markup: str, builder: TextBuilder, *, page: int | None = None, load_image: LoadImage | None = None
) -> LexborHTMLParser:
    """Add the blocks of some HTML to a text and return its tree.

    Raises:
        DocumentError: it is nested so deeply, or repeats so much, that its tree would take no end of time or memory.
        MissingDependencyError: ``selectolax`` is not installed.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise MissingDependencyError("HTML needs selectolax: install 'agentdb-lance[documents]'") from error
    _require_tame(markup, builder)
    tree = LexborHTMLParser(markup)
    root = tree.body or tree.root
    if root is not None:
        _Page(builder, page, load_image).render(root)
    return tree


def _require_tame(markup: str, builder: TextBuilder) -> None:
    """Return if the tree of the markup is not much larger than the markup.

    The time to build a tree grows with its depth, and an open element that formats text is repeated in every block.
    """
    depth = formats = reopened = at = tags = 0
    while found := _TAG.search(markup, at):
        at = found.end()
        tags += 1
        if not tags % 10_000:
            builder.watch.check()
        if found[1]:
            closing = markup.find("-->", found.start() + 2)
            if closing < 0:
                return
            at = closing
            continue
        name = found[3].lower()
        if name in _FORMATTING:
            formats = max(0, formats - 1) if found[2] else formats + 1
        elif not found[2]:
            reopened += formats
        if name not in _CLOSED_BY_THEMSELVES:
            depth = max(0, depth - 1) if found[2] else depth + 1
        if depth > _MOST_DEPTH or reopened > _MOST_REOPENED + 2 * tags:
            raise DocumentError("the markup is nested too deeply, or elements in it are never closed", reason="unsafe")
        end = markup.find(">", at)
        if end - at > 64 * _MOST_ATTRIBUTES and len(markup[at:end].split()) > _MOST_ATTRIBUTES:
            raise DocumentError("an element of the markup has too many attributes", reason="unsafe")
        if not found[2] and name in _RAW:
            closed = _RAW[name].search(markup, at)
            if not closed:
                return
            at = closed.start()


class _Page:
    """One walk over a tree; text gathers until a block ends."""

    def __init__(self, builder: TextBuilder, page: int | None, load_image: LoadImage | None) -> None:
        self._builder = builder
        self._page = page
        self._load_image = load_image
        self._text: list[str] = []
        self._lists: list[int | None] = []
        self._lines: list[str] = []
        self._lead = ""

    def render(self, root: LexborNode) -> None:
        """Add the blocks of a tree. Trees can be deep, so this keeps no stack of its own."""
        node = root
        while True:
            if self._enter(node):
                child = node.first_child
                if child is not None:
                    node = child
                    continue
                self._leave(node)
            while node.mem_id != root.mem_id and node.next is None:
                parent = node.parent
                assert parent is not None
                node = parent
                self._leave(node)
            following = node.next
            if node.mem_id == root.mem_id or following is None:
                self._flush()
                return
            node = following

    def _enter(self, node: LexborNode) -> bool:
        """Take a node and return whether its children are to be visited."""
        if node.is_text_node:
            self._text.append(_WHITE.sub(" ", node.text_content or ""))
            return False
        tag = node.tag
        if tag is None or not node.is_element_node or tag in _SKIPPED:
            return False
        if tag == "br":
            self._text.append("\n")
            return False
        if tag == "img":
            self._image(node)
            return False
        if tag in _BLOCKS or tag in _HEADINGS:
            attributes = node.attributes
            if "hidden" in attributes or _NOT_SHOWN.search(attributes.get("style") or ""):
                return False
            self._flush()
            if tag in _LISTS:
                self._lists.append(_first_number(attributes) if tag == "ol" else None)
            elif tag == "li":
                self._item()
            elif tag == "pre":
                self._listing(node)
                return False
            elif tag == "table" and not self._lists:
                return not self._table(node)
        return True

    def _leave(self, node: LexborNode) -> None:
        tag = node.tag
        if tag in _HEADINGS:
            self._flush(_HEADINGS[tag])
        elif tag in _BLOCKS:
            self._flush()
            if tag in _LISTS and self._lists:
                self._lists.pop()
                if not self._lists:
                    self._builder.add("list", "\n".join(self._lines), page=self._page)
                    self._lines = []

    def _item(self) -> None:
        if not self._lists:
            return
        number = self._lists[-1]
        if number is None:
            self._lead = "- "
        else:
            self._lead = f"{number}. "
            self._lists[-1] = number + 1

    def _flush(self, level: int = 0) -> None:
        """End a block: what has gathered becomes a heading, a paragraph, or a line of a list."""
        if not self._text:
            return
        # White space of the markup is single spaces by now: the line ends are those of <br>.
        lines = (" ".join(line.split()) for line in "".join(self._text).split("\n"))
        self._text.clear()
        text = "\n".join(line for line in lines if line)
        if not text:
            return
        if self._lists:
            indent = "  " * (len(self._lists) - 1)
            hanging = indent + " " * (len(self._lead) or 2)
            self._lines.append(f"{indent}{self._lead or '  '}" + text.replace("\n", "\n" + hanging))
            self._lead = ""
        elif level:
            self._builder.add("heading", " ".join(text.split()), level=level, page=self._page)
        else:
            self._builder.add("paragraph", text, page=self._page)

    def _listing(self, node: LexborNode) -> None:
        """Add code, in a list as a fenced block of the item."""
        code, language = _raw_text(node), _language(node)
        if not self._lists:
            self._builder.add("code", code, page=self._page, language=language)
        elif code.strip():
            indent = "  " * len(self._lists)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
            written = [f"{fence}{language or ''}", *code.strip("\n").split("\n"), fence]
            self._lines += [indent + line for line in written]

    def _image(self, node: LexborNode) -> None:
        attributes = node.attributes
        caption = (attributes.get("alt") or "").strip()
        found = self._load_image(attributes.get("src") or "") if self._load_image else None
        if found is None or self._lists:
            self._text.append(f" {caption} ")
        else:
            self._flush()
            self._builder.add_image(*found, caption, self._page)

    def _table(self, node: LexborNode) -> bool:
        """Add a table of data and return True, or return False for one that only arranges what is in it."""
        rows: list[list[str]] = []
        for row in node.css("tr"):
            cells = [cell for cell in row.iter() if cell.tag in ("td", "th")]
            if any(cell.css_first("table, h1, h2, h3, pre, ul, ol") is not None for cell in cells):
                return False
            rows.append([" ".join(cell.text(separator=" ").split()) for cell in cells])
            self._builder.watch.check()
        if max(map(len, rows), default=0) < 2:
            return False
        caption = node.css_first("caption")
        if caption is not None:
            self._builder.add("paragraph", " ".join(caption.text(separator=" ").split()), page=self._page)
        self._builder.add("table", markdown_table(rows), page=self._page)
        return True


def _first_number(attributes: dict[str, str | None]) -> int:
    start = attributes.get("start") or ""
    return int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1


def _raw_text(node: LexborNode) -> str:
    parts = []
    for each in node.traverse(include_text=True):
        if each.is_text_node:
            parts.append(each.text_content or "")
        elif each.tag == "br":
            parts.append("\n")
    return "".join(parts).replace("\r\n", "\n")


def _language(node: LexborNode) -> str | None:
    """Return the language that the classes of a listing, of what is in it, or of what it is in tell."""
    parent = node.parent
    for each in (node, node.first_child, parent, parent.parent if parent is not None else None):
        if each is not None and each.is_element_node:
            found = _LANGUAGE.search(each.attributes.get("class") or "")
            if found and found[1].lower() not in ("default", "none", "text", "plaintext"):
                return found[1].lower()
    return None


def markdown_table(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table whose first row is the head; empty rows and columns are left out."""
    rows = [row for row in rows if any(row)]
    width = max((len(row) for row in rows), default=0)
    used = [place for place in range(width) if any(place < len(row) and row[place] for row in rows)]
    if not used:
        return ""
    lines = []
    for number, row in enumerate(rows):
        cells = [row[place] if place < len(row) else "" for place in used]
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
        if number == 0:
            lines.append("|" + " --- |" * len(used))
    return "\n".join(lines)
