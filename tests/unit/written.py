"""A real session memory whose events a test writes, in place of an agent in a target."""

from __future__ import annotations

import os
import threading
import time

import numpy as np

from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, Api, EventBatch, Kind, Mark
from frida_rtetrack.stream.ring import SessionMemory

PATIENCE_SECONDS = 20.0


def event(
    kind: Kind, address: int = 0, size_bytes: int = 64, *, api: int = 0, thread: int = 1, socket: int = -1
) -> np.void:
    """One event as the agent writes it."""
    record = np.zeros((), EVENT_DTYPE)
    record["kind"], record["api"], record["socket"] = kind, api, socket
    record["address"], record["size_and_thread"] = address, size_bytes | thread << SIZE_BITS
    return record[()]


def allocated(address: int, size_bytes: int = 64, *, thread: int = 1) -> np.void:
    return event(Kind.ALLOCATED, address, size_bytes, api=Api.MALLOC, thread=thread)


def freed(address: int, *, thread: int = 1) -> np.void:
    return event(Kind.FREED, address, 0, api=Api.FREE, thread=thread)


def busy(address: int, size_bytes: int = 128) -> np.void:
    """A block in DPDK's heap, as a snapshot tells of it."""
    return event(Kind.BASELINE_BLOCK, address, size_bytes)


def mark(kind: Mark, argument: int = 0, *, address: int = 0, thread: int = 1, socket: int = 0) -> np.void:
    return event(Kind.MARK, address, argument, api=kind, thread=thread, socket=socket)


class WrittenSession:
    """The memory, with thread 1 in process 0 and thread 2 in process 1. `close` it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.memory = SessionMemory.create(self.fd, 1)
        self._lock = threading.Lock()
        self.set_thread(1, 0)
        self.set_thread(2, 1)

    def set_thread(self, number: int, process: int) -> None:
        slots = self.memory._threads
        slots[number]["tid"], slots[number]["process"], slots[number]["name"] = 4000 + number, process, b"writer"
        self.memory.header["threads_used"] = max(self.memory.counter("threads_used"), number + 1)

    def set_process(self, number: int, pid: int, parent: int | None = None) -> None:
        entry = self.memory.header["processes"][number]
        entry["pid"], entry["reserved"] = pid, 0 if parent is None else parent + 1
        self.memory.header["processes_used"] = max(self.memory.counter("processes_used"), number + 1)

    def write(self, *events: np.void) -> None:
        """Appends to the ring; waits where it is full."""
        self.write_batch(np.array(list(events), EVENT_DTYPE))

    def write_batch(self, batch: EventBatch) -> None:
        header, ring = self.memory.header, self.memory.ring
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._lock:
            for record in batch:
                index = int(header["head"])
                while index - int(header["tail"]) >= len(ring):
                    assert time.monotonic() < deadline, "nobody reads"
                    time.sleep(0.001)
                record = record.copy()
                record["commit"] = 0
                ring[index % len(ring)] = record
                ring["commit"][index % len(ring)] = index // len(ring) + 1
                header["head"] = index + 1

    def close(self) -> None:
        os.close(self.fd)


def wait_until(condition: object) -> None:
    """Waits for `condition()` to be true; fails where it is not in time."""
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
