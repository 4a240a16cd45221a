"""The tracking map: from events alone, what is live, what was freed wrongly, and how much there was at the most.

It owns the block table and the counters and knows nothing of where events come from (ring, recording, test) or who
reads the answers. Answers are exact to the event and do not depend on how the stream is cut into batches.

A chunk of a batch is sorted by address. On an address that sees allocation and free in turn, and began in the state
that the table says, array operations do everything. Any other address (bad free, resize, allocation of a live address)
has its events taken one by one, in order; the changes in bytes of both kinds are summed up in event order.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.blocktable import BLOCK_DTYPE, Addresses, Block, BlockTable, Freed, FreedBlock, Origin, Rows
from frida_rtetrack.events import EVENT_DTYPE, SIZE_BITS, SIZE_MASK, EventBatch, Kind, Mark, sizes, threads

__all__ = [
    "BLOCK_DTYPE",
    "BadFree",
    "BadFreeKind",
    "Block",
    "Freed",
    "FreedBlock",
    "Lookup",
    "Peak",
    "Totals",
    "TrackingMap",
]


class BadFreeKind(Enum):
    """What is known of the address of a bad free."""

    DUPLICATE = "duplicate"
    """It was freed before, and not allocated since."""
    STRAY = "stray"
    """It is not known ever to have been a block."""


@dataclass(frozen=True, slots=True)
class BadFree:
    """A free, or a resize, of an address that was not live; with the evidence."""

    kind: BadFreeKind
    address: int
    sequence: int
    """Number of the event, counted from 0."""
    timestamp_ns: int
    thread: int
    stack: int
    api: int
    allocated: Block | None
    """The allocation of the block that was freed before, where it was seen."""
    first_freed: Freed | None
    """The first free of that block, however many followed."""
    history_complete: bool
    """False if something that would change the verdict may have been forgotten, lost, or come before the tracking."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened so far. Live bytes are allocated + baseline - freed - replaced - forgotten ones."""

    allocations: int = 0
    """Blocks handed out."""
    frees: int = 0
    """Frees of live blocks."""
    resizes: int = 0
    """Successful ones of live blocks, in place or moved; their growth is in allocated_bytes, or shrinking in freed."""
    failed: int = 0
    """Allocations that returned NULL, and resizes of live blocks that did."""
    anomalies: int = 0
    """Things that cannot be if every event is seen: a live address handed out again, half a resize."""
    unknown_frees: int = 0
    """Frees that are not accused, because the map was not complete."""
    allocated_bytes: int = 0
    freed_bytes: int = 0
    failed_bytes: int = 0
    baseline_blocks: int = 0
    baseline_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Peak:
    """The high watermark: the first moment of most live bytes."""

    blocks: int = 0
    bytes: int = 0
    timestamp_ns: int = 0
    sequence: int = 0
    """Number of the event that reached it."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is known of an address."""

    block: Block | None
    """The live block that it lies in."""
    offset: int
    """Bytes from that block's start, 0 for its own address."""
    freed: FreedBlock | None
    """The block that began right there and was freed."""


@dataclass(slots=True)
class _Resize:
    """A resize that has started."""

    address: int
    """Of the old block."""
    size_bytes: int
    """Asked for."""
    sequence: int | None = None
    """The old block's; None if none was live there."""
    accused: bool = False
    moved_aside: Block | None = None
    """The old block, live still, from when its address was handed out again until the resize ends elsewhere."""


class _Call(NamedTuple):
    """One event that is taken by itself."""

    kind: int
    address: int
    size_bytes: int
    thread: int
    stack: int
    label: int
    api: int
    socket: int
    sequence: int
    timestamp_ns: int

    def block(self) -> Block:
        """The block that this event allocates."""
        return Block(
            self.address,
            self.size_bytes,
            self.label,
            self.stack,
            self.thread,
            self.api,
            self.socket,
            self.timestamp_ns,
            self.sequence,
            self.kind == Kind.BASELINE_BLOCK,
        )

    def freed(self) -> Freed:
        """The free that this event is."""
        return Freed(self.stack, self.thread, self.api, self.timestamp_ns, self.sequence)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Events that are applied together, and what each changes."""

    events: EventBatch
    size_bytes: NDArray[np.int64]
    timestamp_ns: int
    bytes_changes: NDArray[np.int64]
    """Of live bytes, by event."""
    blocks_changes: NDArray[np.int64]

    @classmethod
    def of(cls, events: EventBatch, timestamp_ns: int) -> _Chunk:
        """`events` (n,), of which none has changed anything yet."""
        changes = np.zeros((2, events.size), np.int64)
        return cls(events, sizes(events).astype(np.int64), timestamp_ns, changes[0], changes[1])


_Change = tuple[int, int]
"""Live bytes and live blocks, more or fewer."""
_NO_CHANGE: _Change = (0, 0)

# Sort keys: address / 16 in the high 44 bits, then the event's place in the chunk, then its code.
_KEY_ADDRESS_SHIFT = np.uint64(20)
_KEY_PLACE_SHIFT = np.uint64(2)
_KEY_PLACE_MASK = np.uint64((1 << 18) - 1)
_KEY_CODE_MASK = np.uint64(3)
_KEY_ONE_ADDRESS = np.uint64(1 << 20)
_NOT_IN_KEY = np.uint64(0xFFFF_0000_0000_000F)
"""Address bits that a key has no room for. DPDK's blocks are aligned to cache lines and in user space: none has them."""
_ALLOCATED, _FREED, _BASELINE, _SINGLY, _NO_BLOCK = range(5)
_CODES = np.full(256, _NO_BLOCK, np.uint64)
_CODES[[Kind.ALLOCATED, Kind.FREED, Kind.BASELINE_BLOCK]] = _ALLOCATED, _FREED, _BASELINE
_CODES[[Kind.RESIZE_STARTED, Kind.RESIZE_ENDED, Kind.MARK]] = _SINGLY


class TrackingMap:
    """The live set of one heap, kept up to date by batches of events. Every method may be called from any thread."""

    CHUNK_EVENTS = 1 << 17
    """Events handled at once, at most 2^18; freed blocks are forgotten only at event numbers that it divides."""
    SINGLY_AT_MOST = 40
    """Up to so many events it is cheaper to take each by itself."""

    def __init__(self, *, complete: bool = True, freed_kept: int = 1_000_000) -> None:
        """An empty map.

        `complete` says that every block of the heap is going to be seen from its allocation on (spawn); if not
        (attach), the free of an unknown address is no accusation until `mark_complete`. `freed_kept` bounds how many
        freed blocks are remembered, give or take CHUNK_EVENTS; when there are more, the older half is forgotten.
        """
        self._lock = threading.RLock()
        self._table = BlockTable()
        self._count: Counter[str] = Counter()  # Totals in the making, by its fields
        self._resizes: dict[int, _Resize] = {}
        self._events = 0
        self._live_blocks = 0
        self._live_bytes = 0
        self._peak = Peak()
        self._freed_kept = freed_kept
        self._complete = complete
        self._history_whole = complete
        self._gap_sequence = 0  # an address freed before this event may have been handed out again unseen
        self._baseline_sequence = 0  # of the last MARK_BASELINE_STARTED
        self._take: dict[int, Callable[[_Call, list[BadFree]], _Change]] = {
            Kind.ALLOCATED: self._allocated,
            Kind.FREED: self._freed,
            Kind.RESIZE_STARTED: self._resize_started,
            Kind.RESIZE_ENDED: self._resize_ended,
            Kind.BASELINE_BLOCK: self._baseline_block,
            Kind.ALLOCATION_FAILED: self._allocation_failed,
            Kind.MARK: self._mark,
        }

    # ---- events in

    def apply(self, batch: EventBatch, timestamp_ns: int) -> list[BadFree]:
        """Take the events of `batch` (n,), EVENT_DTYPE, which happened at `timestamp_ns`; returns their bad frees.

        Every event counts for the numbering, marks too; of marks only BASELINE_STARTED has a meaning here (a block
        freed after it is not revived by a BASELINE_BLOCK). Raises TypeError if `batch` has another type.
        """
        if batch.dtype != EVENT_DTYPE:
            raise TypeError(f"events have the type EVENT_DTYPE, not {batch.dtype}")
        bad: list[BadFree] = []
        with self._lock:
            start = 0
            while start < batch.size:
                end = start + self.CHUNK_EVENTS - self._events % self.CHUNK_EVENTS
                chunk = _Chunk.of(batch[start:end], timestamp_ns)
                if chunk.events.size <= self.SINGLY_AT_MOST:
                    self._apply_singly(chunk, np.arange(chunk.events.size), bad)
                else:
                    self._apply_sorted(chunk, bad)
                self._settle(chunk)
                start += chunk.events.size
                if self._events % self.CHUNK_EVENTS == 0 and self.freed_blocks > self._freed_kept:
                    self._forget_oldest_frees()
        return bad

    def mark_complete(self) -> None:
        """From here on every live block is known: the free of any other address is a bad free."""
        with self._lock:
            self._complete = True

    def mark_incomplete(self) -> None:
        """Events were lost here: until `mark_complete`, a free that what was lost may explain is not accused."""
        with self._lock:
            self._complete = False
            self._history_whole = False
            self._gap_sequence = self._events

    def insert_baseline(self, addresses: Addresses, sizes_bytes: NDArray[np.uint64], timestamp_ns: int) -> int:
        """Insert the blocks (n,) of these sizes, distinct and known to be live now, as baseline; returns how many.

        Those that are live here already stay as they are.
        """
        with self._lock:
            rows = self._table.find(addresses)
            new = (rows < 0) | ~self._table.live.take(rows)
            rows, addresses = rows[new], addresses[new]
            rows[rows < 0] = self._table.insert(addresses[rows < 0])
            table = self._table
            table.size_bytes[rows] = sizes_bytes[new]
            table.sequence[rows] = self._events
            table.allocated_at_ns[rows] = timestamp_ns
            table.origin[rows] = Origin.BASELINE
            table.socket[rows] = -1
            for unknown in (table.label, table.stack, table.thread, table.api, table.resizes, table.resize_stack):
                unknown[rows] = 0
            table.live[rows] = True
            grown = int(table.size_bytes.take(rows).sum())
            self._count["baseline_blocks"] += rows.size
            self._count["baseline_bytes"] += grown
            self._live_blocks += rows.size
            self._live_bytes += grown
            self._raise_peak(self._live_blocks, self._live_bytes, timestamp_ns, self._events)
            return rows.size

    def forget(self, addresses: Addresses) -> int:
        """Remove the live blocks among `addresses` (n,) without counting a free; returns how many were."""
        with self._lock:
            rows = self._table.find(np.unique(addresses))
            rows = rows[(rows >= 0) & self._table.live.take(rows)]
            if rows.size:
                self._live_blocks -= rows.size
                self._live_bytes -= int(self._table.size_bytes.take(rows).sum())
                self._drop(rows)
            return rows.size

    # ---- answers

    @property
    def events(self) -> int:
        """Events applied so far; the number of the next one."""
        return self._events

    @property
    def complete(self) -> bool:
        """Whether every live block is known."""
        return self._complete

    @property
    def live_blocks(self) -> int:
        """Blocks live now."""
        return self._live_blocks

    @property
    def live_bytes(self) -> int:
        """Bytes asked for in the blocks live now."""
        return self._live_bytes

    @property
    def moving_blocks(self) -> int:
        """Live blocks that `live` cannot show: in a resize, the old address taken already, the new one not known yet."""
        with self._lock:
            return sum(resize.moved_aside is not None for resize in self._resizes.values())

    @property
    def freed_blocks(self) -> int:
        """Freed blocks remembered now."""
        with self._lock:
            return self._table.used - (self._live_blocks - self.moving_blocks)

    @property
    def peak(self) -> Peak:
        """The high watermark."""
        return self._peak

    @property
    def totals(self) -> Totals:
        """The counters, all of one moment."""
        with self._lock:
            return Totals(**self._count)

    def live(self) -> NDArray[np.void]:
        """A copy of all live blocks, BLOCK_DTYPE (n,), in no particular order; it is the caller's."""
        with self._lock:
            return self._table.blocks(self._table.live_rows())

    def find(self, address: int) -> Lookup:
        """What is known of `address`: live, inside a live block, freed."""
        with self._lock:
            row = self._table.find_one(address)
            freed = None
            if row >= 0 and not self._table.live[row]:
                freed = FreedBlock(self._table.block(row), self._table.freed(row))
            inside = row if row >= 0 and freed is None else self._table.containing(address)
            if inside < 0:
                return Lookup(None, 0, freed)
            return Lookup(self._table.block(inside), address - self._table.address.item(inside), freed)

    def call_sites(self, *, allocated_until_ns: int | None = None) -> NDArray[np.void]:
        """Live blocks by allocating stack, most bytes first: fields stack, blocks, bytes, oldest_ns; shape (m,).

        With `allocated_until_ns` only those allocated at that time or before: the leak candidates.
        """
        return self._grouped("stack", allocated_until_ns)

    def by_label(self) -> NDArray[np.void]:
        """Live blocks by type label, most bytes first: fields label, blocks, bytes, oldest_ns; shape (m,)."""
        return self._grouped("label", None)

    def by_socket(self) -> NDArray[np.void]:
        """Live blocks by the NUMA socket asked for, most bytes first: fields socket, blocks, bytes, oldest_ns."""
        return self._grouped("socket", None)

    def differences(self, busy: Addresses) -> tuple[Addresses, Addresses]:
        """Compare with `busy` (n,), the blocks that DPDK's heap has: (missing here, unexpected here), both ascending."""
        with self._lock:
            live = self._table.address.take(self._table.live_rows())
        return np.setdiff1d(busy, live), np.setdiff1d(live, busy)

    def _grouped(self, by: str, allocated_until_ns: int | None) -> NDArray[np.void]:
        with self._lock:
            rows = self._table.live_rows()
            if allocated_until_ns is not None:
                rows = rows[self._table.allocated_at_ns.take(rows) <= allocated_until_ns]
            return self._table.grouped(rows, by)

    # ---- many events at once

    def _apply_sorted(self, chunk: _Chunk, bad: list[BadFree]) -> None:
        """Sort by address, then take the addresses in good order all at once, and the others' events singly."""
        keys, singly = self._sort_keys(chunk)
        if keys.size:
            keys.sort()
            starts, rows, orderly = self._groups(keys, bool((chunk.events["kind"] == Kind.RESIZE_ENDED).any()))
            if not orderly.all():
                lengths = np.diff(starts, append=keys.size)
                taken = np.repeat(orderly, lengths)
                singly = np.concatenate((singly, _places(keys[~taken])))
                keys, rows, lengths = keys[taken], rows[orderly], lengths[orderly]
                starts = np.cumsum(lengths) - lengths
            if keys.size:
                self._apply_orderly(chunk, keys, starts, rows)
        if singly.size:
            singly.sort()
            self._apply_singly(chunk, singly, bad)

    def _sort_keys(self, chunk: _Chunk) -> tuple[Addresses, Rows]:
        """The sort keys (k,) of the chunk's events, and the places (m,) of those with an address that fits no key."""
        address = np.ascontiguousarray(chunk.events["address"])
        code = _CODES.take(chunk.events["kind"])
        keys = (address << np.uint64(16)) | (np.arange(address.size, dtype=np.uint64) << _KEY_PLACE_SHIFT) | code
        no_block = code == _NO_BLOCK
        odd = (address & _NOT_IN_KEY) != 0
        apart = no_block | odd
        if not apart.any():
            return keys, np.empty(0, np.int64)
        failed = chunk.size_bytes[chunk.events["kind"] == Kind.ALLOCATION_FAILED]
        self._count["failed"] += failed.size
        # In two halves: whatever a program asks for in vain, the sums do not overflow.
        self._count["failed_bytes"] += (int((failed >> 24).sum()) << 24) + int((failed & 0xFF_FFFF).sum())
        return keys[~apart], np.flatnonzero(odd & ~no_block)

    def _groups(self, keys: Addresses, resizes_end: bool) -> tuple[Rows, Rows, NDArray[np.bool_]]:
        """For each address in the sorted `keys`: where it starts, its row or -1, whether its events are in good order.

        Good order is allocation and free in turn, beginning with what the row's state allows, or one baseline block of
        an address never seen.
        """
        step = keys[1:] ^ keys[:-1]
        same_address = step < _KEY_ONE_ADDRESS
        wrong = (keys & _KEY_CODE_MASK) == _SINGLY
        wrong[1:] |= same_address & ((step & _KEY_CODE_MASK) != (_ALLOCATED ^ _FREED))
        starts = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(~same_address) + 1))
        first = keys.take(starts)
        addresses = _addresses(first)
        rows = self._table.find(addresses)
        live = (rows >= 0) & self._table.live.take(rows)
        first &= _KEY_CODE_MASK
        orderly = (first == _FREED) == live
        orderly &= (first != _BASELINE) | (rows < 0)
        if wrong.any():
            orderly &= ~np.logical_or.reduceat(wrong, starts)
        if resizes_end and self._resizes:
            orderly &= ~np.isin(addresses, [resize.address for resize in self._resizes.values()])
        return starts, rows, orderly

    def _apply_orderly(self, chunk: _Chunk, keys: Addresses, starts: Rows, rows: Rows) -> None:
        """Apply the events of the addresses in good order, given as `_groups` does. Only the last state of each counts."""
        table = self._table
        unseen = rows < 0
        rows[unseen] = table.insert(_addresses(keys.take(starts[unseen])))

        place = _places(keys)
        code = keys & _KEY_CODE_MASK
        is_free = code == _FREED
        allocated_bytes = chunk.size_bytes.take(place)
        # A free is of the block that the event before it allocated, or that was live before the chunk.
        freed_bytes = np.roll(allocated_bytes, 1)
        lived_before = is_free.take(starts)
        freed_bytes[starts[lived_before]] = table.size_bytes.take(rows[lived_before])
        change = np.where(is_free, -freed_bytes, allocated_bytes)
        chunk.bytes_changes[place] = change
        chunk.blocks_changes[place] = np.where(is_free, -1, 1)

        last = np.append(starts[1:], keys.size) - 1
        ends_free = is_free.take(last)
        allocation = last - ends_free  # where it was allocated last, unless that was before the chunk
        in_chunk = allocation >= starts
        allocation = allocation[in_chunk]
        self._write_allocations(chunk, rows[in_chunk], place.take(allocation), code.take(allocation) == _BASELINE)
        self._write_frees(chunk, rows[ends_free], place.take(last[ends_free]))

        baseline = change[code == _BASELINE]
        gained = int(change[~is_free].sum())
        self._count["baseline_blocks"] += baseline.size
        self._count["baseline_bytes"] += int(baseline.sum())
        self._count["frees"] += int(is_free.sum())
        self._count["freed_bytes"] += gained - int(change.sum())
        self._count["allocations"] += keys.size - int(is_free.sum()) - baseline.size
        self._count["allocated_bytes"] += gained - int(baseline.sum())

    def _write_allocations(self, chunk: _Chunk, rows: Rows, places: Rows, baseline: NDArray[np.bool_]) -> None:
        """Make `rows` (n,) the live blocks that the events at `places` (n,) allocate."""
        table, events = self._table, chunk.events.take(places)
        table.size_bytes[rows] = chunk.size_bytes.take(places)
        table.sequence[rows] = places + self._events
        table.allocated_at_ns[rows] = chunk.timestamp_ns
        table.stack[rows] = events["stack"]
        table.label[rows] = events["label"]
        table.resizes[rows] = 0
        table.resize_stack[rows] = 0
        table.thread[rows] = threads(events)
        table.api[rows] = events["api"]
        table.socket[rows] = events["socket"]
        table.origin[rows] = baseline  # Origin.SEEN is 0, Origin.BASELINE 1
        table.live[rows] = True

    def _write_frees(self, chunk: _Chunk, rows: Rows, places: Rows) -> None:
        """Make `rows` (n,) freed blocks, freed by the events at `places` (n,)."""
        table, events = self._table, chunk.events.take(places)
        table.live[rows] = False
        table.free_sequence[rows] = places + self._events
        table.freed_at_ns[rows] = chunk.timestamp_ns
        table.free_stack[rows] = events["stack"]
        table.free_thread[rows] = threads(events)
        table.free_api[rows] = events["api"]

    def _settle(self, chunk: _Chunk) -> None:
        """Number the chunk's events and add up what they changed, with the high watermark on the way."""
        running = np.cumsum(chunk.bytes_changes)
        top = int(running.argmax())
        top_blocks = self._live_blocks + int(chunk.blocks_changes[: top + 1].sum())
        self._raise_peak(top_blocks, self._live_bytes + int(running[top]), chunk.timestamp_ns, self._events + top)
        self._live_bytes += int(running[-1])
        self._live_blocks += int(chunk.blocks_changes.sum())
        self._events += chunk.events.size

    def _raise_peak(self, blocks: int, size_bytes: int, timestamp_ns: int, sequence: int) -> None:
        if size_bytes > self._peak.bytes:
            self._peak = Peak(blocks, size_bytes, timestamp_ns, sequence)

    def _forget_oldest_frees(self) -> None:
        rows = self._table.freed_rows()
        sequences = self._table.free_sequence.take(rows)
        excess = rows.size - self._freed_kept // 2
        self._drop(rows[sequences < np.partition(sequences, excess)[excess]] if excess < rows.size else rows)

    def _drop(self, rows: Rows) -> None:
        """Forget `rows`; their addresses become unknown."""
        kept = np.ones(self._table.used, np.bool_)
        kept[rows] = False
        self._table.keep(np.flatnonzero(kept))
        self._history_whole = False

    # ---- one event

    def _apply_singly(self, chunk: _Chunk, places: Rows, bad: list[BadFree]) -> None:
        """Apply the events at `places` (n,), ascending, one after another."""
        changes = []
        for place, event in zip(places.tolist(), chunk.events.take(places).tolist(), strict=True):
            _, kind, api, socket, _, address, size_and_thread, stack, label = event
            take = self._take.get(kind)
            if take is None:
                changes.append(_NO_CHANGE)
                continue
            size_bytes, thread = size_and_thread & SIZE_MASK, size_and_thread >> SIZE_BITS
            sequence = self._events + place
            call = _Call(kind, address, size_bytes, thread, stack, label, api, socket, sequence, chunk.timestamp_ns)
            changes.append(take(call, bad))
        chunk.bytes_changes[places], chunk.blocks_changes[places] = np.array(changes, np.int64).T

    def _allocated(self, call: _Call, bad: list[BadFree]) -> _Change:
        self._count["allocations"] += 1
        self._count["allocated_bytes"] += call.size_bytes
        return self._place(call.block())

    def _freed(self, call: _Call, bad: list[BadFree]) -> _Change:
        row = self._table.find_one(call.address)
        if row >= 0 and self._table.live.item(row):
            size_bytes = self._table.size_bytes.item(row)
            self._table.put_freed(row, call.freed())
            self._count["frees"] += 1
            self._count["freed_bytes"] += size_bytes
            return -size_bytes, -1
        if not self._accuse(call, row, bad):
            self._remember_unknown_free(call.address, row, call.freed())
        return _NO_CHANGE

    def _allocation_failed(self, call: _Call, bad: list[BadFree]) -> _Change:
        self._count["failed"] += 1
        self._count["failed_bytes"] += call.size_bytes
        return _NO_CHANGE

    def _baseline_block(self, call: _Call, bad: list[BadFree]) -> _Change:
        row = self._table.find_one(call.address)
        if row >= 0 and (self._table.live.item(row) or self._table.free_sequence.item(row) >= self._baseline_sequence):
            return _NO_CHANGE
        self._count["baseline_blocks"] += 1
        self._count["baseline_bytes"] += call.size_bytes
        return self._place(call.block())

    def _mark(self, call: _Call, bad: list[BadFree]) -> _Change:
        if call.api == Mark.BASELINE_STARTED:
            self._baseline_sequence = call.sequence
        return _NO_CHANGE

    def _resize_started(self, call: _Call, bad: list[BadFree]) -> _Change:
        unfinished = self._resizes.pop(call.thread, None)
        row = self._table.find_one(call.address)
        resize = _Resize(call.address, call.size_bytes)
        if row >= 0 and self._table.live.item(row):
            resize.sequence = self._table.sequence.item(row)
        else:
            resize.accused = self._accuse(call, row, bad)
        self._resizes[call.thread] = resize
        return _NO_CHANGE if unfinished is None else self._give_up(unfinished)

    def _resize_ended(self, call: _Call, bad: list[BadFree]) -> _Change:
        resize = self._resizes.pop(call.thread, None)
        if resize is None:
            self._count["anomalies"] += 1
            return self._allocated(call, bad) if call.address else _NO_CHANGE
        if resize.moved_aside is not None and call.address in (0, resize.address):
            # It did not move, and yet its address was handed out again: events were lost.
            lost_bytes, lost_blocks = self._give_up(resize)
            gained_bytes, gained_blocks = self._allocated(call, bad) if call.address else _NO_CHANGE
            return lost_bytes + gained_bytes, lost_blocks + gained_blocks
        if not call.address:
            if resize.sequence is not None:
                self._count["failed"] += 1
                self._count["failed_bytes"] += resize.size_bytes
            return _NO_CHANGE
        row = -1 if resize.moved_aside else self._row_in_resize(resize)
        block = resize.moved_aside if row < 0 else self._table.block(row)
        if block is None:
            self._end_resize_of_nothing(resize, call)
            return self._allocated(call, bad)
        return self._resize(call, block, row)

    def _resize(self, call: _Call, block: Block, row: int) -> _Change:
        """End the resize of `block`, which is live in `row`, or moved aside if that is -1."""
        growth = call.size_bytes - block.size_bytes
        self._count["resizes"] += 1
        self._count["allocated_bytes" if growth > 0 else "freed_bytes"] += abs(growth)
        resized = replace(
            block,
            address=call.address,
            size_bytes=call.size_bytes,
            resizes=block.resizes + 1,
            resize_stack=call.stack,
        )
        if row >= 0 and call.address == block.address:
            self._table.put(row, resized)
            return growth, 0
        if row >= 0:
            self._table.put_freed(row, call.freed())
        gained_bytes, gained_blocks = self._place(resized)
        return gained_bytes - block.size_bytes, gained_blocks - 1

    def _row_in_resize(self, resize: _Resize) -> int:
        """The row of the block that is being resized, -1 if it is not live there (any more)."""
        row = self._table.find_one(resize.address)
        if row < 0 or not self._table.live.item(row):
            return -1
        if resize.sequence is None:  # unless the baseline told of it since
            return -1 if resize.accused or self._table.origin.item(row) != Origin.BASELINE else row
        return row if self._table.sequence.item(row) == resize.sequence else -1

    def _end_resize_of_nothing(self, resize: _Resize, call: _Call) -> None:
        """Note what became of the old block of a resize, where none was known."""
        if resize.sequence is not None:
            self._count["anomalies"] += 1  # freed by another thread while it was resized
        elif not resize.accused and call.address != resize.address:
            row = self._table.find_one(resize.address)
            if row < 0 or not self._table.live.item(row):
                self._remember_unknown_free(resize.address, row, call.freed())

    def _give_up(self, resize: _Resize) -> _Change:
        """Half of this resize is missing: a block that was moved aside is lost."""
        self._count["anomalies"] += 1
        return _NO_CHANGE if resize.moved_aside is None else (-resize.moved_aside.size_bytes, -1)

    def _place(self, block: Block) -> _Change:
        """Make `block` live at its address."""
        table = self._table
        row = table.find_one(block.address)
        if row < 0:
            row = table.insert_one(block.address)
        elif table.live.item(row):
            lost_bytes, lost_blocks = self._displace(row)
            table.put(row, block)
            return block.size_bytes + lost_bytes, 1 + lost_blocks
        table.put(row, block)
        return block.size_bytes, 1

    def _displace(self, row: int) -> _Change:
        """The live block of `row` must give way to another one at its address."""
        address, sequence = self._table.address.item(row), self._table.sequence.item(row)
        for resize in self._resizes.values():
            if (resize.address, resize.sequence) == (address, sequence):
                resize.moved_aside = self._table.block(row)
                return _NO_CHANGE
        # A baseline block may be one whose allocation was under way when the baseline was taken.
        if self._table.origin.item(row) != Origin.BASELINE:
            self._count["anomalies"] += 1
        return -self._table.size_bytes.item(row), -1

    def _accuse(self, call: _Call, row: int, bad: list[BadFree]) -> bool:
        """Report the free of an address that is not live; `row` is its row or -1. False if it may be a good one."""
        table = self._table
        duplicate = row >= 0
        allocated = table.block(row) if duplicate else None
        certain = allocated is not None and table.free_sequence.item(row) >= self._gap_sequence
        if not (self._complete or certain):
            return False
        bad.append(
            BadFree(
                BadFreeKind.DUPLICATE if duplicate else BadFreeKind.STRAY,
                call.address,
                call.sequence,
                call.timestamp_ns,
                call.thread,
                call.stack,
                call.api,
                allocated,
                table.freed(row) if duplicate else None,
                self._complete and (certain if duplicate else self._history_whole),
            )
        )
        return True

    def _remember_unknown_free(self, address: int, row: int, freed: Freed) -> None:
        """Note the free of a block that the map did not know; `row` is the row of its address or -1."""
        self._count["unknown_frees"] += 1
        if row < 0:
            row = self._table.insert_one(address)
        self._table.origin[row] = Origin.UNKNOWN
        self._table.put_freed(row, freed)


def _places(keys: Addresses) -> Rows:
    """The places in the chunk of the events that have these sort keys."""
    return ((keys >> _KEY_PLACE_SHIFT) & _KEY_PLACE_MASK).view(np.int64)


def _addresses(keys: Addresses) -> Addresses:
    """The addresses of the events that have these sort keys."""
    return (keys >> _KEY_ADDRESS_SHIFT) << np.uint64(4)
