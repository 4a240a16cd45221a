"""What is computed from a session: the summary, call sites, leaks, the dump."""
