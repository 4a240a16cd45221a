"""Writes a session down while it happens: subscribed to the pump, and told what sets the live set right.

The pump's thread only collects; a thread of the recorder's own compresses, looks up what is new and writes. Where that
cannot keep up, the pump waits, and the program with it once the ring is full. A recording that fails ends; the tracking
goes on.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.progress import following
from frida_rtetrack.recording.aggregate import Aggregate, Sample
from frida_rtetrack.recording.blocks import pack_rows
from frida_rtetrack.recording.file import RecordingFile, create
from frida_rtetrack.recording.findings import Finding
from frida_rtetrack.stream.events import EventBatch, Times, threads
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.stream.ring import SessionMemory
from frida_rtetrack.symbols.elf import ElfError, open_elf
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.symbols.symbolizer import Module
from frida_rtetrack.target.target import Target
from frida_rtetrack.tracking.amendments import Amendment
from frida_rtetrack.tracking.trackedheap import TrackedHeap

CHUNK_EVENTS = 1 << 17
COMMIT_SECONDS = 1.0
SEALED_AT_MOST = 8
"""Chunks that wait to be written: 32 MiB of events."""
_ROOM_BYTES, _ROOM_BYTES_A_STACK = 32 << 10, 300
"""What a recording that is limited leaves for what it writes at its end."""


class Processes(Protocol):
    """Of which processes the events are."""

    @property
    def targets(self) -> list[Target]:
        """The tracked processes."""

    def pid_of(self, number: int) -> int:
        """The pid of the process that threads and stacks call so; 0 where it is not known."""


@dataclass(slots=True)
class _Piece:
    """What happened in a row: events, and the amendments before each of them."""

    first: int
    batches: list[EventBatch] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    amendments: list[tuple[int, Amendment]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    sample: Sample | None = None
    count: int = 0


class _Known:
    """Which numbers of a table have been written; numbers that the table cannot have are never new."""

    def __init__(self, capacity: int) -> None:
        self._seen = np.zeros(capacity, np.bool_)
        self._seen[0] = True  # 0 stands for none, in every table

    def new(self, numbers: NDArray[np.unsignedinteger]) -> list[int]:
        """Those of `numbers` (n,) that were not asked for before, each once."""
        inside = (
            numbers if not numbers.size or int(numbers.max()) < self._seen.size else numbers[numbers < self._seen.size]
        )
        fresh: NDArray[np.unsignedinteger] = np.unique(inside[~self._seen[inside]])
        self._seen[fresh] = True
        return [int(number) for number in fresh]

    def all(self) -> list[int]:
        """All that were asked for."""
        return [int(number) for number in np.flatnonzero(self._seen)[1:]]


class Recorder(Subscriber):
    """One recording. `about` at once, events from `subscribe` on, `finish` at the end."""

    def __init__(
        self,
        path: Path,
        memory: SessionMemory,
        names: Names,
        heap: TrackedHeap,
        processes: Processes,
        *,
        on_problem: Callable[[str], None],
        force: bool = False,
        aggregate_seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Of the session whose parts these are, into a new file at `path`. Raises BadUsage where that cannot be made.

        `aggregate_seconds`: no events, but a series with a moment each so many seconds. `max_bytes`: it ends before the
        file is larger.
        """
        create(path, force=force)
        self._aggregate = None if aggregate_seconds is None else Aggregate(aggregate_seconds)
        self._aggregate_seconds = aggregate_seconds
        self._max_bytes = max_bytes
        self._start_ns = self._committed_ns = 0
        self._until_ns: int | None = None
        self.path = path
        self.failed: str | None = None
        """Why it ended early."""
        self._memory = memory
        self._names = names
        self._heap = heap
        self._processes = processes
        self._on_problem = on_problem
        self._stacks = _Known(memory.layout.stacks_words)
        self._labels = _Known(memory.layout.labels_bytes // 8)
        self._threads = _Known(memory.layout.threads_capacity)
        self._modules: dict[tuple[Any, ...], Module] = {}
        self._modules_used = -1
        self._targets: set[int] = set()
        self._bad_frees = 0
        self._leaves_before = 0
        self._told: dict[str, Any] = {}
        self._piece = _Piece(0)
        self._sealed_at = self._committed_at = time.monotonic()
        self._queue: queue.Queue[_Piece | None] = queue.Queue(SEALED_AT_MOST)
        self._lock = threading.Lock()
        self._file = RecordingFile(path)
        self._thread = threading.Thread(target=self._write_all, name="record", daemon=True)
        self._finished = False
        self._with_names = True
        self._state: Callable[[], dict[str, Any]] = dict

    def begin(self, state: Callable[[], dict[str, Any]], *, names: bool = True, **about: Any) -> None:
        """Begins to write. To be called before anything is handed to it.

        `about`: what is known of the session; `state()`: what changes of it, asked each time something is written;
        `names`: looks up how all stacks read where it ends before the session.
        """
        self._with_names = names
        self._state = state
        self._start_ns = self._committed_ns = about["started"].monotonic_ns
        if self._heap.map.events:
            self._begin_late()
        self._tell(**about, begun_complete=self._heap.map.complete, aggregate_seconds=self._aggregate_seconds)
        self._file.commit()
        if self._aggregate is None:
            self._heap.map.on_amended = self._on_amended
        self._thread.start()

    def _begin_late(self) -> None:
        """What was live, and what was known of EAL, when the recording began: the reader goes on from there."""
        heap = self._heap
        beginning = heap.map.state()
        live = beginning.live
        if self._aggregate is None:
            self._file.beginning(beginning, pack_rows(live))
        self._leaves_before = len(heap.eal.last_leaves)
        self._tell(init_ranges=list(heap.eal.init_ranges), owner=heap.eal.owner.value)
        self._tell(cleaned_up=[target.number for target in self._processes.targets if target.cleaned_up])
        moved = [resize.moved_aside for resize in beginning.resizes.values() if resize.moved_aside is not None]
        self._write_numbers(
            labels=np.append(live["label"], [block.label for block in moved]).astype(np.uint32),
            threads=np.append(live["thread"], [block.thread for block in moved]).astype(np.uint32),
            stacks=np.concatenate([live["stack"], live["resize_stack"], [block.stack for block in moved]]).astype(
                np.uint32
            ),
        )

    # ---- on the way of the events

    @property
    def position(self) -> int:
        """Events taken so far."""
        return self._piece.first + self._piece.count

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        """Keeps them: they are shared, and nobody changes them."""
        with self._lock:
            self._piece.batches.append(events)
            self._piece.times.append(times)
            self._piece.count += len(events)
        if self._piece.count >= CHUNK_EVENTS:
            self._seal()

    def on_round(self) -> None:
        """Has what there is written, once a second."""
        self._sample_if_due()
        if time.monotonic() - self._sealed_at >= COMMIT_SECONDS:
            self._seal()

    def on_end(self) -> None:
        """Has the rest written."""
        self._seal()

    def _sample_if_due(self, *, last: bool = False) -> None:
        if self._aggregate is not None and self.failed is None and (last or self._aggregate.due()):
            sample = self._aggregate.sample(self._heap, last=last)
            with self._lock:
                self._piece.sample = sample
            self._seal()

    def note(self, finding: Finding) -> None:
        """Keeps what was judged. To be called from any thread."""
        with self._lock:
            self._piece.findings.append(finding)

    def _on_amended(self, amendment: Amendment) -> None:
        with self._lock:
            self._piece.amendments.append((self.position, amendment))

    def _seal(self) -> None:
        with self._lock:
            piece, self._piece = self._piece, _Piece(self.position)
        self._sealed_at = time.monotonic()
        if self.failed is None and self._thread.is_alive():
            self._queue.put(piece)

    # ---- writing

    def _tell(self, **about: Any) -> None:
        """What is new of it."""
        new = {key: value for key, value in about.items() if key not in self._told or self._told[key] != value}
        if new:
            self._file.about(**new)
            self._told |= new

    def _write_all(self) -> None:
        written_ns = self._start_ns
        try:
            while (piece := self._queue.get()) is not None:
                self._write(piece)
                if self._is_full():
                    self._end_at_largest()
                    return
                written_ns = max(written_ns, int(piece.times[-1][-1]) if piece.count else 0)
                if time.monotonic() - self._committed_at >= COMMIT_SECONDS or self._queue.empty():
                    self._file.commit()
                    self._committed_at, self._committed_ns = time.monotonic(), written_ns
            self._file.commit()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.failed = str(error) if isinstance(error, sqlite3.Error | OSError) else repr(error)
        self._let_pump_go_on()
        self._on_problem(
            f"The recording {self.path} ended early: {self.failed}. What was recorded until then can be read; the tracking goes on."
        )
        with contextlib.suppress(sqlite3.Error, OSError):  # what was not committed made room: a word may still fit
            self._file.rollback()
            self._file.about(stopped=self.failed)
            self._file.commit()

    def _let_pump_go_on(self) -> None:
        """It may wait for room in the queue."""
        while not self._queue.empty():
            self._queue.get_nowait()

    def _is_full(self) -> bool:
        if self._max_bytes is None:
            return False
        room = _ROOM_BYTES + _ROOM_BYTES_A_STACK * len(self._file.stacks())
        return self._file.size_bytes() > self._max_bytes - min(room, self._max_bytes // 2)

    def _end_at_largest(self) -> None:
        """At the last whole second that was written in full, or with the last look at the heap."""
        self._file.rollback()
        self.failed = "it has reached its largest size"
        self._let_pump_go_on()
        seconds = (self._committed_ns - self._start_ns) // 1_000_000_000
        self._until_ns = self._start_ns + seconds * 1_000_000_000
        where = f"it ends {seconds:,} s after the start" if self._aggregate is None else "it ends here"
        self._on_problem(f"The recording {self.path} has reached --max-size: {where}; the tracking goes on.")
        self._told.clear()
        self._modules.clear()
        self._targets.clear()
        self._bad_frees = 0
        self._write_end({"stopped": f"it had reached --max-size, {self._max_bytes:,} bytes"})
        self._file.commit()
        if self._with_names:
            self._write_frames()

    def _write(self, piece: _Piece) -> None:
        for position, amendment in piece.amendments:
            self._file.amendment(position, amendment)
        for finding in piece.findings:
            self._file.finding(finding)
        if piece.count:
            events, times = np.concatenate(piece.batches), np.concatenate(piece.times)
            self._write_named(events)
            if self._aggregate is not None:
                self._aggregate.add(events, times)
            for start in () if self._aggregate is not None else range(0, len(events), CHUNK_EVENTS):
                part = slice(start, start + CHUNK_EVENTS)
                self._file.chunk(piece.first + start, events[part], times[part])
            if self._aggregate is None:
                self._tell(events=piece.first + piece.count)
        if piece.sample is not None:
            self._write_sample(piece.sample)
        self._write_state()

    def _write_sample(self, sample: Sample) -> None:
        assert self._aggregate is not None
        self._file.beginning(sample.state, self._aggregate.live(sample))
        self._file.aggregate(*self._aggregate.kept(sample))
        if sample.in_series:
            new, changed = self._aggregate.changes(sample)
            self._file.sites(new)
            self._file.series(sample.at_ns, changed)
        self._tell(until_ns=sample.at_ns, init_ranges=list(sample.init_ranges), owner=sample.owner.value)

    def _write_named(self, events: EventBatch) -> None:
        self._write_numbers(labels=events["label"], threads=threads(events), stacks=events["stack"])

    def _write_numbers(
        self, *, labels: NDArray[np.uint32], threads: NDArray[np.uint32], stacks: NDArray[np.uint32]
    ) -> None:
        """What these numbers, each (n,), stand for, where that was not written before."""
        for number in self._labels.new(labels):
            self._file.label(number, self._memory.label(number))
        for number in self._threads.new(threads):
            record = self._memory.thread(number)
            self._file.thread(number, record.process, record.tid, record.name)
        for number in self._stacks.new(stacks):
            stack = self._memory.stack(number)
            if stack is not None:
                self._file.stack(number, stack)

    def _write_state(self) -> None:
        used = self._memory.counter("modules_used")
        if used != self._modules_used:
            self._modules_used = used
            self._write_modules()
        for target in self._processes.targets:
            if target.number not in self._targets:
                self._file.process(target.number, target.pid, target.argv)
                self._targets.add(target.number)
        reports = self._heap.bad_frees.reports[self._bad_frees :]
        for report in reports:
            if self._until_ns is None or report.timestamp_ns <= self._until_ns:
                self._file.bad_free(report)
        self._bad_frees += len(reports)
        self._tell(
            bad_frees_not_kept=self._heap.bad_frees.not_kept,
            inserting=sorted(self._heap.view.inserting),
            last_leaves=self._heap.eal.last_leaves[self._leaves_before :],
            pid=self._processes.targets[0].pid if self._processes.targets else 0,
            **self._state(),
        )

    def _write_modules(self) -> None:
        for number, record in enumerate(self._memory.modules()):
            where = (record.process, record.base, record.path, record.loaded_epoch)
            known = self._modules.get(where)
            if known is not None and known.unloaded_epoch == record.unloaded_epoch:
                continue
            build_id = self._build_id(record.process, record.path) if known is None else known.build_id
            self._modules[where] = module = Module(
                record.path, record.base, record.size, record.process, record.loaded_epoch, record.unloaded_epoch, build_id
            )  # fmt: skip
            self._file.module(number, module)

    def _build_id(self, process: int, path: str) -> bytes | None:
        """Of the file as that process sees it, or as we do."""
        for candidate in (f"/proc/{self._processes.pid_of(process)}/root{path}", path):
            try:
                return open_elf(candidate).build_id
            except (OSError, ValueError, ElfError):
                continue
        return None

    # ---- the end

    def finish(self, *, names: bool = True, **about: Any) -> None:
        """Writes what is only known at the end, and closes the file. Nothing is handed out any more.

        `about`: what is known of the session now; `names`: looks up and writes how all stacks read, too.
        """
        if self._finished:
            return
        self._finished = True
        self._sample_if_due(last=True)
        self._heap.map.on_amended = lambda amendment: None
        if self.failed is None:
            self._seal()
            self._queue.put(None)
        self._thread.join()
        try:
            if self.failed is None:
                self._write_end(about)
                self._file.commit()
                if names:
                    self._write_frames()
        except Exception as error:
            self._give_up(error)
        self._file.close()

    def _write_end(self, about: dict[str, Any]) -> None:
        self._write_state()
        self._write_modules()
        for number in self._threads.all():
            record = self._memory.thread(number)
            self._file.thread(number, record.process, record.tid, self._names.thread(number).name)
            self._file.process_if_new(record.process, self._processes.pid_of(record.process))
        if self._aggregate is None:
            self._tell(until_ns=self._until_ns or time.monotonic_ns())
        self._tell(**about, damage=str(self._memory.damage) if self._memory.damage.found else None, ended=True)

    def _write_frames(self) -> None:
        """How the stacks that are in it read; where it is limited and they do not fit, that is left to the reader."""
        if self._max_bytes is not None:
            self._file.limit(self._max_bytes)
        try:
            numbers = self._file.stacks()
            for number in following("looking names up", numbers, len(numbers)):
                stack = self._names.stack(number)
                if stack is not None:
                    self._file.frames(number, stack)
            self._file.commit()
        except sqlite3.OperationalError as error:
            if self._max_bytes is None or error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            self._file.rollback()
            self._on_problem("The names did not fit into --max-size: they are looked up when the recording is read.")
