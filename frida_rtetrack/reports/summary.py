"""What is said at the end: computed here once, drawn by the reporters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reports.callsites import CallSite as CallSite
from frida_rtetrack.reports.callsites import backtrace_json
from frida_rtetrack.reports.callsites import call_site_json as call_site_json
from frida_rtetrack.reports.callsites import call_sites as call_sites
from frida_rtetrack.reports.leakcheck import LeakCheck
from frida_rtetrack.stream.events import Api
from frida_rtetrack.symbols.names import BASELINE_LABEL, Names, Thread
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.badfree import AllocationEvidence, BadFreeReport
from frida_rtetrack.tracking.eal import allocated_in
from frida_rtetrack.tracking.heap import HeapDifference
from frida_rtetrack.tracking.rules import MEMZONE_APIS
from frida_rtetrack.tracking.trackedheap import TrackedHeap

CALL_SITES = 10
LEAK_SITES = 50


@dataclass(frozen=True, slots=True)
class Leaks:
    """What was live when the program called rte_eal_cleanup. Sizes in bytes."""

    blocks: int
    size_bytes: int
    eal_blocks: int
    """Those that rte_eal_init itself allocated; not in `blocks`."""
    eal_bytes: int
    call_sites: tuple[CallSite, ...]
    """All of them, most bytes first; LEAK_SITES are shown."""


@dataclass(frozen=True, slots=True)
class Start:
    """The moment at which a session began."""

    wall: datetime
    monotonic_ns: int

    @classmethod
    def now(cls) -> Start:
        """This moment, by both clocks."""
        return cls(datetime.now(UTC), time.monotonic_ns())

    def seconds_until(self, timestamp_ns: int) -> float:
        """From the start to the monotonic time `timestamp_ns`, to a microsecond."""
        return round((timestamp_ns - self.monotonic_ns) / 1e9, 6)


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that was found. Sizes in bytes."""

    names: Names
    start: Start
    version: str
    engine: str
    compiler: str
    hooks: int
    """Functions of DPDK that were hooked; 0: nothing was tracked."""
    pid: int
    argv: tuple[str, ...]
    ending: Ending
    allocations: int
    frees: int
    resizes: int
    failed: int
    lost: int
    allocated_bytes: int
    live_blocks: int
    live_bytes: int
    peak_blocks: int
    peak_bytes: int
    bad_frees: tuple[BadFreeReport, ...]
    bad_frees_not_kept: int
    call_sites: tuple[CallSite, ...]
    memzones: tuple[int, int]
    """Live memzones, among the live blocks, and their bytes."""
    leaks: Leaks | None
    """None where the program never called rte_eal_cleanup."""
    verified: HeapDifference | None
    """None where it was not asked for."""
    leak_check: LeakCheck | None = None
    """None where nothing was asked for."""
    damage: dict[str, int] = field(default_factory=dict)
    """What was wrong in the session memory and is left out, by kind of record; the program can write there what it likes."""
    unknown_frees: int = 0
    """Of blocks that were not seen to be allocated, where that is no accusation."""
    selected: tuple[int, int] | None = None
    """Blocks and bytes of the live ones that `call_sites` is about; None: all of them."""

    @property
    def used_dpdk(self) -> bool:
        """Whether a call of DPDK's that takes or gives memory was seen, or memory that had been taken before."""
        calls = self.allocations + self.frees + self.resizes + self.failed + self.unknown_frees + len(self.bad_frees)
        return bool(self.hooks and (calls or self.live_blocks or self.lost))

    def as_json(self) -> dict[str, Any]:
        """The document of `--summary`: addresses as "0x...", times in seconds since `started`, null where not known."""
        return {
            "version": self.version,
            "engine": self.engine,
            "compiler": self.compiler,
            "started": self.start.wall.isoformat(timespec="milliseconds"),
            "target": {
                "pid": self.pid,
                "argv": list(self.argv),
                "exit_status": self.ending.exit_status,
                "signal": self.ending.signal,
                "ending": self.ending.why,
            },
            "events": {
                "allocations": self.allocations,
                "frees": self.frees,
                "resizes": self.resizes,
                "failed": self.failed,
                "lost": self.lost,
            },
            "damage": self.damage,
            "live": {"blocks": self.live_blocks, "bytes": self.live_bytes},
            "peak": {"blocks": self.peak_blocks, "bytes": self.peak_bytes},
            "bad_frees": [_bad_free_json(report, self.start) for report in self.bad_frees],
            "bad_frees_not_kept": self.bad_frees_not_kept,
            **({} if self.selected is None else {"selected": {"blocks": self.selected[0], "bytes": self.selected[1]}}),
            "call_sites": [call_site_json(site) for site in self.call_sites],
            "memzones": {"blocks": self.memzones[0], "bytes": self.memzones[1]},
            "leaks": self.leaks
            and {
                "blocks": self.leaks.blocks,
                "bytes": self.leaks.size_bytes,
                "eal": {"blocks": self.leaks.eal_blocks, "bytes": self.leaks.eal_bytes},
                "call_sites": [call_site_json(site) for site in self.leaks.call_sites[:LEAK_SITES]],
            },
            **({} if self.leak_check is None else self.leak_check.as_json()),
            "verify": None if self.verified is None else self._verify_json(self.verified),
        }

    def _verify_json(self, found: HeapDifference) -> dict[str, Any]:
        return {
            "missing": [{"address": f"{each.address:#x}", "size": each.size_bytes} for each in found.missing],
            "unexpected": [
                {
                    "address": f"{block.address:#x}",
                    "size": block.size_bytes,
                    "type": self.names.label_text(block.label, baseline=block.baseline),
                    "function": Api(block.api).function,
                    **_thread_json(self.names.thread(block.thread)),
                    "backtrace": backtrace_json(self.names.stack(block.stack)),
                }
                for block in found.unexpected
            ],
        }


def summarize(
    heap: TrackedHeap,
    names: Names,
    *,
    start: Start,
    version: str,
    engine: str,
    compiler: str,
    hooks: int,
    pid: int,
    argv: tuple[str, ...],
    ending: Ending,
    lost: int,
    leak_check: LeakCheck | None = None,
    damage: Callable[[], dict[str, int]] = dict,
    only: Callable[[NDArray[np.void]], NDArray[np.void]] | None = None,
    limit: int = CALL_SITES,
) -> Summary:
    """Everything that was found in `heap`, with what it does not know. To be called while no events are applied.

    `damage()` is asked last: looking names up may find some. A recording has none. `only(rows)`: those of the blocks
    `rows`, BLOCK_DTYPE (n,), whose call sites are wanted; of `limit` of them, the largest.
    """
    tracking, eal = heap.map, heap.eal
    totals, live, at_cleanup = tracking.totals, tracking.live(), eal.at_cleanup
    zones, selected = memzones(live), None
    if only is not None:
        live, at_cleanup = only(live), None if at_cleanup is None else only(at_cleanup)
        selected = live.size, int(live["size_bytes"].sum())
    return Summary(
        names=names,
        start=start,
        version=version,
        engine=engine,
        compiler=compiler,
        hooks=hooks,
        pid=pid,
        argv=argv,
        ending=ending,
        allocations=totals.allocations,
        frees=totals.frees,
        resizes=totals.resizes,
        failed=totals.failed,
        lost=lost,
        allocated_bytes=totals.allocated_bytes,
        live_blocks=tracking.live_blocks,
        live_bytes=tracking.live_bytes,
        peak_blocks=tracking.peak.blocks,
        peak_bytes=tracking.peak.bytes,
        bad_frees=tuple(heap.bad_frees.reports),
        bad_frees_not_kept=heap.bad_frees.not_kept,
        call_sites=tuple(call_sites(live, names, limit)),
        memzones=zones,
        leaks=None if at_cleanup is None else leaks(at_cleanup, eal.init_ranges, names),
        verified=heap.view.verified,
        leak_check=leak_check,
        damage=damage(),
        unknown_frees=totals.unknown_frees,
        selected=selected,
    )


def types(live: NDArray[np.void], names: Names) -> list[tuple[str, int, int]]:
    """(type, blocks, bytes) of the live blocks (n,), BLOCK_DTYPE, most bytes first."""
    nameless = live["baseline"] & (live["label"] == 0)
    labels, which = np.unique(np.where(nameless, BASELINE_LABEL, live["label"]), return_inverse=True)
    blocks = np.bincount(which, minlength=labels.size)
    total = np.bincount(which, weights=live["size_bytes"], minlength=labels.size)
    rows = [(names.label_text(int(a)), int(b), int(c)) for a, b, c in zip(labels, blocks, total, strict=True)]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def memzones(live: NDArray[np.void]) -> tuple[int, int]:
    """How many of the live blocks are memzones, and their bytes."""
    sizes = live["size_bytes"][np.isin(live["api"], MEMZONE_APIS)]
    return sizes.size, int(sizes.sum())


def leaks(live: NDArray[np.void], eal_ranges: Sequence[tuple[int, int]], names: Names) -> Leaks:
    """What is live when the program cleans up EAL: its own leaks, and apart from them what rte_eal_init allocated.

    `eal_ranges`: [first, last) event numbers of the calls of rte_eal_init.
    """
    of_eal = allocated_in(live, eal_ranges)
    own = live[~of_eal]
    return Leaks(
        own.size,
        int(own["size_bytes"].sum()),
        int(of_eal.sum()),
        int(live["size_bytes"][of_eal].sum()),
        tuple(call_sites(own, names, max(own.size, 1))),
    )


def _thread_json(thread: Thread | None) -> dict[str, Any]:
    return {"tid": thread and thread.tid, "thread": thread and thread.name}


def _allocated_json(block: AllocationEvidence, start: Start) -> dict[str, Any]:
    return {
        "time": None if block.baseline else start.seconds_until(block.timestamp_ns),
        "address": f"{block.address:#x}",
        "size": block.size_bytes,
        "type": block.type,
        **_thread_json(block.thread),
        "backtrace": backtrace_json(block.stack),
    }


def _bad_free_json(report: BadFreeReport, start: Start) -> dict[str, Any]:
    return {
        "kind": report.kind.value,
        "time": start.seconds_until(report.timestamp_ns),
        "detail": report.detail,
        "also": report.also
        and {
            "kind": report.also.kind.value,
            "detail": report.also.detail,
            "allocated": report.also.allocated and _allocated_json(report.also.allocated, start),
        },
        "element": report.element,
        "address": f"{report.address:#x}",
        "function": report.function,
        **_thread_json(report.thread),
        "backtrace": backtrace_json(report.stack),
        "allocated": report.allocated and _allocated_json(report.allocated, start),
        "first_freed": report.first_freed
        and {
            "time": start.seconds_until(report.first_freed.timestamp_ns),
            "function": report.first_freed.function,
            **_thread_json(report.first_freed.thread),
            "backtrace": backtrace_json(report.first_freed.stack),
        },
        "earlier": [
            {
                "type": each.type,
                "backtrace": backtrace_json(each.allocated),
                "freed": {"time": start.seconds_until(each.freed_at_ns), "backtrace": backtrace_json(each.freed)},
                "suspect": each.suspect,
            }
            for each in report.earlier
        ],
    }


def bad_free_counts(reports: Sequence[BadFreeReport]) -> dict[str, int]:
    """How many bad frees of each kind."""
    counts: dict[str, int] = {}
    for report in reports:
        counts[report.kind.value] = counts.get(report.kind.value, 0) + 1
    return counts
