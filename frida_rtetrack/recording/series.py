"""The series of an aggregated recording as reports want it: what each call site held, from moment to moment."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.reports.growth import MOMENTS, Curves
from frida_rtetrack.reports.history import NOTHING, Held, History, Site
from frida_rtetrack.reports.summary import Start

_SITE_DTYPE = np.dtype([("stack", "<u4"), ("blocks", "<u8"), ("bytes", "<u8")])


def history(recording: Recording, start: Start) -> History:
    """All of it."""
    found = History()
    held: defaultdict[Site, Held] = defaultdict(lambda: NOTHING)
    for index, (at_ns, changes) in enumerate(recording.series()):
        found.seconds.append(start.seconds_until(at_ns))
        for site, more in changes:
            held[site] += more
            found.changes.setdefault(site, []).append((index, held[site]))
    return found


def curves(recording: Recording, until_ns: int) -> Curves:
    """What each stack held at MOMENTS of its moments, evenly, until `until_ns`."""
    at = [at_ns for at_ns, _ in recording.series() if at_ns <= until_ns]
    wanted = {at[int(place)] for place in np.linspace(0, len(at) - 1, min(MOMENTS, len(at)))} if at else set()
    found = Curves()
    held: defaultdict[int, Held] = defaultdict(lambda: NOTHING)
    for at_ns, changes in recording.series():
        for site, more in changes:
            held[site.stack] += more
        if at_ns in wanted:
            rows = [(stack, of.blocks, of.size_bytes) for stack, of in held.items() if of.blocks > 0]
            found.add(at_ns, np.array(rows, _SITE_DTYPE))
    return found
