"""Batches of events applied with numpy: the way without the compiled kernel, and what that one is compared with.

A chunk of a batch is sorted by address. On an address that sees allocation and free in turn, and began in the state
that the table says, array operations do everything. Any other address (bad free, resize, allocation of a live address)
has its events taken one by one, in order; the changes in bytes of both kinds are summed up in event order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EventBatch, Kind, Times, sizes, threads
from frida_rtetrack.tracking.blocktable import Addresses, BlockTable, Rows
from frida_rtetrack.tracking.rules import MEMZONE_APIS, BadFree, Call, Changes, Rules


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Events that are applied together, and what each changes."""

    events: EventBatch
    size_bytes: NDArray[np.int64]
    sequence: int
    """Number of the first."""
    times: Times
    """When they happened."""
    bytes_changes: NDArray[np.int64]
    """Of live bytes, by event."""
    blocks_changes: NDArray[np.int64]

    @classmethod
    def of(cls, events: EventBatch, times: Times, sequence: int) -> _Chunk:
        """`events` (n,), of which none has changed anything yet."""
        changes = np.zeros((2, events.size), np.int64)
        return cls(events, sizes(events).astype(np.int64), sequence, times, changes[0], changes[1])

    def changes(self) -> Changes:
        """What all of them have changed, with the high watermark on the way."""
        running = np.cumsum(self.bytes_changes)
        top = int(running.argmax())
        return Changes(
            int(running[-1]),
            int(self.blocks_changes.sum()),
            int(running[top]),
            int(self.blocks_changes[: top + 1].sum()),
            self.sequence + top,
        )


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


class ArrayBatches:
    """Applies events to `table` by `rules`."""

    def __init__(self, table: BlockTable, rules: Rules, singly_at_most: int) -> None:
        """Up to `singly_at_most` events are taken each by itself."""
        self._table = table
        self._rules = rules
        self._singly_at_most = singly_at_most

    def apply(self, events: EventBatch, times: Times, sequence: int, bad: list[BadFree]) -> Changes:
        """Take `events` (n,), 1 <= n <= 2^18, the first of which has the number `sequence`; bad frees go to `bad`."""
        chunk = _Chunk.of(events, times, sequence)
        if events.size <= self._singly_at_most:
            self._apply_singly(chunk, np.arange(events.size), bad)
        else:
            self._apply_sorted(chunk, bad)
        return chunk.changes()

    def hand_over_resizes(self) -> None:
        """Lets the rules know every resize that has started: they do already."""

    def take_over_resizes(self) -> None:
        """Learns of resizes that the rules were told of."""

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
        live = (rows >= 0) & self._table.live[rows]
        first &= _KEY_CODE_MASK
        orderly = (first == _FREED) == live
        orderly &= (first != _BASELINE) | (rows < 0)
        orderly &= ~(live & np.isin(self._table.api[rows], MEMZONE_APIS))
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
        freed_bytes[starts[lived_before]] = table.size_bytes[rows[lived_before]]
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
        table.sequence[rows] = places + chunk.sequence
        table.allocated_at_ns[rows] = chunk.times.take(places)
        table.stack[rows] = events["stack"]
        table.label[rows] = events["label"]
        table.clear_resizes(rows)
        table.thread[rows] = threads(events)
        table.api[rows] = events["api"]
        table.socket[rows] = events["socket"]
        table.origin[rows] = baseline  # Origin.SEEN is 0, Origin.BASELINE 1
        table.live[rows] = True

    def _write_frees(self, chunk: _Chunk, rows: Rows, places: Rows) -> None:
        """Make `rows` (n,) freed blocks, freed by the events at `places` (n,).

        Of several tenancies of an address in one chunk only the last one is kept, unlike by the kernel.
        """
        table, events = self._table, chunk.events.take(places)
        table.end_tenancies(rows)
        table.live[rows] = False
        table.free_sequence[rows] = places + chunk.sequence
        table.freed_at_ns[rows] = chunk.times.take(places)
        table.free_stack[rows] = events["stack"]
        table.free_thread[rows] = threads(events)
        table.free_api[rows] = events["api"]

    def _apply_singly(self, chunk: _Chunk, places: Rows, bad: list[BadFree]) -> None:
        """Apply the events at `places` (n,), ascending, one after another."""
        changes = []
        for place, event in zip(places.tolist(), chunk.events.take(places).tolist(), strict=True):
            call = Call.of(event, chunk.sequence + place, chunk.times.item(place))
            changes.append(self._rules.take(call, bad))
        chunk.bytes_changes[places], chunk.blocks_changes[places] = np.array(changes, np.int64).T


def _places(keys: Addresses) -> Rows:
    """The places in the chunk of the events that have these sort keys."""
    return ((keys >> _KEY_PLACE_SHIFT) & _KEY_PLACE_MASK).view(np.int64)


def _addresses(keys: Addresses) -> Addresses:
    """The addresses of the events that have these sort keys."""
    return (keys >> _KEY_ADDRESS_SHIFT) << np.uint64(4)
