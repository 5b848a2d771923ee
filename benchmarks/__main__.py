"""``python -m benchmarks [NAME ...] [--quick] [--out FILE]``: run benchmarks and print their figures."""

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import bulk, documents, langchain, langgraph, llama_index, memories, peers, saves, scale, vectors
from benchmarks.harness import Figure, save

SUITE = {
    "save": saves.one_save,
    "threads": saves.threads,
    "processes": saves.processes,
    "history": saves.message_list,
    "read": scale.reads,
    "upkeep": scale.upkeep,
    "million": scale.million,
    "bulk": bulk.bulk,
    "overlap": bulk.overlap,
    "documents-quality": documents.retrieval,
    "documents-library": documents.library,
    "documents-latency": documents.latency,
    "langchain": langchain.vector_store,
    "langgraph-step": langgraph.step,
    "langgraph-storage": langgraph.storage,
    "langgraph-async": langgraph.concurrent,
    "langgraph-store": langgraph.store,
    "llama-index": llama_index.stores,
    "global": vectors.everywhere,
    "glove": vectors.glove,
    "indices": vectors.indices,
    "agents": vectors.agents,
    "batch": vectors.batch,
    "pairs": vectors.pairs,
    "hybrid": vectors.hybrid,
    "memories": memories.many_agents,
    "memories-one-agent": memories.one_agent,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(SUITE)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast it is")
    parser.add_argument("--load-limit", type=float, default=peers.load_limit_s, help="seconds a peer may take to load")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    arguments = parser.parse_args()
    peers.load_limit_s = arguments.load_limit
    unknown = set(arguments.names) - SUITE.keys()
    if unknown:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    out = arguments.out or Path("build/benchmarks.json" if arguments.quick else "benchmarks/results/engine.json")
    # What is imported for other benchmarks is no garbage of this one: 350,000 objects to look through at every collection.
    gc.collect()
    gc.freeze()
    figures: list[Figure] = []
    for name in arguments.names or SUITE:
        start = time.perf_counter()
        # Not below /tmp where that is memory: what is measured is a disk.
        with tempfile.TemporaryDirectory(prefix="agentdb-bench-", dir=Path.cwd() / "build") as folder:
            for figure in SUITE[name](Path(folder), quick=arguments.quick):
                figures.append(figure)
                print(figure.line(), flush=True)
        print(f"  ({name}: {time.perf_counter() - start:.0f} s)", flush=True)
        # At once: a peer that fails hours later takes nothing with it.
        save(figures, out, quick=arguments.quick)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    Path("build").mkdir(exist_ok=True)
    sys.exit(main())
