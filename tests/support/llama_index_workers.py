"""Processes that use LlamaIndex on a database: ``python -m support.llama_index_workers NAME ARGUMENT ...``."""

from __future__ import annotations

import asyncio
import itertools
import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

import agentdb
from llama_index_agentdb import AgentDBChatStore, AgentDBDocumentStore, AgentDBKVStore, AgentDBLegacyChatStore


def node(name: str, of: str) -> TextNode:
    return TextNode(id_=name, text=name, relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=of)})


def adder(path: str, who: str, times: str) -> None:
    """Add messages to the one chat, two at a time, and nodes to the one document."""

    async def run() -> None:
        async with AgentDBChatStore(path) as chats, AgentDBDocumentStore(path) as documents:
            for i in range(int(times)):
                await chats.add_messages("chat", [ChatMessage(content=f"{who}.{2 * i + j}") for j in (0, 1)])
                await documents.async_add_documents([node(f"{who}.{i}", "document")])

    asyncio.run(run())


def batches(path: str) -> None:
    """Store batches until killed, and say which are stored."""
    with (
        agentdb.open(path) as db,
        AgentDBKVStore(db) as kv,
        AgentDBDocumentStore(db) as documents,
        AgentDBLegacyChatStore(db) as chats,
    ):
        for i in itertools.count():
            kv.put_all([(f"{i:06}.{j}", {"batch": i, "pair": j}) for j in range(50)], collection="batches")
            documents.add_documents([node(f"{i}.{j}", f"document {i % 7}.{i}") for j in range(10)])
            if i >= 7:
                documents.delete_ref_doc(f"document {i % 7}.{i - 7}")
            with db.transaction():
                chats.add_message("chat", ChatMessage(content=str(2 * i)))
                chats.add_message("chat", ChatMessage(content=str(2 * i + 1)))
            print(i, flush=True)


if __name__ == "__main__":
    {"adder": adder, "batches": batches}[sys.argv[1]](*sys.argv[2:])
