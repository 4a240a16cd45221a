"""The compiled inner loop of the tracking map (native/map_kernel.c): finds and loads it, and says how it is called.

The library lies beside its source, built when the package is, or by hand:

    gcc -O2 -shared -fPIC -o frida_rtetrack/native/map_kernel.so frida_rtetrack/native/map_kernel.c

Without it numpy does the same with arrays (arraybatches.py), with the same answers.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, Structure, byref, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import SIZE_BITS, EventBatch

LIBRARY = Path(__file__).parents[1] / "native" / "map_kernel.so"
VERSION = 3
"""MAP_KERNEL_VERSION; a library of another version is not used."""
THREADS = 1 << (64 - SIZE_BITS)
OPEN_RESIZES = 1024
WITH_THE_RULES = 0xFFFF
"""Entry of `Run.resize_of` for a thread whose resize is in Rules.resizes."""

RESIZE_DTYPE = np.dtype(
    [("address", "<u8"), ("size_bytes", "<u8"), ("sequence", "<u8"), ("started", "<u8"), ("thread", "<u8")]
)
"""`struct resize`."""


class Stop(IntEnum):
    """Why `Kernel.apply` returned (`enum stop`)."""

    ALL_TAKEN = 0
    NEEDS_ROOM = 1
    FOR_THE_RULES = 2


class Table(Structure):
    """`struct table`."""

    _fields_ = (
        ("rows", c_void_p),
        ("frees", c_void_p),
        ("resizes", c_void_p),
        ("index", c_void_p),
        ("used", c_uint64),
        ("capacity", c_uint64),
        ("mask", c_uint64),
        ("shift", c_uint64),
    )


CHANGES = ("bytes", "blocks", "top_bytes", "top_blocks", "top_sequence")
COUNTS = {
    "allocations": "allocations",
    "frees": "frees",
    "resizes_ended": "resizes",
    "failed": "failed",
    "unknown_frees": "unknown_frees",
    "baseline_blocks": "baseline_blocks",
    "allocated_bytes": "allocated_bytes",
    "freed_bytes": "freed_bytes",
    "failed_bytes": "failed_bytes",
    "baseline_bytes": "baseline_bytes",
}
"""What a Run counts, and what rules.Totals calls it."""


class Run(Structure):
    """`struct run`."""

    _fields_ = (
        ("resizes", c_void_p),
        ("resize_of", c_void_p),
        ("open", c_uint64),
        ("sequence", c_uint64),
        ("times_ns", c_void_p),
        ("baseline_sequence", c_uint64),
        ("complete", c_uint64),
        ("stop", c_uint64),
        *((name, c_int64) for name in CHANGES[:-1]),
        (CHANGES[-1], c_uint64),
        *((name, c_uint64) for name in COUNTS),
    )


class Kernel:
    """The loaded library. Its functions give up the interpreter's lock meanwhile: the caller keeps others out."""

    def __init__(self, path: Path) -> None:
        """Loads it. Raises OSError where it cannot be, or is one of another version."""
        library = ctypes.CDLL(str(path))
        try:
            version = library.map_kernel_version
            apply, find, index = library.map_apply, library.map_find, library.map_index
        except AttributeError as error:
            raise OSError(f"{path} is no kernel of the tracking map: {error}") from error
        version.restype = c_uint32
        if version() != VERSION:
            raise OSError(f"{path} is of version {version()}, not {VERSION}")
        apply.argtypes, apply.restype = (POINTER(Table), POINTER(Run), c_void_p, c_uint64), c_uint64
        find.argtypes, find.restype = (POINTER(Table), c_void_p, c_void_p, c_uint64), None
        index.argtypes, index.restype = (POINTER(Table),), None
        self._apply, self._find, self._index = apply, find, index

    def apply(self, table: Table, run: Run, events: EventBatch, start: int) -> int:
        """Takes `events` (n,), contiguous, from `start` on; returns how many it took. `run.stop` says why no more."""
        taken: int = self._apply(
            byref(table), byref(run), events.ctypes.data + start * events.itemsize, events.size - start
        )
        return taken

    def find(self, table: Table, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The rows (n,) of `addresses` (n,), -1 where there is none."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        rows = np.empty(addresses.size, np.int64)
        self._find(byref(table), addresses.ctypes.data, rows.ctypes.data, addresses.size)
        return rows

    def index(self, table: Table) -> None:
        """Enters all rows of `table` into its index, which is empty."""
        self._index(byref(table))


@functools.cache
def load() -> Kernel | None:
    """The kernel, None where it was not built or is not for this machine."""
    if sys.byteorder != "little":  # as the events are
        return None
    try:
        return Kernel(LIBRARY)
    except OSError:
        return None
