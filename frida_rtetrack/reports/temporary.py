"""Blocks that were freed soon: what could be kept, or put on the stack, instead of asked for again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import MAX_THREADS, EventBatch, Kind, Times, sizes, threads
from frida_rtetrack.tracking.map import BLOCK_DTYPE

Rows = NDArray[np.void]
"""BLOCK_DTYPE (n,)."""

_AT_ONCE = 1 << 18
"""Events between two sortings: few, as only what its thread allocated last is taken along."""
_ENDS = (Kind.FREED, Kind.RESIZE_STARTED)
_POSITION_BITS = 46
"""Of a key: the thread's number is above."""


def blocks_of(events: EventBatch, times: Times, first: int) -> Rows:
    """The allocations `events` (n,) at `times` (n,) as blocks; `first`: the number of the first of them, the others follow."""
    rows = np.zeros(len(events), BLOCK_DTYPE)
    for name in ("address", "stack", "label", "api", "socket"):
        rows[name] = events[name]
    rows["size_bytes"], rows["thread"], rows["allocated_at_ns"] = sizes(events), threads(events), times
    rows["sequence"] = np.arange(first, first + len(events), dtype=np.uint64)
    return rows


class Temporary:
    """Finds them among events as they come: freed, by whomever, before the thread that allocated had made `fewer_than` more.

    A block that was resized is none.
    """

    def __init__(self, fewer_than: int) -> None:
        """None so far."""
        self._fewer_than = fewer_than
        self._position = 0
        self._found: list[Rows] = []
        self._open = np.empty(0, BLOCK_DTYPE), np.empty(0, np.int64)
        """Blocks that may still be freed soon, and the how manieth of its thread each is."""
        self._made = np.zeros(MAX_THREADS, np.int64)
        """Allocations of each thread, by its number."""
        self._waiting: list[tuple[EventBatch, Times, int]] = []
        self._count = 0

    def add(self, events: EventBatch, times: Times) -> None:
        """The next events (n,), which happened at `times` (n,)."""
        self._waiting.append((events, times, self._position))
        self._position += len(events)
        self._count += len(events)
        if self._count >= _AT_ONCE:
            self._match()

    def rows(self) -> Rows:
        """Those that were found, each as it was allocated."""
        if self._waiting:
            self._match()
        self._found = [np.concatenate([np.empty(0, BLOCK_DTYPE), *self._found])]
        return self._found[0]

    def _match(self) -> None:
        """Gives each free the allocation before it at its address, and counts what the thread allocated between the two."""
        events = np.concatenate([each[0] for each in self._waiting])
        times = np.concatenate([each[1] for each in self._waiting])
        first = self._waiting[0][2]
        self._waiting, self._count = [], 0
        is_made = (events["kind"] == Kind.ALLOCATED) & (events["address"] != 0)
        made = blocks_of(events[is_made], times[is_made], 0)
        made["sequence"] = first + np.flatnonzero(is_made)
        order = np.argsort(made["thread"], kind="stable")
        starts = np.searchsorted(made["thread"][order], np.arange(MAX_THREADS + 1))
        ordinal = np.empty(made.size, np.int64)
        ordinal[order] = np.arange(made.size) - np.repeat(starts[:-1] - self._made, np.diff(starts))
        blocks = np.concatenate([self._open[0], made])
        ordinals = np.concatenate([self._open[1], ordinal])
        is_end = np.isin(events["kind"], _ENDS)
        ends = np.flatnonzero(is_end)
        numbers = np.empty(len(events), np.int64)
        numbers[is_made] = self._open[0].size + np.arange(made.size)
        numbers[is_end] = -1 - np.arange(ends.size)
        either = is_made | is_end
        began, ended, left = _pairs(
            np.concatenate([self._open[0]["address"], events["address"][either]]),
            np.concatenate([np.arange(self._open[0].size), numbers[either]]),
            blocks.size,
        )
        is_free = events["kind"][ends[ended]] == Kind.FREED
        began, ended = began[is_free], ended[is_free]
        mine = blocks["thread"][began].astype(np.int64)
        until = np.searchsorted(_key(made["thread"], made["sequence"])[order], _key(mine, first + ends[ended]))
        between = self._made[mine] + until - starts[mine] - ordinals[began] - 1
        self._found.append(blocks[began[between < self._fewer_than]])
        self._made += np.diff(starts)
        left = left[self._made[blocks["thread"][left]] - ordinals[left] - 1 < self._fewer_than]
        self._open = blocks[left], ordinals[left]


def _key(thread: NDArray[Any], position: NDArray[Any]) -> NDArray[np.uint64]:
    return thread.astype(np.uint64) << np.uint64(_POSITION_BITS) | position.astype(np.uint64)


def _pairs(
    addresses: NDArray[np.uint64], numbers: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which of `count` blocks ended (m,), which end each had (m,), and which had none.

    `addresses` and `numbers` (n,) are of blocks and ends in the order in which they came; an end has the number -1 - end.
    """
    order = np.argsort(addresses, kind="stable")
    numbers, addresses = numbers[order], addresses[order]
    at = np.flatnonzero((addresses[1:] == addresses[:-1]) & (numbers[1:] < 0) & (numbers[:-1] >= 0))
    ended = np.zeros(count, np.bool_)
    ended[numbers[at]] = True
    return numbers[at], -1 - numbers[at + 1], np.flatnonzero(~ended)
