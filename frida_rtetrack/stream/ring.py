"""The session memory from the host's side: lays it out, drains the event ring, looks up stacks, labels and threads.

Reads and writes the memory only; it knows nothing of Frida and judges nothing. The layout is `native/session.h`.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.options import MAX_FRAMES
from frida_rtetrack.stream.damage import Damage
from frida_rtetrack.stream.events import (
    EVENT_DTYPE,
    EXECS,
    HEADER_DTYPE,
    LABEL_MAX_BYTES,
    MAX_PROCESSES,
    MODULE_DTYPE,
    STACK_RECORD_WORDS,
    THREAD_DTYPE,
    EventBatch,
    ExecState,
    StackEnd,
)
from frida_rtetrack.stream.layout import MIB, Layout

BATCH_EVENTS = 1 << 16
"""2 MiB: what was copied out of the ring is still in the caches when it is applied."""
RELEASE_BYTES = 4 << 20
HOLE_PATIENCE_S = 0.05


@dataclass(frozen=True, slots=True)
class StackRecord:
    """One distinct stack. `addresses` are return addresses, innermost first."""

    addresses: tuple[int, ...]
    end: StackEnd
    process: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A thread that called a hooked function, and its name at its first call."""

    tid: int
    name: str
    process: int


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """A module of the target, valid for stacks with loaded_epoch <= epoch < unloaded_epoch."""

    path: str
    base: int
    size: int
    process: int
    loaded_epoch: int
    unloaded_epoch: int
    build_id: bytes | None = None
    """Of the file that was loaded, where it is known."""


def ring_capacity(buffer_mib: int) -> int:
    """The number of events, a power of two, that `buffer_mib` MiB hold."""
    events = max(buffer_mib, 1) * MIB // EVENT_DTYPE.itemsize
    return 1 << (events.bit_length() - 1)


class SessionMemory:
    """The mapped session memory: header, ring and tables. Close it to give the memory back.

    The program writes it, so everything read here is data from outside: what cannot be is left out, and counted in
    `damage`.
    """

    def __init__(self, fd: int, layout: Layout) -> None:
        """Maps the session memory behind `fd` (which stays the caller's to close), laid out and sealed as `layout`."""
        self.layout = layout
        self.damage = Damage()
        self._own = layout.fields()
        self._map = mmap.mmap(fd, layout.total_bytes)
        self.header = np.ndarray((), HEADER_DTYPE, self._map)
        self.ring = np.ndarray((layout.ring_capacity,), EVENT_DTYPE, self._map, layout.ring_offset)
        self._stacks = np.ndarray((layout.stacks_words,), "<u8", self._map, layout.stacks_offset)
        self._threads = np.ndarray((layout.threads_capacity,), THREAD_DTYPE, self._map, layout.threads_offset)

    @classmethod
    def create(cls, fd: int, buffer_mib: int) -> SessionMemory:
        """Sizes and seals the empty memfd `fd` (MFD_ALLOW_SEALING), writes the header and maps it. Raises OSError."""
        layout = Layout.of(ring_capacity(buffer_mib))
        layout.write(fd)
        return cls(fd, layout)

    def close(self) -> None:
        """Drops the mapping. The arrays of this object must not be used afterwards."""
        del self.header, self.ring, self._stacks, self._threads
        try:
            self._map.close()
        except BufferError:  # somebody still holds a view: it goes with the last one
            pass

    def heartbeat(self) -> None:
        """Tells the target that the host is alive: a full ring is worth waiting for."""
        self.header["heartbeat_ns"] = time.monotonic_ns()

    def release_ring(self, first: int, end: int) -> None:
        """Unmaps the pages of the slots `first` to `end` until they are read again; what is in them stays."""
        offset, slot_bytes = self.layout.ring_offset, EVENT_DTYPE.itemsize
        self._map.madvise(mmap.MADV_DONTNEED, offset + first * slot_bytes, (end - first) * slot_bytes)

    def counter(self, name: str) -> int:
        """The header's field `name`, as it is now; the layout's as the host made it."""
        own = self._own.get(name)
        return int(self.header[name]) if own is None else own

    def clock_anchor(self) -> tuple[int, int, int]:
        """What ticks are: a tick number, the monotonic ns of that moment, and the ns in 2^32 ticks; zeros: not known yet."""
        return self.counter("clock_ticks"), self.counter("clock_ns"), self.counter("clock_rate")

    def stack(self, number: int) -> StackRecord | None:
        """The stack that events call `number` (not 0); None where there is none that could be one."""
        words = self.layout.stacks_words
        word = int(self._stacks[number]) if 0 < number < words else 0xFFFF
        frames, end, process = word & 0xFFFF, word >> 16 & 0xFF, word >> 24 & 0xFF
        first = number + STACK_RECORD_WORDS
        if frames > MAX_FRAMES or first + frames > words or end > max(StackEnd) or process >= MAX_PROCESSES:
            self.damage.add("stacks")
            return None
        addresses = tuple(self._stacks[first : first + frames].tolist())
        return StackRecord(addresses, StackEnd(end), process, word >> 32)

    def label(self, number: int) -> bytes | None:
        """The text of the label that events call `number`; None for 0, a NULL type, and where there is none."""
        if number == 0:
            return None
        text = 8 * number + 2
        length, end = LABEL_MAX_BYTES + 1, self.layout.labels_bytes
        if number > 0 and text <= end:
            at = self.layout.labels_offset + text
            length = int.from_bytes(self._map[at - 2 : at], "little")
        if length > LABEL_MAX_BYTES or text + length > end:
            self.damage.add("types")
            return None
        return bytes(self._map[at : at + length])

    def thread(self, number: int) -> ThreadRecord:
        """The thread that events call `number`; without id and name where there is none that could be one."""
        if 0 <= number < self.layout.threads_capacity:
            slot = self._threads[number].copy()
            if slot["process"] < MAX_PROCESSES:
                name = bytes(slot["name"]).decode(errors="replace")
                return ThreadRecord(int(slot["tid"]), name, int(slot["process"]))
        self.damage.add("threads")
        return ThreadRecord(0, "", MAX_PROCESSES)

    def processes_of_threads(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """The processes (n,) of the threads (n,) that events name."""
        processes: NDArray[np.uint16] = self._threads["process"].take(numbers, mode="clip")
        return processes

    def thread_of_stack(self, address: int, process: int) -> int | None:
        """The number of the thread whose stack `address` was last seen to lie on; None where none is known."""
        used = min(self.counter("threads_used"), len(self._threads))
        slots = self._threads[:used]
        on = (slots["stack_low"] <= address) & (address < slots["stack_high"]) & (slots["process"] == process)
        found = np.flatnonzero(on & (slots["tid"] != 0))
        return int(found[-1]) if found.size else None

    def pid(self, process: int) -> int:
        """The pid that the process that stacks and threads call `process` says it has; 0: none."""
        return int(self.header["processes"][process]["pid"]) if 0 <= process < MAX_PROCESSES else 0

    def parent(self, process: int) -> int | None:
        """The index of the process that, as it says, forked `process`; None if it is no forked child."""
        parent = int(self.header["processes"][process]["reserved"]) if 0 <= process < MAX_PROCESSES else 0
        if parent > MAX_PROCESSES:
            self.damage.add("processes")
        return parent - 1 if 0 < parent <= MAX_PROCESSES else None

    def parent_pid(self, process: int) -> int | None:
        """The pid of the process that, as it says, forked `process`; None if it is no forked child."""
        parent = self.parent(process)
        return None if parent is None else self.pid(parent)

    def processes_used(self) -> int:
        """How many entries the process table has."""
        return min(self.counter("processes_used"), MAX_PROCESSES)

    def waiting_execs(self) -> list[tuple[int, int]]:
        """(entry, pid) of each process that says it waits to execute a program, and that nobody has taken up."""
        execs = self.header["execs"]
        waiting = np.flatnonzero(execs["state"] == ExecState.WAITING)
        return [(int(entry), int(execs["pid"][entry])) for entry in waiting]

    def take_exec_up(self, entry: int) -> None:
        """Somebody sees to the process of `entry`, which waits on."""
        self._answer_exec(entry, ExecState.SEEN)

    def let_exec_go(self, entry: int) -> None:
        """Lets the process of `entry` execute its program."""
        self._answer_exec(entry, ExecState.GO)

    def _answer_exec(self, entry: int, answer: ExecState) -> None:
        if not 0 <= entry < EXECS:
            raise IndexError(entry)
        self.header["execs"]["state"][entry] = answer

    def appending_tids(self) -> Iterator[tuple[int, int]]:
        """(process, tid) of each thread that is between claiming a slot of the ring and committing it."""
        used = min(self.counter("threads_used"), len(self._threads))
        for slot in self._threads[:used][self._threads["appending"][:used] != 0]:
            yield int(slot["process"]), int(slot["tid"])

    def modules_version(self) -> int:
        """A number that changes when modules are added."""
        return self.counter("modules_used")

    def modules(self) -> list[ModuleRecord]:
        """All modules recorded so far, unloaded ones included, up to the first record that cannot be one."""
        found = []
        at, end = self.layout.modules_offset, self.layout.modules_offset + self.layout.modules_bytes
        while at + MODULE_DTYPE.itemsize <= end:
            record = np.frombuffer(self._map, MODULE_DTYPE, 1, at)[0].copy()
            record_bytes, path_bytes = int(record["record_bytes"]), int(record["path_bytes"])
            if record_bytes == 0:
                break
            path_at = at + MODULE_DTYPE.itemsize
            if (
                path_at + path_bytes > at + record_bytes
                or at + record_bytes > end
                or record["process"] >= MAX_PROCESSES
            ):
                self.damage.add("modules")
                break
            path = bytes(self._map[path_at : path_at + path_bytes])
            found.append(
                ModuleRecord(
                    os.fsdecode(path),
                    int(record["base"]),
                    int(record["size"]),
                    int(record["process"]),
                    int(record["loaded_epoch"]),
                    int(record["unloaded_epoch"]),
                )
            )
            at += record_bytes
        return found


class RingReader:
    """Takes events out of the ring in order, in batches.

    A slot that was claimed and never completed (its thread was killed in between) is passed over and counted in
    `holes` once no living thread can still complete it.
    """

    def __init__(self, memory: SessionMemory, thread_alive: Callable[[int, int], bool]) -> None:
        """`thread_alive(process, tid)` tells whether a thread of the target still exists."""
        self._memory = memory
        self._alive = thread_alive
        self._capacity = len(memory.ring)
        self._tail = memory.counter("tail")
        self._release_events = min(RELEASE_BYTES // EVENT_DTYPE.itemsize, self._capacity)
        self._released = self._tail - self._tail % self._release_events
        self._stuck_since: float | None = None
        self.holes = 0
        self.broken = False
        """The ring's positions cannot be: nothing is read from it any more."""
        self._dead_until = 0  # before this index nobody completes a slot any more

    @property
    def consumed(self) -> int:
        """Events taken out so far, holes included: the ring index of the next one."""
        return self._tail

    def pending(self) -> int:
        """Events that were claimed and not yet taken out; 0 once the ring is known to be damaged."""
        if self.broken:
            return 0
        pending = self._memory.counter("head") - self._tail
        if 0 <= pending <= self._capacity + self._memory.layout.threads_capacity:  # each thread may wait with a claim
            return pending
        self.broken = True
        self._memory.damage.add("ring positions")
        return 0

    def read(self, limit: int = BATCH_EVENTS) -> EventBatch:
        """The next events, at most `limit`, as a copy of dtype EVENT_DTYPE; empty if none is complete."""
        start = self._tail % self._capacity
        pending = self.pending()
        dead = self._dead_until - self._tail
        count = min(pending, limit, self._capacity - start, dead if dead > 0 else pending)
        view = self._memory.ring[start : start + count]
        ready: NDArray[np.bool_] = view["commit"] == np.uint16((self._tail // self._capacity + 1) & 0xFFFF)
        if dead > 0:
            batch = view[ready]
            self.holes += count - batch.size
        else:
            count = count if ready.all() else int(ready.argmin())
            batch = view[:count].copy()
        if count:
            self._advance(count)
        else:
            self._memory.header["tail"] = self._tail  # whatever somebody wrote there: who waits for room reads it
            if pending > 0:
                self._look_for_dead_holes(self._tail + pending)
        return batch

    def _advance(self, count: int) -> None:
        self._tail += count
        self._memory.header["tail"] = self._tail
        self._stuck_since = None
        if self._tail >= self._released + self._release_events:
            self._release()

    def _release(self) -> None:
        """What has been read need not count as the host's memory until the ring comes round again."""
        first, self._released = self._released, self._tail - self._tail % self._release_events
        for at in range(first, self._released, self._release_events):
            slot = at % self._capacity
            self._memory.release_ring(slot, slot + self._release_events)

    def _look_for_dead_holes(self, head: int) -> None:
        """Whether what was claimed until `head` and is not complete will never be: nobody is at it any more."""
        now = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since < HOLE_PATIENCE_S:
            return
        if any(self._alive(process, tid) for process, tid in self._memory.appending_tids()):
            self._stuck_since = now
        else:
            self._dead_until = head
