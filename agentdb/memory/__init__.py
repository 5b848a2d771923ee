"""The memory of agents: what was said and learned, word for word, and recalled by what it means, says and belongs to.

===============  ====================================================================
``store``        ``AgentMemories``, the face of it all
``records``      what callers give and hold: ``Memory``, ``MemoryWrite``, ...
``writing``      remember, update, forget, restore
``recall``       recall and context
``signals``      what speaks for a memory at recall, and how it is put together
``resident``     one agent's memories in memory, followed from commit to commit
``embedding``    which memories get vectors, and when
``encoding``     how a memory is read by an embedder, in its context
``upkeep``       how upkeep runs, on demand and in the background
``maintenance``  which memories upkeep moves, merges, closes, archives
``compression``  which old episodes become one summary
``summaries``    summaries without a language model
``similarity``   which memories are near which, in batches
``erasure``      erase
``transfer``     export and import
``policies``     importance, decay, retention, sameness, contradiction: pure functions
``ports``        what plugs in: summariser, extractor, scorer, judge
``plugins``      language models as plug-ins, and the guard around them
``sessions``     what is known of a session without a look at its memories
``rows``         rows as callers and rules see them
``core``         tables, clock and rules, which all of these share
``tables``       how memories lie in tables
===============  ====================================================================
"""

from agentdb.memory.maintenance import MaintenanceReport, MemoryChange
from agentdb.memory.policies import (
    ActrDecay,
    CompressionRule,
    ContradictionRule,
    Decay,
    DuplicateRule,
    ExponentialDecay,
    HeuristicImportance,
    MemoryPolicies,
    RetentionRule,
    Use,
    WeibullDecay,
)
from agentdb.memory.ports import ContradictionJudge, FactExtractor, ImportanceScorer, Statement, Summariser
from agentdb.memory.recall import ContextOptions, RecallOptions
from agentdb.memory.records import Memory, MemoryEvent, MemoryTrace, MemoryWrite, Occurrence
from agentdb.memory.signals import MemoryContext, Recalled, RecallWeights
from agentdb.memory.store import AgentMemories
from agentdb.memory.summaries import ExtractiveSummariser

__all__ = [
    "ActrDecay",
    "AgentMemories",
    "CompressionRule",
    "ContextOptions",
    "ContradictionJudge",
    "ContradictionRule",
    "Decay",
    "DuplicateRule",
    "ExponentialDecay",
    "ExtractiveSummariser",
    "FactExtractor",
    "HeuristicImportance",
    "ImportanceScorer",
    "MaintenanceReport",
    "Memory",
    "MemoryChange",
    "MemoryContext",
    "MemoryEvent",
    "MemoryPolicies",
    "MemoryTrace",
    "MemoryWrite",
    "Occurrence",
    "RecallOptions",
    "RecallWeights",
    "Recalled",
    "RetentionRule",
    "Statement",
    "Summariser",
    "Use",
    "WeibullDecay",
]
