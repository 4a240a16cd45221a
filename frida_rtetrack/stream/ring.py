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

from frida_rtetrack.stream.events import (
    EVENT_DTYPE,
    HEADER_BYTES,
    HEADER_DTYPE,
    MODULE_DTYPE,
    SESSION_MAGIC,
    SESSION_VERSION,
    STACK_RECORD_WORDS,
    THREAD_DTYPE,
    EventBatch,
    ExecState,
    StackEnd,
)

MIB = 1 << 20
STACK_TABLE_BYTES = 128 * MIB
LABEL_TABLE_BYTES = 8 * MIB
THREAD_TABLE_SLOTS = 1 << 16
MODULE_TABLE_BYTES = 2 * MIB
BATCH_EVENTS = 1 << 16
"""2 MiB: what was copied out of the ring is still in the caches when it is applied."""
RELEASE_BYTES = 4 * MIB
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


def ring_capacity(buffer_mib: int) -> int:
    """The number of events, a power of two, that `buffer_mib` MiB hold."""
    events = max(buffer_mib, 1) * MIB // EVENT_DTYPE.itemsize
    return 1 << (events.bit_length() - 1)


class SessionMemory:
    """The mapped session memory: header, ring and tables. Close it to give the memory back."""

    def __init__(self, fd: int) -> None:
        """Maps the session memory behind `fd` (which stays the caller's to close)."""
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.header = np.ndarray((), HEADER_DTYPE, self._map)
        header = self.header
        self.ring = np.ndarray((int(header["ring_capacity"]),), EVENT_DTYPE, self._map, int(header["ring_offset"]))
        self._stacks = np.ndarray((int(header["stacks_words"]),), "<u8", self._map, int(header["stacks_offset"]))
        self._labels_offset = int(header["labels_offset"])
        self._threads = np.ndarray(
            (int(header["threads_capacity"]),), THREAD_DTYPE, self._map, int(header["threads_offset"])
        )
        self._modules_offset = int(header["modules_offset"])

    @classmethod
    def create(cls, fd: int, buffer_mib: int) -> SessionMemory:
        """Sizes the empty memfd `fd`, writes the header and maps it. Raises OSError where the kernel refuses."""
        header = np.zeros((), HEADER_DTYPE)
        header["magic"], header["version"], header["header_bytes"] = SESSION_MAGIC, SESSION_VERSION, HEADER_BYTES
        header["ring_capacity"] = ring_capacity(buffer_mib)
        header["stacks_words"] = STACK_TABLE_BYTES // 8
        header["labels_bytes"] = LABEL_TABLE_BYTES
        header["threads_capacity"] = THREAD_TABLE_SLOTS
        header["modules_bytes"] = MODULE_TABLE_BYTES
        at = HEADER_BYTES
        for name, size in (
            ("ring_offset", int(header["ring_capacity"]) * EVENT_DTYPE.itemsize),
            ("stacks_offset", STACK_TABLE_BYTES),
            ("labels_offset", LABEL_TABLE_BYTES),
            ("threads_offset", THREAD_TABLE_SLOTS * THREAD_DTYPE.itemsize),
            ("modules_offset", MODULE_TABLE_BYTES),
        ):
            header[name] = at
            at += size
        header["total_bytes"] = at
        header["stacks_used"] = 1  # number 0 means "none" in the three tables that events refer to
        header["labels_used"] = 8
        header["threads_used"] = 1
        header["heartbeat_ns"] = time.monotonic_ns()
        os.ftruncate(fd, at)
        os.pwrite(fd, header.tobytes(), 0)
        return cls(fd)

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
        offset, slot_bytes = int(self.header["ring_offset"]), EVENT_DTYPE.itemsize
        self._map.madvise(mmap.MADV_DONTNEED, offset + first * slot_bytes, (end - first) * slot_bytes)

    def counter(self, name: str) -> int:
        """The header's field `name`, as it is now."""
        return int(self.header[name])

    def stack(self, number: int) -> StackRecord:
        """The stack that events call `number` (not 0)."""
        word = int(self._stacks[number])
        first = number + STACK_RECORD_WORDS
        addresses = tuple(int(address) for address in self._stacks[first : first + (word & 0xFFFF)])
        return StackRecord(addresses, StackEnd(word >> 16 & 0xFF), word >> 24 & 0xFF, word >> 32)

    def label(self, number: int) -> bytes | None:
        """The text of the label that events call `number`; None for 0, a NULL type."""
        if number == 0:
            return None
        at = self._labels_offset + 8 * number
        length = int.from_bytes(self._map[at : at + 2], "little")
        return bytes(self._map[at + 2 : at + 2 + length])

    def thread(self, number: int) -> ThreadRecord:
        """The thread that events call `number`."""
        slot = self._threads[number]
        return ThreadRecord(int(slot["tid"]), bytes(slot["name"]).decode(errors="replace"), int(slot["process"]))

    def processes_of_threads(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """The processes (n,) of the threads (n,) that events name."""
        processes: NDArray[np.uint16] = self._threads["process"].take(numbers)
        return processes

    def thread_of_stack(self, address: int, process: int) -> int | None:
        """The number of the thread whose stack `address` was last seen to lie on; None where none is known."""
        used = min(self.counter("threads_used"), len(self._threads))
        slots = self._threads[:used]
        on = (slots["stack_low"] <= address) & (address < slots["stack_high"]) & (slots["process"] == process)
        found = np.flatnonzero(on & (slots["tid"] != 0))
        return int(found[-1]) if found.size else None

    def pid(self, process: int) -> int:
        """The pid of the process that stacks and threads call `process`."""
        return int(self.header["processes"][process]["pid"])

    def parent_pid(self, process: int) -> int | None:
        """The pid of the process that forked `process`; None if it is no forked child."""
        parent = int(self.header["processes"][process]["reserved"])
        return self.pid(parent - 1) if parent else None

    def waiting_execs(self) -> list[tuple[int, int]]:
        """(entry, pid) of each process that waits to execute a program and was not answered before."""
        execs = self.header["execs"]
        waiting = np.flatnonzero(execs["state"] == ExecState.WAITING)
        execs["state"][waiting] = ExecState.SEEN
        return [(int(entry), int(execs["pid"][entry])) for entry in waiting]

    def let_exec_go(self, entry: int) -> None:
        """Lets the process of `entry` execute its program."""
        self.header["execs"]["state"][entry] = ExecState.GO

    def appending_tids(self) -> Iterator[tuple[int, int]]:
        """(process, tid) of each thread that is between claiming a slot of the ring and committing it."""
        used = min(self.counter("threads_used"), len(self._threads))
        for slot in self._threads[:used][self._threads["appending"][:used] != 0]:
            yield int(slot["process"]), int(slot["tid"])

    def modules(self) -> list[ModuleRecord]:
        """All modules recorded so far, unloaded ones included."""
        found = []
        at, end = self._modules_offset, self._modules_offset + int(self.header["modules_bytes"])
        while at + MODULE_DTYPE.itemsize <= end:
            record = np.frombuffer(self._map, MODULE_DTYPE, 1, at)[0]
            if record["record_bytes"] == 0:
                break
            path_at = at + MODULE_DTYPE.itemsize
            path = bytes(self._map[path_at : path_at + int(record["path_bytes"])])
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
            at += int(record["record_bytes"])
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

    @property
    def consumed(self) -> int:
        """Events taken out so far, holes included: the ring index of the next one."""
        return self._tail

    def pending(self) -> int:
        """Events that were claimed and not yet taken out."""
        return self._memory.counter("head") - self._tail

    def read(self, limit: int = BATCH_EVENTS) -> EventBatch:
        """The next events, at most `limit`, as a copy of dtype EVENT_DTYPE; empty if none is complete."""
        start = self._tail % self._capacity
        count = min(self.pending(), limit, self._capacity - start)
        view = self._memory.ring[start : start + count]
        ready: NDArray[np.bool_] = view["commit"] == np.uint32((self._tail // self._capacity + 1) & 0xFFFF_FFFF)
        if not ready.all():
            count = int(ready.argmin())
        batch = view[:count].copy()
        if count:
            self._advance(count)
        elif self.pending() > 0:
            self._pass_over_dead_hole()
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

    def _pass_over_dead_hole(self) -> None:
        now = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since < HOLE_PATIENCE_S:
            return
        if any(self._alive(process, tid) for process, tid in self._memory.appending_tids()):
            self._stuck_since = now
            return
        slot = self._memory.ring[self._tail % self._capacity]
        if slot["commit"] != np.uint32((self._tail // self._capacity + 1) & 0xFFFF_FFFF):
            self.holes += 1
            self._advance(1)
