"""What tracking and DPDK's heap disagree about, and what the events around a snapshot explain."""

from __future__ import annotations

import numpy as np
import pytest

from frida_rtetrack.stream.events import EVENT_DTYPE, EventBatch, Kind
from frida_rtetrack.tracking.heap import BusyElement, HeapDifference, HeapSnapshot
from frida_rtetrack.tracking.map import TrackingMap

A, B, C, D = 0x1_4000_0000, 0x1_4000_0080, 0x1_4000_0100, 0x1_4000_0180


def batch(kind: Kind, *addresses: int, size_bytes: int = 64) -> EventBatch:
    events = np.zeros(len(addresses), EVENT_DTYPE)
    events["kind"], events["address"], events["size_and_thread"] = kind, addresses, size_bytes
    return events


class Taken:
    """A snapshot of a heap that has `busy` blocks, taken now; `ends` says what it found."""

    def __init__(self, tracking: TrackingMap, *busy: int) -> None:
        self.tracking = tracking
        self.snapshot = HeapSnapshot(inserts=False, started_sequence=tracking.events)
        self.snapshot.live = tracking.live_set()
        self.snapshot.events.append(batch(Kind.BASELINE_BLOCK, *busy, size_bytes=128))

    def ends(self) -> HeapDifference:
        return self.snapshot.compare(self.tracking)


@pytest.fixture
def tracking() -> TrackingMap:
    tracking = TrackingMap()
    tracking.apply(batch(Kind.ALLOCATED, A, B), 0)
    return tracking


def test_no_difference_where_both_know_the_same_blocks(tracking: TrackingMap) -> None:
    difference = Taken(tracking, B, A).ends()
    assert (bool(difference), difference.busy) == (False, 2)


def test_each_side_s_own_blocks_are_named(tracking: TrackingMap) -> None:
    difference = Taken(tracking, C, A, D).ends()
    assert difference.missing == (BusyElement(C, 128), BusyElement(D, 128))
    assert difference.unexpected == (tracking.find(B).block,)


def test_block_whose_free_was_recorded_since_is_not_missing(tracking: TrackingMap) -> None:
    snapshot = Taken(tracking, A, B)
    tracking.apply(batch(Kind.FREED, B), 0)
    assert not snapshot.ends()


def test_block_freed_before_and_still_busy_is_missing(tracking: TrackingMap) -> None:
    tracking.apply(batch(Kind.FREED, B), 0)
    assert Taken(tracking, A, B).ends().missing == (BusyElement(B, 128),)


def test_block_whose_allocation_is_recorded_later_is_not_missing(tracking: TrackingMap) -> None:
    snapshot = Taken(tracking, A, B, C)
    tracking.apply(batch(Kind.ALLOCATED, C), 0)
    assert not snapshot.ends()


def test_block_allocated_after_the_moment_is_not_unexpected(tracking: TrackingMap) -> None:
    snapshot = Taken(tracking, A, B)
    tracking.apply(batch(Kind.ALLOCATED, C), 0)
    assert not snapshot.ends()


def test_block_that_was_freed_and_its_address_used_again_is_not_unexpected(tracking: TrackingMap) -> None:
    snapshot = Taken(tracking, A)
    tracking.apply(np.concatenate([batch(Kind.FREED, B), batch(Kind.ALLOCATED, B)]), 0)
    assert not snapshot.ends()


def test_block_that_a_resize_moved_since_is_not_unexpected(tracking: TrackingMap) -> None:
    snapshot = Taken(tracking, A)
    tracking.apply(np.concatenate([batch(Kind.RESIZE_STARTED, B), batch(Kind.RESIZE_ENDED, C)]), 0)
    assert not snapshot.ends()


def test_nothing_was_live_and_the_first_block_came_later() -> None:
    tracking = TrackingMap()
    snapshot = Taken(tracking)
    tracking.apply(batch(Kind.ALLOCATED, A), 0)
    assert not snapshot.ends()
