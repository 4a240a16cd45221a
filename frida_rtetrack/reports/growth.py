"""Call sites whose live blocks only increase while a program runs: what leaks though something still points to it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reports.callsites import backtrace_json
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.symbols.names import Names, Stack
from frida_rtetrack.tracking.map import TrackingMap

SITES_WATCHED = 2000
"""The largest at a moment."""
_FIRST_STEP_S = 0.02
_COST_AT_MOST = 0.01
"""The part of the time that looking may take."""
MOMENTS = 41
"""At which the live blocks are looked at, evenly over the run."""
LEAST_MOMENTS = 7
"""With fewer nothing is judged."""
_WARMING_UP = 0.25
"""The part of the run that is left out of the judgement: a program allocates while it starts."""
_LEAST_STEPS = 1 / 3
"""In how many of the steps there must be more than before."""


@dataclass(frozen=True, slots=True)
class Growing:
    """A call site. Sizes in bytes."""

    stack: Stack | None
    curve: tuple[int, ...]
    """Its live bytes at each moment."""
    blocks: int
    """Live at the last moment."""
    size_bytes: int
    grown_bytes: int
    """Since the program had started up."""
    bytes_per_second: float


class Curves:
    """The live bytes and blocks of each call site at moments of a run, ascending."""

    def __init__(self) -> None:
        """No moment yet."""
        self.at_ns: list[int] = []
        self._blocks: dict[int, dict[int, int]] = {}
        self._bytes: dict[int, dict[int, int]] = {}

    def add(self, at_ns: int, sites: NDArray[np.void]) -> None:
        """The next moment: `sites` as TrackingMap.call_sites has them."""
        number = len(self.at_ns)
        self.at_ns.append(at_ns)
        for site in sites:
            stack = int(site["stack"])
            self._blocks.setdefault(stack, {})[number] = int(site["blocks"])
            self._bytes.setdefault(stack, {})[number] = int(site["bytes"])

    def thin_out(self) -> None:
        """Forgets every second moment."""
        self._keep(range(0, len(self.at_ns), 2))

    def evenly_spread(self) -> Curves:
        """Those of the moments that are nearest to MOMENTS even ones."""
        at = np.array(self.at_ns)
        wanted = evenly(self.at_ns[0], self.at_ns[-1]) if self.at_ns else []
        spread = Curves()
        spread.at_ns, spread._blocks, spread._bytes = self.at_ns, self._blocks, self._bytes
        spread._keep(sorted({int(np.abs(at - moment).argmin()) for moment in wanted}))
        return spread

    def _keep(self, moments: Sequence[int]) -> None:
        self.at_ns = [self.at_ns[old] for old in moments]
        self._blocks, self._bytes = _only(self._blocks, moments), _only(self._bytes, moments)

    def growing(self, names: Names, *, without: Sequence[int] = ()) -> list[Growing]:
        """The call sites that grow, most bytes grown first. `without`: numbers of stacks that are left out."""
        count = len(self.at_ns)
        first = self._first_judged()
        found = []
        for stack, at in self._blocks.items():
            blocks = np.array([at.get(number, 0) for number in range(count)])
            steps = np.diff(blocks[first:])
            if stack in without or steps.size < 4 or (steps < 0).any() or (steps > 0).mean() < _LEAST_STEPS:
                continue
            curve = tuple(self._bytes[stack].get(number, 0) for number in range(count))
            grown = curve[-1] - curve[first]
            seconds = (self.at_ns[-1] - self.at_ns[first]) / 1e9
            found.append(
                Growing(
                    names.stack(stack), curve, int(blocks[-1]), curve[-1], grown, grown / seconds if seconds else 0.0
                )
            )
        return sorted(found, key=lambda each: -each.grown_bytes)

    def _first_judged(self) -> int:
        """By time: a host that was kept from looking has fewer moments there."""
        if not self.at_ns:
            return 0
        begin, end = self.at_ns[0], self.at_ns[-1]
        return int(np.searchsorted(self.at_ns, begin + (end - begin) * _WARMING_UP))


def _only(curves: dict[int, dict[int, int]], moments: Sequence[int]) -> dict[int, dict[int, int]]:
    """The curves at these moments, which are numbered anew; without those that are 0 at each."""
    number_of = {old: new for new, old in enumerate(moments)}
    kept = {
        stack: {number_of[at]: value for at, value in curve.items() if at in number_of}
        for stack, curve in curves.items()
    }
    return {stack: curve for stack, curve in kept.items() if curve}


class GrowthWatch(Subscriber):
    """The curves of a running program: from MOMENTS to twice as many moments, over all of it until now."""

    def __init__(self, tracking: TrackingMap) -> None:
        """Of `tracking`, from now on."""
        self._tracking = tracking
        self._curves = Curves()
        self._lock = threading.Lock()
        self._step_s = _FIRST_STEP_S
        self._next_s = 0.0

    def on_round(self) -> None:
        """Looks at the call sites when it is time."""
        if time.monotonic() >= self._next_s:
            self._look()

    def on_end(self) -> None:
        """The last moment."""
        self._look()

    def _look(self) -> None:
        begun = time.monotonic()
        sites = self._tracking.call_sites()[:SITES_WATCHED]
        with self._lock:
            self._curves.add(time.monotonic_ns(), sites)
            if len(self._curves.at_ns) >= 2 * MOMENTS:
                self._curves.thin_out()
                self._step_s *= 2
        self._next_s = begun + max(self._step_s, (time.monotonic() - begun) / _COST_AT_MOST)

    def growing(self, names: Names) -> list[Growing] | None:
        """The call sites that grew until the last look; None: too little was seen to tell. Safe from any thread."""
        with self._lock:
            spread = copy.deepcopy(self._curves).evenly_spread()
        return spread.growing(names) if len(spread.at_ns) >= LEAST_MOMENTS else None


def evenly(start_ns: int, end_ns: int, count: int = MOMENTS) -> list[int]:
    """`count` moments from `start_ns` to `end_ns`."""
    return [int(at) for at in np.linspace(start_ns, end_ns, count)]


def growing_json(site: Growing) -> dict[str, Any]:
    """For a JSON document."""
    return {
        "blocks": site.blocks,
        "bytes": site.size_bytes,
        "grown_bytes": site.grown_bytes,
        "bytes_per_second": site.bytes_per_second,
        "curve": list(site.curve),
        "backtrace": backtrace_json(site.stack),
    }
