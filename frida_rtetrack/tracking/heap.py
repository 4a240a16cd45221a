"""DPDK's own view of its heap, from the event stream: baseline and verify.

A snapshot is what the agent puts into the stream when it asks DPDK (native/snapshot.c): MARK_BASELINE_STARTED, then at
one moment MARK_HEAP_SNAPSHOT, then a BASELINE_BLOCK for each element that was busy at that moment, and
MARK_BASELINE_ENDED. Everything has its place in the order of events, so that the live set at exactly that moment can be
compared with it while the program runs on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EventBatch, sizes
from frida_rtetrack.tracking.map import Block, LiveSet, TrackingMap


@dataclass(frozen=True, slots=True)
class BusyElement:
    """A block that DPDK's heap has and the tracking does not: where it starts and how large its element is (bytes)."""

    address: int
    size_bytes: int


class HeapOwner(Enum):
    """Whose DPDK's heap is, as far as its life was seen."""

    UNSEEN = "unseen"
    """No rte_eal_init was: there is none yet, or where it begins was not found."""
    TARGET = "target"
    CHILD = "child"
    """A forked child's, as a daemon's: no target can be asked for it."""


@dataclass(frozen=True, slots=True)
class HeapDifference:
    """What tracking and DPDK's heap disagree about. Both empty: they agree on every block."""

    missing: tuple[BusyElement, ...]
    """Busy in DPDK's heap, not live here."""
    unexpected: tuple[Block, ...]
    """Live here, not busy in DPDK's heap."""
    busy: int
    """Blocks that DPDK's heap had."""
    since_sequence: int = 0
    """Number of the event from which on the heap was looked at: what happened later is newer than this."""

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.missing or self.unexpected)

    def persisting(self, earlier: HeapDifference) -> HeapDifference:
        """What was already different in `earlier`: a call that is half done differs for a moment only."""
        missing = {element.address for element in earlier.missing}
        unexpected = {(block.address, block.sequence) for block in earlier.unexpected}
        return HeapDifference(
            tuple(element for element in self.missing if element.address in missing),
            tuple(block for block in self.unexpected if (block.address, block.sequence) in unexpected),
            self.busy,
            self.since_sequence,
        )


@dataclass(slots=True)
class HeapSnapshot:
    """One snapshot on its way through the stream. `ended` is set when all of it has arrived."""

    inserts: bool
    """Whether its blocks become the tracking's baseline."""
    started_sequence: int = 0
    live: LiveSet | None = None
    """The live set at the moment of the snapshot."""
    events: list[EventBatch] = field(default_factory=list)
    difference: HeapDifference | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def arrived(self) -> int:
        """Blocks so far."""
        return sum(len(batch) for batch in tuple(self.events))

    def compare(self, tracking: TrackingMap) -> HeapDifference:
        """The difference at the snapshot's moment, without what the events around it explain.

        To be called when the last of the snapshot has been applied and nothing after it. A free is recorded before it
        reaches the heap, an allocation after it left it: a busy block that is not live is explained by a free since
        the snapshot began, or by an allocation recorded after its moment; a live one that is not busy by anything that
        happened to it since (a resize that was under way).
        """
        live = self.live
        assert live is not None
        none: NDArray[np.uint64] = np.empty(0, np.uint64)
        busy = np.concatenate([none, *(batch["address"] for batch in self.events)])
        size = np.concatenate([none, *(sizes(batch) for batch in self.events)])
        missing, unexpected = tracking.unexplained(busy, live, self.started_sequence)
        return HeapDifference(
            tuple(BusyElement(int(busy[i]), int(size[i])) for i in missing),
            unexpected,
            busy.size,
            self.started_sequence,
        )
