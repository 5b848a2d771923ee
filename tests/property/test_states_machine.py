"""The states of a real database against a plain dict, through flushes, optimisations, reopenings and rollbacks."""

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import agentdb
from agentdb.config import Config
from agentdb.errors import ConflictError, NotFoundError
from agentdb.states import RetentionPolicy, StateWrite

START = datetime(2026, 1, 1, tzinfo=UTC)
agents = st.sampled_from(["a", "b"])
sessions = st.sampled_from(["s", "t"])
states = st.sampled_from([("a", "s", "context"), ("a", "s", "task"), ("a", "t", "context"), ("b", "s", "context")])
versions = st.integers(1, 16)


def conversation(length: int) -> dict:
    """Near-duplicates, large enough to become deltas."""
    return {"messages": [f"message {i} of a long conversation" for i in range(length)]}


data = st.one_of(
    st.integers(40, 60).map(conversation),
    st.binary(min_size=0, max_size=40),
    st.integers(0, 5).map(lambda n: {"noise": bytes((n * i * i) % 251 for i in range(1500))}),
)


@dataclass
class Version:
    data: object
    created_at: datetime
    parent: int | None
    parent_session: str | None = None


@dataclass
class State:
    last: int = 0
    last_at: datetime = START - timedelta(days=1)
    live: dict[int, Version] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return max(self.live, default=0)

    def add(self, value: object, now: datetime, parent: int | None, parent_session: str | None = None) -> Version:
        if not self.live:
            self.last_at = START - timedelta(days=1)
        now = max(now, self.last_at + timedelta(microseconds=1))
        self.last += 1
        self.last_at = now
        self.live[self.last] = version = Version(value, now, parent, parent_session)
        return version

    def remove(self, version: int) -> int:
        self.tags = {tag: number for tag, number in self.tags.items() if number != version}
        return int(self.live.pop(version, None) is not None)


class StatesMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.now = START
        self.model: dict[tuple[str, str, str], State] = {}
        self.config = Config(
            maintenance=False, durability="normal", clock=lambda: self.now, bulk_rows=6, bulk_bytes=500
        )
        self.db = agentdb.open(self.directory / "db", config=self.config)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            try:
                self.check_everything()
                assert self.db.verify().ok
            finally:
                self.db.close()
                shutil.rmtree(self.directory)

    def state(self, key) -> State:
        return self.model.setdefault(key, State())

    def check(self, found, key, number: int) -> None:
        expected = self.model[key].live[number]
        assert (found.agent_id, found.session_id, found.state_type, found.version) == (*key, number)
        assert found.data == expected.data
        assert found.created_at == expected.created_at
        assert (found.parent, found.parent_session) == (expected.parent, expected.parent_session)
        assert found.tags == tuple(sorted(t for t, n in self.model[key].tags.items() if n == number))

    # --- writes

    @rule(seconds=st.integers(-100, 1000))
    def time_passes(self, seconds) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(key=states, value=data, expected=st.none() | st.integers(0, 3) | st.just("right"))
    def save(self, key, value, expected) -> None:
        state = self.state(key)
        expected = state.newest if expected == "right" else expected
        if expected is not None and expected != state.newest:
            with pytest.raises(ConflictError) as caught:
                self.db.states.save(*key, value, expected_version=expected)
            assert (caught.value.expected, caught.value.actual) == (expected, state.newest)
            return
        saved = self.db.states.save(*key, value, expected_version=expected)
        state.add(value, self.now, state.newest or None)
        self.check(saved, key, state.last)

    @rule(writes=st.lists(st.tuples(states, data), max_size=10))
    def save_many(self, writes) -> None:
        numbers = self.db.states.save_many([StateWrite(*key, value) for key, value in writes])
        for (key, value), number in zip(writes, numbers, strict=True):
            self.state(key).add(value, self.now, self.state(key).newest or None)
            assert self.state(key).last == number

    @rule(key=states, length=st.integers(30, 50), count=st.integers(2, 8), is_flushed=st.booleans())
    def converse(self, key, length, count, is_flushed) -> None:
        for i in range(count):
            self.save(key, conversation(length + i), None)
        if is_flushed:
            self.db.flush()

    @rule(key=states, version=versions)
    def restore(self, key, version) -> None:
        state = self.state(key)
        if version not in state.live:
            with pytest.raises(NotFoundError):
                self.db.states.restore(*key, version)
            return
        state.add(state.live[version].data, self.now, version)
        self.check(self.db.states.restore(*key, version), key, state.last)

    @rule(agent=agents, source=sessions, copy=sessions, ago=st.none() | st.integers(0, 300))
    def branch(self, agent, source, copy, ago) -> None:
        as_of = None if ago is None else self.now - timedelta(seconds=ago)
        copies = {}
        for key, state in self.model.items():
            if key[:2] == (agent, source) and state.live:
                old = [n for n, v in state.live.items() if as_of is None or v.created_at <= as_of]
                if old:
                    copies[agent, copy, key[2]] = max(old)
        if any(state.live for key, state in self.model.items() if key[:2] == (agent, copy)):
            with pytest.raises(ConflictError):
                self.db.states.branch(agent, source, copy, as_of=as_of)
        elif not copies:
            with pytest.raises(NotFoundError):
                self.db.states.branch(agent, source, copy, as_of=as_of)
        else:
            made = self.db.states.branch(agent, source, copy, as_of=as_of)
            for found, (key, number) in zip(made, sorted(copies.items()), strict=True):
                value = self.model[agent, source, key[2]].live[number].data
                self.state(key).add(value, self.now, number, source)
                self.check(found, key, self.state(key).last)

    @rule(key=states, version=versions, tag=st.sampled_from(["x", "y"]))
    def tag(self, key, version, tag) -> None:
        state = self.state(key)
        if version not in state.live:
            with pytest.raises(NotFoundError):
                self.db.states.tag(*key, version, tag)
            return
        self.db.states.tag(*key, version, tag)
        state.tags[tag] = version

    @rule(key=states, tag=st.sampled_from(["x", "y"]))
    def untag(self, key, tag) -> None:
        assert self.db.states.untag(*key, tag) is (self.state(key).tags.pop(tag, None) is not None)

    @rule(key=states, version=versions | st.just("newest"), erase=st.booleans())
    def remove_version(self, key, version, erase) -> None:
        version = (self.state(key).newest or 1) if version == "newest" else version
        removed = self.state(key).remove(version)
        if erase:
            assert self.db.states.erase(*key, version=version).rows == removed
        else:
            assert self.db.states.delete(*key, version=version) == removed

    @rule(key=states, parts=st.integers(1, 3), erase=st.booleans())
    def remove_scope(self, key, parts, erase) -> None:
        removed = 0
        for name, state in self.model.items():
            if name[:parts] == key[:parts]:
                removed += len(state.live)
                state.live, state.tags = {}, {}
            elif erase and parts == 2 and name[0] == key[0]:
                for version in state.live.values():
                    version.parent_session = None if version.parent_session == key[1] else version.parent_session
        if erase:
            assert self.db.states.erase(*key[:parts]).rows == removed
        else:
            assert self.db.states.delete(*key[:parts]) == removed

    @rule(keep_last=st.integers(1, 4), keep_tagged=st.booleans())
    def retain(self, keep_last, keep_tagged) -> None:
        self.db.states.set_retention(RetentionPolicy(keep_last=keep_last, keep_tagged=keep_tagged))
        removed = 0
        for state in self.model.values():
            for number in sorted(state.live)[:-keep_last]:
                if not (keep_tagged and number in state.tags.values()):
                    removed += state.remove(number)
        assert self.db.states.apply_retention() == removed
        self.db.states.set_retention(None)

    @rule(key=states, value=data, version=versions)
    def roll_back(self, key, value, version) -> None:
        def fail() -> None:
            with self.db.transaction():
                self.db.states.save(*key, value)
                self.db.states.delete(*key, version=version)
                self.db.states.delete(key[0], key[1])
                self.db.states.save(*key, value)
                assert self.db.states.load(*key).data == value
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

    # --- upkeep

    @rule()
    def flush(self) -> None:
        self.db.flush()

    @rule(key=states, version=versions)
    def flush_while_a_version_goes(self, key, version) -> None:
        encoder = self.db.states._contents.encoder
        removed: list[int] = []

        def encode(rows, read):
            encoded = encoder(rows, read)
            if not removed:
                thread = threading.Thread(target=lambda: removed.append(self.db.states.delete(*key, version=version)))
                thread.start()
                thread.join()
            return encoded

        self.db.set_cold_encoder("_states", encode)
        self.db.flush()
        self.db.set_cold_encoder("_states", encoder)
        if removed:
            assert removed == [self.state(key).remove(version)]

    @rule()
    def optimize(self) -> None:
        self.db.optimize()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = agentdb.open(self.directory / "db", config=self.config)

    # --- reads

    @rule(key=states, version=versions)
    def load_version(self, key, version) -> None:
        found = self.db.states.load(*key, version=version)
        if version in self.state(key).live:
            self.check(found, key, version)
        else:
            assert found is None

    @rule(key=states, ago=st.integers(-100, 1500))
    def load_as_of(self, key, ago) -> None:
        moment = self.now - timedelta(seconds=ago)
        expected = max((n for n, v in self.state(key).live.items() if v.created_at <= moment), default=None)
        found = self.db.states.load(*key, as_of=moment)
        assert (found and found.version) == expected

    @rule(key=states, limit=st.none() | st.integers(1, 5), before=st.none() | versions)
    def history(self, key, limit, before) -> None:
        numbers = sorted((n for n in self.state(key).live if before is None or n < before), reverse=True)[:limit]
        found = self.db.states.history(*key, limit=limit, before=before)
        assert [v.version for v in found] == numbers
        for version in found:
            self.check(version, key, version.version)

    @precondition(lambda self: hasattr(self, "db"))
    @invariant()
    def newest(self) -> None:
        keys = list(self.model)
        for key, found in zip(keys, self.db.states.load_many(keys), strict=True):
            state = self.model[key]
            assert (found.version if found else 0) == state.newest
            if found:
                self.check(found, key, state.newest)

    def check_everything(self) -> None:
        live = {key for key, state in self.model.items() if state.live}
        assert list(self.db.states.agents()) == sorted({key[0] for key in live})
        for agent in ("a", "b"):
            assert self.db.states.sessions(agent) == sorted({key[1] for key in live if key[0] == agent})
            for session in ("s", "t"):
                assert self.db.states.types(agent, session) == sorted(k[2] for k in live if k[:2] == (agent, session))
        for key, state in self.model.items():
            for version in self.db.states.history(*key):
                self.check(version, key, version.version)
            for tag, number in state.tags.items():
                self.check(self.db.states.load(*key, tag=tag), key, number)
            for number in range(1, state.last + 1):
                assert (self.db.states.load(*key, version=number) is not None) == (number in state.live)


TestStatesMachine = StatesMachine.TestCase
TestStatesMachine.settings = settings(stateful_step_count=25, suppress_health_check=list(HealthCheck))
