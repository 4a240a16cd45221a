"""Where what is in the session memory, as the host laid it out: its own copy, never read back from the shared page."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from dataclasses import asdict, dataclass

import numpy as np

from frida_rtetrack.stream.clock import clock_source
from frida_rtetrack.stream.events import (
    EVENT_DTYPE,
    HEADER_BYTES,
    HEADER_DTYPE,
    MAX_THREADS,
    SESSION_MAGIC,
    SESSION_VERSION,
    THREAD_DTYPE,
)

MIB = 1 << 20
STACK_TABLE_BYTES = 128 * MIB
LABEL_TABLE_BYTES = 8 * MIB
MODULE_TABLE_BYTES = 2 * MIB
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Nobody may change the size any more: who reads behind a file's end gets SIGBUS."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets and sizes in bytes, capacities in records: the fields of `struct session_header` of the same names."""

    total_bytes: int
    ring_offset: int
    ring_capacity: int
    stacks_offset: int
    stacks_words: int
    labels_offset: int
    labels_bytes: int
    threads_offset: int
    threads_capacity: int
    modules_offset: int
    modules_bytes: int

    @classmethod
    def of(cls, ring_capacity: int) -> Layout:
        """With a ring of so many events, a power of two."""
        stacks = HEADER_BYTES + ring_capacity * EVENT_DTYPE.itemsize
        labels = stacks + STACK_TABLE_BYTES
        threads = labels + LABEL_TABLE_BYTES
        modules = threads + MAX_THREADS * THREAD_DTYPE.itemsize
        return cls(
            total_bytes=modules + MODULE_TABLE_BYTES,
            ring_offset=HEADER_BYTES,
            ring_capacity=ring_capacity,
            stacks_offset=stacks,
            stacks_words=STACK_TABLE_BYTES // 8,
            labels_offset=labels,
            labels_bytes=LABEL_TABLE_BYTES,
            threads_offset=threads,
            threads_capacity=MAX_THREADS,
            modules_offset=modules,
            modules_bytes=MODULE_TABLE_BYTES,
        )

    def fields(self) -> dict[str, int]:
        """By name."""
        return asdict(self)

    def header(self) -> bytes:
        """The header of an empty session."""
        header = np.zeros((), HEADER_DTYPE)
        header["magic"], header["version"], header["header_bytes"] = SESSION_MAGIC, SESSION_VERSION, HEADER_BYTES
        for name, value in self.fields().items():
            header[name] = value
        header["stacks_used"] = 1  # number 0 means "none" in the three tables that events refer to
        header["labels_used"] = 8
        header["threads_used"] = 1
        header["clock_source"] = clock_source()
        header["heartbeat_ns"] = time.monotonic_ns()
        return header.tobytes()

    def write(self, fd: int) -> None:
        """Sizes the empty memfd `fd` for good and writes the header. Raises OSError: it is none, or was tampered with.

        The target made it, and says which one it is: another file of its must not be cut to our size.
        """
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != 0 or os.fstat(fd).st_size != 0:  # EINVAL where it is no memfd
            raise OSError(errno.EPERM, "the session memory is not a new memfd that can be sealed")
        os.ftruncate(fd, self.total_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) != SEALS or os.fstat(fd).st_size != self.total_bytes:
            raise OSError(errno.EPERM, "the session memory was changed while it was made")
        os.pwrite(fd, self.header(), 0)
