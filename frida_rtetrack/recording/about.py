"""What a recording says of its session as a whole: the rows of its table `about`, each a JSON value."""

from __future__ import annotations

from dataclasses import dataclass, field

from frida_rtetrack.reports.leakcheck import LeakCheck
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.heap import HeapDifference, HeapOwner


@dataclass(frozen=True, slots=True)
class About:
    """The keys of the table, and what they are where they were not written."""

    started: Start
    version: str = "?"
    """Of rtetrack-frida."""
    host: str = ""
    begun_complete: bool = True
    """Whether every block was seen from its allocation on: not where a running program was joined."""
    init_ranges: tuple[tuple[int, int], ...] = ()
    """Of EalLife, where the recording began later than the session."""
    owner: HeapOwner | None = None
    cleaned_up: tuple[int, ...] = ()
    """Processes that had called rte_eal_cleanup by then."""
    pid: int = 0
    engine: str = "?"
    compiler: str = "?"
    hooks: int = 0
    events: int = 0
    """How many were written."""
    lost: int = 0
    inserting: tuple[int, ...] = ()
    """See HeapView."""
    last_leaves: tuple[bool, ...] = ()
    """See EalLife."""
    bad_frees_not_kept: int = 0
    ending: Ending = field(default_factory=lambda: Ending(None, None, "unknown"))
    verified: HeapDifference | None = None
    leak_check: LeakCheck | None = None
    damage: str | None = None
    """What was wrong in the session memory."""
    aggregate_seconds: float | None = None
    """Not None: it has no events, but a series with a moment each so many seconds, and what was live at the end."""
    until_ns: int | None = None
    """When it ended, monotonic ns; of an aggregated one, when what is live was written. None where it was not ended in order."""
    stopped: str | None = None
    """Why it ended before the session did."""
    ended: bool = False
    """Whether the recording was ended in order."""
