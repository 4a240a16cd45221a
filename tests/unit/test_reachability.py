"""Who holds a block: the judgement on made-up pointers, the arithmetic of ranges, and reading our own memory from outside."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from frida_rtetrack.errors import TargetEnded
from frida_rtetrack.reachability.graph import Hold, judge
from frida_rtetrack.reachability.leaks import search
from frida_rtetrack.reachability.memory import (
    PAGE_BYTES,
    ProcessMemory,
    Ranges,
    as_ranges,
    common,
    without,
    writable_of,
)
from frida_rtetrack.reachability.scan import NOWHERE, Blocks, Places, scan
from frida_rtetrack.target import registers
from frida_rtetrack.target.arrival.ptrace import TracedThread
from frida_rtetrack.target.registers import Registers
from frida_rtetrack.tracking.blocktable import BLOCK_DTYPE

NODES = 12
EDGES = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=30)
PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def ints(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def judged(count: int, roots: list[int], edges: list[tuple[int, int]]) -> list[Hold]:
    found = judge(count, ints(roots), ints([a for a, _ in edges]), ints([b for _, b in edges]))
    return [Hold(each) for each in found]


def reach(starts: set[int], edges: list[tuple[int, int]]) -> set[int]:
    seen = set(starts)
    while True:
        more = {b for a, b in edges if a in seen} - seen
        if not more:
            return seen
        seen |= more


# ---- the judgement


@given(st.sets(st.integers(0, NODES - 1)), EDGES)
@example(roots=set(), edges=[(0, 1), (1, 0), (2, 1)])  # a ring that a block found after it points into
def test_what_cannot_be_reached_is_lost_and_every_lost_block_goes_with_one_that_is_named(
    roots: set[int], edges: list[tuple[int, int]]
) -> None:
    found = judged(NODES, list(roots), edges)
    held = {node for node in range(NODES) if found[node] is Hold.HELD}
    assert held == reach(roots, edges)
    lost = {node for node in range(NODES) if found[node] is Hold.LOST}
    assert reach(lost, edges) - held == set(range(NODES)) - held
    for one in lost:  # none that another one stands for
        assert one not in reach(lost - {one}, edges)


def test_of_a_ring_one_stands_for_all_and_a_list_goes_with_its_head() -> None:
    found = judged(7, [], [(0, 1), (1, 2), (3, 4), (4, 5), (5, 3)])
    assert found[:3] == [Hold.LOST, Hold.INDIRECTLY_LOST, Hold.INDIRECTLY_LOST]
    assert sorted(found[3:6]) == [Hold.LOST, Hold.INDIRECTLY_LOST, Hold.INDIRECTLY_LOST]
    assert found[6] is Hold.LOST


def test_a_list_of_a_hundred_thousand_blocks_is_walked_whichever_way_it_lies() -> None:
    count = 100_000
    forward = (np.arange(count - 1), np.arange(1, count))
    backward = (np.arange(1, count), np.arange(count - 1))
    for (sources, targets), head in ((forward, 0), (backward, count - 1)):
        found = judge(count, ints([]), sources, targets)
        assert found[head] == Hold.LOST
        assert (np.delete(found, head) == Hold.INDIRECTLY_LOST).all()
        assert (judge(count, ints([head]), sources, targets) == Hold.HELD).all()


# ---- ranges


def members(ranges: Ranges) -> set[int]:
    return {address for start, end in ranges.tolist() for address in range(start, end)}


@given(PAIRS, PAIRS)
def test_ranges_are_sets_of_addresses(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    first, second = as_ranges(a), as_ranges(b)
    assert members(first) == {address for start, end in a for address in range(start, end)}
    assert (first[1:, 0] > first[:-1, 1]).all()
    assert members(without(first, second)) == members(first) - members(second)
    assert members(common(first, second)) == members(first) & members(second)


# ---- reading a process: this one


class Room:
    """Eight pages of our own, of which the program under test is made."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 8 * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.words = np.frombuffer(self._map, np.uint64)
        self.start = self.words.ctypes.data
        self.end = self.start + 8 * PAGE_BYTES


@pytest.fixture
def room() -> Room:
    return Room()


def live(*blocks: tuple[int, int]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Blocks of (address, bytes)."""
    rows = np.zeros(len(blocks), BLOCK_DTYPE)
    for number, (address, size) in enumerate(blocks):
        rows[number]["address"], rows[number]["size_bytes"], rows[number]["sequence"] = address, size, number
    return rows


def test_only_pages_that_were_touched_are_read(room: Room) -> None:
    room.words[PAGE_BYTES // 8] = 7
    room.words[6 * PAGE_BYTES // 8 - 1] = 9
    with ProcessMemory(os.getpid()) as memory:
        found = list(memory.words(as_ranges([(room.start, room.end)])))
        assert memory.read_bytes == 2 * PAGE_BYTES
    at, words = (np.concatenate(each) for each in zip(*found, strict=True))
    assert dict(zip(at[words != 0].tolist(), words[words != 0].tolist(), strict=True)) == {
        room.start + PAGE_BYTES: 7,
        room.start + 6 * PAGE_BYTES - 8: 9,
    }


def test_what_cannot_be_read_is_passed_over_and_the_rest_is_read(room: Room) -> None:
    room.words[:] = 3
    hole = mmap.mmap(-1, PAGE_BYTES)
    hole[0] = 1
    gone = np.frombuffer(hole, np.uint8).ctypes.data
    with ProcessMemory(os.getpid()) as memory:
        parts = [(room.start, room.start + PAGE_BYTES), (64, 64 + PAGE_BYTES), (room.start + PAGE_BYTES, room.end)]
        assert sum(words.size for _, words in memory._read(parts)) == 8 * PAGE_BYTES // 8
    assert gone


def test_a_process_that_is_gone_is_said_to_be() -> None:
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    with pytest.raises(TargetEnded, match="has ended"):
        ProcessMemory(pid)
    with pytest.raises(TargetEnded, match="has ended"):
        writable_of(pid)


def test_a_process_that_ends_while_it_is_read_is_said_to_have_ended_and_holds_nothing(room: Room) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        ranges = writable_of(child.pid)
        with ProcessMemory(child.pid) as memory:
            child.kill()
            child.wait()
            with pytest.raises(TargetEnded):
                list(memory.words(ranges))
            with pytest.raises(TargetEnded):
                memory.read(room.start, 8)
    finally:
        child.kill()
    heap = as_ranges([(room.start, room.end)])
    pointers, read_bytes = scan(
        Blocks(live((room.start, 64))), [Places(child.pid, 0, ranges, heap)], freed_counts=False
    )
    assert (pointers.target.size, read_bytes) == (0, 0)


def test_pointers_are_found_tagged_and_into_a_block_but_not_behind_it(room: Room) -> None:
    heap = room.start + 4 * PAGE_BYTES
    blocks = Blocks(live((heap, 64), (heap + 128, 64), (heap + 256, 64), (heap + 384, 64)))
    room.words[0] = heap | 0xABCD << 48
    room.words[1] = heap + 128 + 63
    room.words[2] = heap + 256 + 64  # just behind
    room.words[(heap + 128 - room.start) // 8] = heap + 384  # from block to block
    room.words[(heap + 384 - room.start) // 8] = heap + 384  # to itself: holds nothing
    room.words[(heap + 640 - room.start) // 8] = heap + 256  # in what was freed
    place = Places(os.getpid(), 0, as_ranges([(room.start, room.end)]), as_ranges([(heap, room.end)]))
    pointers, _ = scan(blocks, [place], freed_counts=False)
    found = set(zip(pointers.source.tolist(), pointers.target.tolist(), pointers.offset.tolist(), strict=True))
    assert found == {(NOWHERE, 0, 0), (NOWHERE, 1, 63), (1, 3, 0)}
    pointers, _ = scan(blocks, [place], freed_counts=True)
    assert (NOWHERE, 2) in set(zip(pointers.source.tolist(), pointers.target.tolist(), strict=True))


def test_a_pointer_that_was_seen_once_or_is_in_a_register_makes_a_block_held(room: Room) -> None:
    heap = room.start + 4 * PAGE_BYTES
    rows = live((heap, 64), (heap + 128, 64), (heap + 256, 64))
    place = Places(os.getpid(), 0, as_ranges([(room.start, room.end)]), as_ranges([(heap, room.end)]))
    looks = 0

    def places() -> list[Places]:
        nonlocal looks
        looks += 1
        room.words[0] = heap if looks == 2 else 0
        return [place]

    def judge_now(*held: int) -> dict[int, int]:
        nonlocal looks
        looks = 0
        found = search(lambda: rows, places, lambda: Registers({1: list(held)}, 0.001), complete=lambda: True)
        return dict(zip(found.blocks.starts.tolist(), found.holds.tolist(), strict=True))

    assert judge_now() == {heap: Hold.HELD, heap + 128: Hold.LOST, heap + 256: Hold.LOST}
    assert judge_now(heap + 130) == {heap: Hold.HELD, heap + 128: Hold.HELD, heap + 256: Hold.LOST}


def test_a_block_that_is_freed_or_new_during_the_search_is_not_called_lost(room: Room) -> None:
    heap = room.start + 4 * PAGE_BYTES
    place = Places(os.getpid(), 0, as_ranges([(room.start, room.end)]), as_ranges([(heap, room.end)]))
    everything = live((heap, 64), (heap + 128, 64), (heap + 256, 64))
    answers = [everything[:2], everything[:2], everything[:2], everything[1:]]

    def now() -> np.ndarray[tuple[int], np.dtype[np.void]]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    found = search(now, lambda: [place], Registers, complete=lambda: True)
    assert found.lost(Hold.LOST)["address"].tolist() == [heap + 128]


def test_where_nothing_is_lost_one_look_is_enough_and_no_thread_is_stopped(room: Room) -> None:
    heap = room.start + 4 * PAGE_BYTES
    room.words[0] = heap
    place = Places(os.getpid(), 0, as_ranges([(room.start, room.end)]), as_ranges([(heap, room.end)]))

    def registers() -> Registers:
        raise AssertionError("nobody is to be stopped")

    begun = time.monotonic()
    found = search(lambda: live((heap, 64)), lambda: [place], registers, complete=lambda: True)
    assert (found.looks, found.lost(Hold.LOST).size) == (1, 0)
    assert found.seconds <= time.monotonic() - begun


# ---- registers


def test_a_thread_that_another_tracer_has_or_that_is_stopped_is_counted_as_not_seen() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        seen = registers.read(child.pid)
        assert (set(seen.words), seen.unseen) == ({child.pid}, 0)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert (registers.read(child.pid).words, registers.read(child.pid).unseen) == ({}, 1)
        os.kill(child.pid, signal.SIGCONT)
        TracedThread(child.pid).seize()
        assert (registers.read(child.pid).words, registers.read(child.pid).unseen) == ({}, 1)
    finally:
        child.kill()
        child.wait()
    assert registers.read(child.pid) == Registers()
