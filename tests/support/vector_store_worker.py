"""A process with a vector store of its own: ``python -m support.vector_store_worker PATH WRITER COUNT``.

It adds nodes one by one while others do the same, replaces and deletes some, and prints what it sees of its own.
"""

from __future__ import annotations

import sys

from llama_index.core.vector_stores.types import VectorStoreQuery
from support.llama_index_suite import node, only

from llama_index_agentdb import AgentDBVectorStore


def main() -> None:
    path, writer, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with AgentDBVectorStore(path) as store:
        for i in range(count):
            store.add([node(f"{writer}-{i}", metadata={"writer": writer, "i": i}, document=f"{writer}-{i % 2}")])
            mine = store.query(
                VectorStoreQuery(query_embedding=[1, 0, 0, 0], similarity_top_k=1_000, filters=only("writer", writer))
            )
            assert len(mine.ids or []) == i + 1, "what was added is found by the next query"
        store.add([node(f"{writer}-0", metadata={"writer": writer, "i": "again"}, document=f"{writer}-0")])
        store.delete(f"{writer}-1")
        print(" ".join(one.node_id for one in store.get_nodes(filters=only("writer", writer))))


if __name__ == "__main__":
    main()
