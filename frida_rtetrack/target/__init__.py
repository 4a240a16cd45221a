"""One process and the group of them: find, launch, hold at exec, load the agent, address space, how it ended."""
