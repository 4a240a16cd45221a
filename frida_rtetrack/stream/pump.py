"""The pump: drains the ring on a thread of its own and hands every batch to all who subscribed, in one fixed order.

It knows the ring and that some events are marks, and nothing of what events mean or of where they come from: a new
consumer subscribes, and no other one changes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from frida_rtetrack.stream.clock import EventClock
from frida_rtetrack.stream.events import EventBatch, Kind, Times, possible
from frida_rtetrack.stream.ring import BATCH_EVENTS, RingReader, SessionMemory

GATHER_SECONDS = 0.004
"""Between two batches, unless the ring fills up: reading takes processor time, and the ring's memory, from who writes."""
_FILLS_UP = 1 / 16
"""So much of the ring was written meanwhile."""
IDLE_SECONDS = 0.01
IDLE_SECONDS_AT_MOST = 0.05
HEARTBEAT_SECONDS = 0.25


class Subscriber:
    """Takes what the pump hands out. Override what is of interest; all of it is called on the pump's thread.

    An exception ends the reading, for everyone.
    """

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        """The next events (n > 0,), which happened at `times` (n,); `first` is the ring index of the first one.

        A batch ends at a mark, the mark included. Both are shared with the other subscribers: not to be changed.
        """

    def on_mark(self, mark: np.void) -> None:
        """The event `mark` was the last one handed out, and every subscriber has taken what came before it."""

    def on_round(self) -> None:
        """The ring was looked at, whether there was something in it or not; some 20 to 100 times a second at least."""

    def on_lost(self, lost: int) -> None:
        """Events were lost; `lost` in all so far."""

    def on_end(self) -> None:
        """Nothing will be handed out any more."""


class Pump:
    """Reads the ring until nobody writes into it any more and it is empty, or until it is stopped and it is empty."""

    def __init__(
        self,
        memory: SessionMemory,
        *,
        thread_alive: Callable[[int, int], bool],
        anybody_writes: Callable[[], bool],
        wake: threading.Event,
        on_problem: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> None:
        """Of the ring in `memory`.

        `thread_alive(process, tid)`: whether a thread that writes still exists; `anybody_writes()`: whether there may
        be more. `wake`: set by whoever knows that one of the answers changed. `on_problem` is told why the reading
        ended early; `on_end` is called at the very last.
        """
        self.lock = threading.RLock()
        """Held while a batch is handed out: who holds it sees all subscribers at the same place in the stream."""
        self.ended = threading.Event()
        self.deaf = threading.Event()
        """The ring is damaged: nothing that is written any more will be handed out."""
        self._memory = memory
        self._clock = EventClock(memory.clock_anchor)
        self._reader = RingReader(memory, lambda process, tid: self._may_write() and thread_alive(process, tid))
        self._anybody_writes = anybody_writes
        self._wake = wake
        self._on_problem = on_problem
        self._on_end = on_end
        self._stop = threading.Event()
        self._enough_events = min(BATCH_EVENTS, int(len(memory.ring) * _FILLS_UP))
        self._subscribers: tuple[Subscriber, ...] = ()
        self._due: deque[tuple[int, Callable[[], None]]] = deque()  # ring index, what is to be called there
        self._lost_told = 0
        self._damage_told = False
        self._threads = [
            threading.Thread(target=run, name=run.__name__.strip("_"), daemon=True)
            for run in (self._keep_heartbeat, self._drain)
        ]

    def subscribe(self, *subscribers: Subscriber) -> None:
        """Hands everything from here on to these too, after those who subscribed before."""
        with self.lock:
            self._subscribers += subscribers

    def start(self) -> None:
        """Begins to read."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the reading as soon as the ring is empty: nobody writes any more."""
        self._stop.set()
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Waits for the threads' end, at most so long for each."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(seconds)

    @property
    def lost(self) -> int:
        """Events that were dropped: the ring stayed full, or a thread died while it wrote one."""
        return self._memory.counter("lost") + self._reader.holes

    def sync(self, deadline: float) -> None:
        """Waits until everything that was written before this call has been handed out, or until `deadline` (monotonic)."""
        head = self._memory.counter("head")
        self._wake.set()
        while self._reader.consumed < head and not self._is_over() and time.monotonic() < deadline:
            time.sleep(0.002)
        with self.lock:  # the batch that was taken out last has been handed to all
            pass

    def call_at_head(self, call: Callable[[], None]) -> None:
        """Has `call` called when all that was written before now has been handed out, and nothing that is written later."""
        if self._is_over():
            call()
        else:
            self._due.append((self._memory.counter("head"), call))
            self._wake.set()

    def _keep_heartbeat(self) -> None:
        while (
            not self.ended.wait(HEARTBEAT_SECONDS) and not self.deaf.is_set()
        ):  # who waits for a deaf one waits in vain
            self._memory.heartbeat()

    def _is_over(self) -> bool:
        return self.ended.is_set() or self.deaf.is_set()

    def _may_write(self) -> bool:
        return not self._stop.is_set() and self._anybody_writes()

    def _drain(self) -> None:
        try:
            self._read_to_the_end()
        except Exception as error:  # a bug of ours must not leave the user waiting for ever
            self._on_problem(f"Reading the events failed: {error!r}. The figures end here.")
        self.ended.set()
        try:
            self._conclude()
        except Exception as error:
            self._on_problem(f"Ending the reading failed: {error!r}.")
        self._on_end()

    def _read_to_the_end(self) -> None:
        idle = IDLE_SECONDS
        while True:
            last = not self._may_write()  # asked before looking: what came until then is read
            if read := self._read_once():
                idle = IDLE_SECONDS
                if read < self._enough_events and not last:
                    self._rest(GATHER_SECONDS)
            elif last and self._reader.pending() == 0:
                return
            else:
                self._rest(idle)
                idle = min(idle * 1.2, IDLE_SECONDS_AT_MOST)
            for subscriber in self._subscribers:
                subscriber.on_round()
            self._tell_losses()
            self._tell_damage()

    def _rest(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _read_once(self) -> int:
        with self.lock:
            read = self._reader.read()
            batch = self._without_impossible(read)
            if len(read) or self._due:
                self._hand_out(batch, self._reader.consumed - len(batch), time.monotonic_ns())
            return len(read)

    def _without_impossible(self, batch: EventBatch) -> EventBatch:
        """Without the events that no agent writes: nobody would know what to make of them."""
        fine = possible(batch, self._memory.layout.threads_capacity)
        if fine is None:
            return batch
        self._memory.damage.add("events", int(batch.size - fine.sum()))
        return batch[fine]

    def _hand_out(self, batch: EventBatch, first: int, now_ns: int) -> None:
        """Cut where somebody wants to be called at a place in the ring that somebody else chose."""
        start = 0
        while self._due and self._due[0][0] <= first + len(batch):
            end = max(self._due[0][0] - first, start)
            self._hand_out_to_marks(batch[start:end], first + start, now_ns)
            self._due.popleft()[1]()
            start = end
        self._hand_out_to_marks(batch[start:], first + start, now_ns)

    def _hand_out_to_marks(self, batch: EventBatch, first: int, now_ns: int) -> None:
        """Cut after each mark: it is about the moment when what was before it has been taken, and nothing else."""
        start = 0
        for place in np.flatnonzero(batch["kind"] == Kind.MARK).tolist():
            self._hand_to_all(batch[start : place + 1], first + start, now_ns)
            self._clock.on_mark(batch[place], now_ns)
            for subscriber in self._subscribers:
                subscriber.on_mark(batch[place])
            start = place + 1
        self._hand_to_all(batch[start:], first + start, now_ns)

    def _hand_to_all(self, events: EventBatch, first: int, now_ns: int) -> None:
        if len(events):
            times = self._clock.times(events, now_ns)
            for subscriber in self._subscribers:
                subscriber.on_events(events, first, times)

    def _tell_losses(self) -> None:
        lost = self.lost
        if lost != self._lost_told:
            self._lost_told = lost
            for subscriber in self._subscribers:
                subscriber.on_lost(lost)

    def _tell_damage(self) -> None:
        damage = self._memory.damage
        if self._reader.broken and not self.deaf.is_set():
            self.deaf.set()
            while self._due:
                self._due.popleft()[1]()
        if damage.found and not self._damage_told:
            self._damage_told = True
            self._on_problem(str(damage) + (" The figures end here." if self._reader.broken else ""))

    def _conclude(self) -> None:
        for subscriber in self._subscribers:
            subscriber.on_end()
        while self._due:
            self._due.popleft()[1]()
