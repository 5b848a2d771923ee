"""What tests of AgentDB, and of whatever implements one of its ports, can build on. Needs pytest and hypothesis."""
