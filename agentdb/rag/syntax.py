"""Where source code is divided, by its syntax: definitions, what they are called, and statements.

The grammars are tree-sitter's, from the extra ``documents``. A language without one, or whose grammar is not installed, is
divided by blank lines and indentation instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from agentdb.rag.pieces import Cut

if TYPE_CHECKING:
    from tree_sitter import Language, Node

__all__ = ["Definition", "Outline", "outline"]

_GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "python": ("tree_sitter_python", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}
_ALIASES = {"c++": "cpp", "cc": "cpp", "golang": "go", "js": "javascript", "jsx": "javascript", "py": "python"} | {
    "python3": "python",
    "rs": "rust",
    "ts": "typescript",
}
_DEFINITION = re.compile(
    r"(?:(?:async_)?function|generator_function|class|abstract_class|method|constructor|interface|enum|struct|union|trait"
    r"|impl|mod|module|namespace|record|annotation_type|type_alias|type|macro|template|decorated|internal_module)"
    r"_(?:definition|declaration|item|specifier|spec)"
)
_NAMES = ("name", "declarator", "type", "definition", "declaration")
_LARGEST = 4 << 20
"""Characters: the tree of a source takes many times its size."""
_SMALL_LINES = 4
_WRAPPED = frozenset(["decorated_definition", "template_declaration", "export_statement"])
"""What is round a definition, begins before it, and has no name of its own."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A class, a function or the like: its lines, counted from 0, and its name; the comment before it is part of it."""

    first: int
    last: int
    name: str


@dataclass(frozen=True, slots=True)
class Outline:
    """How good a cut before a line is, for the lines where something begins, and the definitions, outer ones first."""

    cuts: dict[int, int]
    definitions: list[Definition]


def outline(code: str, language: str | None) -> Outline | None:
    """Return how source code is divided, or None if there is no grammar at hand or the code is too large for one.

    Args:
        code: lines end with a line feed; what is not well-formed is divided as far as it can be read.
        language: as a fence names it.
    """
    if language is None or len(code) > _LARGEST:
        return None
    known = _grammar(_ALIASES.get(language, language))
    if known is None:
        return None
    from tree_sitter import Parser

    # Alone a surrogate cannot be encoded; that it is replaced moves no line.
    tree = Parser(known).parse(code.encode("utf-8", "replace"))
    return _Walk().of(tree.root_node)


@cache
def _grammar(language: str) -> Language | None:
    if language not in _GRAMMARS:
        return None
    module, function = _GRAMMARS[language]
    try:
        from tree_sitter import Language

        make: Callable[[], object] = getattr(import_module(module), function)
        return Language(make())
    except ImportError:
        # The core divides code without the extra too, only not as well.
        return None


class _Walk:
    """One walk over a tree: into what is longer than a few lines."""

    def __init__(self) -> None:
        self._cuts: dict[int, int] = {}
        self._definitions: list[Definition] = []

    def of(self, root: Node) -> Outline:
        # Nodes whose children are to be seen, in how many definitions they lie, and whether a child's name is known.
        waiting = [(root, 0, False)]
        while waiting:
            parent, depth, is_named = waiting.pop()
            is_inside = _is_definition(parent)
            is_wrapped = parent.type in _WRAPPED
            comment: tuple[int, int] | None = None  # lines of the comments right before a node
            for node in parent.named_children:
                first, last = node.start_point[0], node.end_point[0]
                if "comment" in node.type:
                    comment = (comment[0] if comment and comment[1] >= first - 1 else first, last)
                    continue
                began = comment[0] if comment and comment[1] >= first - 1 else first
                comment = None
                is_definition = _is_definition(node)
                if not is_wrapped:
                    self._cut(began, first, depth, is_definition=is_definition)
                elif first > parent.start_point[0]:
                    self._cuts[first] = Cut.GLUED
                name = _name(node) if is_definition and not is_named else ""
                if name:
                    self._definitions.append(Definition(began, last, name))
                size = last - first
                if size >= _SMALL_LINES or (size and is_inside) or (is_definition and not name and not is_named):
                    inner = depth + (is_definition and not is_wrapped)
                    waiting.append((node, inner, bool(name) and node.type in _WRAPPED))
        self._definitions.sort(key=lambda one: (one.first, -one.last))
        return Outline(self._cuts, self._definitions)

    def _cut(self, began: int, first: int, depth: int, *, is_definition: bool) -> None:
        """Note a cut before a node, or before the comments on it, which stay with it."""
        if is_definition:
            cut = Cut.DEFINITION if depth == 0 else Cut.NESTED
        else:
            cut = Cut.STATEMENT if depth <= 1 else Cut.LINE
        self._cuts[began] = max(cut, self._cuts.get(began, 0))
        if began != first:
            self._cuts[first] = Cut.GLUED


def _is_definition(node: Node) -> bool:
    return node.type in _WRAPPED or _DEFINITION.fullmatch(node.type) is not None


def _name(node: Node) -> str:
    """Return what a definition is called, "" where it has no name."""
    found: Node | None = node
    for _ in range(8):
        if found is None:
            return ""
        if found.named_child_count == 0 or "identifier" in found.type:
            break
        found = next((child for name in _NAMES if (child := found.child_by_field_name(name)) is not None), None)
    text = found.text if found is not None and found is not node else None
    name = " ".join(text.decode("utf-8", "replace").split()) if text else ""
    return name if len(name) <= 200 else ""
