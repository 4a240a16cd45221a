"""Which blocks can be reached from what the program holds, and which of the others are held by a lost one.

The judgement is valgrind's (memcheck manual, "Memory leak detection"): a block is lost if nothing points to it or into
it but blocks that are lost themselves; of those that only lost blocks point to, the ones that hold the others are *lost*,
and the others are *indirectly lost*: mend the first, and the others go with it. Of a ring of blocks one stands for all.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Indexes = NDArray[np.int64]


class Hold(IntEnum):
    """Who holds a block."""

    HELD = 0
    LOST = 1
    INDIRECTLY_LOST = 2


class Edges:
    """Directed edges between `count` nodes."""

    def __init__(self, count: int, sources: Indexes, targets: Indexes) -> None:
        """From `sources` to `targets`, each (m,)."""
        order = np.argsort(sources, kind="stable")
        self._first: list[int] = np.searchsorted(sources[order], np.arange(count + 1)).tolist()
        self._targets: list[int] = targets[order].tolist()

    def reach(self, starts: list[int], seen: bytearray) -> list[int]:
        """Marks what can be reached from `starts` in `seen`, a byte a node, and returns what was not marked before."""
        first, targets = self._first, self._targets
        found: list[int] = []
        waiting = starts
        while waiting:
            node = waiting.pop()
            if not seen[node]:
                seen[node] = 1
                found.append(node)
                waiting.extend(targets[first[node] : first[node + 1]])
        return found

    def targets_of(self, node: int) -> list[int]:
        """Where the edges from `node` lead."""
        return self._targets[self._first[node] : self._first[node + 1]]


def judge(count: int, roots: Indexes, sources: Indexes, targets: Indexes) -> NDArray[np.uint8]:
    """Hold of each of `count` blocks, (count,). `roots`: those that are pointed to from outside; `sources` point to `targets`."""
    edges = Edges(count, sources, targets)
    seen = bytearray(count)
    edges.reach(np.unique(roots).tolist(), seen)
    holds = np.where(np.frombuffer(seen, np.uint8) == 0, np.uint8(Hold.LOST), np.uint8(Hold.HELD))
    visited = bytearray(seen)
    for node in np.flatnonzero(holds == Hold.LOST).tolist():
        if visited[node]:
            continue
        visited[node] = 1
        below = _below(edges, node, holds, visited)
        holds[below] = Hold.INDIRECTLY_LOST
    return holds


def _below(edges: Edges, leader: int, holds: NDArray[np.uint8], visited: bytearray) -> list[int]:
    """What hangs on `leader`: found now, or earlier as a leader itself, which it is no more."""
    deposed = []
    found = []
    waiting = [leader]
    while waiting:
        for node in edges.targets_of(waiting.pop()):
            if not visited[node]:
                visited[node] = 1
                found.append(node)
                waiting.append(node)
            elif node != leader and holds[node] == Hold.LOST:
                deposed.append(node)
    return found + deposed
