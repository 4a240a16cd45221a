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


def judge(count: int, roots: Indexes, sources: Indexes, targets: Indexes) -> NDArray[np.uint8]:
    """Hold of each of `count` blocks, (count,). `roots`: those that are pointed to from outside; `sources` point to `targets`."""
    edges = Edges(count, sources, targets)
    seen = bytearray(count)
    edges.reach(np.unique(roots).tolist(), seen)
    holds = np.where(np.frombuffer(seen, np.uint8) == 0, np.uint8(Hold.INDIRECTLY_LOST), np.uint8(Hold.HELD))
    lost: list[int] = np.flatnonzero(holds == Hold.INDIRECTLY_LOST).tolist()
    again = bytearray(seen)
    leaders = [node for node in lost if edges.reach([node], seen)]
    # No leader can be reached from one that was found before it; so the last one leads, and each that none after it reaches.
    for node in reversed(leaders):
        if edges.reach([node], again):
            holds[node] = Hold.LOST
    return holds
