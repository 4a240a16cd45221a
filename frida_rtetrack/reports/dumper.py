"""When the dump file is written: at SIGRTMIN, at bad frees, and when somebody asks; how, is dump.py's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.observer import Observer
from frida_rtetrack.reports.dump import DumpError, check_dump, write_dump
from frida_rtetrack.reports.dumpplace import dump_place
from frida_rtetrack.stream.events import Mark, mark_of
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.symbols.names import BASELINE_LABEL, Names
from frida_rtetrack.tracking.trackedheap import TrackedHeap

BAD_FREE_DUMP_SECONDS = 1.0
WAITING_AT_MOST = 32
"""Dumps asked for and not begun; what is asked for beyond that is not written: the one before it is about as new."""
_FIELDS = ("address", "size_bytes", "stack", "label", "baseline")


class Dumper(Subscriber):
    """Writes the live blocks of a heap. Subscribe it after the heap."""

    def __init__(
        self,
        heap: TrackedHeap,
        names: Names,
        *,
        path: Path,
        on_bad_free: bool,
        later: Callable[[str, Callable[[], None]], None],
        observer: Observer,
    ) -> None:
        """`path`: where, unless asked otherwise. `later(what, task)` has a task run off the way of the events."""
        self._heap = heap
        self._names = names
        self._path = path
        self._on_bad_free = on_bad_free
        self._later = later
        self._observer = observer
        self._last_bad_free_dump = 0.0
        self._bad_frees_dumped = 0
        self._waiting = 0
        self._told = ""

    def check(self) -> None:
        """Has the user told, before anything runs, where the dump cannot be written, or goes to another place."""
        place = dump_place(self._path)
        if place != self._path:
            self._observer.problem(f"Something of another user's is at {self._path}: the dump goes to {place}.")
        try:
            check_dump(place)
        except DumpError as error:
            self._tell(error)

    def on_mark(self, mark: np.void) -> None:
        """SIGRTMIN in the target, or in a child of it: the heap as it was right there."""
        if mark_of(mark)[0] is Mark.SIGNAL:
            self.write_soon("SIGRTMIN")

    def on_round(self) -> None:
        """One dump for all the bad frees of a second."""
        now = time.monotonic()
        if self._bad_free_dump_is_due() and now - self._last_bad_free_dump >= BAD_FREE_DUMP_SECONDS:
            self._last_bad_free_dump = now
            self._dump_bad_frees()

    def on_end(self) -> None:
        """What was put off."""
        if self._bad_free_dump_is_due():
            self._dump_bad_frees()

    def write_soon(self, why: str) -> None:
        """Has the heap as it is now written, without waiting for it; the observer is told."""
        if self._waiting >= WAITING_AT_MOST:
            return  # each holds a copy of the live set
        live = self.live()
        self._waiting += 1
        self._later("dump", lambda: self._write_and_tell(live, why))

    def live(self) -> NDArray[np.void]:
        """A copy of what a dump says of the live blocks, shape (n,)."""
        return self._heap.map.live(_FIELDS)

    def look_names_up(self) -> None:
        """Of a few stacks of the map, which takes the longest for the first of each module: a dump is about to be written."""
        for stack in self._heap.map.some_stacks():
            self._names.stack_text(stack)

    def write(self, path: Path | None, live: NDArray[np.void]) -> Path:
        """Writes these blocks, shape (n,), fields as `live` has them, to `path`, or where they always go. Raises DumpError."""
        path = dump_place(self._path) if path is None else path
        live["label"][live["baseline"] & (live["label"] == 0)] = BASELINE_LABEL
        write_dump(path, live, self._names.label, self._names.stack_text)
        return path

    def _bad_free_dump_is_due(self) -> bool:
        return self._on_bad_free and self._heap.bad_frees.found > self._bad_frees_dumped

    def _dump_bad_frees(self) -> None:
        self._bad_frees_dumped = self._heap.bad_frees.found
        self.write_soon("bad free")

    def _write_and_tell(self, live: NDArray[np.void], why: str) -> None:
        self._waiting -= 1
        try:
            path = self.write(None, live)
        except DumpError as error:
            self._tell(error)
        else:
            self._told = ""
            self._observer.dumped(path, len(live), why)

    def _tell(self, error: DumpError) -> None:
        """Once, as long as it stays so: every bad free would say it again."""
        told = f"{error} {error.hint}".rstrip()
        if told != self._told:
            self._told = told
            self._observer.problem(told)
