"""The figures of a moment: what `stats` shows, and a script may ask for again and again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from frida_rtetrack.reports import summary
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.tracking.trackedheap import TrackedHeap


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment's figures. Bytes and events; rates are per second since the figures were last asked for."""

    engine: str
    compiler: str
    """Who compiled the engine: `gcc 12.2 -O2`, or `TinyCC` in the target."""
    hooks: tuple[dict[str, str], ...]
    seconds: float
    live_blocks: int
    live_bytes: int
    peak_blocks: int
    peak_bytes: int
    allocations: int
    frees: int
    resizes: int
    failed: int
    allocated_bytes: int
    allocations_per_second: float
    frees_per_second: float
    by_type: tuple[tuple[str, int, int], ...]
    """(type, blocks, bytes), most bytes first."""
    by_socket: tuple[tuple[int, int, int], ...]
    """(socket asked for, -1 any; blocks, bytes)."""
    lost: int
    bad_frees: int
    paused: bool
    recording: bool
    memzones: tuple[int, int] = (0, 0)
    """Live memzones among the live blocks, and their bytes."""
    ring_waits: int = 0
    cut_stacks: dict[str, int] = field(default_factory=dict)


class StatsTaker:
    """Takes the figures, and remembers when it last did: for the rates."""

    def __init__(self, heap: TrackedHeap, names: Names) -> None:
        """Of `heap`, whose tracking begins now."""
        self._heap = heap
        self._names = names
        self._started = time.monotonic()
        self._last = (self._started, 0, 0)

    def take(
        self,
        *,
        engine: str,
        compiler: str,
        hooks: tuple[dict[str, str], ...],
        lost: int,
        paused: bool,
        recording: bool,
        ring_waits: int,
    ) -> Stats:
        """The figures of this moment, with what the heap does not know. To be called while no events are applied."""
        tracking = self._heap.map
        totals, live = tracking.totals, tracking.live()
        now = time.monotonic()
        then, allocations, frees = self._last
        self._last = (now, totals.allocations, totals.frees)
        span = max(now - then, 1e-9)
        return Stats(
            engine=engine,
            compiler=compiler,
            hooks=hooks,
            seconds=now - self._started,
            live_blocks=tracking.live_blocks,
            live_bytes=tracking.live_bytes,
            peak_blocks=tracking.peak.blocks,
            peak_bytes=tracking.peak.bytes,
            allocations=totals.allocations,
            frees=totals.frees,
            resizes=totals.resizes,
            failed=totals.failed,
            allocated_bytes=totals.allocated_bytes,
            allocations_per_second=(totals.allocations - allocations) / span,
            frees_per_second=(totals.frees - frees) / span,
            by_type=tuple(summary.types(live, self._names)),
            memzones=summary.memzones(live),
            by_socket=tuple(
                (int(row["socket"]), int(row["blocks"]), int(row["bytes"])) for row in tracking.by_socket()
            ),
            lost=lost,
            bad_frees=self._heap.bad_frees.found,
            paused=paused,
            recording=recording,
            ring_waits=ring_waits,
        )
