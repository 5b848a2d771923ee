"""The state of agents: every save is a version, and every version can be read again.

=============  ==========================================================================
``store``      ``AgentStates``: save, load, history, restore, branch, tag, delete, erase
``versions``   what callers hold and give: ``StateVersion``, ``StateWrite``, ``StateType``
``diff``       what changed between two values
``retention``  which versions stay
=============  ==========================================================================
"""

from agentdb.states.diff import Change
from agentdb.states.retention import RetentionPolicy
from agentdb.states.store import AgentStates
from agentdb.states.versions import StateType, StateVersion, StateWrite

__all__ = ["AgentStates", "Change", "RetentionPolicy", "StateType", "StateVersion", "StateWrite"]
