"""What a recording keeps in place of events (--aggregate): what each call site held from time to time, and what is live at
the end. Written as it goes: the live set again every ten seconds, less often where it is large.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import DamagedRecording
from frida_rtetrack.recording.blocks import pack_numbers, pack_rows, unpack_numbers, unpack_rows
from frida_rtetrack.recording.columns import pack, unpack
from frida_rtetrack.reports.history import NOTHING, Held, Site, by_site
from frida_rtetrack.reports.often import Often
from frida_rtetrack.reports.usage import UsageCounter, UsageState
from frida_rtetrack.stream.events import EventBatch, Times
from frida_rtetrack.tracking.heap import HeapOwner
from frida_rtetrack.tracking.map import MapState
from frida_rtetrack.tracking.trackedheap import TrackedHeap

CHECKPOINT_SECONDS = 10.0
CHECKPOINT_COST = 0.01
"""The share of the time that may go into writing what is live."""
CHECKPOINT_BYTES_A_SECOND = 100_000
_ONE = np.uint64(1)

Rows = NDArray[np.void]
"""BLOCK_DTYPE (n,)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a recording has of its events: how the heap was used, how often each stack allocated, what was live at cleanup."""

    usage: UsageState
    often: Often
    at_cleanup: Rows | None


@dataclass(frozen=True, slots=True)
class Sample:
    """The heap at one moment, taken where the events are handed out."""

    at_ns: int
    state: MapState
    at_cleanup: Rows | None
    init_ranges: tuple[tuple[int, int], ...]
    owner: HeapOwner
    in_series: bool


class Aggregate:
    """Collects, on the recorder's thread; but for `due` and `sample`, which are asked where events are handed out."""

    def __init__(self, seconds: float) -> None:
        """A series with a moment each `seconds`."""
        self._seconds = seconds
        self._next_in_series = self._next = time.monotonic()
        self._usage, self._often = UsageCounter(), Often()
        self._numbers: dict[Site, int] = {}
        self._held: dict[Site, Held] = {}

    def due(self) -> bool:
        """Whether it is time for a sample."""
        now = time.monotonic()
        return now >= self._next_in_series or now >= self._next

    def sample(self, heap: TrackedHeap, *, last: bool = False) -> Sample:
        """The heap as it is now. `last`: there will be no other one."""
        begun = time.monotonic()
        in_series = last or begun >= self._next_in_series
        while self._next_in_series <= begun:
            self._next_in_series += self._seconds
        eal = heap.eal
        found = Sample(
            time.monotonic_ns(), heap.map.state(), eal.at_cleanup, tuple(eal.init_ranges), eal.owner, in_series
        )
        self._put_off(begun, 0)
        return found

    def _put_off(self, begun: float, size_bytes: int) -> None:
        now = time.monotonic()
        pause = max(CHECKPOINT_SECONDS, (now - begun) / CHECKPOINT_COST, size_bytes / CHECKPOINT_BYTES_A_SECOND)
        self._next = max(self._next, now + pause)

    def add(self, events: EventBatch, times: Times) -> None:
        """The next events (n,), at `times` (n,)."""
        self._usage.add(events, times)
        self._often.add(events)

    def kept(self, sample: Sample) -> tuple[bytes, bytes, bytes | None]:
        """(usage, allocations, cleanup) for the table `aggregate`."""
        cleanup = None if sample.at_cleanup is None else pack_rows(sample.at_cleanup)
        return msgspec.msgpack.encode(self._usage.state()), pack_numbers(self._often.counts.astype(np.uint64)), cleanup

    def live(self, sample: Sample) -> bytes:
        """What is live, for the table `beginning`; the larger it is, the later the next one."""
        begun = time.monotonic()
        packed = pack_rows(sample.state.live)
        self._put_off(begun, len(packed))
        return packed

    def changes(self, sample: Sample) -> tuple[list[tuple[int, Site]], tuple[int, bytes, bytes, bytes] | None]:
        """The sites that are new, numbered; and for the table `series`, how many changed, and how: None where none did."""
        held = by_site(sample.state.live)
        new = [
            (self._numbers.setdefault(site, len(self._numbers) + 1), site) for site in held if site not in self._numbers
        ]
        changed = sorted(
            (self._numbers[site], held.get(site, NOTHING), self._held.get(site, NOTHING))
            for site in held.keys() | self._held.keys()
            if held.get(site, NOTHING) != self._held.get(site, NOTHING)
        )
        self._held = held
        if not changed:
            return new, None
        numbers = np.array([number for number, _, _ in changed], np.uint64)
        blocks = np.array([now.blocks - before.blocks for _, now, before in changed], np.int64)
        sizes = np.array([now.size_bytes - before.size_bytes for _, now, before in changed], np.int64)
        return new, (
            len(changed),
            pack(np.diff(numbers, prepend=np.uint64(0))),
            pack(_zigzag(blocks)),
            pack(_zigzag(sizes)),
        )


def series_row(changed: int, numbers: bytes, blocks: bytes, sizes: bytes) -> list[tuple[int, Held]]:
    """(number of the site, what it holds more than before) of a row of the table `series`. Raises DamagedRecording."""
    which = np.cumsum(unpack(numbers, changed), dtype=np.uint64).tolist()
    more = zip(_unzigzag(unpack(blocks, changed)).tolist(), _unzigzag(unpack(sizes, changed)).tolist(), strict=True)
    return list(zip(which, (Held(*each) for each in more), strict=True))


def kept(usage: bytes, allocations: bytes, cleanup: bytes | None) -> Kept:
    """A row of the table `aggregate`. Raises DamagedRecording."""
    try:
        state = msgspec.msgpack.decode(usage, type=UsageState)
    except (msgspec.DecodeError, TypeError) as error:
        raise DamagedRecording(f"How the heap was used cannot be read: {error}") from None
    rows = None if cleanup is None else unpack_rows(cleanup)
    return Kept(state, Often(unpack_numbers(allocations).astype(np.int64)), rows)


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Small numbers of either sign as small numbers."""
    return (values << 1 ^ values >> 63).view(np.uint64)


def _unzigzag(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (values >> _ONE).view(np.int64) ^ -(values & _ONE).view(np.int64)
