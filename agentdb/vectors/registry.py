"""``Collections``: which collections a database has, how they are made, opened and dropped."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from agentdb.config import Config
from agentdb.embedding import Embedder, EmbedderIdentity, is_embedder
from agentdb.errors import InvalidInputError, NotFoundError
from agentdb.storage.core import Core
from agentdb.storage.engine import Engine
from agentdb.storage.table import Table
from agentdb.vectors.collection import Collection
from agentdb.vectors.definition import CollectionMetric, Definition, VectorSpec, check_collection_name, given_schema
from agentdb.vectors.evolution import Asked, Upkeep
from agentdb.vectors.resident import ResidentCache
from agentdb.vectors.store import DEFINITIONS, DefinitionStore
from agentdb.vectors.upkeep import IndexUpkeep

__all__ = ["Collections"]


class _Shared:
    """What all handles of a database share in one process."""

    def __init__(self, config: Config) -> None:
        self.cache = ResidentCache(config.resident_bytes, device=config.device)
        self.asked: Counter[Asked] = Counter()


_shared: dict[Core, _Shared] = {}


class Collections:
    """The collections of one database; made by it."""

    def __init__(self, engine: Engine, default_embedder: Callable[[], Embedder]) -> None:
        self._engine = engine
        self._default_embedder = default_embedder
        self._shared = _shared.setdefault(engine._core, _Shared(engine.config))
        self._upkeep = Upkeep(self._shared.asked, self._opened)
        engine.add_maintenance("collections", self._upkeep.run)
        self._indices = IndexUpkeep(self._opened, engine.config.resident_bytes)
        engine.add_maintenance("indices", self._indices.run)

    def rest(self) -> None:
        """End the index that is being built, if there is one; the next upkeep begins anew."""
        self._indices.stop(self._engine.config.close_timeout_s)

    def let_go(self) -> None:
        """Let go of what the handles of the process share, if the last of them is closed."""
        if self._engine._core.closed:
            _shared.pop(self._engine._core, None)

    def _opened(self) -> Iterator[tuple[DefinitionStore, Table]]:
        """Yield what upkeep works on: every collection."""
        definitions = self._definitions()
        for row in [] if definitions is None else list(definitions.scan(columns=["name"])):
            with contextlib.suppress(NotFoundError):  # dropped meanwhile
                yield self._stored(row["name"])

    def _stored(self, name: str) -> tuple[DefinitionStore, Table]:
        with self._engine.snapshot():
            definitions = self._engine.table(DEFINITIONS.name)
            found = self._find(name)
            if found is None:
                raise NotFoundError(f"collection {name!r} was dropped")
            table = self._engine.table(found.table_name)
            return DefinitionStore(self._engine, definitions, name, table, partial(self._upkeep.note, name)), table

    def _definitions(self) -> Table | None:
        """Return the table of definitions; None as long as there never was a collection."""
        try:
            return self._engine.table(DEFINITIONS.name)
        except NotFoundError:
            return None

    def names(self, prefix: str | None = None) -> list[str]:
        """Return the names of all collections but the managers' own (which begin with an underscore), sorted.

        Args:
            prefix: the names that begin with this instead.
        """
        definitions = self._definitions()
        rows = [] if definitions is None else list(definitions.scan(columns=["name"]))
        names = sorted(row["name"] for row in rows)
        return [name for name in names if (not name.startswith("_") if prefix is None else name.startswith(prefix))]

    def has(self, name: str) -> bool:
        """Whether there is a collection of that name."""
        return self._find(name) is not None

    def open(
        self,
        name: str,
        *,
        dimension: int | None,
        metric: CollectionMetric | None,
        embedder: Embedder | None,
        vectors: Mapping[str, VectorSpec] | None,
        schema: Mapping[str | Sequence[str], Any] | None,
    ) -> Collection:
        """Return a collection, made if there is none of that name."""
        check_collection_name(name)
        if embedder is not None and not is_embedder(embedder):
            raise InvalidInputError(
                f"embedder must have name, dimension, max_tokens and embed(), not {type(embedder).__name__}"
            )
        if vectors is not None and (dimension is not None or metric is not None):
            raise InvalidInputError("give either vectors, or dimension and metric of the only one")
        if self._find(name) is None:
            self._create(name, dimension, metric, embedder, vectors, schema)
        store, table = self._stored(name)
        _require_same(store.read(), dimension, metric, embedder, vectors, schema)
        return Collection(store, table, embedder, self._default_embedder, self._shared.cache)

    def _find(self, name: str) -> Definition | None:
        definitions = self._definitions()
        row = None if definitions is None else definitions.get(name)
        return None if row is None else Definition.from_json(name, row["definition"])

    def _create(
        self,
        name: str,
        dimension: int | None,
        metric: CollectionMetric | None,
        embedder: Embedder | None,
        vectors: Mapping[str, VectorSpec] | None,
        schema: Mapping[str | Sequence[str], Any] | None,
    ) -> None:
        if embedder is None and dimension is None and vectors is None:
            embedder = self._default_embedder()
        identity = None if embedder is None else EmbedderIdentity.of(embedder)
        if vectors is None:
            size = dimension if dimension is not None or identity is None else identity.dimension
            vectors = {"vector": VectorSpec(size, "cosine" if metric is None else metric)}  # type: ignore[arg-type]
        made = Definition.new(name, vectors, identity, schema)

        def work() -> None:
            if self._find(name) is None:  # another process may have been quicker
                self._engine.table(made.table_schema())
                self._engine.table(DEFINITIONS).put({"name": name, "definition": made.to_json()})

        self._engine.transact(work)

    def drop(self, name: str) -> bool:
        """Drop a collection with all its rows; whether there was one."""

        def work() -> bool:
            found = self._find(name)
            if found is None:
                return False
            self._engine.table(DEFINITIONS).delete(name)
            return self._engine.drop_table(found.table_name)  # what is resident of it goes when room is needed

        return self._engine.transact(work)


def _require_same(
    definition: Definition,
    dimension: int | None,
    metric: CollectionMetric | None,
    embedder: Embedder | None,
    vectors: Mapping[str, VectorSpec] | None,
    schema: Mapping[str | Sequence[str], Any] | None,
) -> None:
    """Return only if a collection is what the caller says it is; what he does not say is as it is stored.

    Raises:
        InvalidInputError: it differs; the message says in what.
    """
    name, only = definition.name, definition.vectors[definition.default_vector].spec
    if dimension is not None and dimension != only.dimension:
        raise InvalidInputError(f"collection {name} has {only.dimension} dimensions, not {dimension}")
    if metric is not None and metric != only.metric:
        raise InvalidInputError(f"collection {name} was created with metric {only.metric!r}, not {metric!r}")
    if embedder is not None:
        identities = [definition.embedder]
        if definition.reembedding is not None:
            identities.append(definition.reembedding.embedder)
        if EmbedderIdentity.of(embedder) not in identities:
            made = "given" if definition.embedder is None else f"made by embedder {definition.embedder.name!r}"
            raise InvalidInputError(
                f"the vectors of collection {name} are {made}, not by {embedder.name!r} ({embedder.dimension} "
                "dimensions); open it without an embedder and call reembed() to change that"
            )
    if vectors is not None:
        stored = {key: one.spec for key, one in definition.vectors.items()}
        given = {
            key: replace(one, embedded=stored[key].embedded)
            if isinstance(one, VectorSpec) and one.embedded is None and key in stored
            else one
            for key, one in dict(vectors).items()
        }
        if given != stored:
            differing = sorted(str(key) for key in given.keys() | stored.keys() if given.get(key) != stored.get(key))
            raise InvalidInputError(f"collection {name} was created with other vectors: {', '.join(differing)} differ")
    if schema is not None:
        _require_promoted(definition, schema)


def _require_promoted(definition: Definition, schema: Mapping[str | Sequence[str], Any]) -> None:
    stored = {one.keys: one.type for one in definition.promoted}
    for keys, kind in given_schema(schema).items():
        if stored.get(keys) != kind:
            found = f"as {stored[keys]}" if keys in stored else "not"
            raise InvalidInputError(
                f"collection {definition.name}: metadata key {'.'.join(keys)} is promoted {found}, asked for is {kind}; "
                "promote() adds one"
            )
