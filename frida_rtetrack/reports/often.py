"""How often each call site has allocated, whether its blocks are live still or not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EventBatch, Kind


class Often:
    """Counts events as they come. A resize is no allocation."""

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        """From `counts` (n,) on, by the number of the stack."""
        self.counts = np.zeros(1, np.int64) if counts is None else counts

    def add(self, events: EventBatch) -> None:
        """The next events (n,)."""
        made = np.bincount(events["stack"][(events["kind"] == Kind.ALLOCATED) & (events["address"] != 0)])
        if made.size > self.counts.size:
            self.counts, made = made, self.counts
        self.counts[: made.size] += made

    def of(self, stack: int) -> int:
        """Allocations with the stack of that number."""
        return int(self.counts[stack]) if 0 <= stack < self.counts.size else 0
