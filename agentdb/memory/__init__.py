"""The memory of agents."""
