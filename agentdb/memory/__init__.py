"""The memory of agents: what was said and learned, word for word, and recalled by what it means, says and belongs to.

============  ==========================================================================
``store``     ``AgentMemories``: remember, recall, list, update, forget, restore, erase
``records``   what callers give and hold: ``Memory``, ``MemoryWrite``, ``Occurrence``
``recall``    the signals of recall, and how they are put together
``resident``  one agent's memories in memory, followed from commit to commit
``encoding``  how a memory is read by an embedder, in its context
``maintenance``  which memories upkeep moves, merges, closes, archives
``policies``  importance, decay, retention, sameness, contradiction: pure functions
``tables``    how memories lie in tables
============  ==========================================================================
"""

from agentdb.memory.maintenance import MaintenanceReport, MemoryChange
from agentdb.memory.policies import (
    ActrDecay,
    ContradictionRule,
    Decay,
    DuplicateRule,
    ExponentialDecay,
    HeuristicImportance,
    ImportanceScorer,
    MemoryPolicies,
    RetentionRule,
    Statement,
    Use,
    WeibullDecay,
)
from agentdb.memory.recall import MemoryContext, Recalled, RecallWeights
from agentdb.memory.records import Memory, MemoryEvent, MemoryTrace, MemoryWrite, Occurrence
from agentdb.memory.store import AgentMemories

__all__ = [
    "ActrDecay",
    "AgentMemories",
    "ContradictionRule",
    "Decay",
    "DuplicateRule",
    "ExponentialDecay",
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
    "RecallWeights",
    "Recalled",
    "RetentionRule",
    "Statement",
    "Use",
    "WeibullDecay",
]
