"""LlamaIndex programs over one path, which tests run here and in new processes: ``python -m support.llama_index_agents NAME PATH ...``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from llama_index.core import StorageContext, SummaryIndex, VectorStoreIndex, load_index_from_storage
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.indices.keyword_table import SimpleKeywordTableIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import Memory
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document

import agentdb
from agentdb_embedders import HashingEmbedder
from llama_index_agentdb import (
    AgentDBChatStore,
    AgentDBDocumentStore,
    AgentDBEmbedding,
    AgentDBIndexStore,
    AgentDBIngestionCache,
    AgentDBMemoryBlock,
    AgentDBVectorStore,
)

SUBJECTS = ["harbour", "violin", "volcano", "orchard", "glacier", "parliament"]
DOCUMENTS = [
    Document(
        id_=one,
        text=f"The {one} was described in {1_900 + i}. " + f"Whoever sees the {one} speaks of it. " * 12,
        metadata={"subject": one, "year": 1_900 + i},
    )
    for i, one in enumerate(SUBJECTS)
]
QUESTIONS = ["When was the violin described?", "Who speaks of the glacier?", "orchard"]


def context(path: Any) -> StorageContext:
    """All stores over one path."""
    return StorageContext.from_defaults(
        vector_store=AgentDBVectorStore(path),
        docstore=AgentDBDocumentStore(path),
        index_store=AgentDBIndexStore(path),
    )


def close(stores: StorageContext) -> None:
    for one in (stores.vector_store, stores.docstore, stores.index_store):
        one.close()  # type: ignore[attr-defined]


def build(path: Any) -> None:
    """Build an index of each kind over the same nodes."""
    stores = context(path)
    nodes = SentenceSplitter(chunk_size=64, chunk_overlap=0).get_nodes_from_documents(DOCUMENTS)
    stores.docstore.add_documents(nodes)
    embedding = AgentDBEmbedding("hashing")
    for made, name in (
        (VectorStoreIndex(nodes, storage_context=stores, embed_model=embedding), "vectors"),
        (SummaryIndex(nodes, storage_context=stores), "summary"),
        (SimpleKeywordTableIndex(nodes, storage_context=stores, llm=MockLLM()), "keywords"),
    ):
        made.set_index_id(name)
    close(stores)


def answers(path: Any) -> dict[str, Any]:
    """Ask every index, loaded by its name."""
    stores = context(path)
    found = {}
    for name, to_load, to_ask in (
        ("vectors", {"embed_model": AgentDBEmbedding("hashing")}, {}),
        ("summary", {}, {}),
        ("keywords", {"llm": MockLLM()}, {"num_chunks_per_query": 1_000}),
    ):
        engine = load_index_from_storage(stores, index_id=name, **to_load).as_query_engine(llm=MockLLM(), **to_ask)
        for question in QUESTIONS:
            response = engine.query(question)
            sources = [[one.node.node_id, one.node.metadata, one.score] for one in response.source_nodes]
            found[f"{name}: {question}"] = {"text": str(response), "sources": sources}
    close(stores)
    return found


class Killed(AgentDBVectorStore):
    """Kills its process when nodes have been stored, before the document store knows of them."""

    def add(self, nodes: Sequence[Any], **add_kwargs: Any) -> list[str]:
        super().add(nodes, **add_kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def pipeline(db: Any, strategy: str = "upserts", *, is_killed: bool = False) -> IngestionPipeline:
    """A pipeline all of whose parts lie in one database."""
    return IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), AgentDBEmbedding("hashing")],
        vector_store=(Killed if is_killed else AgentDBVectorStore)(db, collection="ingested"),
        docstore=AgentDBDocumentStore(db, "ingested"),
        cache=AgentDBIngestionCache(db),
        docstore_strategy=DocstoreStrategy(strategy),
    )


def ingest(path: str, kind: str) -> None:
    """Run a pipeline that is killed half-way, as one transaction or not."""
    with agentdb.open(path) as db:
        made = pipeline(db, is_killed=True)
        if kind == "transaction":
            with db.transaction():
                made.run(documents=DOCUMENTS)
        else:
            made.run(documents=DOCUMENTS)


# --- agents -------------------------------------------------------------------------------------------------------------------


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def script(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    """A language model that uses what it is shown, and nothing else."""
    shown, last = "\n".join(one.content or "" for one in messages), messages[-1]
    if last.role == "tool":
        return ChatMessage(role="assistant", content=f"It is {last.content}.")
    said = last.content or ""
    if numbers := re.search(r"(\d+) times (\d+)", said):
        arguments = {"a": int(numbers[1]), "b": int(numbers[2])}
        call = ToolCallBlock(tool_call_id="call", tool_name="multiply", tool_kwargs=arguments)
        return ChatMessage(role="assistant", blocks=[call])
    if question := re.search(r"What is the (\w+)\?", said):
        known = re.findall(rf"the {question[1]} is (\w+)\.", shown)
        return ChatMessage(role="assistant", content=f"It is {known[-1]}." if known else "Nobody told me.")
    return ChatMessage(role="assistant", content="I see.")


def agent(kind: str) -> Any:
    llm = MockFunctionCallingLLM(response_generator=script, is_chat_model=True)
    made = FunctionAgent(name="one", description="does it", tools=[multiply], llm=llm)
    return AgentWorkflow(agents=[made]) if kind == "workflow" else made


async def converse(db: agentdb.Database, kind: str, session: str, said: Sequence[str]) -> list[str]:
    """Return what an agent answers in a session whose short-term memory holds about four messages."""
    async with AgentDBChatStore(db) as chats, AgentDBMemoryBlock(db, agent_id="agent") as block:
        memory = Memory.from_defaults(
            session_id=session, chat_store=chats, memory_blocks=[block], token_limit=60, token_flush_size=10
        )
        made = agent(kind)
        return [str(await made.run(one, memory=memory)) for one in said]


def talk(path: str, kind: str, session: str, *said: str) -> list[str]:
    with agentdb.open(path, embedder=HashingEmbedder()) as db:
        return asyncio.run(converse(db, kind, session, said))


if __name__ == "__main__":
    result = {"answers": answers, "ingest": ingest, "talk": talk}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(result))
