"""One agent's memories in memory, brought from commit to commit, and what each signal says about them.

Rows are numbered by slot, as a `Follower` gives them out. What is counted (how many memories have a word) is counted within a
scope: another user's memories change nothing.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agentdb.filters import And, Compare, Filter
from agentdb.memory.encoding import QueryVectors, decode_tokens, decode_vectors
from agentdb.memory.records import Scope
from agentdb.memory.similarity import late_interaction
from agentdb.storage.table import Table
from agentdb.vectors.analysis import query_terms
from agentdb.vectors.bm25 import Bm25Block

__all__ = ["AgentCache", "AgentRows", "ScopeRows"]

COLUMNS = (
    "id",
    "user_id",
    "namespace",
    "session_id",
    "ordinal",
    "tier",
    "memory_type",
    "status",
    "importance",
    "role",
    "speaker",
    "occurred_at",
    "valid_from",
    "valid_to",
    "recorded_at",
    "retracted_at",
    "origin",
    "terms",
    "embedder",
    "vector",
    "tokens",
)
_FOR_RECALL = ("terms", "tokens")
"""Most of the bytes of a memory, and of no use to upkeep."""
_NO_CODE = -2
NEVER, FOREVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max

_K1, _B = 1.2, 0.4
"""As good as any b on abstracts, better on short texts: docs/decisions/011."""
_SHORT_TERMS = 64
"""A memory of at most so many terms is read together with its neighbours; a longer one would drown them, or they it."""
_NEIGHBOURS = (-2, -1, 1, 2)
_COMPACT_ROWS = 1_024
_EMPTY_BYTES = 10_000
"""About what an agent without memories takes: whoever asks for many agents that do not exist must not fill the memory."""

Mask = npt.NDArray[np.bool_]
Slots = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScopeRows:
    """The rows of a scope in the order of their sessions. `[M]` each.

    Attributes:
        slots: where they are; rows of a session stand together, in the order in which they came.
        place: `[size]` the position of a slot, -1 for those of other scopes.
        near: for each distance, at which positions the row that far away is of the same session, and may be read along.
        lengths: terms of each, with those that are read along.
    """

    slots: Slots
    place: Slots
    near: dict[int, Mask]
    lengths: Floats


class AgentRows:
    """The memories of one agent. One caller at a time; `lock` is for callers to hold.

    Args:
        table: where the rows are.
        agent_id: whose.
        embedder: name and dimension as they are stored; rows of another one count as not embedded.
        dimension: of the vectors; 0: nothing is embedded.
        for_upkeep: leave out what only recall asks for: words and tokens.
        device: the torch device where memories are compared; None: the host, without torch.
    """

    def __init__(
        self,
        table: Table,
        agent_id: str,
        embedder: str | None,
        dimension: int,
        *,
        for_upkeep: bool = False,
        device: str | None = None,
    ) -> None:
        self.device = device
        self.lock = threading.Lock()
        self._columns = [one for one in COLUMNS if not (for_upkeep and one in _FOR_RECALL)]
        self._table = table
        self.condition: Filter = Compare(("agent_id",), "eq", agent_id)
        self._embedder, self._dimension = embedder, dimension
        self._start()

    def _start(self) -> None:
        self._follower = self._table.follow(self._columns, filter=self.condition)
        self.ids: list[str] = []
        self.tokens: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]] | None] = []
        self._token_bytes = 0
        self._bm25 = Bm25Block(k1=_K1, b=_B)
        self._codes: dict[tuple[Any, ...], int] = {}
        self._numbers = {
            name: np.zeros(0, np.int64)
            for name in (
                "scope", "session", "ordinal", "tier", "memory_type", "status", "role", "speaker", "origin",
                "occurred_at", "valid_from", "valid_to", "recorded_at", "retracted_at", "length", "terms",
            )
        }  # fmt: skip
        self._floats = {"importance": np.zeros(0, np.float64)}
        self._vectors = np.zeros((0, self._dimension), np.float32)
        self._live = np.zeros(0, np.bool_)
        self._embedded = np.zeros(0, np.bool_)
        self._frequencies: dict[int, Counter[int]] = {}
        self._scopes: OrderedDict[Scope, ScopeRows] = OrderedDict()

    @property
    def size(self) -> int:
        """The slots given out so far."""
        return len(self.ids)

    @property
    def has_embedder(self) -> bool:
        """Whether there is an embedder whose vectors it holds."""
        return self._embedder is not None

    @property
    def nbytes(self) -> int:
        """About how much memory the rows take."""
        return _EMPTY_BYTES + self._vectors.nbytes + self._bm25.nbytes + self._token_bytes + 400 * self.size

    def advance(self) -> bool:
        """Go to the state of the current snapshot; False: inside a transaction, or in an older state, it cannot be had."""
        if not self._follower.can_follow():
            return False
        try:
            change = self._follower.advance()
            if self.size > _COMPACT_ROWS and 2 * self._follower.live < self._follower.size:
                self._start()
                change = self._follower.advance()
            if change is not None:
                self._add(change.added)
                self._remove(change.removed)
        except BaseException:
            self._start()  # neither the follower nor the arrays can be trusted
            raise
        return True

    def load(self) -> None:
        """Read the rows as the current transaction or snapshot sees them, without following them."""
        self._start()
        self._add(self._table.scan_arrow(self.condition, columns=self._columns).read_all())

    def holds(self, condition: Filter) -> Mask:
        """Return `[size]` for which rows a caller's filter holds, in the current snapshot."""
        matching = {row["id"] for row in self._table.scan(And(self.condition, condition), columns=["id"])}
        return np.fromiter((one in matching for one in self.ids), np.bool_, self.size)

    def code(self, kind: str, *values: Any) -> int:
        """Return the number that stands for a value; the same one every time, 0 or more."""
        return self._codes.setdefault((kind, *values), len(self._codes))

    def number(self, name: str) -> npt.NDArray[np.int64]:
        """Return `[size]` a column of numbers: codes, or times in microseconds."""
        return self._numbers[name][: self.size]

    @property
    def importance(self) -> npt.NDArray[np.float64]:
        """`[size]`."""
        return self._floats["importance"][: self.size]

    @property
    def live(self) -> Mask:
        """`[size]`: which slots hold a row."""
        return self._live[: self.size]

    @property
    def embedded(self) -> Mask:
        """`[size]`: which rows have a vector of the embedder."""
        return self._embedded[: self.size]

    def vectors(self, slots: Slots) -> Floats:
        """Return `[n, D]` unit vectors; zero where there is none."""
        found: Floats = self._vectors[slots]
        return found

    # --- rows come and go ---------------------------------------------------------------------------------------------

    def _add(self, added: pa.Table) -> None:
        count, first = added.num_rows, self.size
        if not count:
            return
        self._grow(first + count)
        part = slice(first, first + count)
        columns = {name: added.column(name).to_pylist() for name in (
            "id", "user_id", "namespace", "session_id", "tier", "memory_type", "status", "role", "speaker", "origin",
            "embedder", "vector",
        )}  # fmt: skip
        walls = list(zip(columns["user_id"], columns["namespace"], strict=True))
        numbers = self._numbers
        numbers["scope"][part] = [self.code("scope", *one) for one in walls]
        numbers["session"][part] = [
            -1 if session is None else self.code("session", *wall, session)
            for wall, session in zip(walls, columns["session_id"], strict=True)
        ]
        for name in ("tier", "memory_type", "status", "speaker", "role", "origin"):
            numbers[name][part] = [-1 if one is None else self.code(name, one) for one in columns[name]]
        numbers["ordinal"][part] = added.column("ordinal").to_numpy()
        for name, missing in (
            ("occurred_at", NEVER), ("valid_from", NEVER), ("valid_to", FOREVER), ("recorded_at", NEVER),
            ("retracted_at", FOREVER),
        ):  # fmt: skip
            moments = pc.fill_null(added.column(name).cast(pa.int64()), missing)
            numbers[name][part] = moments.to_numpy()
        self._floats["importance"][part] = added.column("importance").to_numpy()
        self._live[part] = True
        self.ids.extend(columns["id"])
        mine = [
            i
            for i, (embedder, vector) in enumerate(zip(columns["embedder"], columns["vector"], strict=True))
            if vector is not None and embedder == self._embedder
        ]
        self._embedded[part] = False
        self._vectors[part] = 0
        at = first + np.array(mine, np.int64)
        self._embedded[at] = True
        self._vectors[at] = decode_vectors([columns["vector"][i] for i in mine], self._dimension)
        if "terms" in self._columns:
            self._bm25.append(first, added.column("terms").combine_chunks())
            numbers["terms"][part] = self._bm25._lengths[part]
            self._add_tokens(first, added.column("tokens").to_pylist())
        self._scopes.clear()

    def _add_tokens(self, first: int, stored: list[bytes | None]) -> None:
        for i, tokens in enumerate(stored, first):
            found = decode_tokens(tokens, self._dimension) if self._embedded[i] and tokens is not None else None
            self.tokens.append(found)
            if found is not None:
                self._token_bytes += found[0].nbytes + found[1].nbytes
                scope = int(self._numbers["scope"][i])
                self._frequencies.setdefault(scope, Counter()).update(set(found[0].tolist()))

    def _remove(self, removed: Slots) -> None:
        if not len(removed):
            return
        self._live[removed] = self._embedded[removed] = False
        self._vectors[removed] = 0
        self._scopes.clear()
        if "terms" not in self._columns:
            return
        self._bm25.remove(removed)
        for slot in removed.tolist():
            gone, self.tokens[slot] = self.tokens[slot], None
            if gone is not None:
                self._token_bytes -= gone[0].nbytes + gone[1].nbytes
                self._frequencies[int(self._numbers["scope"][slot])].subtract(set(gone[0].tolist()))

    def _grow(self, size: int) -> None:
        if size <= len(self._live):
            return
        room = max(size, 2 * len(self._live), 64)
        self._live, self._embedded = (_longer(one, room) for one in (self._live, self._embedded))
        self._vectors = _longer(self._vectors, room)
        self._numbers = {name: _longer(one, room) for name, one in self._numbers.items()}
        self._floats = {name: _longer(one, room) for name, one in self._floats.items()}

    # --- what the signals say -----------------------------------------------------------------------------------------

    def scope(self, scope: Scope) -> ScopeRows:
        """Return the rows of a scope, whatever their tier and status: what counts as its words."""
        found = self._scopes.get(scope)
        if found is None:
            found = self._scopes[scope] = self._scoped(scope)
            while len(self._scopes) > 16:
                self._scopes.popitem(last=False)
        return found

    def _scoped(self, scope: Scope) -> ScopeRows:
        walls = scope.user_id, scope.namespace
        # A scope that is asked for and is not there gets no number: there may be any number of those.
        chosen = self.live & (self.number("scope") == self._codes.get(("scope", *walls), _NO_CODE))
        if scope.session_id is not None:
            chosen &= self.number("session") == self._codes.get(("session", *walls, scope.session_id), _NO_CODE)
        slots = np.flatnonzero(chosen)
        slots = slots[np.lexsort((self.number("ordinal")[slots], self.number("session")[slots]))]
        place = np.full(self.size, -1, np.int64)
        place[slots] = np.arange(len(slots))
        session, own = self.number("session")[slots], self.number("terms")[slots].astype(np.float32)
        short = own <= _SHORT_TERMS
        near, lengths = {}, own.copy()
        for distance in _NEIGHBOURS:
            same = (session == _shifted(session, distance, -1)) & (session >= 0)
            near[distance] = same & short & _shifted(short, distance, fill=False)
            lengths += np.where(near[distance], _shifted(own, distance, 0), 0)
        return ScopeRows(slots, place, near, lengths)

    def words(self, query: str, rows: ScopeRows) -> Floats:
        """Return `[M]` BM25 of each memory read together with its neighbours; 0 where no word is shared."""
        total = np.zeros(len(rows.slots), np.float32)
        asked, repeats = np.unique(query_terms(query), return_counts=True)
        if not len(asked) or not len(total):
            return total
        counted = int(np.count_nonzero(rows.lengths))
        mean = float(rows.lengths.sum()) / max(counted, 1) or 1.0
        norms = _K1 * (1 - _B + _B * rows.lengths / mean)
        for (_, lists), repeat in zip(self._bm25.freeze()._postings(asked), repeats, strict=True):
            own = np.zeros(len(total), np.float32)
            for slots, counts in lists:
                places = rows.place[slots]
                own[places[places >= 0]] = counts[places >= 0]
            if not own.any():
                continue
            times = own.copy()
            for distance, near in rows.near.items():
                times += np.where(near, _shifted(own, distance, 0), 0)
            frequency = int(np.count_nonzero(times))
            idf = np.log1p((max(counted - frequency, 0) + 0.5) / (frequency + 0.5))
            total += np.float32(repeat * idf * (_K1 + 1)) * times / (times + norms)
        return total

    def meaning(self, queries: Sequence[QueryVectors], rows: ScopeRows) -> Floats:
        """Return `[Q, M]` cosines, all queries in one pass over the vectors; nan where there is no vector."""
        asked = np.stack([one.vector for one in queries])
        found = asked @ self._vectors[: self.size].T
        found[:, ~self.embedded] = np.nan
        of_scope: Floats = found[:, rows.slots]
        return of_scope

    def late(self, query: QueryVectors, slots: Slots, rows: ScopeRows) -> Floats:
        """Return `[n]` the mean, over the query's tokens by their rarity, of the best cosine to a token of each; nan without tokens."""
        found = np.full(len(slots), np.nan, np.float32)
        if query.tokens is None or query.ids is None or not len(query.ids):
            return found
        having = [i for i, slot in enumerate(slots.tolist()) if (its := self.tokens[slot]) is not None and len(its[0])]
        if not having:
            return found
        theirs = [self.tokens[slot][1] for slot in slots[having].tolist()]
        frequencies = self._frequencies.get(int(self.number("scope")[slots[having[0]]]), Counter())
        often = np.array([frequencies[one] for one in query.ids.tolist()], np.float64)
        weights = np.log1p((np.maximum(len(rows.slots) - often, 0) + 0.5) / (often + 0.5))
        shares = (weights / weights.sum()).astype(np.float32)
        found[having] = late_interaction(query.tokens, shares, theirs, self.device)
        return found

    def named(self, query: str, slots: Slots) -> Mask:
        """Return `[n]`: whose speaker the query names."""
        words = set(re.findall(r"\w+", query.casefold()))
        codes = {
            code
            for key, code in self._codes.items()
            if key[0] == "speaker" and (names := re.findall(r"\w+", key[1].casefold())) and words.issuperset(names)
        }
        found: Mask = np.isin(self.number("speaker")[slots], list(codes))
        return found


def _longer(array: npt.NDArray[Any], room: int) -> npt.NDArray[Any]:
    made = np.zeros((room, *array.shape[1:]), array.dtype)
    made[: len(array)] = array
    return made


def _shifted(array: npt.NDArray[Any], distance: int, fill: Any) -> npt.NDArray[Any]:
    """Return for each position what stands ``distance`` behind it; beyond the ends, ``fill``."""
    found = np.full_like(array, fill)
    if abs(distance) < len(array):
        if distance > 0:
            found[:-distance] = array[distance:]
        else:
            found[-distance:] = array[:distance]
    return found


class AgentCache:
    """The agents whose memories are held, within a budget; those used longest ago make room. Safe for threads.

    Args:
        table: where the rows are.
        budget_bytes: how much memory they may take.
        device: see `AgentRows`.
    """

    def __init__(self, table: Table, budget_bytes: int, *, device: str | None = None) -> None:
        self._table = table
        self._device = device
        self._budget_bytes = budget_bytes
        self._mutex = threading.Lock()
        self._agents: OrderedDict[tuple[str, str | None], AgentRows] = OrderedDict()
        self._bytes: dict[tuple[str, str | None], int] = {}
        self._total = 0

    def agent(self, agent_id: str, embedder: str | None, dimension: int) -> AgentRows:
        """Return the rows of an agent; `AgentRows.advance` brings them to the state of a snapshot."""
        name = agent_id, embedder
        with self._mutex:
            rows = self._agents.get(name)
            if rows is None:
                rows = self._agents[name] = AgentRows(self._table, agent_id, embedder, dimension, device=self._device)
                self._count(name, rows.nbytes)
            self._agents.move_to_end(name)
            return rows

    def note(self, agent_id: str, embedder: str | None, nbytes: int) -> None:
        """Take down how much an agent takes, and let go of others for it; searches under way keep theirs to the end."""
        with self._mutex:
            if (agent_id, embedder) in self._agents:  # otherwise it had to make room meanwhile
                self._count((agent_id, embedder), nbytes)

    def _count(self, name: tuple[str, str | None], nbytes: int) -> None:
        self._total += nbytes - self._bytes.get(name, 0)
        self._bytes[name] = nbytes
        while self._total > self._budget_bytes and len(self._agents) > 1:
            oldest, _ = self._agents.popitem(last=False)
            self._total -= self._bytes.pop(oldest)

    def one_off(self, agent_id: str, embedder: str | None, dimension: int) -> AgentRows:
        """Return the rows of an agent that are read once, as a transaction sees them."""
        rows = AgentRows(self._table, agent_id, embedder, dimension, device=self._device)
        rows.load()
        return rows
