"""``AgentMemories``: remembering, recalling, changing, keeping up, forgetting and erasing memories.

The face of the Memory Manager: what each call promises is said here, and done in the module that is named after it.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from agentdb.embedding import Embedder
from agentdb.errors import InvalidInputError, UnavailableError
from agentdb.filters import And, Compare, Contains, Filter
from agentdb.memory.core import MemoryCore
from agentdb.memory.embedding import MemoryEmbedding
from agentdb.memory.erasure import Eraser
from agentdb.memory.maintenance import MaintenanceReport
from agentdb.memory.policies import MemoryPolicies, MemoryType, Use
from agentdb.memory.recall import ContextOptions, Recaller, RecallOptions
from agentdb.memory.records import Memory, MemoryEvent, MemoryTrace, MemoryWrite, Scope, Tier
from agentdb.memory.rows import READ, scope_filters
from agentdb.memory.signals import MemoryContext, Recalled, RecallWeights
from agentdb.memory.transfer import export_jsonl, import_jsonl
from agentdb.memory.upkeep import BackgroundUpkeep, Upkeep
from agentdb.memory.writing import UNCHANGED, Unchanged, Writer
from agentdb.states.versions import check_identifier
from agentdb.types import ErasureReceipt

if TYPE_CHECKING:
    from agentdb.storage.engine import Engine

__all__ = ["AgentMemories"]


_ORIGINS = {
    None: "given by the caller",
    "summary": "the summary of {} memories, its sources",
    "fact": "a fact found in its source",
}
"""How a memory came to be, as its history begins."""


class AgentMemories:
    """The memories of all agents of one database.

    Made by the database; every method may be called from any thread. Inside ``db.transaction()`` the calls are part of the
    transaction. Identifiers are strings of 1 to 1,024 characters without NUL; unsigned 64-bit integers are accepted and
    stored as their decimal string.

    A memory's agent, user and namespace are walls: nothing is found, counted or compared across them.
    """

    def __init__(self, engine: Engine, embedder: Callable[[], Embedder]) -> None:
        self._core = MemoryCore(engine)
        self._embedding = MemoryEmbedding(self._core, embedder)
        self._writer = Writer(self._core, self._embedding)
        self._recaller = Recaller(self._core, self._embedding)
        self._eraser = Eraser(self._core)
        self._upkeep = Upkeep(self._core, self._embedding, self._writer, self._eraser)
        self._background = BackgroundUpkeep(self._core, self._embedding, self._upkeep)
        engine.add_maintenance("memories", self._background.run)

    @property
    def policies(self) -> MemoryPolicies:
        """The rules of this handle; another `MemoryPolicies` may be put in its place at any time."""
        return self._core.policies

    @policies.setter
    def policies(self, policies: MemoryPolicies) -> None:
        if not isinstance(policies, MemoryPolicies):
            raise InvalidInputError(f"policies must be MemoryPolicies, not {type(policies).__name__}")
        self._core.policies = policies

    # --- remembering --------------------------------------------------------------------------------------------------

    def remember(
        self,
        content: Any,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        memory_type: MemoryType | None = None,
        tier: Tier | None = None,
        importance: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        role: str | None = None,
        speaker: str | None = None,
        occurred_at: datetime | None = None,
        valid_from: datetime | None = None,
        valid_to: datetime | None = None,
    ) -> Memory:
        """Store one memory, word for word, durable when this returns, and return it.

        What was said before in the same session by the same speaker, to the letter, becomes another occurrence of that memory,
        with an id and metadata of its own: the last of ``Memory.occurrences``. Nothing else is merged, and nothing dropped.

        A working memory costs no embedding until it leaves. Any other is embedded now, together with the two before it in its
        session; if no embedder is installed, or it fails, the memory is stored all the same and found by its words, and is
        embedded by a later call of `embed_pending`.

        Args:
            content: a text, or JSON: a mapping or list. An image goes by reference, and is found by its caption.
            agent_id: whose memory.
            user_id: about, or from, which user.
            session_id: in which conversation; memories of one are each other's context, in the order in which they come.
            namespace: a wall within the agent.
            memory_type: ``"episodic"``, ``"semantic"`` or ``"procedural"``; None: open.
            tier: ``"working"``, ``"short_term"`` (default) or ``"long_term"``.
            importance: 0 to 1; None: estimated by the policy.
            metadata: a JSON object.
            role: ``"user"``, ``"assistant"``, ...
            speaker: by name; read and searched with the text.
            occurred_at: when it was said or happened.
            valid_from: since when it is true.
            valid_to: until when, that moment excluded.

        Raises:
            InvalidInputError: an argument cannot be stored; the message names which.
        """
        write = MemoryWrite(
            content=content,
            agent_id=agent_id,
            user_id=user_id,
            session_id=session_id,
            namespace=namespace,
            memory_type=memory_type,
            tier=tier,
            importance=importance,
            metadata=metadata,
            role=role,
            speaker=speaker,
            occurred_at=occurred_at,
            valid_from=valid_from,
            valid_to=valid_to,
        )
        return self._writer.remember(write)

    def remember_many(self, writes: Iterable[MemoryWrite]) -> builtins.list[Memory]:
        """Store many memories, all or none, as `remember` does one after the other, and return them; far faster.

        Raises:
            InvalidInputError: as `remember`; the message begins with the position.
        """
        return self._writer.remember_many(writes)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, memory_id: str, *, agent_id: str | int | None = None) -> Memory | None:
        """Return a memory, archived or not, or None.

        Args:
            memory_id: its id.
            agent_id: whose it must be; another agent's is None.
        """
        checked = check_identifier("memory_id", memory_id)
        owner = None if agent_id is None else check_identifier("agent_id", agent_id)
        found = [] if self._core.is_empty else self._core.read([checked], is_required=False)
        return found[0] if found and owner in (None, found[0].agent_id) else None

    def require(self, memory_id: str) -> Memory:
        """Return a memory.

        Raises:
            NotFoundError: there is none of that id.
        """
        return self._core.read([check_identifier("memory_id", memory_id)])[0]

    def list(
        self,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        tiers: Iterable[Tier] | None = None,
        types: Iterable[MemoryType] | None = None,
        filter: Filter | None = None,
        is_archived: bool | None = False,
        limit: int = 100,
    ) -> builtins.list[Memory]:
        """Return the memories of a scope, newest first.

        Args:
            agent_id: whose memories.
            user_id: of this user; None: only memories without a user.
            session_id: of this session; None: of every session.
            namespace: of this namespace; None: only memories without one.
            tiers: only these; None: all.
            types: only these; None: all, open ones included.
            filter: only memories that match; built from ``agentdb.field`` on the attributes of `Memory` that are stored, such as
                ``field("metadata", "topic")`` or ``field("speaker")``.
            is_archived: only archived ones, only others, or (None) both.
            limit: at most so many.

        Raises:
            InvalidInputError: an argument cannot be accepted.
        """
        parts = scope_filters(Scope.of(agent_id, user_id, namespace, session_id), tiers, types)
        if is_archived is not None:
            parts.append(Compare(("status",), "eq", "archived" if is_archived else "active"))
        if filter is not None:
            if not isinstance(filter, Filter):
                raise InvalidInputError(f"filter must be built from field(...), not {type(filter).__name__}")
            parts.append(filter)
        if type(limit) is not int or limit < 0:
            raise InvalidInputError("limit must be an int of 0 or more")
        if self._core.is_empty:
            return []
        newest_first = [("recorded_at", "desc"), ("ordinal", "desc")]
        with self._core.view():
            found = self._core.tables.memories.scan(And(*parts), order_by=newest_first, limit=limit, columns=READ)  # type: ignore[arg-type]
            return self._core.made(builtins.list(found))

    def history(self, memory_id: str) -> builtins.list[MemoryEvent]:
        """Return what happened to a memory, oldest first; the first event is that it was remembered.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._core.view():
            memory = self.require(memory_id)
            events = self._core.tables.events.scan(Compare(("memory_id",), "eq", memory.id), order_by="number")
            return [
                MemoryEvent(memory.recorded_at, "remembered", _ORIGINS[memory.origin].format(len(memory.sources))),
                *(
                    MemoryEvent(
                        one["at"],
                        one["action"],
                        one["reason"],
                        {} if one["before"] is None else json.loads(one["before"]),
                    )
                    for one in events
                ),
            ]

    def why(self, memory_id: str) -> MemoryTrace:
        """Return why a memory is as it is: what happened to it, what it stands for, and what speaks for keeping it.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._core.view():
            memory, events = self.require(memory_id), self.history(memory_id)
            walls = Scope(memory.agent_id, memory.user_id, memory.namespace, None)
            # What was imported may name any id as its source.
            known = self._core.read(memory.sources, is_required=False)
            sources = [one for one in known if Scope(one.agent_id, one.user_id, one.namespace, None) == walls]
            theirs = And(*scope_filters(walls), Contains(("sources",), (memory.id,)))
            derived = self._core.made(builtins.list(self._core.tables.memories.scan(theirs, columns=READ)))
        now, policies = self._core.now(), self.policies
        last_age_s, first_age_s = ((now - at).total_seconds() for at in (memory.last_used_at, memory.recorded_at))
        use = Use.of(last_age_s, first_age_s, memory.uses)
        activation = policies.decay.activation(use, policies.half_life(memory.tier, memory.memory_type))
        retention = policies.retention.retention(activation, memory.importance)
        return MemoryTrace(
            memory=memory,
            events=tuple(events),
            sources=tuple(sources),
            derived=tuple(derived),
            activation=float(activation[0]),
            retention=float(retention[0]),
        )

    # --- recalling ----------------------------------------------------------------------------------------------------

    def recall(
        self,
        query: str,
        *,
        agent_id: str | int,
        user_id: str | int | None = None,
        session_id: str | int | None = None,
        namespace: str | int | None = None,
        k: int = 10,
        types: Iterable[MemoryType] | None = None,
        tiers: Iterable[Tier] | None = None,
        filter: Filter | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        valid_at: datetime | None = None,
        known_at: datetime | None = None,
        token_budget: int | None = None,
        weights: RecallWeights | None = None,
        diversity: float = 0.0,
        reinforce: bool = True,
        explain: bool = False,
    ) -> builtins.list[Recalled]:
        """Return the K memories of a scope that matter most to a query, best first; ties by id.

        What was remembered before is found, in every process. Archived memories are not. Without an embedder, or where it
        fails, words decide alone.

        Args:
            query: a question, or whatever is being talked about.
            agent_id: whose memories.
            user_id: of this user; None: only memories without a user.
            session_id: of this session; None: of every session.
            namespace: of this namespace; None: only memories without one.
            k: at most so many.
            types: only these; None: all, open ones included.
            tiers: only these; None: all.
            filter: as in `list`.
            since: only what occurred then or later; what has no such time occurred when it was recorded.
            until: only what occurred earlier.
            valid_at: what was true at that time; None: now.
            known_at: what was known at that time; None: now, with all that was recorded.
            token_budget: only what fits; a memory that is too large for what is left makes room for smaller ones.
            weights: of the signals; None: the default.
            diversity: 0: the best; above, each is also chosen for saying something else than those before it, up to 1 for that alone.
                Questions with several answers lose by it.
            reinforce: count this as a use of what is returned, so that it fades more slowly. Not inside ``db.snapshot()``, nor where
                nothing can be written in time; the log says so.
            explain: let ``Recalled.signals`` hold what each signal said.

        Raises:
            InvalidInputError: an argument cannot be accepted; the message names it.
        """
        return self._recaller.many(
            [query],
            agent_id,
            {
                "user_id": user_id,
                "session_id": session_id,
                "namespace": namespace,
                "k": k,
                "types": types,
                "tiers": tiers,
                "filter": filter,
                "since": since,
                "until": until,
                "valid_at": valid_at,
                "known_at": known_at,
                "token_budget": token_budget,
                "weights": weights,
                "diversity": diversity,
                "reinforce": reinforce,
                "explain": explain,
            },
        )[0]

    def recall_many(
        self, queries: Sequence[str], *, agent_id: str | int, **options: Unpack[RecallOptions]
    ) -> builtins.list[builtins.list[Recalled]]:
        """Return what `recall` returns for each of many queries, all in one state of the database.

        Args:
            queries: a list of strings.
            agent_id: whose memories.
            options: as in `recall`.
        """
        return self._recaller.many(queries, agent_id, options)

    def context(
        self, query: str, *, agent_id: str | int, token_budget: int, **options: Unpack[ContextOptions]
    ) -> MemoryContext:
        """Return what `recall` finds as text for a prompt: a line for each memory, in the order in which they happened.

        Args:
            query: as in `recall`.
            agent_id: whose memories.
            token_budget: the text has at most so many tokens, the numbers, dates and names in it included.
            options: as in `recall`, but ``k`` is 20 unless given, and what does not fit is not reinforced.
        """
        return self._recaller.context(query, agent_id, token_budget, options)

    def embed_pending(self, agent_id: str | int, *, limit: int = 1_000) -> int:
        """Embed memories that have no vector of the embedder yet, oldest first; return how many.

        They are those that were working memory, those whose embedding failed, and all that another embedder made.

        Args:
            agent_id: whose memories.
            limit: at most so many.

        Raises:
            MissingDependencyError: no embedder is installed.
            UnavailableError: inside a transaction or snapshot.
        """
        if self._core.is_inside:
            raise UnavailableError("embed_pending is not possible inside a transaction or snapshot")
        if type(limit) is not int or limit < 1:
            raise InvalidInputError("limit must be an int of 1 or more")
        agent_id = check_identifier("agent_id", agent_id)
        if self._core.is_empty:
            return 0
        (name, dimension), cache = self._embedding.space(), self._core.resident
        rows = cache.agent(agent_id, name, dimension)
        done = self._embedding.embed_waiting(rows, limit, is_strict=True)
        cache.note(agent_id, name, rows.nbytes)
        return done

    # --- changing -----------------------------------------------------------------------------------------------------

    def update(
        self,
        memory_id: str,
        *,
        content: Any = UNCHANGED,
        importance: float | Unchanged = UNCHANGED,
        metadata: Mapping[str, Any] | Unchanged | None = UNCHANGED,
        memory_type: MemoryType | Unchanged | None = UNCHANGED,
        tier: Tier | Unchanged = UNCHANGED,
        valid_from: datetime | Unchanged | None = UNCHANGED,
        valid_to: datetime | Unchanged | None = UNCHANGED,
        retracted_at: datetime | Unchanged | None = UNCHANGED,
        reason: str = "changed by the caller",
    ) -> Memory:
        """Change parts of a memory and return it; what is not given stays. `history` tells what was there before, and why.

        Args:
            memory_id: which.
            content: takes the place of the old, and is embedded anew; alone, if the memory is not the last of its session.
            importance: 0 to 1.
            metadata: takes the place of the old.
            memory_type: None: open.
            tier: where to move it.
            valid_from: None: open.
            valid_to: None: open.
            retracted_at: since when it is known to be wrong; None: it stands.
            reason: why, in words.

        Raises:
            NotFoundError: there is none of that id.
            InvalidInputError: an argument cannot be stored.
        """
        given = {
            "content": content,
            "importance": importance,
            "metadata": metadata,
            "memory_type": memory_type,
            "tier": tier,
            "valid_from": valid_from,
            "valid_to": valid_to,
            "retracted_at": retracted_at,
        }
        return self._writer.update(memory_id, given, reason)

    def forget(self, memory_ids: str | Iterable[str], *, reason: str = "forgotten by the caller") -> int:
        """Archive memories: recall passes them over, `restore` brings them back; return how many were not archived before.

        Raises:
            NotFoundError: one of them does not exist; nothing is changed.
        """
        return self._writer.set_status(memory_ids, "archived", reason)

    def restore(self, memory_ids: str | Iterable[str], *, reason: str = "restored by the caller") -> int:
        """Bring archived memories back; return how many were archived. It counts as a use: they begin to fade anew.

        Raises:
            NotFoundError: one of them does not exist; nothing is changed.
        """
        return self._writer.set_status(memory_ids, "active", reason)

    def erase(self, memory_ids: str | Iterable[str]) -> ErasureReceipt:
        """Delete memories so that no file of the database holds them: no text, vector, occurrence, event, old version or log.

        What other memories of the session have read of them as their context is made anew, from what is left. Ids that do not
        exist are passed over. That of an occurrence after the first erases that occurrence alone: what is known of it besides the
        words, which are its memory's.

        Returns:
            The receipt of the memories themselves; of occurrences, if there is nothing else. Outside a transaction it is
            ``complete``, unless a reader still has an older state of the database pinned; ``db.erasure(receipt.id)`` tells how it
            stands.
        """
        return self._eraser.erase(memory_ids)

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def maintain(self, agent_id: str | int | None = None, *, limit: int = 10_000) -> MaintenanceReport:
        """Consolidate, close, compress, archive and purge what the policies say, now; return what was done and why.

        - Working memory of sessions that have ended moves to short-term memory.
        - Short-term memories that have settled move to long-term memory. One that says the same as an older memory of its user
          and namespace is merged into it instead: archived, its id among the other's ``sources``.
        - A memory that a newer one contradicts is not true any more from then on: its ``valid_to`` is closed, where the newer one's
          ``valid_from`` begins; nothing is deleted.
        - Old episodes about the same thing, rarely used, become one summary; they are archived, their ids its ``sources``. With
          an extractor, what is known for good from a memory that settles becomes memories of its own.
        - What has faded and matters little is archived; what was archived long ago is purged, if the policy says after how long.

        Every step is one transaction over at most 128 memories, so others read and write meanwhile, a killed process loses at most
        the step at hand, and another run goes on from there. `history` of each memory tells of it, too; what is purged is erased.
        A plug-in that fails, or takes longer than ``policies.plugin_timeout_s``, is replaced by the library's own rule for that
        memory, and the report's ``notes`` say so.

        Args:
            agent_id: whose memories; None: every agent's.
            limit: at most so many changes.

        Raises:
            UnavailableError: inside a transaction or snapshot.
        """
        if self._core.is_inside:
            raise UnavailableError("maintain is not possible inside a transaction or snapshot")
        if type(limit) is not int or limit < 1:
            raise InvalidInputError("limit must be an int of 1 or more")
        return self._upkeep.run(None if agent_id is None else check_identifier("agent_id", agent_id), limit)

    def upkeep_report(self) -> MaintenanceReport:
        """Return what upkeep in the background has done through this handle since it was opened: its last 1,000 changes.

        It looks at each agent every ``policies.upkeep_every_s``, does what `maintain` does, and begins once this handle has
        remembered or recalled something. Other processes do their part: ``history`` tells what happened to a memory, whoever did it.

        Returns:
            ``is_complete``: no agent is being kept up at the moment.
        """
        return self._background.report()

    def _rest(self) -> None:
        """End upkeep in the background after the step at hand: the handle is being closed."""
        self._background.stop(self._core.engine.config.close_timeout_s)

    # --- moving -------------------------------------------------------------------------------------------------------

    def export_jsonl(self, path: str | os.PathLike[str], *, agent_id: str | int | None = None) -> int:
        """Write memories, archived ones included, to a new file, one JSON object a line; return how many.

        One consistent state, with occurrences, events and uses; vectors are left out, since whoever imports makes them anew.

        Args:
            path: where; there must be no file yet.
            agent_id: whose memories; None: every agent's.

        Raises:
            InvalidInputError: the file exists.
            StorageError: it cannot be written; what was begun is removed.
        """
        return export_jsonl(self._core, path, agent_id)

    def import_jsonl(self, path: str | os.PathLike[str]) -> int:
        """Store the memories that `export_jsonl` wrote, all or none, under their own ids; return how many there were.

        A memory whose id is here already is replaced, with its history, so importing twice is as importing once. They are embedded by the next recall
        or `embed_pending`; until then their words find them.

        Raises:
            NotFoundError: there is no such file.
            InvalidInputError: a line is no exported memory, or its id is one of another agent, user, namespace or session here; the
                message says which. Nothing is stored.
        """
        return import_jsonl(self._core, path)
