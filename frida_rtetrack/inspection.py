"""What is found out by looking into the running program's memory from outside: what is lost, who points where, what is free.

What is judged here cannot be judged again from events: who records the session keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from frida_rtetrack.options import LeakKind
from frida_rtetrack.reachability.seeker import Referrer, Seeker
from frida_rtetrack.recording.findings import Finding
from frida_rtetrack.reports import lost
from frida_rtetrack.reports.freespace import FreeSpace, SpaceWatch, heap_space
from frida_rtetrack.reports.leakcheck import LeakCheck, LeakChecker
from frida_rtetrack.reports.leaks import LeakReport, Suppression, leak_report
from frida_rtetrack.reports.lost import LostFinding, LostReport
from frida_rtetrack.session import Session
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.target.group import TargetGroup


class Inspection:
    """Of one session. Every method but `keep_in` and `last_look` raises NotLive where the program's memory is gone."""

    def __init__(
        self,
        group: TargetGroup,
        session: Session,
        *,
        sync: Callable[[], None],
        later: Callable[[str, Callable[[], None]], None],
        leak_check: Collection[LeakKind] = (),
    ) -> None:
        """`sync` waits until what was recorded is applied; `later(what, task)` has a task run aside."""
        self._session = session
        self._group = group
        self._tracking = session.heap.map
        self._seeker = Seeker(self._tracking, group, session.names, sync=sync)
        self._keep: Callable[[Finding], None] = lambda finding: None
        self.spaces = SpaceWatch(self.free_space, later=later)
        """To be subscribed: it looks where allocations fail."""
        self.checker = (
            None
            if not leak_check
            else LeakChecker(
                leak_check,
                self._tracking,
                processes=lambda: group.targets,
                of_event=group.of_event,
                owner=lambda: session.heap.eal.owner,
                search=self.leaks,
                growing=lambda: session.growth.growing(session.names),
            )
        )
        """To be subscribed: it looks when the program ends. None where no such check was asked for."""

    @property
    def subscribers(self) -> tuple[Subscriber, ...]:
        """Those of its parts that hear what happens."""
        return (self.spaces,) if self.checker is None else (self.spaces, self.checker)

    def keep_in(self, keep: Callable[[Finding], None]) -> None:
        """`keep` is handed what is found from now on."""
        self._keep = self.spaces.keep = keep

    def last_look(self) -> None:
        """The program is about to be let go: what is kept of it, or was asked for, is looked at once more."""
        if self.spaces.keep is not None:
            self.spaces.look()
        if self.checker is not None and self._group.hooks and self._group.any_tracked():
            self.checker.look()

    def finish(self) -> None:
        """The program has ended: waits for a look that has begun."""
        if self.checker is not None:
            self.checker.wait()

    def leak_check(self) -> LeakCheck | None:
        """What the check that was asked for has found."""
        return None if self.checker is None else self.checker.result()

    def leaks(self) -> LostReport:
        """Which live blocks nothing points to any more."""
        return lost.report(self._look_for_lost(), self._session.names)

    def leak_report(self, suppressions: Sequence[Suppression]) -> LeakReport:
        """What nobody will free, best evidence first."""
        judged = self._look_for_lost()
        eal, names = self._session.heap.eal, self._session.names
        growing = self._session.growth.growing(names) or ()
        return leak_report(
            self._tracking.live(),
            names,
            eal.init_ranges,
            at_cleanup=eal.at_cleanup,
            judged=judged,
            growing=growing,
            suppressions=suppressions,
        )

    def _look_for_lost(self) -> LostFinding:
        judged = self._seeker.leaks()
        ranges = self._session.heap.eal.init_ranges
        found = lost.finding(judged, ranges, complete=self._tracking.complete, at_ns=time.monotonic_ns())
        self._keep(found)
        return found

    def refs(self, address: int) -> list[Referrer]:
        """What points to the live block that `address` lies in, or into it. Raises BadUsage, too."""
        return self._seeker.refs(address)

    def free_space(self, failed_bytes: int | None = None) -> FreeSpace:
        """How DPDK's free memory is cut up; `failed_bytes`: the allocation that had failed just before."""
        heaps, whole = self._seeker.heaps()
        found = tuple(heap_space(chain, socket) for chain, socket in heaps)
        return FreeSpace(time.monotonic_ns(), found, whole, failed_bytes)
