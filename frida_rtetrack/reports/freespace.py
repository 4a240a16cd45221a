"""How DPDK's free memory is cut up: what the largest allocation is that still fits, of all that is free."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.reachability.elements import HEADER_BYTES, Chain
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.stream.events import EventBatch, Kind, Times, sizes
from frida_rtetrack.stream.pump import Subscriber

CLASSES = (*(1 << power for power in range(8, 32, 2)), 1 << 63)
"""The sizes up to which each of DPDK's free lists has elements (malloc_elem_free_list_index, lib/eal/common/malloc_elem.c)."""
FAILURES_AT_MOST = 1000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_BETWEEN_FAILURES_S = 1.0
_COST_AT_MOST = 0.01


@dataclass(frozen=True, slots=True)
class HeapSpace:
    """One heap of DPDK's. Sizes in bytes; an element is a block with its header, or a free piece."""

    socket: int
    """NUMA socket; external heaps have 256 and more."""
    size_bytes: int
    """All elements together."""
    busy: int
    """Busy elements."""
    free_bytes: int
    free: int
    """Free elements."""
    largest_free_bytes: int
    """The largest block that fits, alignment aside: an element without its header."""
    classes: tuple[tuple[int, int, int], ...]
    """(up to so many bytes, free elements, their bytes), of those classes that have some."""


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """The heaps of one moment."""

    at_ns: int
    """Monotonic."""
    heaps: tuple[HeapSpace, ...]
    whole: bool
    """Whether every heap could be followed; one that changes too fast cannot."""
    failed_bytes: int | None = None
    """The allocation that had failed just before; None where none had."""


def heap_space(chain: Chain, socket: int) -> HeapSpace:
    """The figures of one heap."""
    free = chain.sizes[chain.free].astype(np.int64)
    which = np.searchsorted(CLASSES, free)
    classes = (
        (CLASSES[number], int((which == number).sum()), int(free[which == number].sum())) for number in np.unique(which)
    )
    return HeapSpace(
        socket=socket,
        size_bytes=int(chain.sizes.sum()),
        busy=int((~chain.free).sum()),
        free_bytes=int(free.sum()),
        free=free.size,
        largest_free_bytes=max(int(free.max(initial=0)) - HEADER_BYTES, 0),
        classes=tuple(classes),
    )


def free_space_json(space: FreeSpace, start: Start) -> dict[str, Any]:
    """For a JSON document."""
    return {
        "time": start.seconds_until(space.at_ns),
        "failed_bytes": space.failed_bytes,
        "whole": space.whole,
        "heaps": [asdict(heap) for heap in space.heaps],
    }


class SpaceWatch(Subscriber):
    """Looks at the heaps where an allocation fails; and now and then, where somebody keeps it."""

    def __init__(
        self,
        look: Callable[[int | None], FreeSpace],
        *,
        later: Callable[[str, Callable[[], None]], None],
    ) -> None:
        """`look(failed_bytes)` reads the heaps; `later(what, task)` has a task run aside."""
        self.keep: Callable[[FreeSpace], None] | None = None
        """Is handed what is found; None where nobody keeps it."""
        self.failures: list[FreeSpace] = []
        self._look_now = look
        self._later = later
        self._pause_s = _FIRST_PAUSE_S
        self._next = time.monotonic() + self._pause_s
        self._next_failure = 0.0
        self._looking = False
        self._failed_bytes: int | None = None
        """The largest that has failed since the last look at a failure."""

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        """Takes note of what failed."""
        failed = events["kind"] == Kind.ALLOCATION_FAILED
        if failed.any():
            self._failed_bytes = max(self._failed_bytes or 0, int(sizes(events[failed]).max()))

    def on_round(self) -> None:
        """Looks at once where an allocation failed, and when it is time."""
        if self._looking:
            return
        if self._failed_bytes is not None and time.monotonic() >= self._next_failure:
            failed_bytes, self._failed_bytes = self._failed_bytes, None
            if len(self.failures) < FAILURES_AT_MOST:
                self._ask(failed_bytes)
        elif self.keep is not None and time.monotonic() >= self._next:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next = time.monotonic() + self._pause_s
            self._ask(None)

    def _ask(self, failed_bytes: int | None) -> None:
        self._looking = True
        self._later("free space", lambda: self.look(failed_bytes))

    def look(self, failed_bytes: int | None = None) -> None:
        """Looks, and keeps what there is; nothing where it cannot be read now."""
        begun = time.thread_time()
        try:
            found = self._look_now(failed_bytes)
            if failed_bytes is not None:
                self.failures.append(found)
            if self.keep is not None:
                self.keep(found)
        except RtetrackError:  # the program has ended, or let go of its heap
            pass
        finally:
            now = time.monotonic()
            pause = (time.thread_time() - begun) / _COST_AT_MOST
            self._next = max(self._next, now + pause)
            if failed_bytes is not None:  # the first that fails is looked at at once, whatever was looked at before
                self._next_failure = now + max(_BETWEEN_FAILURES_S, pause)
            self._looking = False
