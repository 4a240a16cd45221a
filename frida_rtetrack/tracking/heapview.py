"""DPDK's own view of its heap, asked for while the program runs: the baseline, verify, and what heals a loss of events.

The agent puts the answer into the event stream (see heap.py); here it is asked for, waited for and made use of.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from frida_rtetrack import progress
from frida_rtetrack.errors import AgentFailed, NotLive, RtetrackError
from frida_rtetrack.stream.events import FINAL_BASELINE, EventBatch, Kind, Mark, Times, mark_of
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.tracking.heap import HeapDifference, HeapOwner, HeapSnapshot
from frida_rtetrack.tracking.map import TrackingMap

BASELINE_SETTLE_SECONDS = 0.05
SNAPSHOT_HEAP_IS_GONE = -2
ARRIVAL_SECONDS = 60.0
"""For what is in the ring already when the agent has answered: far more than a busy machine needs."""
VERIFY_ROUNDS = 5
VERIFY_PAUSE_SECONDS = 0.02


class HeapView(Subscriber):
    """Asks DPDK what is busy in its heap, and compares. Its questions wait, so they are not for the pump's thread."""

    def __init__(
        self,
        tracking: TrackingMap,
        ask: Callable[..., Any],
        *,
        is_ours: Callable[[np.void], bool],
        of_owner: Callable[[np.void], bool] = lambda mark: False,
        owner: Callable[[], HeapOwner],
        lock: threading.RLock,
        ended: threading.Event,
        deaf: threading.Event,
        later: Callable[[str, Callable[[], None]], None],
        on_problem: Callable[[str], None],
    ) -> None:
        """`ask("snapshot", number)` has an agent put a snapshot into the stream; it raises RtetrackError.

        `is_ours(mark)`: whether a target wrote it, not a forked child; `of_owner(mark)`: whether the child did
        whose the heap is; `owner()`: whose it is. `lock`, `ended`,
        `deaf`: the pump's. `later(what, task)` has a task run where it may wait. `on_problem` is told of a loss, and of
        what could not be healed or verified.
        """
        self.last: HeapDifference | None = None
        """What the last comparison found."""
        self.verified: HeapDifference | None = None
        """What the one at the end found, by the agent when the program ended, or when it was let go."""
        self.without_heap = False
        """A process that ended had none to compare with."""
        self.sharing_untracked: tuple[int, ...] = ()
        """Processes that have the same heap and are not tracked: its blocks come and go unseen."""
        self.calls_unseen = False
        """Functions of DPDK's were not found (--symbol for some of them only): blocks come and go unseen."""
        self.inserting: set[int] = set()
        """Numbers of the snapshots whose blocks become the tracking's baseline."""
        self._tracking = tracking
        self._ask = ask
        self._is_ours = is_ours
        self._of_owner = of_owner
        self._owner = owner
        self._lock = lock
        self._ended = ended
        self._deaf = deaf
        self._later = later
        self._on_problem = on_problem
        self._arriving: HeapSnapshot | None = None
        self._awaited: dict[int, HeapSnapshot] = {}
        self._number = 0
        self._one_at_a_time = threading.Lock()
        self._lost = 0

    # ---- questions

    def baseline(self) -> int | None:
        """Takes what already lives in DPDK's heap into the tracking, which is complete from then on.

        Returns the number of blocks that the heap has, None where this DPDK cannot be asked: then the frees of unknown
        blocks are counted and never accused. Raises NotLive, AgentError.
        """
        if self._take_snapshot(inserts=True) is None:
            return None
        # Calls that were under way when the hooks were installed were not seen: what they left is set right here.
        time.sleep(BASELINE_SETTLE_SECONDS)
        difference = self._lasting_difference()
        if difference is None:
            return None
        now = time.monotonic_ns()
        with self._lock:
            if difference.missing:
                self._tracking.insert_baseline(
                    np.array([element.address for element in difference.missing], np.uint64),
                    np.array([element.size_bytes for element in difference.missing], np.uint64),
                    difference.since_sequence,
                    now,
                )
            self._tracking.forget(difference.unexpected)
            if not self.sharing_untracked and not self.calls_unseen:
                self._tracking.mark_complete()
        return difference.busy

    def verify(self, *, at_end: bool = False) -> HeapDifference | None:
        """Compares the live set with DPDK's list of busy blocks at one moment; None where DPDK cannot be asked.

        The answer is kept in `last`, and in `verified` where it is that of the end. Raises NotLive, AgentError.
        """
        difference = self._lasting_difference()
        if difference is not None:
            self.last = difference
        if at_end:
            self.verified = difference
        return difference

    def _lasting_difference(self) -> HeapDifference | None:
        difference = self._take_snapshot()
        for _ in range(VERIFY_ROUNDS - 1):
            if not difference:
                break
            time.sleep(VERIFY_PAUSE_SECONDS)
            again = self._take_snapshot()
            if again is None:
                return None
            difference = again.persisting(difference)
        return difference

    def _take_snapshot(self, *, inserts: bool = False) -> HeapDifference | None:
        """Compares with DPDK's heap at one moment; None where DPDK has no function to ask. Raises NotLive, AgentError."""
        if self._owner() is HeapOwner.CHILD:
            raise NotLive("DPDK's heap is that of a forked child, which cannot be asked for it.")
        with self._one_at_a_time:
            self._number += 1
            number = self._number
            if inserts:
                self.inserting.add(number)
            snapshot = self._awaited[number] = HeapSnapshot(inserts=inserts)
            try:
                blocks = self._ask("snapshot", number)
                if blocks is None:
                    return None
                if blocks == SNAPSHOT_HEAP_IS_GONE:
                    raise NotLive("The program has called rte_eal_cleanup: DPDK's heap is gone.")
                if blocks < 0:
                    raise AgentFailed("The agent could not get memory for a snapshot of DPDK's heap.")
                deadline = time.monotonic() + ARRIVAL_SECONDS
                while not snapshot.ended.wait(0.05):
                    progress.tell("reading DPDK's heap", min(snapshot.arrived, blocks), blocks + 1)
                    if self._ended.is_set() and not snapshot.ended.is_set():
                        raise NotLive("The program ended while its heap was being read.")
                    if self._deaf.is_set() or time.monotonic() > deadline:
                        raise NotLive("What DPDK's heap holds did not arrive: the program's session memory is damaged.")
                return snapshot.difference
            finally:
                progress.tell("reading DPDK's heap", 1, 1)
                del self._awaited[number]

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """No snapshot is asked for meanwhile, nor on its way."""
        with self._one_at_a_time:
            yield

    # ---- what arrives

    def take_out_snapshot(self, events: EventBatch, times: Times) -> tuple[EventBatch, Times]:
        """The events without DPDK's busy blocks of the snapshot that is arriving, unless they become the baseline."""
        if self._arriving is None:
            return events, times
        of_heap = events["kind"] == Kind.BASELINE_BLOCK
        if not of_heap.any():
            return events, times
        self._arriving.events.append(events[of_heap])
        return (events, times) if self._arriving.inserts else (events[~of_heap], times[~of_heap])

    def on_mark(self, mark: np.void) -> None:
        """A snapshot begins, has its moment, or has arrived."""
        kind, argument = mark_of(mark)
        by_child = self._of_owner(mark)
        if not (by_child or self._is_ours(mark)):
            return
        if kind is Mark.BASELINE_STARTED:
            self._arriving = self._awaited.get(argument) or HeapSnapshot(inserts=argument in self.inserting)
            self._arriving.started_sequence = self._tracking.events
        elif kind is Mark.HEAP_SNAPSHOT and self._arriving is not None and self._arriving.live is None:
            self._arriving.live = self._tracking.live_set()
        elif kind is Mark.BASELINE_ENDED and self._arriving is not None:
            if self._arriving.live is not None:  # else no agent wrote it: there is nothing to compare
                self._take(self._arriving, final=argument == FINAL_BASELINE, by_child=by_child)
            self._arriving = None

    def _take(self, snapshot: HeapSnapshot, *, final: bool, by_child: bool) -> None:
        snapshot.difference = snapshot.compare(self._tracking)
        if final and not (by_child or self._had_a_heap(snapshot.difference)):
            self.without_heap = True
        elif final:
            self.last = self.verified = snapshot.difference
        snapshot.live = None
        snapshot.events.clear()
        snapshot.ended.set()

    def _had_a_heap(self, found: HeapDifference) -> bool:
        """Whether the process that ended had one: EAL is never without a busy block."""
        return self._owner() is HeapOwner.TARGET or (self._owner() is HeapOwner.UNSEEN and found.busy > 0)

    # ---- losses

    def on_lost(self, lost: int) -> None:
        """The map is not complete any more: a fresh baseline makes it so."""
        self._lost = lost
        with self._lock:
            self._tracking.mark_incomplete()
        self._later("lost", lambda: self._heal(lost))

    def _heal(self, lost: int) -> None:
        if lost != self._lost:
            return  # more were lost since: that task does it
        self._on_problem(
            f"{lost:,} events were lost so far; taking a fresh look at the heap (--buffer makes the ring larger)."
        )
        try:
            self.baseline()
        except RtetrackError as error:
            self._on_problem(f"The heap could not be read after the loss: {error}")
