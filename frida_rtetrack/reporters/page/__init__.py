"""The page: one HTML file with a time line, the flame graph, the call sites, the leaks and the bad frees of a run."""
