"""The times of events: what the 24 bits in them stand for, and what becomes of those that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from written import event

from frida_rtetrack.stream.clock import RATE_ONE, EventClock
from frida_rtetrack.stream.events import EVENT_DTYPE, TIME_SHIFT, EventBatch, Kind, Mark

NS = 10**9
UNIT = 1 << TIME_SHIFT
rates = st.floats(0.2, 1.0)  # ns in a tick: 1 to 5 GHz, or the kernel's own clock
anchors = st.integers(0, 1 << 62)
LATE = 1 << 63


def batch_at(*ticks: int) -> EventBatch:
    """Events with the times that an agent gives them at these ticks."""
    batch = np.zeros(len(ticks), EVENT_DTYPE)
    batch["kind"] = Kind.FREED
    units = np.array([(tick >> TIME_SHIFT) & 0xFFFFFF for tick in ticks], np.int64)
    batch["time_low"], batch["time_high"] = units & 0xFFFF, units >> 16
    return batch


def clock_mark(ticks: int, ns: int) -> np.void:
    mark = event(Kind.MARK, ticks, api=Mark.CLOCK)
    mark["stack"], mark["label"] = ns & 0xFFFFFFFF, ns >> 32
    return mark


def clock(ticks: int, ns: int, ns_per_tick: float) -> EventClock:
    return EventClock(lambda: (ticks, ns, round(ns_per_tick * RATE_ONE)))


@given(anchors, anchors, rates, st.lists(st.integers(0, 60 * NS), min_size=1, max_size=50))
def test_an_event_has_the_time_at_which_it_happened(ticks: int, ns: int, rate: float, after_ns: list[int]) -> None:
    happened = np.array(sorted(after_ns), np.int64) + ns
    batch = batch_at(*(ticks + round((int(at) - ns) / rate) for at in happened))
    times = clock(ticks, ns, rate).times(batch, LATE - 1)
    assert np.abs(times - happened).max() < UNIT * rate + 20_000  # float64 has 53 bits, ns here up to 62
    assert (np.diff(times) >= 0).all()


@given(anchors, rates, st.integers(1, 10_000))
def test_each_mark_carries_the_clock_on_so_that_no_time_round_is_mistaken(
    ticks: int, rate: float, seconds: int
) -> None:
    ns = 1 << 40
    reader = clock(ticks, ns, rate)
    reader.times(batch_at(ticks), LATE - 1)
    for elapsed in range(NS, seconds * NS, max(seconds // 10, 1) * NS):
        at = ticks + round(elapsed / rate)
        reader.on_mark(clock_mark(at, ns + elapsed), LATE - 1)
        [time] = reader.times(batch_at(at + UNIT), LATE - 1)
        assert abs(int(time) - ns - elapsed) < 3 * UNIT * rate + 20_000


def test_a_rate_that_was_measured_badly_is_corrected_by_the_marks() -> None:
    reader = clock(0, 0, 0.5 * 1.0005)
    reader.times(batch_at(0), LATE - 1)
    reader.on_mark(clock_mark(2 * NS, NS), LATE - 1)
    [time] = reader.times(batch_at(40 * NS), LATE - 1)
    assert abs(int(time) - 20 * NS) < 1_000_000


def test_a_thread_that_was_held_up_between_looking_at_the_clock_and_its_slot_is_not_early() -> None:
    times = clock(0, 0, 1.0).times(batch_at(10 * UNIT, 3 * UNIT, 11 * UNIT), LATE - 1)
    assert times.tolist() == [10 * UNIT, 10 * UNIT, 11 * UNIT]


def test_without_an_anchor_an_event_happened_when_it_was_read() -> None:
    reader = EventClock(lambda: (0, 0, 0))
    assert reader.times(batch_at(5 * UNIT, 9 * UNIT), 700).tolist() == [700, 700]
    assert reader.times(batch_at(), 800).tolist() == []


@pytest.mark.parametrize("rate", [0, 1, (1 << 64) - 1])
def test_a_rate_that_cannot_be_is_not_used(rate: int) -> None:
    assert EventClock(lambda: (0, 0, rate)).times(batch_at(9 * UNIT), 700).tolist() == [700]


words = st.integers(0, (1 << 64) - 1)


@given(words, words, words, st.lists(st.tuples(st.binary(min_size=32, max_size=32), words, words), max_size=20))
@example(0, 9_223_372_064_342_565_889, 214748365, [(bytes(32), 0, 0)])  # would be after the end of 64 bits
def test_whatever_the_program_writes_no_time_lies_ahead_and_none_decreases(
    ticks: int, ns: int, rate: int, told: list[tuple[bytes, int, int]]
) -> None:
    reader, last, now = EventClock(lambda: (ticks, ns, rate)), 0, 5 * NS
    for record, mark_ticks, mark_ns in told:
        now += 1000
        [time] = reader.times(np.frombuffer(record, EVENT_DTYPE), now)
        assert last <= time <= now
        last = int(time)
        reader.on_mark(clock_mark(mark_ticks, mark_ns), now)
