"""The tracking map: from events alone, what is live, what was freed wrongly, and how much there was at the most.

It owns the block table and the counters and knows nothing of where events come from (ring, recording, test) or who
reads the answers. Answers are exact to the event and do not depend on how the stream is cut into batches.

A chunk of a batch is sorted by address. On an address that sees allocation and free in turn, and began in the state
that the table says, array operations do everything. Any other address (bad free, resize, allocation of a live address)
has its events taken one by one, in order; the changes in bytes of both kinds are summed up in event order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, SIZE_MASK, EventBatch, Kind, sizes, threads
from frida_rtetrack.tracking.blocktable import (
    BLOCK_DTYPE,
    Addresses,
    Block,
    BlockTable,
    Freed,
    FreedBlock,
    Origin,
    Rows,
)
from frida_rtetrack.tracking.rules import MEMZONE_APIS, BadFree, BadFreeKind, Call, Rules, Totals

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


# Sort keys: address / 16 in the high 44 bits, then the event's place in the chunk, then its code.
_KEY_ADDRESS_SHIFT = np.uint64(20)
_KEY_PLACE_SHIFT = np.uint64(2)
_KEY_PLACE_MASK = np.uint64((1 << 18) - 1)
_KEY_CODE_MASK = np.uint64(3)
_KEY_ONE_ADDRESS = np.uint64(1 << 20)
_NOT_IN_KEY = np.uint64(0xFFFF_0000_0000_000F)
"""Address bits that a key has no room for; DPDK's blocks, in user space and aligned to cache lines, have none."""
_ALLOCATED, _FREED, _BASELINE, _SINGLY, _NO_BLOCK = range(5)
_CODES = np.full(256, _NO_BLOCK, np.uint64)
_CODES[[Kind.ALLOCATED, Kind.FREED, Kind.BASELINE_BLOCK]] = _ALLOCATED, _FREED, _BASELINE
_CODES[[Kind.RESIZE_STARTED, Kind.RESIZE_ENDED, Kind.MARK]] = _SINGLY


class TrackingMap:
    """The live set of one heap, kept up to date by batches of events. Every method may be called from any thread."""

    CHUNK_EVENTS = 1 << 16
    """Events handled at once, at most 2^18; freed blocks are forgotten only at event numbers that it divides."""
    SINGLY_AT_MOST = 24
    """Up to so many events it is cheaper to take each by itself."""

    def __init__(self, *, complete: bool = True, freed_kept: int = 1_000_000) -> None:
        """An empty map.

        `complete` says that every block of the heap is going to be seen from its allocation on (spawn); if not
        (attach), the free of an unknown address is no accusation until `mark_complete`. `freed_kept` bounds how many
        freed blocks are remembered, give or take CHUNK_EVENTS; when there are more, the older half is forgotten.
        """
        self._lock = threading.RLock()
        self._table = BlockTable()
        self._events = 0
        self._live_blocks = 0
        self._live_bytes = 0
        self._peak = Peak()
        self._freed_kept = freed_kept
        self._rules = Rules(self._table, complete=complete)

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
            self._rules.complete = True

    def mark_incomplete(self) -> None:
        """Events were lost here: until `mark_complete`, a free that what was lost may explain is not accused."""
        with self._lock:
            self._rules.complete = False
            self._rules.history_whole = False
            self._rules.gap_sequence = self._events

    def insert_baseline(
        self, addresses: Addresses, sizes_bytes: NDArray[np.uint64], since_sequence: int, timestamp_ns: int
    ) -> int:
        """Insert the blocks (n,) of these sizes as baseline; returns how many it did.

        They were live in DPDK's heap at event number `since_sequence` or later. Those that are live here already stay
        as they are, and those that were freed since then stay freed.
        """
        with self._lock:
            addresses, first = np.unique(np.asarray(addresses, np.uint64), return_index=True)
            rows = self._table.find(addresses)
            freed_since = self._table.free_sequence.take(rows) >= since_sequence
            new = (rows < 0) | ~(self._table.live.take(rows) | freed_since)
            rows, addresses = rows[new], addresses[new]
            rows[rows < 0] = self._table.insert(addresses[rows < 0])
            table = self._table
            table.size_bytes[rows] = sizes_bytes[first[new]]
            table.sequence[rows] = self._events
            table.allocated_at_ns[rows] = timestamp_ns
            table.origin[rows] = Origin.BASELINE
            table.socket[rows] = -1
            for unknown in (table.label, table.stack, table.thread, table.api, table.resizes, table.resize_stack):
                unknown[rows] = 0
            table.live[rows] = True
            grown = int(table.size_bytes.take(rows).sum())
            self._rules.count["baseline_blocks"] += rows.size
            self._rules.count["baseline_bytes"] += grown
            self._live_blocks += rows.size
            self._live_bytes += grown
            self._raise_peak(self._live_blocks, self._live_bytes, timestamp_ns, self._events)
            return rows.size

    def forget(self, blocks: Sequence[Block]) -> int:
        """Remove those of `blocks` that are still live without counting a free; returns how many were.

        A block that was freed, or resized elsewhere, since somebody looked at it has gone by itself: another one that
        lives at its address now stays.
        """
        with self._lock:
            sequence_at = {block.address: block.sequence for block in blocks}
            addresses = np.array(sorted(sequence_at), np.uint64)
            rows: Rows = self._table.find(addresses)
            same = self._table.sequence.take(rows) == np.array([sequence_at[int(a)] for a in addresses], np.uint64)
            rows = rows[(rows >= 0) & self._table.live.take(rows) & same]
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
        return self._rules.complete

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
        """Live blocks that `live` lacks: in a resize, the old address handed out again, the new one not known yet."""
        with self._lock:
            return sum(resize.moved_aside is not None for resize in self._rules.resizes.values())

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
            return Totals(**self._rules.count)

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

    def containing(self, frees: Sequence[BadFree]) -> list[Block | None]:
        """For each bad free the block that was live when it happened and that its address lies inside of, or None.

        To be asked before the next `apply`. A block of which nothing is left, because its row was used again later in
        the same batch, is not found.
        """
        with self._lock:
            table = self._table
            earliest = min((free.sequence for free in frees), default=0)
            used = slice(0, table.used)
            rows = np.flatnonzero(table.live[used] | (table.free_sequence[used] > earliest))
            rows = rows[np.argsort(table.address.take(rows), kind="stable")]
            starts = table.address.take(rows)
            return [self._containing(free, rows, starts) for free in frees]

    def _containing(self, free: BadFree, rows: Rows, starts: Addresses) -> Block | None:
        after = int(np.searchsorted(starts, np.uint64(free.address), side="right"))
        for row in rows[max(0, after - 8) : after][::-1].tolist():  # freed ones may lie between it and its address
            block = self._table.block(row)
            if (
                block is None
                or free.address >= block.address + max(block.size_bytes, 1)
                or block.sequence > free.sequence
            ):
                continue
            if self._table.live.item(row) or self._table.free_sequence.item(row) >= free.sequence:
                return block
        return None

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
        """Compare with `busy` (n,), the blocks in DPDK's heap: those missing here, those only here; both ascending."""
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
        code[np.isin(chunk.events["api"], MEMZONE_APIS) & (code == _ALLOCATED)] = _SINGLY
        keys = (address << np.uint64(16)) | (np.arange(address.size, dtype=np.uint64) << _KEY_PLACE_SHIFT) | code
        no_block = code == _NO_BLOCK
        odd = (address & _NOT_IN_KEY) != 0
        apart = no_block | odd
        if not apart.any():
            return keys, np.empty(0, np.int64)
        failed = chunk.size_bytes[chunk.events["kind"] == Kind.ALLOCATION_FAILED]
        self._rules.count["failed"] += failed.size
        # In two halves: whatever a program asks for in vain, the sums do not overflow.
        self._rules.count["failed_bytes"] += (int((failed >> 24).sum()) << 24) + int((failed & 0xFF_FFFF).sum())
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
        orderly &= ~(live & np.isin(self._table.api.take(rows), MEMZONE_APIS))
        if wrong.any():
            orderly &= ~np.logical_or.reduceat(wrong, starts)
        if resizes_end and self._rules.resizes:
            orderly &= ~np.isin(addresses, [resize.address for resize in self._rules.resizes.values()])
        return starts, rows, orderly

    def _apply_orderly(self, chunk: _Chunk, keys: Addresses, starts: Rows, rows: Rows) -> None:
        """Apply the events of addresses in good order, given as by `_groups`; a row gets only its last state."""
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
        self._rules.count["baseline_blocks"] += baseline.size
        self._rules.count["baseline_bytes"] += int(baseline.sum())
        self._rules.count["frees"] += int(is_free.sum())
        self._rules.count["freed_bytes"] += gained - int(change.sum())
        self._rules.count["allocations"] += keys.size - int(is_free.sum()) - baseline.size
        self._rules.count["allocated_bytes"] += gained - int(baseline.sum())

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
        self._rules.history_whole = False

    # ---- one event

    def _apply_singly(self, chunk: _Chunk, places: Rows, bad: list[BadFree]) -> None:
        """Apply the events at `places` (n,), ascending, one after another."""
        changes = []
        for place, event in zip(places.tolist(), chunk.events.take(places).tolist(), strict=True):
            _, kind, api, socket, _, address, size_and_thread, stack, label = event
            size_bytes, thread = size_and_thread & SIZE_MASK, size_and_thread >> SIZE_BITS
            sequence = self._events + place
            call = Call(kind, address, size_bytes, thread, stack, label, api, socket, sequence, chunk.timestamp_ns)
            changes.append(self._rules.take(call, bad))
        chunk.bytes_changes[places], chunk.blocks_changes[places] = np.array(changes, np.int64).T


def _places(keys: Addresses) -> Rows:
    """The places in the chunk of the events that have these sort keys."""
    return ((keys >> _KEY_PLACE_SHIFT) & _KEY_PLACE_MASK).view(np.int64)


def _addresses(keys: Addresses) -> Addresses:
    """The addresses of the events that have these sort keys."""
    return (keys >> _KEY_ADDRESS_SHIFT) << np.uint64(4)
