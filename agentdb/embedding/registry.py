"""Finds embedders that are installed, without importing any of them before it is asked for."""

from __future__ import annotations

from importlib.metadata import entry_points

from agentdb.embedding.port import Embedder, is_embedder
from agentdb.errors import InvalidInputError, MissingDependencyError

__all__ = ["DEFAULT_EMBEDDER", "ENTRY_POINT_GROUP", "load_embedder"]

ENTRY_POINT_GROUP = "agentdb.embedders"
DEFAULT_EMBEDDER = "local"


def load_embedder(name: str | None = None, **options: object) -> Embedder:
    """Return a new embedder from the entry-point group ``agentdb.embedders``.

    Args:
        name: the entry point; None takes ``local``, which runs a small model on this machine.
        options: passed to the factory behind the entry point.

    Raises:
        InvalidInputError: nothing of that name is installed, two distributions claim it, or it makes no embedder.
        MissingDependencyError: the default embedder, or what it depends on, is not installed; names the extra.
    """
    wanted = DEFAULT_EMBEDDER if name is None else name
    found = {entry.value: entry for entry in entry_points(group=ENTRY_POINT_GROUP, name=wanted)}
    if not found:
        if wanted == DEFAULT_EMBEDDER:
            raise MissingDependencyError(
                "no embedder is installed: install 'agentdb-lance[local]', or open the database with embedder=..."
            )
        known = sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})
        raise InvalidInputError(f"no embedder named {wanted!r} is installed; there are: {', '.join(known) or 'none'}")
    if len(found) > 1:
        raise InvalidInputError(f"embedder {wanted!r} is claimed more than once: {', '.join(sorted(found))}")
    (entry,) = found.values()
    try:
        factory = entry.load()
    except ImportError as error:
        extra = " (install 'agentdb-lance[local]')" if wanted == DEFAULT_EMBEDDER else ""
        raise MissingDependencyError(f"embedder {wanted!r} cannot be imported{extra}: {error}") from error
    embedder: Embedder = factory(**options)
    if not is_embedder(embedder):
        raise InvalidInputError(f"the factory of embedder {wanted!r} returned a {type(embedder).__name__}")
    return embedder
