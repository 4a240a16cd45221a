"""When events happened, from the 24 bits of time in each of them: see `enum clock_source` in native/session.h.

The program writes those bits, the anchors and the rate. Whatever it writes, times never decrease and never lie ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from frida_rtetrack.stream.events import (
    CLOCK_KERNEL,
    CLOCK_TSC,
    TIME_BITS,
    TIME_SHIFT,
    EventBatch,
    Mark,
    Times,
)

CLOCK_SOURCES = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
RATE_ONE = 1 << 32
SLOWEST_NS, FASTEST_NS = 20.0, 0.05
"""Nanoseconds in a tick that are believed: 50 MHz to 20 GHz. A tick of the kernel's clock has 1."""
LATEST_NS = 1 << 62
"""No machine has been up for so long."""
_HALF_ROUND = 1 << (TIME_BITS - 1)
_MASK = (1 << TIME_BITS) - 1
_EVENTS_AT_ONCE = 1 << 13
"""What is computed on the way stays in the caches; larger arrays are memory fresh from the kernel each time."""


def clock_source() -> int:
    """Which clock the events' times are best told by here.

    The kernel names the processor's counter only while it finds it steady and the same on every core
    (Documentation/virt/kvm/x86/timekeeping.rst).
    """
    try:
        return CLOCK_TSC if "tsc" in CLOCK_SOURCES.read_text().split() else CLOCK_KERNEL
    except OSError:
        return CLOCK_KERNEL


class EventClock:
    """Reads the events' times, in the order of the ring. Without an anchor an event has happened when it is read."""

    def __init__(self, anchor: Callable[[], tuple[int, int, int]]) -> None:
        """`anchor()`: the session header's (clock_ticks, clock_ns, clock_rate), zeros until the first agent has begun."""
        self._anchor = anchor
        self._ticks = 0
        self._ns = 0
        self._ns_per_tick = 0.0
        self._last_ns = 0

    def _begin(self) -> bool:
        ticks, ns, rate = self._anchor()
        if SLOWEST_NS >= rate / RATE_ONE >= FASTEST_NS and ns <= LATEST_NS:
            self._ticks, self._ns, self._ns_per_tick = ticks, ns, rate / RATE_ONE
        return self._ns_per_tick > 0

    def on_mark(self, mark: np.void, now_ns: int) -> None:
        """Takes a MARK_CLOCK for the anchor of what follows; it also tells the rate, the better the longer ago the last."""
        if mark["api"] != Mark.CLOCK:
            return
        ticks, ns = int(mark["address"]), int(mark["stack"]) | int(mark["label"]) << 32
        if not self._ns_per_tick or not 0 <= ns <= now_ns:
            return
        if ticks > self._ticks and ns > self._ns:
            rate = (ns - self._ns) / (ticks - self._ticks)
            if abs(rate / self._ns_per_tick - 1) < 0.001 and ns - self._ns > 100_000_000:
                self._ns_per_tick = rate
        self._ticks, self._ns = ticks, ns

    def times(self, events: EventBatch, now_ns: int) -> Times:
        """When the next `events` (n,), which were read at `now_ns`, happened."""
        if not events.size:
            return np.empty(0, np.int64)
        if self._ns_per_tick or self._begin():
            times = np.empty(events.size, np.int64)
            for start in range(0, events.size, _EVENTS_AT_ONCE):
                piece = slice(start, start + _EVENTS_AT_ONCE)
                times[piece] = self._by_anchor(events[piece])
            times[0] = max(int(times[0]), self._last_ns)
            np.maximum.accumulate(times, out=times)
            if times[-1] > now_ns:
                np.minimum(times, now_ns, out=times)
        else:
            times = np.full(events.size, now_ns, np.int64)
        self._last_ns = max(self._last_ns, int(times[-1]))
        return times

    def _by_anchor(self, events: EventBatch) -> Times:
        words = events.view(np.uint32).reshape(events.size, -1)
        units = (words[:, 0] >> np.uint32(16)) | ((words[:, 1] >> np.uint32(8)) & np.uint32(0xFF0000))
        units += np.uint32((_HALF_ROUND - (self._ticks >> TIME_SHIFT)) & _MASK)
        units &= np.uint32(_MASK)
        first = self._ns - self._ns_per_tick * (self._ticks & ((1 << TIME_SHIFT) - 1))
        times: Times = (units * (self._ns_per_tick * (1 << TIME_SHIFT))).astype(np.int64)
        times += round(first - _HALF_ROUND * self._ns_per_tick * (1 << TIME_SHIFT))
        return times
