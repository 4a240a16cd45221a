"""DPDK's heaps as their element headers tell it, read from outside while the program runs: what is busy and what is free.

Nothing but pages with a header in them, or next to one and in use, is read: looking at memory that was never touched would
make the program larger. A chain that changes while it is followed does not fit together, and is followed again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reachability.memory import PAGE_BYTES, ProcessMemory, as_ranges

HEADER_BYTES = 128
# struct malloc_elem (DPDK lib/eal/common/malloc_elem.h, the same since 18.05): heap 0, prev 8, next 16, state 48, pad 52, size 56.
_ELEMENT = struct.Struct("<QQQ24xIIQ")
_FREE, _BUSY, _PAD = 0, 1, 2
_TRIES = 5
_WINDOW_BYTES = 16 * PAGE_BYTES
MOST_ELEMENTS = 1 << 24
_USERS_END = 1 << 47
"""Of addresses that a program of x86-64 (4 levels of pages) and most of arm64 can have."""


@dataclass(frozen=True, slots=True)
class Chain:
    """All elements of one heap, in order of their addresses."""

    heap: int
    """Address of its struct malloc_heap."""
    first: int
    """Address of its first element."""
    sizes: NDArray[np.uint64]
    """Bytes of each, with its header, (n,)."""
    free: NDArray[np.bool_]
    """Which are free, (n,)."""


@dataclass(frozen=True, slots=True)
class _Element:
    heap: int
    prev: int
    next: int
    state: int
    pad: int
    size: int


class _Changed(Exception):
    """What was read does not fit together."""


class _Window:
    """Reads headers, some pages at once where the elements are small."""

    def __init__(self, memory: ProcessMemory) -> None:
        self._memory = memory
        self._start = 0
        self._data = b""
        self._ahead = False

    def element(self, address: int) -> _Element:
        """Raises _Changed where there is none."""
        if address % 64 or not 0 < address < _USERS_END - _WINDOW_BYTES:
            raise _Changed
        at = address - self._start
        if not 0 <= at <= len(self._data) - _ELEMENT.size:
            self._load(address)
            at = address - self._start
            if not 0 <= at <= len(self._data) - _ELEMENT.size:
                raise _Changed
        found = _Element(*_ELEMENT.unpack_from(self._data, at))
        if not found.heap or found.state & 7 > _PAD or found.size < HEADER_BYTES or found.size % 64:
            raise _Changed
        self._ahead = found.size < PAGE_BYTES
        return found

    def _load(self, address: int) -> None:
        """What is read ahead, where elements are small, must be in use: some pages, in one piece."""
        self._start, end = address, address + _ELEMENT.size
        if self._ahead:
            page = address // PAGE_BYTES * PAGE_BYTES
            start, behind = next(self._memory.in_use(as_ranges([(page, page + _WINDOW_BYTES)])), (0, 0))
            end = behind if start == page else end
        self._data = self._memory.read(address, end - address)


def chains(memory: ProcessMemory, blocks: Iterable[int], bases: Iterable[int]) -> tuple[list[Chain], bool]:
    """The heaps of some live `blocks`, and those that begin at `bases`; and whether each could be followed to its end.

    Raises TargetEnded, NotPermitted.
    """
    found: dict[int, Chain] = {}
    whole = True
    for place, is_block in [*((block, True) for block in blocks), *((base, False) for base in bases)]:
        try:
            window = _Window(memory)
            element = place - HEADER_BYTES if is_block else place
            header = window.element(element)
            if header.state & 7 == _PAD:
                element -= header.pad
                header = window.element(element)
            if header.heap in found:
                continue
            chain = _followed(memory, element, header.heap)
        except _Changed:  # no heap begins at that base; the block is gone
            continue
        if chain is None:
            whole = False
        else:
            found[header.heap] = chain
    return list(found.values()), whole


def _followed(memory: ProcessMemory, some: int, heap: int) -> Chain | None:
    """The heap with the element at `some`; None where it never fitted together."""
    for _ in range(_TRIES):
        try:
            return _follow(memory, _first(memory, some, heap), heap)
        except _Changed:
            continue
    return None


def _first(memory: ProcessMemory, some: int, heap: int) -> int:
    window = _Window(memory)
    for _ in range(MOST_ELEMENTS):
        element = window.element(some)
        if element.heap != heap:
            raise _Changed
        if element.prev == 0:
            return some
        some = element.prev
    raise _Changed


def _follow(memory: ProcessMemory, first: int, heap: int) -> Chain:
    window = _Window(memory)
    sizes: list[int] = []
    free: list[bool] = []
    before, at = 0, first
    while at:
        element = window.element(at)
        if (
            element.heap != heap
            or element.prev != before
            or len(sizes) > MOST_ELEMENTS
            or not _follows(at + element.size, element.next)
        ):
            raise _Changed
        sizes.append(element.size)
        free.append(element.state & 7 == _FREE)
        before, at = at, element.next
    return Chain(heap, first, np.array(sizes, np.uint64), np.array(free, np.bool_))


def _follows(end: int, following: int) -> bool:
    """Whether the element at `following` (0: none) can be the next of one that ends at `end`.

    It begins there, or behind a hole: memory is added to a heap, and given back, in whole pages.
    """
    return following in (0, end) or (following > end and end % PAGE_BYTES == following % PAGE_BYTES == 0)
