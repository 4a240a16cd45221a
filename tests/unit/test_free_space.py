"""DPDK's heap read from its element headers: made-up chains in our own memory, and what the figures make of them."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import START

from frida_rtetrack.errors import NotLive
from frida_rtetrack.reachability.elements import HEADER_BYTES, chains
from frida_rtetrack.reachability.memory import PAGE_BYTES, ProcessMemory
from frida_rtetrack.reporters import recorded
from frida_rtetrack.reports.freespace import CLASSES, FreeSpace, SpaceWatch, heap_space
from frida_rtetrack.stream.events import EVENT_DTYPE, Kind

ROOM_BYTES = 1 << 20
FREE, BUSY, PAD = 0, 1, 2
HEAP = 0x1234_5000


class Heap:
    """Room for elements, one behind the other."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, ROOM_BYTES)
        self.start = np.frombuffer(self.memory, np.uint8).ctypes.data

    def element(self, at: int, prev: int, following: int, state: int, pad: int, size: int, heap: int = HEAP) -> None:
        offset = at - self.start
        self.memory[offset : offset + 64] = struct.pack("<QQQ24xIIQ", heap, prev, following, state, pad, size)

    def fill(self, pieces: list[tuple[int, bool]]) -> list[int]:
        """Elements of these sizes, free or not; their addresses. Nothing else is there."""
        self.memory[:] = bytes(ROOM_BYTES)
        at, addresses = self.start, []
        for size, _ in pieces:
            addresses.append(at)
            at += size
        for number, (size, free) in enumerate(pieces):
            prev = addresses[number - 1] if number else 0
            following = addresses[number + 1] if number + 1 < len(pieces) else 0
            self.element(addresses[number], prev, following, FREE if free else BUSY, 0, size)
        return addresses


@pytest.fixture(scope="module")
def heap() -> Heap:
    return Heap()


pieces = st.lists(st.tuples(st.integers(2, 300).map(lambda n: 64 * n), st.booleans()), min_size=1, max_size=50)


@settings(deadline=None)
@given(pieces, st.data())
def test_the_figures_are_those_of_the_elements_wherever_the_walk_begins(
    heap: Heap, pieces: list[tuple[int, bool]], data: st.DataObject
) -> None:
    addresses = heap.fill(pieces)
    some = data.draw(st.sampled_from(addresses))
    with ProcessMemory(os.getpid()) as memory:
        found, whole = chains(memory, [some + HEADER_BYTES], [heap.start])
    assert whole
    (chain,) = found
    space = heap_space(chain, 0)
    free = [size for size, is_free in pieces if is_free]
    assert (space.size_bytes, space.free_bytes, space.free) == (sum(size for size, _ in pieces), sum(free), len(free))
    assert space.busy == len(pieces) - len(free)
    assert space.largest_free_bytes == max([size - HEADER_BYTES for size in free], default=0)
    assert (sum(count for _, count, _ in space.classes), sum(total for *_, total in space.classes)) == (
        len(free),
        sum(free),
    )
    for at_most, count, total in space.classes:
        within = [
            size for size in free if size <= at_most and size > max([c for c in CLASSES if c < at_most], default=0)
        ]
        assert (count, total) == (len(within), sum(within))
    assert list(recorded.heaps(FreeSpace(0, (space,), True)))


def test_a_block_behind_a_pad_is_of_the_element_before_it(heap: Heap) -> None:
    first, second = heap.fill([(4096, False), (8192, True)])
    heap.element(first + 1024, 0, 0, PAD, 1024, 3072)
    with ProcessMemory(os.getpid()) as memory:
        (chain,), whole = chains(memory, [first + 1024 + HEADER_BYTES], [])
    assert whole
    assert chain.first == first
    assert chain.sizes.tolist() == [4096, 8192]
    assert second == first + 4096


def test_a_chain_that_does_not_fit_together_is_told_as_not_read(heap: Heap) -> None:
    first, second, third = heap.fill([(4096, False), (8192, True), (128, False)])
    with ProcessMemory(os.getpid()) as memory:
        heap.element(second, first + 64, third, FREE, 0, 8192)  # its prev is another one
        assert chains(memory, [first + HEADER_BYTES], []) == ([], False)
        heap.element(second, first, second, FREE, 0, 8192)  # a circle
        assert chains(memory, [first + HEADER_BYTES], []) == ([], False)
        heap.element(second, first, third, FREE, 0, 8192, heap=HEAP + 1)
        assert chains(memory, [first + HEADER_BYTES], []) == ([], False)
        for torn in (8192 + 192, 8192 - 192):  # as when an element is cut up, or joined with the next, meanwhile
            heap.element(second, first, third, FREE, 0, torn)
            assert chains(memory, [first + HEADER_BYTES], []) == ([], False)
        assert chains(memory, [3, 1 << 63, heap.start + 64 + HEADER_BYTES], [heap.start + 192]) == ([], True)


def test_a_heap_may_have_holes_of_whole_pages(heap: Heap) -> None:
    first = (heap.start + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
    second = first + 3 * PAGE_BYTES
    with ProcessMemory(os.getpid()) as memory:
        heap.element(first, 0, second, FREE, 0, PAGE_BYTES)
        heap.element(second, first, 0, BUSY, 0, 2 * PAGE_BYTES)
        (chain,), whole = chains(memory, [], [first])
        assert (whole, chain.sizes.tolist()) == (True, [PAGE_BYTES, 2 * PAGE_BYTES])
        heap.element(first, 0, second, FREE, 0, PAGE_BYTES + 64)
        assert chains(memory, [], [first]) == ([], False)


def test_it_is_looked_at_when_an_allocation_fails_once_a_second_at_the_most() -> None:
    asked: list[int | None] = []
    kept: list[FreeSpace] = []

    def look(failed_bytes: int | None) -> FreeSpace:
        asked.append(failed_bytes)
        if len(asked) == 3:
            raise NotLive("gone")
        return FreeSpace(START.monotonic_ns, (), True, failed_bytes)

    watch = SpaceWatch(look, later=lambda what, task: task())
    failed = np.zeros(2, EVENT_DTYPE)
    failed["kind"], failed["size_and_thread"] = Kind.ALLOCATION_FAILED, (100, 4096)
    for _ in range(2):
        watch.on_events(failed, 0, np.zeros(2, np.int64))
        watch.on_round()
    assert (asked, [space.failed_bytes for space in watch.failures]) == ([4096], [4096])
    watch._next_failure = 0.0
    watch.on_round()  # the second failure is not forgotten
    watch.on_round()
    assert asked == [4096, 4096]
    watch.keep = kept.append
    watch._next = 0.0
    watch.on_round()
    assert (asked, len(kept)) == ([4096, 4096, None], 0)
    watch._next = 0.0
    watch.on_round()
    assert (len(asked), len(kept)) == (4, 1)
