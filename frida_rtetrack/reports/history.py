"""What each call site held at each of a number of moments: what the page draws, and growth is read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reports.moment import type_numbers
from frida_rtetrack.tracking.grouping import added, together

NO_THREAD = -1
FIELDS = ("stack", "label", "thread", "baseline", "size_bytes")
"""Of BLOCK_DTYPE: what of a block is looked at here."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """Who allocated: the numbers of stack, type and thread; NO_THREAD for the baseline's blocks."""

    stack: int
    type: int
    thread: int


@dataclass(frozen=True, slots=True)
class Held:
    """What is live of a site."""

    blocks: int = 0
    size_bytes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.blocks + other.blocks, self.size_bytes + other.size_bytes)


NOTHING = Held()


@dataclass(slots=True)
class History:
    """What was live at the moments `seconds`, which ascend, of every site that ever held something at one of them."""

    seconds: list[float] = field(default_factory=list)
    changes: dict[Site, list[tuple[int, Held]]] = field(default_factory=dict)
    """What a site held from the moment of that index on, until the next change; ascending, from the first that is not 0."""

    def add(self, seconds: float, rows: NDArray[np.void]) -> None:
        """Adds a moment later than the last one, at which `rows`, FIELDS of BLOCK_DTYPE (n,), are live."""
        index = len(self.seconds)
        self.seconds.append(seconds)
        held = by_site(rows)
        for site in held.keys() | self.changes.keys():
            changes = self.changes.setdefault(site, [])
            now = held.get(site, NOTHING)
            if now != (changes[-1][1] if changes else NOTHING):
                changes.append((index, now))

    def at(self, index: int) -> dict[Site, Held]:
        """What each site held at the moment of that index; sites that held nothing are left out."""
        found = {}
        for site, changes in self.changes.items():
            held = next((held for since, held in reversed(changes) if since <= index), NOTHING)
            if held.blocks:
                found[site] = held
        return found


def history(moments: Iterable[tuple[float, NDArray[np.void]]]) -> History:
    """Of `moments`: (seconds, live blocks, BLOCK_DTYPE (n,)), ascending; each is let go before the next one is asked for."""
    found = History()
    for seconds, rows in moments:
        found.add(seconds, rows)
    return found


def by_site(rows: NDArray[np.void]) -> dict[Site, Held]:
    """The live blocks `rows`, FIELDS of BLOCK_DTYPE (n,), by site."""
    types = type_numbers(rows)
    threads = np.where(rows["baseline"], NO_THREAD, rows["thread"].astype(np.int32))
    some, which = together(rows["stack"], types, threads)
    sites = map(Site, rows["stack"][some].tolist(), types[some].tolist(), threads[some].tolist())
    blocks, size_bytes = np.bincount(which, minlength=some.size), added(which, rows["size_bytes"], some.size)
    return dict(zip(sites, map(Held, blocks.tolist(), size_bytes.tolist()), strict=True))
