"""The record format of the event stream: the session memory's layout as numpy and Python see it.

`native/session.h` is the one definition; a test compiles it and compares every size, offset and constant with this
module. The ring, a recording on disk and the tests' fixtures are all these records.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

SESSION_MAGIC = 0x4B43415254455452
SESSION_VERSION = 1
HEADER_BYTES = 4096
MAX_PROCESSES = 192
MAX_THREADS = 1 << 16
LABEL_MAX_BYTES = 255
STACK_RECORD_WORDS = 2
MODULE_LOADED = 0xFFFF_FFFF
FINAL_BASELINE = 1 << 40
SIZE_BITS = 44
SIZE_MASK = (1 << SIZE_BITS) - 1
TIME_SHIFT = 16
TIME_BITS = 24
CLOCK_KERNEL, CLOCK_TSC = 0, 1


class Kind(IntEnum):
    """What happened (`enum event_kind`)."""

    ALLOCATED = 1
    FREED = 2
    RESIZE_STARTED = 3
    RESIZE_ENDED = 4
    ALLOCATION_FAILED = 5
    BASELINE_BLOCK = 6
    MARK = 7


class Api(IntEnum):
    """Which of DPDK's functions the program called (`enum event_api`)."""

    NONE = 0
    MALLOC = 1
    MALLOC_SOCKET = 2
    ZMALLOC = 3
    ZMALLOC_SOCKET = 4
    CALLOC = 5
    CALLOC_SOCKET = 6
    REALLOC = 7
    REALLOC_SOCKET = 8
    FREE = 9
    FREE_SENSITIVE = 10
    MEMZONE_RESERVE = 11
    MEMZONE_RESERVE_ALIGNED = 12
    MEMZONE_RESERVE_BOUNDED = 13
    MEMZONE_FREE = 14
    HEAP_ALLOC = 15
    HEAP_FREE = 16

    @property
    def function(self) -> str:
        """The C function's name, `rte_malloc` for MALLOC."""
        if self is Api.NONE:
            return "?"
        return ("malloc_" if self in (Api.HEAP_ALLOC, Api.HEAP_FREE) else "rte_") + self.name.lower()


class Mark(IntEnum):
    """Points in the order of events that are no allocation (`enum mark`, carried in `api`)."""

    SIGNAL = 1
    PAUSED = 2
    RESUMED = 3
    BASELINE_STARTED = 4
    BASELINE_ENDED = 5
    EAL_CLEANUP_STARTED = 6
    EAL_CLEANUP_ENDED = 7
    HEAP_SNAPSHOT = 8
    EAL_INIT_STARTED = 9
    EAL_INIT_ENDED = 10
    HEAP_REGION = 11
    CLOCK = 12
    END_HELD = 13


class StackEnd(IntEnum):
    """Why a recorded stack ends where it does (`enum stack_end`)."""

    COMPLETE = 0
    MAX_FRAMES = 1
    NO_UNWIND_TABLE = 2
    UNSUPPORTED_RULE = 3
    OUT_OF_BOUNDS = 4
    UNKNOWN_END = 5


EVENT_DTYPE = np.dtype(
    [
        ("commit", "<u2"),
        ("time_low", "<u2"),
        ("kind", "u1"),
        ("api", "u1"),
        ("socket", "i1"),
        ("time_high", "u1"),
        ("address", "<u8"),
        ("size_and_thread", "<u8"),
        ("stack", "<u4"),
        ("label", "<u4"),
    ]
)
"""`struct event`, 32 bytes."""

EventBatch = NDArray[np.void]
"""A one-dimensional array of EVENT_DTYPE in the ring's order."""

Times = NDArray[np.int64]
"""When each event of a batch happened (n,): CLOCK_MONOTONIC in ns, never decreasing."""

THREAD_DTYPE = np.dtype(
    [
        ("tid", "<u4"),
        ("process", "<u2"),
        ("reserved", "<u2"),
        ("name", "S16"),
        ("appending", "<u2"),
        ("reserved2", "<u2", (3,)),
        ("stack_low", "<u8"),
        ("stack_high", "<u8"),
        ("reserved3", "<u8", (2,)),
    ]
)
"""`struct thread_slot`, 64 bytes."""

PROCESS_DTYPE = np.dtype([("pid", "<u4"), ("attached", "<u4"), ("reserved", "<u8")])
"""`struct process_entry`, 16 bytes."""

EXEC_DTYPE = np.dtype([("pid", "<u4"), ("state", "<u4")])
"""`struct exec_entry`, 8 bytes."""
EXECS = 16


class ExecState(IntEnum):
    """How far a process that is about to execute a program has come (`enum exec_state`)."""

    FREE = 0
    WAITING = 1
    SEEN = 2
    GO = 3


HEADER_DTYPE = np.dtype(
    {
        "names": [
            "magic", "version", "header_bytes", "total_bytes",
            "ring_offset", "ring_capacity", "stacks_offset", "stacks_words", "labels_offset", "labels_bytes",
            "threads_offset", "threads_capacity", "modules_offset", "modules_bytes", "clock_source",
            "heartbeat_ns", "tail", "head",
            "lost", "stacks_used", "labels_used", "threads_used", "modules_used", "processes_used",
            "stacks_refused", "labels_refused", "threads_refused", "waits", "walks_ended",
            "heap_owner", "execs", "clock_ticks", "clock_ns", "clock_rate", "processes",
        ],
        "formats": [
            "<u8", "<u4", "<u4", "<u8",
            "<u8", "<u8", "<u8", "<u8", "<u8", "<u8",
            "<u8", "<u8", "<u8", "<u8", "<u4",
            "<u8", "<u8", "<u8",
            "<u8", "<u8", "<u8", "<u8", "<u8", "<u8",
            "<u8", "<u8", "<u8", "<u8", ("<u8", (8,)),
            "<u4", (EXEC_DTYPE, (EXECS,)), "<u8", "<u8", "<u8", (PROCESS_DTYPE, (MAX_PROCESSES,)),
        ],
        "offsets": [
            0, 8, 12, 16,
            24, 32, 40, 48, 56, 64,
            72, 80, 88, 96, 104,
            256, 320, 384,
            448, 456, 464, 472, 480, 488,
            496, 504, 512, 520, 528,
            592, 600, 728, 736, 744, 1024,
        ],
        "itemsize": 4096,
    }
)  # fmt: skip
"""`struct session_header`; its page is HEADER_BYTES long."""

MODULE_DTYPE = np.dtype(
    [
        ("record_bytes", "<u4"),
        ("process", "<u2"),
        ("path_bytes", "<u2"),
        ("base", "<u8"),
        ("size", "<u8"),
        ("loaded_epoch", "<u4"),
        ("unloaded_epoch", "<u4"),
    ]
)
"""`struct module_record` without the path that follows it."""


_POSSIBLE = np.zeros(1 << 16, np.bool_)
for _kind in Kind:
    for _api in Mark if _kind is Kind.MARK else Api:
        _POSSIBLE[_kind | _api << 8] = True
_KIND_AND_API = np.dtype({"names": ["both"], "formats": ["<u2"], "offsets": [4], "itemsize": EVENT_DTYPE.itemsize})


def possible(batch: EventBatch, threads_capacity: int) -> NDArray[np.bool_] | None:
    """Which events (n,) an agent may have written, by their kind, function and thread; None: all of them."""
    fine: NDArray[np.bool_] = _POSSIBLE.take(batch.view(_KIND_AND_API)["both"])
    first_impossible = threads_capacity << SIZE_BITS
    if fine.all() and not (batch.size and int(batch["size_and_thread"].max()) >= first_impossible):
        return None
    return fine & (batch["size_and_thread"] < np.uint64(first_impossible))


def sizes(batch: EventBatch) -> NDArray[np.uint64]:
    """The events' sizes in bytes, shape as `batch`."""
    return batch["size_and_thread"] & np.uint64(SIZE_MASK)


def threads(batch: EventBatch) -> NDArray[np.uint32]:
    """The events' indexes into the thread table, shape as `batch`."""
    return (batch["size_and_thread"] >> np.uint64(SIZE_BITS)).astype(np.uint32)


def mark_of(event: np.void) -> tuple[Mark, int]:
    """What kind of mark the event is, and its argument."""
    return Mark(int(event["api"])), int(event["size_and_thread"]) & SIZE_MASK
