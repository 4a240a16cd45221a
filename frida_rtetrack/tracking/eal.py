"""What the life of DPDK's EAL means for its heap: what rte_eal_init allocated for itself, what was live when the program
called rte_eal_cleanup, and that whatever is freed after it is a bad free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import SIZE_BITS, EventBatch, Kind, Mark, Times, mark_of
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.target.addressspace import AddressSpace, HeapRegion
from frida_rtetrack.tracking.heap import HeapOwner
from frida_rtetrack.tracking.map import BadFree, BadFreeKind, TrackingMap

UNTIL_FURTHER_NOTICE = 1 << 63
CALLS_KEPT = 1000
REGIONS_KEPT = 1024
"""DPDK itself has RTE_MAX_MEMSEG_LISTS, 128; whoever writes more of either into the stream is not DPDK."""


class HeapUser(Protocol):
    """A tracked process."""

    number: int
    """Index in the process table."""
    cleaned_up: bool
    """It called rte_eal_cleanup."""

    @property
    def is_tracked(self) -> bool:
        """Whether it is alive, with the agent in it."""

    @property
    def space(self) -> AddressSpace:
        """What lies where in it."""


class Processes(Protocol):
    """Who has the heap."""

    @property
    def targets(self) -> Sequence[HeapUser]:
        """The tracked processes."""

    def of_event(self, event: np.void) -> HeapUser | None:
        """The target that wrote `event`; None for a forked child."""

    def processes_of(self, events: EventBatch) -> NDArray[np.uint16]:
        """The indexes in the process table of those that wrote `events`."""

    def child_is_gone(self, number: int) -> bool:
        """Whether the forked child with this index in the process table has ended."""


def allocated_in(live: NDArray[np.void], ranges: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which of the live blocks, BLOCK_DTYPE (n,), were allocated by an event of one of `ranges` [first, last)."""
    found = np.zeros(live.size, np.bool_)
    for first, last in ranges:
        found |= (live["sequence"] >= first) & (live["sequence"] < last)
    return found


class EalLife(Subscriber):
    """What EAL's marks tell. What a forked child does to EAL is what the program does where that left EAL to the child."""

    def __init__(
        self,
        tracking: TrackingMap,
        processes: Processes,
        later: Callable[[str, Callable[[], None]], None],
        *,
        decided: Sequence[bool] = (),
    ) -> None:
        """`later(what, task)` has a task run off the way of the events. `decided`: `last_leaves` of a recorded session."""
        self.init_ranges: list[tuple[int, int]] = []
        """[first, last) event numbers of the calls of rte_eal_init."""
        self.at_cleanup: NDArray[np.void] | None = None
        """What was live when the last process that has the heap called rte_eal_cleanup, BLOCK_DTYPE (n,)."""
        self.cleanup_sequence: int | None = None
        """Number of the event at which that was."""
        self.last_leaves: list[bool] = []
        """Of each target that called rte_eal_cleanup, in order: whether no other one had the heap still."""
        self.owner = HeapOwner.UNSEEN if tracking.complete else HeapOwner.TARGET
        """A map that is not complete was begun in the middle: what is there is the target's."""
        self._owning_child: int | None = None
        self._tracking = tracking
        self._processes = processes
        self._later = later
        self._decided = list(decided)

    def on_mark(self, mark: np.void) -> None:
        """Takes note of what concerns EAL."""
        kind, argument = mark_of(mark)
        target = self._processes.of_event(mark)
        if kind is Mark.EAL_INIT_STARTED:
            if target is not None:
                self.owner = HeapOwner.TARGET
            elif self.owner is not HeapOwner.TARGET:
                self._take_over(mark)
        if target is not None or self.owner is HeapOwner.CHILD:
            self._take(kind)
        if target is not None:
            self._take_of(target, kind, argument, mark)

    def is_of_owner(self, mark: np.void) -> bool:
        """Whether the forked child wrote it whose the heap is."""
        if self.owner is not HeapOwner.CHILD or self._processes.of_event(mark) is not None:
            return False
        return self._owning_child in (None, self._process_of(mark))

    def _process_of(self, mark: np.void) -> int:
        return int(self._processes.processes_of(mark.reshape(1))[0])

    def _take_over(self, mark: np.void) -> None:
        """A forked child sets EAL up. If another one had, which has ended, its heap has ended with it."""
        child = self._process_of(mark)
        if self._owning_child not in (None, child):
            if not self._processes.child_is_gone(self._owning_child):
                return
            self._tracking.forget_all()
        self.owner, self._owning_child = HeapOwner.CHILD, child

    def _take(self, kind: Mark) -> None:
        if kind is Mark.EAL_INIT_STARTED and len(self.init_ranges) < CALLS_KEPT:
            self.init_ranges.append((self._tracking.events, UNTIL_FURTHER_NOTICE))
        elif kind is Mark.EAL_INIT_ENDED and self.init_ranges:
            self.init_ranges[-1] = (self.init_ranges[-1][0], self._tracking.events)
        elif kind is Mark.EAL_CLEANUP_STARTED and self.owner is HeapOwner.CHILD:
            self._look_at_cleanup()

    def _look_at_cleanup(self) -> None:
        self.at_cleanup, self.cleanup_sequence = self._tracking.live(), self._tracking.events - 1

    def _take_of(self, target: HeapUser, kind: Mark, argument: int, mark: np.void) -> None:
        if kind is Mark.EAL_INIT_ENDED:
            self._later("refresh", target.space.refresh)
        elif kind is Mark.HEAP_REGION:
            region = HeapRegion(int(mark["address"]), argument, int(mark["socket"]))
            if region not in target.space.heap_regions and len(target.space.heap_regions) < REGIONS_KEPT:
                target.space.heap_regions.append(region)
        elif kind is Mark.EAL_CLEANUP_STARTED:
            if self._leaves_last(target):
                self._look_at_cleanup()
        elif kind is Mark.EAL_CLEANUP_ENDED:
            target.cleaned_up = True

    def _leaves_last(self, target: HeapUser) -> bool:
        others = (other for other in self._processes.targets if other is not target)
        if self._decided:
            last = self._decided.pop(0)
        else:
            last = not any(other.is_tracked and not other.cleaned_up for other in others)
        if len(self.last_leaves) < CALLS_KEPT:
            self.last_leaves.append(last)
        return last

    def take_out_frees_after_cleanup(self, events: EventBatch, times: Times) -> tuple[EventBatch, Times, list[BadFree]]:
        """The events without the frees that came too late, and those: there is no heap any more that they could be of."""
        gone = [target.number for target in self._processes.targets if target.cleaned_up]
        if not gone:
            return events, times, []
        late = np.isin(events["kind"], (Kind.FREED, Kind.RESIZE_STARTED))
        late &= np.isin(self._processes.processes_of(events), gone)
        accused = [self._accuse(event, at_ns) for event, at_ns in zip(events[late], times[late].tolist(), strict=True)]
        return events[~late], times[~late], accused

    def _accuse(self, event: np.void, at_ns: int) -> BadFree:
        address = int(event["address"])
        lookup = self._tracking.find(address)
        known = lookup.block if lookup.block is not None and lookup.offset == 0 else None
        if known is None and lookup.freed is not None:
            known = lookup.freed.block
        return BadFree(
            BadFreeKind.AFTER_CLEANUP,
            address,
            self._tracking.events,
            at_ns,
            int(event["size_and_thread"]) >> SIZE_BITS,
            int(event["stack"]),
            int(event["api"]),
            known,
            None if lookup.freed is None else lookup.freed.freed,
            history_complete=True,
        )
