"""How a program used DPDK's heap over a whole run: how often, how large, for how long, by type, socket and thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EventBatch, Kind, Times, sizes, threads
from frida_rtetrack.symbols.names import Names

_AT_ONCE = 1 << 21
"""Events between two sortings."""
_ENDS, _BEGINS = 0, 1
"""And 2: begins, and does not count."""
_U64 = (1 << 64) - 1
Lives = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int8]]
"""Addresses, times, and which end of a life it is, each (n,)."""


@dataclass(frozen=True, slots=True)
class Used:
    """Allocations of one type, socket or thread."""

    name: str
    allocations: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Allocations include resizes: each ends one life of a block and begins the next."""

    allocations: int
    size_bytes: int
    seconds: float
    """From the first event to the last."""
    sizes: tuple[tuple[int, int, int], ...]
    """(bytes at the most, allocations, their bytes): powers of two."""
    lifetimes: tuple[tuple[float, int], ...]
    """(seconds at the most, blocks that were freed so soon): powers of ten."""
    by_type: tuple[Used, ...]
    by_socket: tuple[Used, ...]
    by_thread: tuple[Used, ...]
    """Each most bytes first."""
    failed: int = 0
    """Allocations that failed; not in `allocations`."""
    largest_failed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UsageState:
    """What a UsageCounter has counted, in numbers."""

    sizes: list[tuple[int, int, int]]
    """(power of two, allocations, bytes)."""
    lifetimes: dict[int, int]
    """Blocks by the power of ten of their nanoseconds."""
    by: dict[str, dict[int, tuple[int, int]]]
    """(allocations, bytes) by label, socket and thread."""
    span: tuple[int, int] | None
    """Times of the first event and of the last, ns."""
    failed: tuple[int, int] = (0, 0)
    """How many, and the largest, bytes."""


class UsageCounter:
    """Counts events as they come."""

    def __init__(self, passes: Callable[[EventBatch, Times], NDArray[np.bool_]] | None = None) -> None:
        """None so far. `passes`: which of some allocations (n,) at times (n,) count; without it, all do."""
        self._passes = passes
        self._sizes = np.zeros((65, 2), np.uint64)
        self._lifetimes: Counter[int] = Counter()
        self._by = {name: _Tally() for name in ("label", "socket", "thread")}
        self._span: tuple[int, int] | None = None
        self._failed = (0, 0)
        self._open: Lives = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int8)
        self._waiting: list[Lives] = []
        self._count = 0

    def add(self, events: EventBatch, times: Times) -> None:
        """The next events (n,), which happened at `times` (n,)."""
        if not len(events):
            return
        self._span = (self._span or (int(times[0]), 0))[0], int(times[-1])
        begins = np.isin(events["kind"], (Kind.ALLOCATED, Kind.RESIZE_ENDED)) & (events["address"] != 0)
        failed = events[events["kind"] == Kind.ALLOCATION_FAILED]
        if len(failed) and self._passes is not None:
            failed = failed[self._passes(failed, times[events["kind"] == Kind.ALLOCATION_FAILED])]
        if len(failed):
            self._failed = self._failed[0] + len(failed), max(self._failed[1], int(sizes(failed).max()))
        what = begins.astype(np.int8)
        if self._passes is not None:
            what[begins] += ~self._passes(events[begins], times[begins])
        counts = what == _BEGINS
        made, made_sizes = events[counts], sizes(events)[counts]
        power = np.frexp(np.maximum(made_sizes, 1) - np.uint64(1))[1]
        np.add.at(self._sizes[:, 0], power, 1)
        np.add.at(self._sizes[:, 1], power, made_sizes)
        for name, values in (("label", made["label"]), ("socket", made["socket"]), ("thread", threads(made))):
            self._by[name].add(values, made_sizes)
        either = begins | np.isin(events["kind"], (Kind.FREED, Kind.RESIZE_STARTED))
        self._waiting.append((events["address"][either], times[either], what[either]))
        self._count += int(either.sum())
        if self._count >= _AT_ONCE:
            self._match()

    def _match(self) -> None:
        """Gives each free the allocation before it at the same address."""
        addresses, times, what = (np.concatenate(column) for column in zip(self._open, *self._waiting, strict=True))
        order = np.argsort(addresses, kind="stable")
        addresses, times, what = addresses[order], times[order], what[order]
        same = np.append(addresses[1:] == addresses[:-1], False)
        ended = np.flatnonzero((what == _BEGINS) & same & ~np.append(what[1:] != _ENDS, True))
        lives = np.maximum(times[ended + 1] - times[ended], 0)
        powers, counts = np.unique(np.ceil(np.log10(np.maximum(lives, 1))).astype(int), return_counts=True)
        for power, count in zip(powers.tolist(), counts.tolist(), strict=True):
            self._lifetimes[max(power, 3)] += count
        left = (what != _ENDS) & ~same
        self._open = addresses[left], times[left], what[left]
        self._waiting.clear()
        self._count = 0

    def state(self) -> UsageState:
        """What was counted until now."""
        if self._waiting:
            self._match()
        powers = np.flatnonzero(self._sizes[:, 0]).tolist()
        return UsageState(
            [(power, int(self._sizes[power, 0]), int(self._sizes[power, 1])) for power in powers],
            {int(power): count for power, count in self._lifetimes.items()},
            {name: tally.counts() for name, tally in self._by.items()},
            self._span,
            self._failed,
        )

    @classmethod
    def of(cls, state: UsageState) -> UsageCounter:
        """One that has counted that."""
        counter = cls()
        for power, allocations, size_bytes in state.sizes:
            if 0 <= power < len(counter._sizes):
                counter._sizes[power] = allocations & _U64, size_bytes & _U64
        counter._lifetimes.update({power: count for power, count in state.lifetimes.items() if 0 <= power < 20})
        for name, counts in state.by.items():
            if name in counter._by:
                counter._by[name].take(counts)
        counter._span, counter._failed = state.span, state.failed
        return counter

    def usage(self, names: Names) -> Usage:
        """What was counted."""
        if self._waiting:
            self._match()
        first, last = self._span or (0, 0)
        return Usage(
            allocations=int(self._sizes[:, 0].sum()),
            size_bytes=int(self._sizes[:, 1].sum()),
            seconds=(last - first) / 1e9,
            sizes=tuple(
                (1 << power, int(self._sizes[power, 0]), int(self._sizes[power, 1]))
                for power in range(65)
                if self._sizes[power, 0]
            ),
            lifetimes=tuple((10.0**power / 1e9, count) for power, count in sorted(self._lifetimes.items())),
            by_type=self._by["label"].used(names.label_text),
            by_socket=self._by["socket"].used(lambda socket: "any" if socket < 0 else str(socket)),
            by_thread=self._by["thread"].used(lambda number: str(names.thread(number))),
            failed=self._failed[0],
            largest_failed_bytes=self._failed[1],
        )


class _Tally:
    def __init__(self) -> None:
        self._allocations: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def add(self, values: NDArray[np.integer], size_bytes: NDArray[np.uint64]) -> None:
        distinct, which = np.unique(values, return_inverse=True)
        blocks = np.bincount(which, minlength=distinct.size)
        total = np.bincount(which, weights=size_bytes, minlength=distinct.size)
        for value, count, each in zip(distinct.tolist(), blocks.tolist(), total.tolist(), strict=True):
            self._allocations[value] += count
            self._bytes[value] += int(each)

    def counts(self) -> dict[int, tuple[int, int]]:
        return {value: (allocations, self._bytes[value]) for value, allocations in self._allocations.items()}

    def take(self, counts: dict[int, tuple[int, int]]) -> None:
        for value, (allocations, size_bytes) in counts.items():
            self._allocations[value] += allocations
            self._bytes[value] += size_bytes

    def used(self, name: Callable[[int], str]) -> tuple[Used, ...]:
        total: dict[str, tuple[int, int]] = {}
        for value, allocations in self._allocations.items():
            before = total.get(name(value), (0, 0))
            total[name(value)] = before[0] + allocations, before[1] + self._bytes[value]
        rows = [Used(text, count, size_bytes) for text, (count, size_bytes) in total.items()]
        return tuple(sorted(rows, key=lambda row: (-row.size_bytes, row.name)))
