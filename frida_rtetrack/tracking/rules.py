"""What each event means for the table of blocks: the rules, one event at a time.

This is the exact and slow way, taken for the events where something out of the ordinary happens; the compiled kernel,
or arraybatches.py with arrays, does the same where it does not. The traps are all here: bad frees, resizes whose two events
have other threads' events between them, blocks that were there before the tracking, events that were lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from frida_rtetrack.stream.events import SIZE_BITS, SIZE_MASK, Api, Kind, Mark
from frida_rtetrack.tracking.blocktable import Block, BlockTable, Freed, Origin, Tenancy


class BadFreeKind(Enum):
    """What is known of the address of a bad free. The map tells the first three apart, badfree.py the others."""

    DUPLICATE = "duplicate"
    """It was freed before, and not allocated since."""
    STRAY = "stray"
    """It is not known ever to have been a block."""
    MEMZONE = "memzone"
    """It belongs to a memzone: not for rte_free."""
    INTERIOR = "interior"
    """It lies inside of a live block."""
    FOREIGN = "foreign"
    """It lies outside of DPDK's heap."""
    AFTER_CLEANUP = "after_cleanup"
    """DPDK's heap is gone since rte_eal_cleanup."""


MEMZONE_APIS = (Api.MEMZONE_RESERVE, Api.MEMZONE_RESERVE_ALIGNED, Api.MEMZONE_RESERVE_BOUNDED)


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
    earlier: tuple[Tenancy, ...] = field(default=(), compare=False)
    """Of a duplicate: whose the address was before that block, the latest first. Some at the most, fewer without the kernel."""


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


@dataclass(slots=True)
class Resize:
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


class Call(NamedTuple):
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

    @classmethod
    def of(cls, event: tuple[int, ...], sequence: int, timestamp_ns: int) -> Call:
        """From a record of EVENT_DTYPE."""
        _, _, kind, api, socket, _, address, size_and_thread, stack, label = event
        size_bytes, thread = size_and_thread & SIZE_MASK, size_and_thread >> SIZE_BITS
        return cls(kind, address, size_bytes, thread, stack, label, api, socket, sequence, timestamp_ns)

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


Change = tuple[int, int]
"""Live bytes and live blocks, more or fewer."""
NO_CHANGE: Change = (0, 0)


class Changes(NamedTuple):
    """What events in a row have changed of the live bytes and blocks."""

    bytes: int = 0
    blocks: int = 0
    top_bytes: int = 0
    """The most that bytes were above what they had been before, at the first such moment."""
    top_blocks: int = 0
    """Change in blocks up to that moment."""
    top_sequence: int = 0
    """Number of the event that reached it."""

    def then(self, later: Changes) -> Changes:
        """These, and `later` ones after them."""
        top = self[2:]
        if self.bytes + later.top_bytes > self.top_bytes:
            top = (self.bytes + later.top_bytes, self.blocks + later.top_blocks, later.top_sequence)
        return Changes(self.bytes + later.bytes, self.blocks + later.blocks, *top)


class Rules:
    """The state that the rules need, and the rules: one method a kind of event."""

    def __init__(self, table: BlockTable, *, complete: bool) -> None:
        """Rules for the rows of `table`; `complete` as in TrackingMap."""
        self.table = table
        self.count: Counter[str] = Counter()
        """Totals in the making, by its fields."""
        self.resizes: dict[int, Resize] = {}
        """Those that have started and not ended, by thread."""
        self.complete = complete
        self.history_whole = complete
        """Nothing was ever forgotten or lost, or came before the tracking."""
        self.gap_sequence = 0
        """An address freed before this event may have been handed out again unseen."""
        self.baseline_sequence = 0
        """Of the last MARK_BASELINE_STARTED."""
        self._methods: dict[int, Callable[[Call, list[BadFree]], Change]] = {
            Kind.ALLOCATED: self._allocated,
            Kind.FREED: self._freed,
            Kind.RESIZE_STARTED: self._resize_started,
            Kind.RESIZE_ENDED: self._resize_ended,
            Kind.BASELINE_BLOCK: self._baseline_block,
            Kind.ALLOCATION_FAILED: self._allocation_failed,
            Kind.MARK: self._mark,
        }

    def take(self, call: Call, bad: list[BadFree]) -> Change:
        """Do what the event means; a bad free is appended to `bad`. Kinds that are not known mean nothing."""
        method = self._methods.get(call.kind)
        return NO_CHANGE if method is None else method(call, bad)

    def _allocated(self, call: Call, bad: list[BadFree]) -> Change:
        self.count["allocations"] += 1
        self.count["allocated_bytes"] += call.size_bytes
        return self._place(call.block())

    def _freed(self, call: Call, bad: list[BadFree]) -> Change:
        row = self.table.find_one(call.address)
        if row >= 0 and self.table.live.item(row):
            size_bytes = self.table.size_bytes.item(row)
            # What rte_memzone_free does itself is an rte_free where that function is not seen.
            if self.complete and self.table.api.item(row) in MEMZONE_APIS and call.api != Api.MEMZONE_FREE:
                bad.append(self._bad_free(BadFreeKind.MEMZONE, call, self.table.block(row), None, True))
            self.table.put_freed(row, call.freed())
            self.count["frees"] += 1
            self.count["freed_bytes"] += size_bytes
            return -size_bytes, -1
        if not self._accuse(call, row, bad):
            self._remember_unknown_free(call.address, row, call.freed())
        return NO_CHANGE

    def _allocation_failed(self, call: Call, bad: list[BadFree]) -> Change:
        self.count["failed"] += 1
        self.count["failed_bytes"] += call.size_bytes
        return NO_CHANGE

    def _baseline_block(self, call: Call, bad: list[BadFree]) -> Change:
        row = self.table.find_one(call.address)
        if row >= 0 and (self.table.live.item(row) or self.table.free_sequence.item(row) >= self.baseline_sequence):
            return NO_CHANGE
        self.count["baseline_blocks"] += 1
        self.count["baseline_bytes"] += call.size_bytes
        return self._place(call.block())

    def _mark(self, call: Call, bad: list[BadFree]) -> Change:
        if call.api == Mark.BASELINE_STARTED:
            self.baseline_sequence = call.sequence
        return NO_CHANGE

    def _resize_started(self, call: Call, bad: list[BadFree]) -> Change:
        unfinished = self.resizes.pop(call.thread, None)
        row = self.table.find_one(call.address)
        resize = Resize(call.address, call.size_bytes)
        if row >= 0 and self.table.live.item(row):
            resize.sequence = self.table.sequence.item(row)
        else:
            resize.accused = self._accuse(call, row, bad)
        self.resizes[call.thread] = resize
        return NO_CHANGE if unfinished is None else self._give_up(unfinished)

    def _resize_ended(self, call: Call, bad: list[BadFree]) -> Change:
        resize = self.resizes.pop(call.thread, None)
        if resize is None:
            self.count["anomalies"] += 1
            return self._allocated(call, bad) if call.address else NO_CHANGE
        if resize.moved_aside is not None and call.address in (0, resize.address):
            # It did not move, and yet its address was handed out again: events were lost.
            lost_bytes, lost_blocks = self._give_up(resize)
            gained_bytes, gained_blocks = self._allocated(call, bad) if call.address else NO_CHANGE
            return lost_bytes + gained_bytes, lost_blocks + gained_blocks
        if not call.address:
            if resize.sequence is not None:
                self.count["failed"] += 1
                self.count["failed_bytes"] += resize.size_bytes
            return NO_CHANGE
        row = -1 if resize.moved_aside else self._row_in_resize(resize)
        block = resize.moved_aside if row < 0 else self.table.block(row)
        if block is None:
            self._end_resize_of_nothing(resize, call)
            return self._allocated(call, bad)
        return self._resize(call, block, row)

    def _resize(self, call: Call, block: Block, row: int) -> Change:
        """End the resize of `block`, which is live in `row`, or moved aside if that is -1."""
        growth = call.size_bytes - block.size_bytes
        self.count["resizes"] += 1
        self.count["allocated_bytes" if growth > 0 else "freed_bytes"] += abs(growth)
        resized = replace(
            block,
            address=call.address,
            size_bytes=call.size_bytes,
            resizes=block.resizes + 1,
            resize_stack=call.stack,
        )
        if row >= 0 and call.address == block.address:
            self.table.put(row, resized)
            return growth, 0
        if row >= 0:
            self.table.put_freed(row, call.freed())
        gained_bytes, gained_blocks = self._place(resized)
        return gained_bytes - block.size_bytes, gained_blocks - 1

    def _row_in_resize(self, resize: Resize) -> int:
        """The row of the block that is being resized, -1 if it is not live there (any more)."""
        row = self.table.find_one(resize.address)
        if row < 0 or not self.table.live.item(row):
            return -1
        if resize.sequence is None:  # unless the baseline told of it since
            return -1 if resize.accused or self.table.origin.item(row) != Origin.BASELINE else row
        return row if self.table.sequence.item(row) == resize.sequence else -1

    def _end_resize_of_nothing(self, resize: Resize, call: Call) -> None:
        """Note what became of the old block of a resize, where none was known."""
        if resize.sequence is not None:
            self.count["anomalies"] += 1  # freed by another thread while it was resized
        elif not resize.accused and call.address != resize.address:
            row = self.table.find_one(resize.address)
            if row < 0 or not self.table.live.item(row):
                self._remember_unknown_free(resize.address, row, call.freed())

    def _give_up(self, resize: Resize) -> Change:
        """Half of this resize is missing: a block that was moved aside is lost."""
        self.count["anomalies"] += 1
        return NO_CHANGE if resize.moved_aside is None else (-resize.moved_aside.size_bytes, -1)

    def _place(self, block: Block) -> Change:
        """Make `block` live at its address."""
        table = self.table
        row = table.find_one(block.address)
        if row < 0:
            row = table.insert_one(block.address)
        elif table.live.item(row):
            lost_bytes, lost_blocks = self._displace(row)
            table.put(row, block)
            return block.size_bytes + lost_bytes, 1 + lost_blocks
        table.put(row, block)
        return block.size_bytes, 1

    def _displace(self, row: int) -> Change:
        """The live block of `row` must give way to another one at its address."""
        address, sequence = self.table.address.item(row), self.table.sequence.item(row)
        for resize in self.resizes.values():
            if (resize.address, resize.sequence) == (address, sequence):
                resize.moved_aside = self.table.block(row)
                return NO_CHANGE
        # A baseline block may be one whose allocation was under way when the baseline was taken.
        if self.table.origin.item(row) != Origin.BASELINE:
            self.count["anomalies"] += 1
        return -self.table.size_bytes.item(row), -1

    def _accuse(self, call: Call, row: int, bad: list[BadFree]) -> bool:
        """Report the free of an address that is not live; `row` is its row or -1. False if it may be a good one."""
        table = self.table
        duplicate = row >= 0
        allocated = table.block(row) if duplicate else None
        certain = allocated is not None and table.free_sequence.item(row) >= self.gap_sequence
        if not self.complete:  # a call that the hooks came too late for may have handed the address out, unseen
            return False
        kind = BadFreeKind.DUPLICATE if duplicate else BadFreeKind.STRAY
        history_complete = self.complete and (certain if duplicate else self.history_whole)
        found = self._bad_free(kind, call, allocated, table.freed(row) if duplicate else None, history_complete)
        bad.append(replace(found, earlier=table.earlier_tenancies(row)) if duplicate else found)
        return True

    @staticmethod
    def _bad_free(
        kind: BadFreeKind, call: Call, allocated: Block | None, first_freed: Freed | None, history_complete: bool
    ) -> BadFree:
        return BadFree(
            kind,
            call.address,
            call.sequence,
            call.timestamp_ns,
            call.thread,
            call.stack,
            call.api,
            allocated,
            first_freed,
            history_complete,
        )

    def _remember_unknown_free(self, address: int, row: int, freed: Freed) -> None:
        """Note the free of a block that the map did not know; `row` is the row of its address or -1."""
        self.count["unknown_frees"] += 1
        if row < 0:
            row = self.table.insert_one(address)
        self.table.origin[row] = Origin.UNKNOWN
        self.table.put_freed(row, freed)
