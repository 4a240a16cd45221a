"""The tracking map: from events alone, what is live, what was freed wrongly, and how much there was at the most.

It owns the block table and the counters and knows nothing of where events come from (ring, recording, test) or who
reads the answers. Answers are exact to the event and do not depend on how the stream is cut into batches.

The compiled kernel takes the events, or numpy where there is none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EVENT_DTYPE, EventBatch, Times
from frida_rtetrack.tracking import mapkernel
from frida_rtetrack.tracking.amendments import Amendment
from frida_rtetrack.tracking.arraybatches import ArrayBatches
from frida_rtetrack.tracking.blocktable import (
    BLOCK_DTYPE,
    BLOCK_FIELDS,
    Addresses,
    Block,
    BlockTable,
    Freed,
    FreedBlock,
    Origin,
    Rows,
    Tenancy,
)
from frida_rtetrack.tracking.compiledbatches import CompiledBatches
from frida_rtetrack.tracking.rules import BadFree, BadFreeKind, Changes, Resize, Rules, Totals

__all__ = [
    "BLOCK_DTYPE",
    "BLOCK_FIELDS",
    "BadFree",
    "BadFreeKind",
    "Block",
    "Freed",
    "FreedBlock",
    "LiveSet",
    "Lookup",
    "Peak",
    "Tenancy",
    "Totals",
    "TrackingMap",
]


SAMPLE = 16
"""Rows that are looked at where some will do."""


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
    earlier: tuple[Tenancy, ...] = ()
    """Whose the address was before that, if a block begins there, the latest first; some at the most."""


class LiveSet(NamedTuple):
    """The blocks that are live at one moment, in no particular order."""

    addresses: Addresses
    """Shape (n,)."""
    sequences: NDArray[np.uint64]
    """Numbers of the events that allocated them, (n,)."""


@dataclass(frozen=True, slots=True)
class MapState:
    """A map at one moment, without what was freed before: from it on, the same events give the same live set and figures."""

    live: NDArray[np.void]
    """BLOCK_DTYPE (n,)."""
    events: int
    totals: Totals
    peak: Peak
    complete: bool
    resizes: dict[int, Resize]
    """Those that have started and not ended, by thread."""


class TrackingMap:
    """The live set of one heap, kept up to date by batches of events. Every method may be called from any thread."""

    CHUNK_EVENTS = 1 << 16
    """Events handled at once, at most 2^18; freed blocks are forgotten only at event numbers that it divides."""
    SINGLY_AT_MOST = 24
    """Up to so many events it is cheaper to take each by itself; with the kernel it is not."""

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
        self.on_amended: Callable[[Amendment], None] = lambda amendment: None
        """Told of whatever sets the live set right besides the events, before the next event is applied."""
        self._rules = Rules(self._table, complete=complete)
        compiled = mapkernel.load()
        self._batches: CompiledBatches | ArrayBatches = (
            ArrayBatches(self._table, self._rules, self.SINGLY_AT_MOST)
            if compiled is None
            else CompiledBatches(compiled, self._table, self._rules)
        )

    def state(self) -> MapState:
        """The map as it is now; it is the caller's."""
        with self._lock:
            self._batches.hand_over_resizes()
            resizes = {thread: replace(resize) for thread, resize in self._rules.resizes.items()}
            return MapState(self.live(), self._events, self.totals, self._peak, self.complete, resizes)

    @classmethod
    def begun_at(cls, state: MapState) -> TrackingMap:
        """A map that goes on from `state`."""
        tracking = cls(complete=state.complete)
        table, rules, live = tracking._table, tracking._rules, state.live
        rows = table.insert(live["address"])
        for name in ("size_bytes", "sequence", "allocated_at_ns", "stack", "label", "thread", "api", "socket"):
            getattr(table, name)[rows] = live[name]
        table.resize_stack[rows], table.resizes[rows] = live["resize_stack"], live["resizes"]
        table.resized[rows] = live["resizes"] > 0
        table.origin[rows] = np.where(live["baseline"], Origin.BASELINE, Origin.SEEN)
        table.live[rows] = True
        rules.history_whole = False
        rules.gap_sequence = state.events
        rules.count.update(asdict(state.totals))
        rules.resizes.update(state.resizes)
        tracking._batches.take_over_resizes()
        moved = [resize.moved_aside for resize in state.resizes.values() if resize.moved_aside is not None]
        tracking._events, tracking._peak = state.events, state.peak
        tracking._live_blocks = live.size + len(moved)
        tracking._live_bytes = int(live["size_bytes"].sum()) + sum(block.size_bytes for block in moved)
        return tracking

    # ---- events in

    def apply(self, batch: EventBatch, times: Times | int) -> list[BadFree]:
        """Take the events of `batch` (n,), EVENT_DTYPE; returns their bad frees.

        `times`: when each happened, monotonic ns, (n,), or one time for all.

        Every event counts for the numbering, marks too; of marks only BASELINE_STARTED has a meaning here (a block
        freed after it is not revived by a BASELINE_BLOCK). Raises TypeError if `batch` has another type.
        """
        if batch.dtype != EVENT_DTYPE:
            raise TypeError(f"events have the type EVENT_DTYPE, not {batch.dtype}")
        times = np.broadcast_to(np.asarray(times, np.int64), batch.shape)
        bad: list[BadFree] = []
        with self._lock:
            start = 0
            while start < batch.size:
                end = min(start + self.CHUNK_EVENTS - self._events % self.CHUNK_EVENTS, batch.size)
                changes = self._batches.apply(batch[start:end], times[start:end], self._events, bad)
                self._settle(times[start:end], changes)
                start = end
                if self._events % self.CHUNK_EVENTS == 0 and self.freed_blocks > self._freed_kept:
                    self._forget_oldest_frees()
        return bad

    def mark_complete(self) -> None:
        """From here on every live block is known: the free of any other address is a bad free."""
        with self._lock:
            self._rules.complete = True
            self.on_amended(Amendment.of_completeness(True))

    def mark_incomplete(self) -> None:
        """Events were lost here: until `mark_complete`, a free that what was lost may explain is not accused."""
        with self._lock:
            self._rules.complete = False
            self._rules.history_whole = False
            self._rules.gap_sequence = self._events
            self.on_amended(Amendment.of_completeness(False))

    def insert_baseline(
        self, addresses: Addresses, sizes_bytes: NDArray[np.uint64], since_sequence: int, timestamp_ns: int
    ) -> int:
        """Insert the blocks (n,) of these sizes as baseline; returns how many it did.

        They were live in DPDK's heap at event number `since_sequence` or later. Those that are live here already stay
        as they are, and those that were freed since then stay freed.
        """
        with self._lock:
            self.on_amended(Amendment("baseline", addresses, sizes_bytes, since_sequence, timestamp_ns))
            addresses, first = np.unique(np.asarray(addresses, np.uint64), return_index=True)
            rows = self._table.find(addresses)
            freed_since = self._table.free_sequence[rows] >= since_sequence
            new = (rows < 0) | ~(self._table.live[rows] | freed_since)
            rows, addresses = rows[new], addresses[new]
            rows[rows < 0] = self._table.insert(addresses[rows < 0])
            table = self._table
            table.size_bytes[rows] = sizes_bytes[first[new]]
            table.sequence[rows] = self._events
            table.allocated_at_ns[rows] = timestamp_ns
            table.origin[rows] = Origin.BASELINE
            table.socket[rows] = -1
            table.clear_resizes(rows)
            for unknown in (table.label, table.stack, table.thread, table.api):
                unknown[rows] = 0
            table.live[rows] = True
            grown = int(table.size_bytes[rows].sum())
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
        addresses = np.array([block.address for block in blocks], np.uint64)
        return self._forget(addresses, np.array([block.sequence for block in blocks], np.uint64))

    def forget_all(self) -> int:
        """The same of every block: the heap has gone. Returns how many were live."""
        with self._lock:
            live = self.live()
            return self._forget(live["address"], live["sequence"])

    def amend(self, amendment: Amendment) -> None:
        """Does once more what `on_amended` was told of."""
        if amendment.what == "baseline":
            self.insert_baseline(
                amendment.addresses, amendment.numbers, amendment.since_sequence, amendment.timestamp_ns
            )
        elif amendment.what == "forget":
            self._forget(amendment.addresses, amendment.numbers)
        elif amendment.what == "complete":
            self.mark_complete()
        else:
            self.mark_incomplete()

    def _forget(self, addresses: Addresses, sequences: NDArray[np.uint64]) -> int:
        with self._lock:
            self.on_amended(Amendment("forget", addresses, sequences))
            rows: Rows = self._table.find(addresses)
            rows = rows[(rows >= 0) & self._table.live[rows] & (self._table.sequence[rows] == sequences)]
            if rows.size:
                self._live_blocks -= rows.size
                self._live_bytes -= int(self._table.size_bytes[rows].sum())
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

    def live(self, fields: Sequence[str] = BLOCK_FIELDS) -> NDArray[np.void]:
        """A copy of all live blocks, BLOCK_DTYPE (n,) of those `fields` alone, in no particular order; it is the caller's."""
        with self._lock:
            return self._table.blocks(self._table.live_rows(), fields)

    def some_stacks(self) -> list[int]:
        """Numbers of stacks that blocks were allocated at: of a sample of at most SAMPLE rows."""
        with self._lock:
            stacks = self._table.stack[: self._table.used : 1 + self._table.used // SAMPLE].copy()
        return [int(stack) for stack in np.unique(stacks) if stack]

    def live_set(self) -> LiveSet:
        """What is live at this moment, to be compared with DPDK's heap when that has been read."""
        with self._lock:
            rows = self._table.live_rows()
            return LiveSet(self._table.address[rows], self._table.sequence[rows])

    def unexplained(
        self, busy: Addresses, then: LiveSet, since_sequence: int
    ) -> tuple[NDArray[np.int64], tuple[Block, ...]]:
        """What this map and DPDK's heap, which had the `busy` blocks (n,) when `then` was live, disagree about.

        Returns the indices (m,) of busy blocks that were not live, are not now and were not freed from event number
        `since_sequence` on; and the blocks that were live, still are, unchanged, and were not busy.
        """
        with self._lock:
            table = self._table
            rows = table.find(busy)
            known = rows >= 0
            explained = known & (table.live[rows] | (table.free_sequence[rows] >= since_sequence))
            missing = np.flatnonzero(~explained)
            was_busy = np.zeros(table.used, np.bool_)
            was_busy[rows[known]] = True
            others = np.flatnonzero(table.live[: table.used] & ~was_busy)
            others = others[table.sequence[others] <= then.sequences.max(initial=0)]  # the rest is newer
            if missing.size:
                missing = missing[~np.isin(busy[missing], then.addresses)]
            if not then.addresses.size:
                others = others[:0]
            if others.size:
                order = np.argsort(then.addresses)
                place = np.searchsorted(then.addresses, table.address[others], sorter=order)
                place = order[np.minimum(place, order.size - 1)]
                same = then.addresses[place] == table.address[others]
                others = others[same & (then.sequences[place] == table.sequence[others])]
            blocks = (table.block(row) for row in others.tolist())
            return missing, tuple(block for block in blocks if block is not None)

    def find(self, address: int) -> Lookup:
        """What is known of `address`: live, inside a live block, freed."""
        with self._lock:
            row = self._table.find_one(address)
            freed = None
            if row >= 0 and not self._table.live[row]:
                freed = FreedBlock(self._table.block(row), self._table.freed(row))
            inside = row if row >= 0 and freed is None else self._table.containing(address)
            earlier = () if row < 0 else self._table.earlier_tenancies(row)
            if inside < 0:
                return Lookup(None, 0, freed, earlier)
            return Lookup(self._table.block(inside), address - self._table.address.item(inside), freed, earlier)

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
            rows = rows[np.argsort(table.address[rows], kind="stable")]
            starts = table.address[rows]
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
            live = self._table.address[self._table.live_rows()]
        return np.setdiff1d(busy, live), np.setdiff1d(live, busy)

    def _grouped(self, by: str, allocated_until_ns: int | None) -> NDArray[np.void]:
        with self._lock:
            rows = self._table.live_rows()
            if allocated_until_ns is not None:
                rows = rows[self._table.allocated_at_ns[rows] <= allocated_until_ns]
            return self._table.grouped(rows, by)

    def _settle(self, times: Times, changes: Changes) -> None:
        """Number the events of these `times` (n,), and add up what they changed, with the high watermark on the way."""
        self._raise_peak(
            self._live_blocks + changes.top_blocks,
            self._live_bytes + changes.top_bytes,
            times.item(min(max(changes.top_sequence - self._events, 0), times.size - 1)),
            changes.top_sequence,
        )
        self._live_bytes += changes.bytes
        self._live_blocks += changes.blocks
        self._events += times.size

    def _raise_peak(self, blocks: int, size_bytes: int, timestamp_ns: int, sequence: int) -> None:
        if size_bytes > self._peak.bytes:
            self._peak = Peak(blocks, size_bytes, timestamp_ns, sequence)

    def _forget_oldest_frees(self) -> None:
        rows = self._table.freed_rows()
        sequences = self._table.free_sequence[rows]
        excess = rows.size - self._freed_kept // 2
        self._drop(rows[sequences < np.partition(sequences, excess)[excess]] if excess < rows.size else rows)

    def _drop(self, rows: Rows) -> None:
        """Forget `rows`; their addresses become unknown."""
        kept = np.ones(self._table.used, np.bool_)
        kept[rows] = False
        self._table.keep(np.flatnonzero(kept))
        self._rules.history_whole = False
