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


class UsageCounter:
    """Counts events as they come."""

    def __init__(self) -> None:
        """None so far."""
        self._sizes = np.zeros((65, 2), np.uint64)
        self._lifetimes: Counter[int] = Counter()
        self._by = {name: _Tally() for name in ("label", "socket", "thread")}
        self._span: tuple[int, int] | None = None
        self._open: tuple[NDArray[np.uint64], NDArray[np.int64]] = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]] = []
        self._count = 0

    def add(self, events: EventBatch, times: Times) -> None:
        """The next events (n,), which happened at `times` (n,)."""
        if not len(events):
            return
        self._span = (self._span or (int(times[0]), 0))[0], int(times[-1])
        begins = np.isin(events["kind"], (Kind.ALLOCATED, Kind.RESIZE_ENDED)) & (events["address"] != 0)
        made, made_sizes = events[begins], sizes(events)[begins]
        power = np.frexp(np.maximum(made_sizes, 1) - np.uint64(1))[1]
        np.add.at(self._sizes[:, 0], power, 1)
        np.add.at(self._sizes[:, 1], power, made_sizes)
        for name, values in (("label", made["label"]), ("socket", made["socket"]), ("thread", threads(made))):
            self._by[name].add(values, made_sizes)
        either = begins | np.isin(events["kind"], (Kind.FREED, Kind.RESIZE_STARTED))
        self._waiting.append((events["address"][either], times[either], begins[either]))
        self._count += int(either.sum())
        if self._count >= _AT_ONCE:
            self._match()

    def _match(self) -> None:
        """Gives each free the allocation before it at the same address."""
        addresses = np.concatenate([self._open[0], *(each[0] for each in self._waiting)])
        times = np.concatenate([self._open[1], *(each[1] for each in self._waiting)])
        begins = np.concatenate([np.ones(self._open[0].size, np.bool_), *(each[2] for each in self._waiting)])
        order = np.argsort(addresses, kind="stable")
        addresses, times, begins = addresses[order], times[order], begins[order]
        same = np.append(addresses[1:] == addresses[:-1], False)
        ended = np.flatnonzero(begins & same & ~np.append(begins[1:], True))
        lives = np.maximum(times[ended + 1] - times[ended], 0)
        powers, counts = np.unique(np.ceil(np.log10(np.maximum(lives, 1))).astype(int), return_counts=True)
        for power, count in zip(powers.tolist(), counts.tolist(), strict=True):
            self._lifetimes[max(power, 3)] += count
        left = begins & ~same
        self._open = addresses[left], times[left]
        self._waiting.clear()
        self._count = 0

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

    def used(self, name: Callable[[int], str]) -> tuple[Used, ...]:
        total: dict[str, tuple[int, int]] = {}
        for value, allocations in self._allocations.items():
            before = total.get(name(value), (0, 0))
            total[name(value)] = before[0] + allocations, before[1] + self._bytes[value]
        rows = [Used(text, count, size_bytes) for text, (count, size_bytes) in total.items()]
        return tuple(sorted(rows, key=lambda row: (-row.size_bytes, row.name)))
