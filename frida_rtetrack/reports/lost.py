"""What nobody points to any more: the judgement of a running program's memory, and what `leaks` shows of it by call site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reachability.graph import Hold
from frida_rtetrack.reachability.leaks import Judged
from frida_rtetrack.reports.callsites import CallSite, call_site_json, call_sites
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.tracking.eal import allocated_in

Rows = NDArray[np.void]
"""BLOCK_DTYPE (n,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How it was found out, and what was found besides; blocks that rte_eal_init allocated are counted only."""

    at_ns: int
    """Monotonic."""
    held: int
    """Blocks that something points to."""
    eal: int
    """Blocks of EAL's own."""
    complete: bool
    """Whether all live blocks were known; if not, pointers in memory that was freed count too."""
    looks: int
    seconds: float
    read_bytes: int
    unseen_threads: int
    """Threads whose registers could not be looked at."""
    longest_stop_s: float
    """0: no thread was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostFinding(Judgement):
    """What was judged at one moment, as a recording keeps it."""

    lost: Rows
    """Nothing points to them but lost blocks."""
    indirectly_lost: Rows
    """Only lost blocks point to them: they go with those."""


def finding(judged: Judged, eal_ranges: Sequence[tuple[int, int]], *, complete: bool, at_ns: int) -> LostFinding:
    """What of `judged` is kept. `eal_ranges`: [first, last) event numbers of the calls of rte_eal_init."""
    of_eal = allocated_in(judged.blocks.rows, eal_ranges)
    return LostFinding(
        at_ns=at_ns,
        lost=judged.blocks.rows[(judged.holds == Hold.LOST) & ~of_eal],
        indirectly_lost=judged.blocks.rows[(judged.holds == Hold.INDIRECTLY_LOST) & ~of_eal],
        held=int(((judged.holds == Hold.HELD) & ~of_eal).sum()),
        eal=int(of_eal.sum()),
        complete=complete,
        looks=judged.looks,
        seconds=judged.seconds,
        read_bytes=judged.read_bytes,
        unseen_threads=judged.unseen_threads,
        longest_stop_s=judged.longest_stop_s,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the live blocks. Sizes in bytes."""

    blocks: int
    size_bytes: int
    call_sites: tuple[CallSite, ...]
    """Most bytes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostReport(Judgement):
    """The same by call site."""

    lost: Share
    indirectly_lost: Share
    freed_since: int = 0
    """Blocks that were called lost and were freed afterwards: somebody had a pointer. They are left out above."""


def share(rows: Rows, names: Names) -> Share:
    """`rows` by call site."""
    return Share(rows.size, int(rows["size_bytes"].sum()), tuple(call_sites(rows, names, max(rows.size, 1))))


def report(
    found: LostFinding, names: Names, *, passes: Callable[[Rows], Rows] = lambda rows: rows, live: Rows | None = None
) -> LostReport:
    """`found` by call site, of the blocks that are among those that `passes` gives back.

    `live`: what is live at a later moment; what has been freed until then was not lost.
    """
    freed_since = 0
    kept = []
    for rows in (found.lost, found.indirectly_lost):
        still = rows if live is None else rows[among(rows, live)]
        freed_since += rows.size - still.size
        kept.append(share(passes(still), names))
    how = {each.name: getattr(found, each.name) for each in fields(Judgement)}
    return LostReport(lost=kept[0], indirectly_lost=kept[1], freed_since=freed_since, **how)


def among(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Which of `rows` (n,) are the same blocks as one of `others`: the event that allocated a block is its own."""
    known = others[np.isin(others["sequence"], rows["sequence"])][["address", "sequence"]].tolist()
    same = set(known)
    return np.fromiter((key in same for key in rows[["address", "sequence"]].tolist()), np.bool_, rows.size)


def lost_json(found: LostReport) -> dict[str, Any]:
    """For a JSON document."""

    def share(part: Share) -> dict[str, Any]:
        sites = [call_site_json(site) for site in part.call_sites]
        return {"blocks": part.blocks, "bytes": part.size_bytes, "call_sites": sites}

    return {
        **share(found.lost),
        "indirectly": share(found.indirectly_lost),
        "held": found.held,
        "eal": found.eal,
        "freed_since": found.freed_since,
        "looks": found.looks,
        "seconds": found.seconds,
        "unseen_threads": found.unseen_threads,
        "complete": found.complete,
    }
