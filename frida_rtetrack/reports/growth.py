"""Call sites whose live blocks only increase while a program runs: what leaks though something still points to it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.symbols.names import Names, Stack
from frida_rtetrack.tracking.map import TrackingMap

MOMENTS = 41
"""At which the live blocks are looked at, evenly over the run."""
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

    def thin(self) -> None:
        """Keeps every second moment, the first one included."""
        self.at_ns = self.at_ns[::2]
        for of_site in (self._blocks, self._bytes):
            for stack, at in list(of_site.items()):
                of_site[stack] = {number // 2: value for number, value in at.items() if number % 2 == 0}

    def growing(self, names: Names, *, without: Sequence[int] = ()) -> list[Growing]:
        """The call sites that grow, most bytes grown first. `without`: numbers of stacks that are left out."""
        count = len(self.at_ns)
        first = int(count * _WARMING_UP)
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


SITES_WATCHED = 2000
"""The largest at a moment."""
_FIRST_STEP_S = 0.25
_COST_AT_MOST = 0.01


class GrowthWatch(Subscriber):
    """The curves of a running program: from MOMENTS to twice as many moments, evenly over all of it until now."""

    def __init__(self, tracking: TrackingMap) -> None:
        """Of `tracking`, from now on."""
        self._tracking = tracking
        self._curves = Curves()
        self._lock = threading.Lock()
        self._step_s = _FIRST_STEP_S
        self._next = time.monotonic() + self._step_s

    def on_round(self) -> None:
        """Looks at the call sites when it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        sites = self._tracking.call_sites()[:SITES_WATCHED]
        with self._lock:
            self._curves.add(time.monotonic_ns(), sites)
            if len(self._curves.at_ns) >= 2 * MOMENTS:
                self._curves.thin()
                self._step_s *= 2
        self._next = now + max(self._step_s, (time.monotonic() - now) / _COST_AT_MOST)

    def growing(self, names: Names) -> list[Growing]:
        """The call sites that grew until the last look. Safe to ask from any thread."""
        with self._lock:
            curves = copy.deepcopy(self._curves)
        return curves.growing(names)


def evenly(start_ns: int, end_ns: int, count: int = MOMENTS) -> list[int]:
    """`count` moments from `start_ns` to `end_ns`."""
    return [int(at) for at in np.linspace(start_ns, end_ns, count)]
