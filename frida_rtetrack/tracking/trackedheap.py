"""One DPDK heap as its events tell it: the map of what is live, with EAL's life, DPDK's own view and the bad frees.

Subscribed to a pump, it is all that is judged; whoever asks finds the answers in its parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frida_rtetrack.stream.events import EventBatch, Times
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.tracking.badfree import Circumstances
from frida_rtetrack.tracking.badfreelog import BadFrees
from frida_rtetrack.tracking.eal import EalLife
from frida_rtetrack.tracking.heapview import HeapView
from frida_rtetrack.tracking.map import TrackingMap


class TrackedHeap(Subscriber):
    """Gives the events to the map, and what the map finds to the bad frees."""

    def __init__(
        self,
        tracking: TrackingMap,
        *,
        view: HeapView,
        eal: EalLife,
        bad_frees: BadFrees,
        on_problem: Callable[[str], None],
    ) -> None:
        """Of these parts. `on_problem` is told, once, where an untracked process that shares the heap shows."""
        self.map = tracking
        self.view = view
        self.eal = eal
        self.bad_frees = bad_frees
        self._on_problem = on_problem
        self._sharing_told = False

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        """Applies them to the map, without those that are no allocation and no free of this heap."""
        events, times = self.view.take_out_snapshot(events, times)
        events, times, late = self.eal.take_out_frees_after_cleanup(events, times)
        others = self.view.sharing_untracked
        if late:
            self.bad_frees.add(late, [Circumstances(after_cleanup=True)] * len(late), others)
        unknown = self.map.totals.unknown_frees if others else 0
        found = self.map.apply(events, times)
        if others and not self._sharing_told and self.map.totals.unknown_frees > unknown:
            self._tell_of_sharing(others)
        if found:
            around = [Circumstances(container=block) for block in self.map.containing(found)]
            self.bad_frees.add(found, around, others)

    def on_mark(self, mark: np.void) -> None:
        """The parts know what it means."""
        self.eal.on_mark(mark)
        self.view.on_mark(mark)

    def on_lost(self, lost: int) -> None:
        """DPDK's own view heals the map."""
        self.view.on_lost(lost)

    def _tell_of_sharing(self, others: tuple[int, ...]) -> None:
        """A block was freed that no tracked process allocated: it may be another one's that has the same heap."""
        self._sharing_told = True
        pids = ", ".join(map(str, others))
        self._on_problem(
            f"Blocks are freed that were allocated by another process which shares DPDK's heap and is not tracked "
            f"({pids}): that is no bad free. Attach to all of them to see both sides."
        )
