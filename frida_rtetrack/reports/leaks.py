"""What nobody will free, best evidence first: lost, growing, still held; of a running program or of a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reports import lost
from frida_rtetrack.reports.callsites import call_site_json
from frida_rtetrack.reports.growth import Growing, growing_json
from frida_rtetrack.reports.lost import LostFinding, LostReport, Rows, Share, lost_json
from frida_rtetrack.reports.summary import Leaks, leaks
from frida_rtetrack.symbols.names import Names, Stack
from frida_rtetrack.tracking.eal import allocated_in


@runtime_checkable
class Suppression(Protocol):
    """Names what is left out: cigate.Suppression."""

    kind: str

    def matches(self, stack: Stack | None) -> bool:
        """Whether it names one of the frames."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What is live, by what is known of who will free it."""

    at_cleanup: Leaks | None
    """What was live when the program called rte_eal_cleanup; None where it did not."""
    lost: LostReport | None
    """Nothing points to it; None where nobody looked."""
    growing: tuple[Growing, ...]
    """Call sites with ever more live blocks; some of those may be lost, too."""
    still_held: Share
    """What is neither lost nor of a growing call site."""
    eal: tuple[int, int]
    """(blocks, bytes) of EAL's own, left out."""
    suppressed: tuple[int, int]
    """(blocks, bytes) that a suppression names, left out."""


def leak_report(
    live: Rows,
    names: Names,
    eal_ranges: Sequence[tuple[int, int]],
    *,
    at_cleanup: Rows | None,
    judged: LostFinding | None,
    growing: Sequence[Growing],
    suppressions: Sequence[Suppression] = (),
    passes: Callable[[Rows], Rows] = lambda rows: rows,
) -> LeakReport:
    """Of what is `live`. `eal_ranges`: [first, last) event numbers of rte_eal_init; `passes`: which blocks it is about."""
    named = _Suppressed(suppressions, names)
    of_eal = allocated_in(live, eal_ranges)
    chosen = passes(live[~of_eal])
    own = named.without(chosen)
    found = (
        None
        if judged is None
        else lost.report(judged, names, passes=lambda rows: named.without(passes(rows)), live=live)
    )
    grown = tuple(site for site in growing if not named.names(site.stack))
    stacks = [site.stack for site in grown]
    left = own
    if judged is not None:
        left = own[~(lost.among(own, judged.lost) | lost.among(own, judged.indirectly_lost))]
    held = lost.share(left[~_by_stack(left, lambda number: names.stack(number) in stacks)], names)
    return LeakReport(
        at_cleanup=None if at_cleanup is None else leaks(named.without(passes(at_cleanup)), eal_ranges, names),
        lost=found,
        growing=grown,
        still_held=held,
        eal=(int(of_eal.sum()), int(live["size_bytes"][of_eal].sum())),
        suppressed=(chosen.size - own.size, int(chosen["size_bytes"].sum()) - int(own["size_bytes"].sum())),
    )


class _Suppressed:
    def __init__(self, suppressions: Sequence[Suppression], names: Names) -> None:
        self._suppressions = [each for each in suppressions if each.kind == "leak"]
        self._names = names

    def names(self, stack: Stack | None) -> bool:
        """Whether one of them names it."""
        return any(each.matches(stack) for each in self._suppressions)

    def without(self, rows: Rows) -> Rows:
        """Those of `rows` that none of them names."""
        if not self._suppressions:
            return rows
        return rows[~_by_stack(rows, lambda number: self.names(self._names.stack(number)))]


def _by_stack(rows: Rows, answer: Callable[[int], bool]) -> NDArray[np.bool_]:
    """`answer` of the stack of each of `rows` (n,)."""
    stacks, which = np.unique(rows["stack"], return_inverse=True)
    return np.array([answer(int(number)) for number in stacks], np.bool_)[which]


def leak_report_json(found: LeakReport) -> dict[str, Any]:
    """For a JSON document."""
    left = found.at_cleanup
    return {
        "lost": found.lost and lost_json(found.lost),
        "at_cleanup": left
        and {
            "blocks": left.blocks,
            "bytes": left.size_bytes,
            "eal": {"blocks": left.eal_blocks, "bytes": left.eal_bytes},
            "call_sites": [call_site_json(site) for site in left.call_sites],
        },
        "growing": [growing_json(site) for site in found.growing],
        "still_held": [call_site_json(site) for site in found.still_held.call_sites],
        "eal": {"blocks": found.eal[0], "bytes": found.eal[1]},
        "suppressed": {"blocks": found.suppressed[0], "bytes": found.suppressed[1]},
    }
