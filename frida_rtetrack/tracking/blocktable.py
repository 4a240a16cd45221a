"""The table of blocks: one row an address that is live or was freed, in numpy arrays, found through a hash index.

It owns the rows and how they are found; what an event means for a row is map.py's business. There is no Python
object a block: a row costs 48 bytes, 64 more once it was freed, 8 once it was resized, and 8 to 16 bytes of index.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.tracking import mapkernel
from frida_rtetrack.tracking.grouping import added, numbered, smallest

Addresses = NDArray[np.uint64]
Rows = NDArray[np.int64]


class Origin(IntEnum):
    """How a row's allocation is known."""

    SEEN = 0
    BASELINE = 1
    """It was live in DPDK's heap when tracking began; who allocated it is not known."""
    UNKNOWN = 2
    """Only its free was seen."""


@dataclass(frozen=True, slots=True)
class Block:
    """An allocation. `stack`, `label` and `thread` are the numbers that the events carry; see session.h."""

    address: int
    size_bytes: int
    label: int
    stack: int
    thread: int
    api: int
    socket: int
    allocated_at_ns: int
    sequence: int
    """Number of the event that allocated it, counted from 0; for a baseline block of the one that told of it."""
    baseline: bool = False
    resizes: int = 0
    resize_stack: int = 0
    """Stack of the last resize, 0 if there was none."""


@dataclass(frozen=True, slots=True)
class Freed:
    """A free: which event it was, and who called."""

    stack: int
    thread: int
    api: int
    timestamp_ns: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Tenancy:
    """A block that had an address before another one, and its end. Numbers as in Block and Freed; 0: not known."""

    stack: int
    label: int
    free_stack: int
    freed_at_ns: int
    """Right to some milliseconds."""


@dataclass(frozen=True, slots=True)
class FreedBlock:
    """A block that was freed; `block` is None where its allocation was never seen."""

    block: Block | None
    freed: Freed


BLOCK_DTYPE = np.dtype(
    [
        ("address", "<u8"),
        ("size_bytes", "<u8"),
        ("sequence", "<u8"),
        ("allocated_at_ns", "<i8"),
        ("stack", "<u4"),
        ("label", "<u4"),
        ("resize_stack", "<u4"),
        ("resizes", "<u4"),
        ("thread", "<u2"),
        ("api", "u1"),
        ("socket", "i1"),
        ("baseline", "?"),
    ]
)
"""A live block in a snapshot; the fields are Block's."""
BLOCK_FIELDS: tuple[str, ...] = BLOCK_DTYPE.names or ()

ROW_DTYPE = np.dtype(
    [
        ("address", "<u8"),
        ("size_bytes", "<i8"),
        ("sequence", "<u8"),
        ("allocated_at_ns", "<i8"),
        ("stack", "<u4"),
        ("label", "<u4"),
        ("thread", "<u2"),
        ("api", "u1"),
        ("socket", "i1"),
        ("origin", "u1"),
        ("live", "?"),
        ("resized", "?"),
        ("tenancies", "u1"),
    ]
)
"""A row's allocation, 48 bytes together, as most events touch all of it (`struct row` of native/map_kernel.c)."""
TENANCY_DTYPE = np.dtype([("stack", "<u4"), ("label", "<u4"), ("free_stack", "<u4"), ("freed_at", "<u4")])
"""A block that had an address, and its end (`struct tenancy`); zeros where its allocation is not known."""
_TENANCY_TIME_SHIFT = 20
_EARLIER = 2
_TENANCIES_KEPT = 1 + _EARLIER
FREE_DTYPE = np.dtype(
    [
        ("free_sequence", "<u8"),
        ("freed_at_ns", "<i8"),
        ("free_stack", "<u4"),
        ("free_thread", "<u2"),
        ("free_api", "u1"),
        ("unused", "u1"),
        ("tenant_stack", "<u4"),
        ("tenant_label", "<u4"),
        ("earlier", TENANCY_DTYPE, (_EARLIER,)),
    ]
)
"""Its last free, whose the block was, and the tenancies before, the latest first: 64 bytes (`struct row_free`).

Never written for a block that was never freed. How much of it counts, `tenancies` says.
"""
RESIZE_DTYPE = np.dtype([("resize_stack", "<u4"), ("resizes", "<u4")])
"""Its resizes, 8 bytes (`struct row_resizes`): zeros, and not written, where `resized` is not set."""
_PARTS = (ROW_DTYPE, FREE_DTYPE, RESIZE_DTYPE)

_FIRST_CAPACITY = 1 << 22
"""Rows that there is address space for from the start (503 MB): only beyond them a growing table is copied."""
_SMALLEST_INDEX_BITS = 12
_MULTIPLIER = 0x9E37_79B9_7F4A_7C15
"""2^64 / golden ratio (Knuth, The Art of Computer Programming 3, 6.4): spreads the regular addresses of a heap."""
_U64_MASK = (1 << 64) - 1
_THREAD_MASK = 0xFFFF
"""The thread table has so many slots; an event has room for larger numbers, and the program writes what it likes."""
_ROWS_AT_ONCE = 1 << 14
"""Copied together, so that they are still in the caches when the next column is."""


class BlockTable:
    """Rows by address. Columns are arrays of the table's capacity, of which the first `used` rows hold blocks.

    A column is a view with gaps: index it, as `take` would copy it whole first. It is replaced when the table grows:
    read it from the table again after an insert. Row numbers hold until `keep` is called.
    """

    address: NDArray[np.uint64]
    size_bytes: NDArray[np.int64]
    sequence: NDArray[np.uint64]
    allocated_at_ns: NDArray[np.int64]
    stack: NDArray[np.uint32]
    label: NDArray[np.uint32]
    resize_stack: NDArray[np.uint32]
    resizes: NDArray[np.uint32]
    thread: NDArray[np.uint16]
    api: NDArray[np.uint8]
    socket: NDArray[np.int8]
    origin: NDArray[np.uint8]
    live: NDArray[np.bool_]
    free_sequence: NDArray[np.uint64]
    freed_at_ns: NDArray[np.int64]
    free_stack: NDArray[np.uint32]
    free_thread: NDArray[np.uint16]
    free_api: NDArray[np.uint8]
    resized: NDArray[np.bool_]
    tenancies: NDArray[np.uint8]
    tenant_stack: NDArray[np.uint32]
    tenant_label: NDArray[np.uint32]
    earlier: NDArray[np.void]

    def __init__(self) -> None:
        """An empty table."""
        self.used = 0
        self._kernel = mapkernel.load()
        self._use(tuple(_reserved(_FIRST_CAPACITY, dtype) for dtype in _PARTS))
        self._rebuild_index()

    def _use(self, parts: tuple[NDArray[np.void], ...]) -> None:
        self._parts = parts
        for part in parts:
            for name in part.dtype.names or ():
                if not name.startswith("unused"):
                    setattr(self, name, part[name])

    # ---- finding and adding rows

    def find(self, addresses: Addresses) -> Rows:
        """The rows of `addresses`, in their shape (n,); -1 where there is none."""
        if self._kernel is not None:
            return self._kernel.find(self.for_kernel(), addresses)
        rows = np.empty(addresses.size, np.int64)
        waiting, wanted, slots = None, addresses, self._home(addresses)
        while True:
            found = self._index.take(slots).astype(np.int64) - 1
            if waiting is None:
                rows[:] = found
            else:
                rows[waiting] = found
            # Row -1 reads the last one's address, whatever it is: the slot is empty and ends the search.
            collided = np.flatnonzero((self.address[found] != wanted) & (found >= 0))
            if not collided.size:
                return rows
            waiting = collided if waiting is None else waiting.take(collided)
            wanted = wanted.take(collided)
            slots = (slots.take(collided) + 1) & self._mask

    def find_one(self, address: int) -> int:
        """The row of `address`, -1 if there is none."""
        slot = ((address * _MULTIPLIER) & _U64_MASK) >> self._shift
        while True:
            row = int(self._index.item(slot)) - 1
            if row < 0 or self.address.item(row) == address:
                return row
            slot = (slot + 1) & self._mask

    def insert(self, addresses: Addresses) -> Rows:
        """Add a row for each of `addresses` (n,), which are distinct and not in the table; only `address` is set."""
        rows = np.arange(self.used, self.used + addresses.size)
        self._reserve(self.used + addresses.size)
        self.address[self.used : self.used + addresses.size] = addresses
        self.tenancies[self.used : self.used + addresses.size] = 0
        self.used += addresses.size
        if 2 * self.used > self._index.size:
            self._rebuild_index()
        else:
            self._enter(rows)
        return rows

    def insert_one(self, address: int) -> int:
        """Add a row for `address`, which is not in the table; only `address` is set."""
        row = self.used
        self._reserve(row + 1)
        self.address[row] = address
        self.tenancies[row] = 0
        self.used += 1
        if 2 * self.used > self._index.size:
            self._rebuild_index()
            return row
        slot = ((address * _MULTIPLIER) & _U64_MASK) >> self._shift
        while self._index.item(slot):
            slot = (slot + 1) & self._mask
        self._index[slot] = row + 1
        return row

    def keep(self, rows: Rows) -> None:
        """Forget every row but `rows` (ascending), and number these from 0."""
        for part in self._parts:
            whole = part.view(f"V{part.itemsize}")  # copied in one piece, where numpy would copy records field by field
            for start in range(0, rows.size, _ROWS_AT_ONCE):  # a row never moves up: what is read later is still there
                moved = whole.take(rows[start : start + _ROWS_AT_ONCE])
                whole[start : start + moved.size] = moved
        self.used = rows.size
        self._rebuild_index()

    # ---- one row

    def put(self, row: int, block: Block) -> None:
        """Make `row`, whose address is the block's, this live block."""
        self.size_bytes[row] = block.size_bytes
        self.sequence[row] = block.sequence
        self.allocated_at_ns[row] = block.allocated_at_ns
        self.stack[row] = block.stack
        self.label[row] = block.label
        if block.resizes or self.resized.item(row):
            self.resize_stack[row] = block.resize_stack
            self.resizes[row] = block.resizes
            self.resized[row] = block.resizes > 0
        self.thread[row] = block.thread & _THREAD_MASK
        self.api[row] = block.api
        self.socket[row] = block.socket
        self.origin[row] = Origin.BASELINE if block.baseline else Origin.SEEN
        self.live[row] = True

    def clear_resizes(self, rows: Rows) -> None:
        """Set the resizes of `rows` (n,) to none."""
        rows = rows[self.resized[rows]]
        self.resize_stack[rows] = self.resizes[rows] = 0
        self.resized[rows] = False

    def put_freed(self, row: int, freed: Freed) -> None:
        """Make the block of `row` a freed one."""
        self.end_tenancies(np.array([row]))
        self.live[row] = False
        self.free_sequence[row] = freed.sequence
        self.freed_at_ns[row] = freed.timestamp_ns
        self.free_stack[row] = freed.stack
        self.free_thread[row] = freed.thread & _THREAD_MASK
        self.free_api[row] = freed.api

    def end_tenancies(self, rows: Rows) -> None:
        """The blocks of `rows` (n,) are about to be freed: what is known of the last free becomes an earlier tenancy."""
        ended = self.tenancies[rows]
        again = rows[ended > 0]
        self.earlier[again, 1] = self.earlier[again, 0]
        latest = np.empty(again.size, TENANCY_DTYPE)
        latest["stack"], latest["label"] = self.tenant_stack[again], self.tenant_label[again]
        latest["free_stack"] = self.free_stack[again]
        latest["freed_at"] = (self.freed_at_ns[again] >> _TENANCY_TIME_SHIFT).astype(np.uint32)
        self.earlier[again, 0] = latest
        self.tenancies[rows] = np.minimum(ended + np.uint8(1), _TENANCIES_KEPT)
        known = self.origin[rows] != Origin.UNKNOWN
        self.tenant_stack[rows] = self.stack[rows] * known
        self.tenant_label[rows] = self.label[rows] * known

    def earlier_tenancies(self, row: int) -> tuple[Tenancy, ...]:
        """Whose the address of `row` was before the block that it has, or had last, the latest first; some at the most."""
        ended = self.tenancies.item(row)
        if not ended:
            return ()
        last_ns = self.freed_at_ns.item(row)
        found = []
        if self.live.item(row):
            tenant = self.tenant_stack.item(row), self.tenant_label.item(row)
            found.append(Tenancy(*tenant, self.free_stack.item(row), last_ns))
        for each in self.earlier[row][: ended - 1]:
            ago = (last_ns >> _TENANCY_TIME_SHIFT) - int(each["freed_at"]) & 0xFFFF_FFFF
            freed_at_ns = last_ns - (ago << _TENANCY_TIME_SHIFT)
            found.append(Tenancy(int(each["stack"]), int(each["label"]), int(each["free_stack"]), freed_at_ns))
        return tuple(found)

    def block(self, row: int) -> Block | None:
        """The allocation of `row`, None where only its free was seen."""
        origin = self.origin.item(row)
        if origin == Origin.UNKNOWN:
            return None
        return Block(
            self.address.item(row),
            self.size_bytes.item(row),
            self.label.item(row),
            self.stack.item(row),
            self.thread.item(row),
            self.api.item(row),
            self.socket.item(row),
            self.allocated_at_ns.item(row),
            self.sequence.item(row),
            origin == Origin.BASELINE,
            self.resizes.item(row),
            self.resize_stack.item(row),
        )

    def freed(self, row: int) -> Freed:
        """The free of `row`, which is not live."""
        return Freed(
            self.free_stack.item(row),
            self.free_thread.item(row),
            self.free_api.item(row),
            self.freed_at_ns.item(row),
            self.free_sequence.item(row),
        )

    # ---- many rows

    def live_rows(self) -> Rows:
        """The rows of all live blocks, ascending."""
        return np.flatnonzero(self.live[: self.used])

    def freed_rows(self) -> Rows:
        """The rows of all freed blocks, ascending."""
        return np.flatnonzero(~self.live[: self.used])

    def containing(self, address: int) -> int:
        """The row of a live block that `address` lies in, -1 if there is none."""
        offset = np.uint64(address) - self.address[: self.used]  # wraps around to a huge one for blocks above it
        inside = self.live[: self.used] & (offset < self.size_bytes[: self.used].view(np.uint64))
        rows = np.flatnonzero(inside)
        return int(rows[0]) if rows.size else -1

    def blocks(self, rows: Rows, fields: Sequence[str] = BLOCK_FIELDS) -> NDArray[np.void]:
        """A copy of `rows` (n,) as BLOCK_DTYPE (n,), of those `fields` alone."""
        copy = np.empty(rows.size, [(name, BLOCK_DTYPE[name]) for name in fields])
        for start in range(0, rows.size, _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            into = copy[start : start + part.size]
            for name in fields:
                into[name] = self.origin[part] == Origin.BASELINE if name == "baseline" else getattr(self, name)[part]
        return copy

    def grouped(self, rows: Rows, by: str) -> NDArray[np.void]:
        """`rows` grouped by their column `by`, the largest first: fields `by`, blocks, bytes, oldest_ns, shape (m,)."""
        key = getattr(self, by)
        dtype = np.dtype([(by, key.dtype), ("blocks", "<u8"), ("bytes", "<u8"), ("oldest_ns", "<i8")])
        values, which = numbered(key[rows])
        groups = np.empty(values.size, dtype)
        groups[by] = values
        groups["blocks"] = np.bincount(which, minlength=values.size)
        groups["bytes"] = added(which, self.size_bytes[rows], values.size)
        groups["oldest_ns"] = smallest(which, self.allocated_at_ns[rows], values.size)
        return groups.take(np.argsort(-groups["bytes"].astype(np.int64), kind="stable"))

    # ---- the index: open addressing, linear probing, at most half full; a slot holds a row + 1, or 0

    def _home(self, addresses: Addresses) -> NDArray[np.int64]:
        """The slots where the search for `addresses` begins."""
        return ((addresses * np.uint64(_MULTIPLIER)) >> np.uint64(self._shift)).view(np.int64)

    def _enter(self, rows: Rows) -> None:
        """Put `rows` into the index."""
        slots = self._home(self.address[rows])
        while rows.size:
            free = np.flatnonzero(self._index.take(slots) == 0)
            self._index[slots.take(free)] = rows.take(free) + 1
            # Of several rows that found the same slot free the last one has it; the others go on with the rest.
            left = np.flatnonzero(self._index.take(slots) != rows + 1)
            rows = rows.take(left)
            slots = (slots.take(left) + 1) & self._mask

    def _rebuild_index(self) -> None:
        """Index all rows anew, in slots enough to double their number.

        Entered in the order of their homes, each row's slot is the first after both its home and its predecessor's
        slot, so one running maximum places them all; the few that would lie beyond the end are entered one by one.
        """
        bits = max(_SMALLEST_INDEX_BITS, (2 * self.used).bit_length())
        self._shift = 64 - bits
        self._mask = (1 << bits) - 1
        self._index: NDArray[np.uint32] = np.zeros(1 << bits, np.uint32)
        if self._kernel is not None:
            self._kernel.index(self.for_kernel())
            return
        keys = (self._home(self.address[: self.used]) << 32) | np.arange(self.used)
        keys.sort()
        rows = keys & 0xFFFF_FFFF
        place = np.arange(self.used)
        slots = np.maximum.accumulate((keys >> 32) - place) + place
        within = int(np.searchsorted(slots, 1 << bits))
        self._index[slots[:within]] = rows[:within] + 1
        self._enter(rows[within:])

    def _reserve(self, capacity: int) -> None:
        """Make room for `capacity` rows, generously: what is not used of it is address space, not memory."""
        size = self.address.size
        if capacity <= size:
            return
        capacity = max(capacity, 2 * size)
        self._use(tuple(self._grown(part, capacity) for part in self._parts))

    def _grown(self, part: NDArray[np.void], capacity: int) -> NDArray[np.void]:
        grown = _reserved(capacity, part.dtype)
        grown.view(f"V{part.itemsize}")[: self.used] = part.view(f"V{part.itemsize}")[: self.used]
        return grown

    # ---- for the kernel

    def for_kernel(self) -> mapkernel.Table:
        """The table as the kernel sees it, until it grows; what the kernel adds is to be told to `added`."""
        return mapkernel.Table(
            *(part.ctypes.data for part in self._parts),
            self._index.ctypes.data,
            self.used,
            self._parts[0].size,
            self._mask,
            self._shift,
        )

    def added(self, used: int) -> None:
        """The kernel has put rows into the table, and into its index, so that `used` are in use."""
        self.used = used

    def make_room(self) -> None:
        """Make room for a row more, and many after it."""
        self._reserve(self.used + 1)
        if 2 * (self.used + 1) > self._index.size:
            self._rebuild_index()


def _reserved(capacity: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array (capacity,) that costs memory only page by page, as it is written (and not huge ones, as numpy's do)."""
    pages = mmap.mmap(-1, capacity * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype)
