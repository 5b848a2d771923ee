"""A week of conversation under a simulated clock: remembered word for word, kept up every night, recalled with explanations.

Upkeep runs in the background by itself; here it is called every night instead, so that this program can show what it does and why.
"""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import agentdb
from agentdb import CompressionRule, Config, MemoryPolicies, MemoryWrite

now = datetime(2026, 3, 2, 9, tzinfo=UTC)
WEEK = [
    [("Ann", "What are you up to these days?"), ("Bob", "I live in Lisbon."), ("Bob", "My cat is called Tom.")],
    [("Bob", "I am allergic to nuts."), ("Ann", "Good to know, no nuts then!")],
    [("Ann", "How is Tom?"), ("Bob", "My cat is called Tom!")],
    [("Bob", "My flight to Oslo leaves at 17:10 on Friday.")],
    [("Bob", "My flight to Oslo leaves at 18:40 on Friday now."), ("Ann", "Thanks!")],
    [("Bob", "I moved, I live in Porto now.")],
    [("Ann", "Do you like it there?"), ("Bob", "Yes, very much. The sea is near.")],
]

# Deterministic and offline, so that this program always says the same. Without embedder=... a small model is loaded.
embedder = agentdb.load_embedder("hashing")
config = Config(clock=lambda: now)

with tempfile.TemporaryDirectory() as folder, agentdb.open(Path(folder) / "db", config=config, embedder=embedder) as db:
    memories = db.memories
    memories.policies = MemoryPolicies(
        upkeep_every_s=None,  # not in the background: only when we say so
        # A plug-in may be a callable, a LangChain Runnable or a LlamaIndex LLM. One that fails or hangs costs nothing but a note.
        extractor=lambda prompt: "Bob has a cat named Tom." if "is called Tom." in prompt else "NONE",
        compression=CompressionRule(cosine=0.1),  # words alone are further apart than meanings
    )
    for day, said in enumerate(WEEK, 1):
        memories.remember_many(
            MemoryWrite(content=text, agent_id="ann", session_id=f"day-{day}", speaker=speaker, occurred_at=now)
            for speaker, text in said
        )
        now += timedelta(hours=36 if day == len(WEEK) else 24)
        for change in memories.maintain("ann").changes:
            print(f"night {day}: {change.action:7} {memories.require(change.memory_id).text!r}: {change.reason[:40]}")

    # What is true now, and what was true on Tuesday.
    for when in (None, datetime(2026, 3, 3, 12, tzinfo=UTC)):
        best = memories.recall(
            "Where does Bob live?", agent_id="ann", k=1, valid_at=when, reinforce=False, explain=True
        )[0]
        signals = {name: round(value, 2) for name, value in best.signals.items() if value}
        print(f"{when or 'now'}: {best.memory.text!r}, score {best.score:.2f}, {signals}")

    # Why a memory is as it is: what happened to it, what says the same, how much is left of it.
    cat = memories.recall("cat called Tom", agent_id="ann", k=1)[0].memory
    trace = memories.why(cat.id)
    print([event.action for event in trace.events], [one.text for one in trace.sources], round(trace.retention, 2))

    # A fact that the extractor found says where it comes from.
    fact = next(one for one in memories.list(agent_id="ann", types=["semantic"]) if one.origin == "fact")
    print(repr(fact.text), "from", [one.text for one in memories.why(fact.id).sources])

    # For a prompt: in the order of events, within a budget of tokens.
    print(memories.context("When does the flight leave, and where to?", agent_id="ann", token_budget=60).text)

    # Forgotten can be undone; erased cannot: no file of the database holds it any more.
    memories.forget(cat.id, reason="Bob asked")
    print(
        memories.require(cat.id).status, memories.restore(cat.id), memories.erase(cat.id).status, memories.get(cat.id)
    )

    # Two months later: what nobody asked for became a summary of what was said, with links to every word of it.
    now += timedelta(days=60)
    report = memories.maintain("ann")
    summary = next(memories.require(one.memory_id) for one in report.changes if one.action == "derived")
    print(f"{len(summary.sources)} memories became one: {summary.text!r}")
    print("of them:", memories.why(summary.sources[0]).events[-1].reason == f"summarised in {summary.id}", report.notes)
