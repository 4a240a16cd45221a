"""What is said at the end: computed here once, drawn by the reporters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.badfree import BadFreeReport
from frida_rtetrack.names import BASELINE_LABEL, Names, Stack, Thread
from frida_rtetrack.symbols import frame_json
from frida_rtetrack.tracking import TrackingMap

CALL_SITES = 10
TYPES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CallSite:
    """The live blocks that were allocated with one stack."""

    blocks: int
    size_bytes: int
    oldest_ns: int
    stack: Stack | None
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How the tracking ended: the target's exit status or signal, or neither where it runs on or is not our child."""

    exit_status: int | None
    signal: int | None
    why: str
    """exited, killed, detached, replaced (exec) or gone (ended, but how is not known)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that was found. Sizes in bytes."""

    version: str
    engine: str
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

    def as_json(self) -> dict[str, Any]:
        """The document of `--summary`: addresses as "0x...", null where something is not known."""
        return {
            "version": self.version,
            "engine": self.engine,
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
            "live": {"blocks": self.live_blocks, "bytes": self.live_bytes},
            "peak": {"blocks": self.peak_blocks, "bytes": self.peak_bytes},
            "bad_frees": [_bad_free_json(report) for report in self.bad_frees],
            "bad_frees_not_kept": self.bad_frees_not_kept,
            "call_sites": [
                {
                    "blocks": site.blocks,
                    "bytes": site.size_bytes,
                    "types": list(site.types),
                    "backtrace": _backtrace_json(site.stack),
                }
                for site in self.call_sites
            ],
        }


def types(tracking: TrackingMap, names: Names) -> list[tuple[str, int, int]]:
    """(type, blocks, bytes) of what is live, most bytes first."""
    live = tracking.live()
    labels, which = np.unique(np.where(live["baseline"], BASELINE_LABEL, live["label"]), return_inverse=True)
    blocks = np.bincount(which, minlength=labels.size)
    total = np.bincount(which, weights=live["size_bytes"], minlength=labels.size)
    rows = [(names.label_text(int(a)), int(b), int(c)) for a, b, c in zip(labels, blocks, total, strict=True)]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def call_sites(tracking: TrackingMap, names: Names, count: int, by: str = "bytes") -> list[CallSite]:
    """The `count` largest call sites of what is live, by "bytes", "blocks" or "oldest"."""
    sites = tracking.call_sites()
    if by == "oldest":
        sites = sites[sites["oldest_ns"].argsort(kind="stable")]
    elif by == "blocks":
        sites = sites[(-sites["blocks"].astype(np.int64)).argsort(kind="stable")]
    sites = sites[:count]
    live = tracking.live()
    live = live[np.isin(live["stack"], sites["stack"])]
    return [_call_site(site, live[live["stack"] == site["stack"]], names) for site in sites]


def _call_site(site: np.void, blocks: NDArray[np.void], names: Names) -> CallSite:
    kinds = np.unique(blocks[["label", "baseline"]])
    return CallSite(
        int(site["blocks"]),
        int(site["bytes"]),
        int(site["oldest_ns"]),
        names.stack(int(site["stack"])),
        tuple(names.label_text(int(kind["label"]), baseline=bool(kind["baseline"])) for kind in kinds[:TYPES_SHOWN]),
    )


def _backtrace_json(stack: Stack | None) -> list[dict[str, Any]]:
    return [] if stack is None else [frame_json(frame) for frame in stack.frames]


def _thread_json(thread: Thread | None) -> dict[str, Any]:
    return {"tid": thread and thread.tid, "thread": thread and thread.name}


def _bad_free_json(report: BadFreeReport) -> dict[str, Any]:
    return {
        "kind": report.kind.name.lower(),
        "detail": report.detail,
        "address": f"{report.address:#x}",
        "function": report.function,
        **_thread_json(report.thread),
        "backtrace": _backtrace_json(report.stack),
        "allocated": report.allocated
        and {
            "size": report.allocated.size_bytes,
            "type": report.allocated.type,
            **_thread_json(report.allocated.thread),
            "backtrace": _backtrace_json(report.allocated.stack),
        },
        "first_freed": report.first_freed
        and {
            "function": report.first_freed.function,
            **_thread_json(report.first_freed.thread),
            "backtrace": _backtrace_json(report.first_freed.stack),
        },
    }


def bad_free_counts(reports: Sequence[BadFreeReport]) -> dict[str, int]:
    """How many bad frees of each kind."""
    counts: dict[str, int] = {}
    for report in reports:
        counts[report.kind.name.lower()] = counts.get(report.kind.name.lower(), 0) + 1
    return counts
