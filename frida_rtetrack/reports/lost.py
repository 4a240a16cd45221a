"""What nobody points to any more, by call site: what `leaks` shows of a running program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reachability.graph import Hold
from frida_rtetrack.reachability.leaks import Judged
from frida_rtetrack.reports.callsites import CallSite, call_sites
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.tracking.eal import allocated_in


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the live blocks. Sizes in bytes."""

    blocks: int
    size_bytes: int
    call_sites: tuple[CallSite, ...]
    """Most bytes first."""


@dataclass(frozen=True, slots=True)
class LostReport:
    """The live blocks by who holds them; those that rte_eal_init allocated are apart."""

    lost: Share
    """Nothing points to them but lost blocks."""
    indirectly_lost: Share
    """Only lost blocks point to them: they go with those."""
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


def report(judged: Judged, eal_ranges: Sequence[tuple[int, int]], names: Names, *, complete: bool) -> LostReport:
    """`judged` in figures. `eal_ranges`: [first, last) event numbers of the calls of rte_eal_init."""
    of_eal = allocated_in(judged.blocks.rows, eal_ranges)

    def share(hold: Hold) -> Share:
        rows: NDArray[np.void] = judged.blocks.rows[(judged.holds == hold) & ~of_eal]
        return Share(rows.size, int(rows["size_bytes"].sum()), tuple(call_sites(rows, names, max(rows.size, 1))))

    return LostReport(
        lost=share(Hold.LOST),
        indirectly_lost=share(Hold.INDIRECTLY_LOST),
        held=int(((judged.holds == Hold.HELD) & ~of_eal).sum()),
        eal=int(of_eal.sum()),
        complete=complete,
        looks=judged.looks,
        seconds=judged.seconds,
        read_bytes=judged.read_bytes,
        unseen_threads=judged.unseen_threads,
        longest_stop_s=judged.longest_stop_s,
    )
